"""Small copies of datasets as their publishers lay them out, odd cases and all, and what reading them must give."""

from __future__ import annotations

import io
import json
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

V2 = "imagenetv2-matched-frequency-format-val"
WNIDS = ("n01440764", "n01443537", "n01484850")
#: dataset -> the folder that holds it, and the archive that the folder may be packed in
PACKED = {
    "birds525": ("birds525", "birds525.tar"),
    "cifar10_binary": ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    "coco": ("coco", "coco.tar"),
    "food101": ("food-101", "food-101.tar.gz"),
    "imagenet": ("imagenet", "imagenet.tar"),
    "imagenet100": ("imagenet100", "imagenet100.tar"),
    "imagenet_samples": ("imagenet_samples", "imagenet_samples.tar"),
    "imagenette": ("imagenette2", "imagenette2.tgz"),
    "imagenetv2": (V2, "imagenetv2-matched-frequency.tar.gz"),
    "inat2019": ("inat2019", "inat2019.tar"),
    "plantnet": ("plantnet_300K", "plantnet_300K.tar"),
    "voc": ("VOCdevkit", "VOCtrainval_11-May-2012.tar"),
}


@cache
def encoded(form: str = "JPEG", mode: str = "RGB") -> bytes:
    """A picture of 8 x 6 pixels."""
    buffer = io.BytesIO()
    Image.new(mode, (8, 6)).save(buffer, form)
    return buffer.getvalue()


