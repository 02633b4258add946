"""Checkpoints of other projects: what is in a file, whose naming it follows, which network that is.

files.py          a file or folder -> named tensors and facts; nothing in it is run, nothing larger than it is allocated
hub.py            names that ask for the network (timm:, hf:) -> a folder on this machine
base.py           a naming scheme, and where in a file a network in it begins (teacher, student, backbone, ...)
dino.py huggingface.py openmmlab.py torchvision_vit.py     one naming scheme each -> timm's names
architecture.py   timm-named tensors and configuration -> arguments of `pretrain.backbones.Backbone`
options.py        what a user adds to a name: path.pth?heads=6&size=224
coverage.py       which tensors found their place, and the report; anything not fully matched is refused
foreign.py        all of it in order
"""
