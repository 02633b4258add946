"""Images on disk, read as their publishers lay them out: one file a format, each a class with `root` and `split`.

sources     directories and tar archives; text and JSON files in them; what is missing is named with its layout
base        what every reader is; ImageFolder, folders without labels, list files
classes     one order of classes for several splits
imagenet    ImageNet-1k (classes as folders, or flat with a label file), ImageNet-V2, ImageNet-100
cifar       CIFAR-10's binary batches
food        Food-101
inaturalist iNaturalist 2019
coco        the classes present in images of COCO
voc         the classes present in images of PASCAL VOC
masks       semantic masks: PASCAL VOC, ADE20K, CamVid, any two folders (indexed: label maps as images)
instances   objects with boxes and masks: COCO, PASCAL VOC
videos      DAVIS
landmarks   revisited Oxford and Paris (pickles: their ground truth, read as data)
copydays    Copydays
"""

from pretrain.datasets.base import (
    EXTENSIONS,
    ImageData,
    ImageFolder,
    ImageList,
    Images,
    centre_view,
    decode,
    is_image,
)
from pretrain.datasets.sources import Archive, Folder, ImageError, locate

__all__ = [
    "EXTENSIONS",
    "Archive",
    "Folder",
    "ImageData",
    "ImageError",
    "ImageFolder",
    "ImageList",
    "Images",
    "centre_view",
    "decode",
    "is_image",
    "locate",
]