def write(root: Path, *names: str, data: bytes | None = None) -> None:
    """Files with a picture, or with these bytes, and their folders."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded() if data is None else data)


def text(root: Path, name: str, content: str) -> None:
    """A text file."""
    write(root, name, data=content.encode())


def pack(root: Path, name: str, place: Path) -> None:
    """The archive of a dataset, in `place`."""
    folder, archive = PACKED[name]
    place.mkdir(exist_ok=True)
    with tarfile.open(place / archive, "w:gz" if archive.endswith("gz") else "w") as file:
        file.add(root / folder, arcname=folder)


def birds525(root: Path) -> None:
    for split in ("train", "valid", "test"):
        place = root / "birds525" / split
        write(place, "PARAKETT  AKULET/001.jpg", "ABBOTTS BABBLER/2.jpg", "ABBOTTS BABBLER/10.JPG")
    text(root, "birds525/birds.csv", "class id,filepaths,labels\n")


def cifar10_binary(root: Path) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    text(root, "cifar-10-batches-bin/batches.meta.txt", "\n".join(names) + "\n\n")
    text(root, "cifar-10-batches-bin/readme.html", "<html>")
    for i, file in enumerate(("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")):
        write(root, f"cifar-10-batches-bin/{file}.bin", data=record(i, 10, 20, 30) + record(9, 40, 50, 60))
    write(root, "cifar-10-batches-bin/test_batch.bin", data=record(3, 1, 2, 3))


def record(label: int, *colour: int) -> bytes:
    """A CIFAR-10 record of one colour, its upper right pixel black."""
    planes = np.repeat(np.array(colour, np.uint8), 1024).reshape(3, 1024)
    planes[:, 31] = 0
    return bytes([label]) + planes.tobytes()


def coco(root: Path, year: int = 2014) -> None:
    for split in ("train", "val"):
        prefix = f"COCO_{split}2014_" if year == 2014 else ""
        images = [{"id": i, "file_name": f"{prefix}{i:012d}.jpg"} for i in (9, 4, 139)]
        objects = [(139, 90, 0), (9, 1, 1), (9, 13, 0), (9, 13, 0)]  # image 4 shows nothing; 1 is a crowd alone
        marks = [{"id": i, "image_id": a, "category_id": b, "iscrowd": c} for i, (a, b, c) in enumerate(objects)]
        categories = [{"id": i, "name": f"category {i}"} for i in (90, 13, 1)]
        content = {"images": images, "annotations": marks, "categories": categories}
        text(root, f"coco/annotations/instances_{split}{year}.json", json.dumps(content))
        write(root / "coco" / f"{split}{year}", *(image["file_name"] for image in images))


def food101(root: Path) -> None:
    text(root, "food-101/meta/classes.txt", "waffles\r\napple_pie\r\n\r\n")
    text(root, "food-101/meta/train.txt", "waffles/77\r\n\r\napple_pie/1005649\r\napple_pie/101\r\n")
    text(root, "food-101/meta/test.txt", "apple_pie/5")
    write(root / "food-101/images", "waffles/77.jpg", "apple_pie/101.jpg", "apple_pie/1005649.jpg", "apple_pie/5.jpg")


def imagenet(root: Path, folder: str = "imagenet") -> None:
    for split in ("train", "val"):
        place = root / folder / split
        write(place, f"{WNIDS[2]}/a_1.JPEG")
        write(place, f"{WNIDS[0]}/a_10.JPEG", data=encoded("PNG"))
        write(place, f"{WNIDS[1]}/a_2.JPEG", data=encoded("JPEG", "CMYK"))


def imagenet100(root: Path) -> None:
    imagenet(root, "imagenet100")
    text(root, "imagenet100/imagenet100.txt", f"{WNIDS[2]} great white shark\r\n\r\n{WNIDS[0]}\r\n")


def imagenet_samples(root: Path) -> None:
    write(root / "imagenet_samples", *(f"{wnid}/{wnid}.jpg" for wnid in WNIDS))
    text(root, "imagenet_samples/classes.csv", "wnid,imagenet1k_index\n")


def imagenette(root: Path) -> None:
    imagenet(root, "imagenette2")
    text(root, "imagenette2/noisy_imagenette.csv", "path\n")


def imagenetv2(root: Path) -> None:
    write(root / V2, "10/b.jpeg", "10/a.jpeg", "0/x.jpeg", "2/x.jpeg", "100/x.jpeg")


def inat2019(root: Path) -> None:
    categories = [{"id": i, "name": str(i), "supercategory": "Birds"} for i in (1, 0, 2)]
    for split, shown in (("train", (2, 0, 0)), ("val", (1,))):
        files = [f"train_val2019/Birds/{c}/{split}{i}.jpg" for i, c in enumerate(shown)]
        images = [{"id": 50 + i, "file_name": file} for i, file in enumerate(files)]
        marks = [{"id": i, "image_id": 50 + i, "category_id": c} for i, c in enumerate(shown)]
        content = {"images": images, "annotations": marks[::-1], "categories": categories}
        text(root, f"inat2019/{split}2019.json", json.dumps(content))
        write(root / "inat2019", *files)
    text(root, "inat2019/test2019.json", json.dumps({"images": [{"id": 1, "file_name": "test2019/a.jpg"}]}))
    write(root, "inat2019/test2019/a.jpg")


def plantnet(root: Path, split: str = "images/{}") -> None:
    for part in ("train", "val", "test"):
        write(root / "plantnet_300K" / split.format(part), "999/b.jpg", "1355868/c.jpg", "1355868/a.jpg")
    text(root, "plantnet_300K/plantnet300K_metadata.json", "{}")


def voc(root: Path) -> None:
    """Two images: the first has a person, and a dog that is difficult alone; the second a difficult dog and no more."""
    place = root / "VOCdevkit/VOC2012"
    from pretrain.datasets.voc import CLASSES

    for split in ("train", "val"):
        text(place, f"ImageSets/Main/{split}.txt", "2008_000008\r\n2007_000027\r\n\r\n")
        for name in CLASSES:
            first, second = {"person": (" 1", "-1"), "dog": (" 0", " 0")}.get(name, ("-1", "-1"))
            # Lines in another order than the list of images.
            content = f"2007_000027 {second}\r\n2008_000008 {first}\r\n"
            text(place, f"ImageSets/Main/{name}_{split}.txt", content)
    dog = "<object><name>dog</name><difficult>1</difficult></object>"
    person = "<object><name>person</name><difficult>0</difficult><part><name>head</name></part></object>"
    text(place, "Annotations/2008_000008.xml", f"<annotation>{person}{dog}</annotation>")
    text(place, "Annotations/2007_000027.xml", f"<annotation>{dog}</annotation>")
    write(place / "JPEGImages", "2007_000027.jpg", "2008_000008.jpg")


def build(name: str, root: Path) -> Path:
    """The small copy of a dataset below `root`."""
    globals()[name](root)
    return root


PERSON = [0] * 14 + [1] + [0] * 5
TREE = ([f"{WNIDS[0]}/a_10.JPEG", f"{WNIDS[1]}/a_2.JPEG", f"{WNIDS[2]}/a_1.JPEG"], [0, 1, 2], list(WNIDS))
SHOWN = ([f"train2014/COCO_train2014_{i:012d}.jpg" for i in (9, 139)], [[1, 1, 0], [0, 0, 1]])
BIRDS = ["ABBOTTS BABBLER/10.JPG", "ABBOTTS BABBLER/2.jpg", "PARAKETT  AKULET/001.jpg"]
#: dataset -> split -> paths, labels and classes (None: not looked at here)
EXPECTED: dict[str, dict[str, tuple]] = {
    "birds525": {
        split: ([f"{folder}/{path}" for path in BIRDS], [0, 0, 1], ["ABBOTTS BABBLER", "PARAKETT  AKULET"])
        for split, folder in (("train", "train"), ("val", "valid"), ("test", "test"))
    },
    "cifar10_binary": {
        "train": (
            [f"data_batch_{i}.bin:{j}" for i in range(1, 6) for j in (0, 1)],
            [0, 9, 1, 9, 2, 9, 3, 9, 4, 9],
            None,
        ),
        "test": (["test_batch.bin:0"], [3], None),
    },
    "coco": {"train": (*SHOWN, ["category 1", "category 13", "category 90"])},
    "food101": {
        "train": (
            ["images/waffles/77.jpg", "images/apple_pie/1005649.jpg", "images/apple_pie/101.jpg"],
            [1, 0, 0],
            ["apple_pie", "waffles"],
        ),
        "test": (["images/apple_pie/5.jpg"], [0], ["apple_pie", "waffles"]),
    },
    "imagenet": {
        split: ([f"{folder}/{path}" for path in TREE[0]], *TREE[1:])
        for split, folder in (("train", "train"), ("test", "val"))
    },
    "imagenet100": {
        "train": ([f"train/{WNIDS[0]}/a_10.JPEG", f"train/{WNIDS[2]}/a_1.JPEG"], [0, 1], [WNIDS[0], WNIDS[2]]),
        "test": ([f"val/{WNIDS[0]}/a_10.JPEG", f"val/{WNIDS[2]}/a_1.JPEG"], [0, 1], [WNIDS[0], WNIDS[2]]),
    },
    "imagenet_samples": {"train": ([f"{wnid}/{wnid}.jpg" for wnid in WNIDS], None, [])},
    "imagenette": {"test": ([f"val/{path}" for path in TREE[0]], *TREE[1:])},
    "imagenetv2": {
        "test": (["0/x.jpeg", "2/x.jpeg", "10/a.jpeg", "10/b.jpeg", "100/x.jpeg"], [0, 2, 10, 10, 100], None)
    },
    "inat2019": {
        "train": (
            [f"train_val2019/Birds/{c}/train{i}.jpg" for i, c in enumerate((2, 0, 0))],
            [2, 0, 0],
            ["0", "1", "2"],
        ),
        "test": (["train_val2019/Birds/1/val0.jpg"], [1], ["0", "1", "2"]),
    },
    "plantnet": {
        split: (
            [f"images/{split}/{p}" for p in ("1355868/a.jpg", "1355868/c.jpg", "999/b.jpg")],
            [0, 0, 1],
            ["1355868", "999"],
        )
        for split in ("train", "val", "test")
    },
    "voc": {"train": ([f"JPEGImages/{i}.jpg" for i in ("2008_000008", "2007_000027")], [PERSON, [0] * 20], None)},
}
