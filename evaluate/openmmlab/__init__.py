"""Heads for segmentation and detection by OpenMMLab, on a backbone of this suite: nothing else imports OpenMMLab.

library.py     imports mmseg or mmdet, with operators.py in place of mmcv's compiled ones where these are missing
wrapper.py     a backbone as a module of theirs; frozen, or fine-tuned with a learning rate that falls by layer
linear.py      pyramid.py    linear heads and the simple feature pyramid, which they do not have
segmentors.py  detectors.py  settings -> a model
samples.py     images of our readers -> what such a model trains and predicts on
training.py    the loop: resumable byte for byte, in one process or several; no OpenMMLab in it

The loop is ours rather than mmengine's Runner, whose checkpoints need unpickling and whose data order is lost when it
is interrupted; models, losses, assigners, samplers and augmentations are theirs.
"""
