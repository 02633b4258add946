"""Readers: the same images from folders, archives and lists; every kind of image; what is missing is named."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.datasets import ImageError, ImageFolder, ImageList, Images, centre_view, decode
from pretrain.datasets.base import listed, plainly_listed
from pretrain.datasets.names import Growing, Names

DATA = Path(os.environ.get("BITSBENCH_DATA", Path(__file__).resolve().parents[1] / "data"))


def packed(folder: Path, file: Path, mode: str) -> Path:
    with tarfile.open(file, mode) as archive:
        archive.add(folder, arcname=folder.name)
    return file


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz")])
def test_an_archive_reads_like_its_folder(images: Path, tmp_path: Path, ending: str, mode: str) -> None:
    packed(images, tmp_path / f"{images.name}.{ending}", mode)
    a, b = ImageFolder(images, "train"), ImageFolder(tmp_path, "train", folder=images.name)
    assert a.paths == b.paths and a.classes == b.classes == ["class0", "class1", "class2"]
    assert (a.labels == b.labels).all() and len(a) == 36
    for i in (0, 17, 35):
        assert np.array_equal(np.asarray(a.image(i)), np.asarray(b.image(i)))
    assert a.fingerprint == b.fingerprint


def test_the_dataset_or_its_parent_may_be_given(images: Path) -> None:
    inside = ImageFolder(images, "val", folder=images.name)
    parent = ImageFolder(images.parent, "val", folder=images.name)
    assert inside.fingerprint == parent.fingerprint and len(inside) == 18


def test_hidden_files_other_endings_and_case_are_handled(images: Path, tmp_path: Path) -> None:
    pixel = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for name in ("b/2.PNG", "b/10.png", "a/.hidden.png", "a/note.txt", "a/x.JPEG", ".cache/z.png"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("txt"):
            pixel.save(tmp_path / "train" / name, "png")
    (tmp_path / "train/a/note.txt").write_text("no image")
    found = ImageFolder(tmp_path, "train")
    assert found.paths == ["train/a/x.JPEG", "train/b/10.png", "train/b/2.PNG"] and found.classes == ["a", "b"]
    assert found.image(0).size == (4, 4), "decoded by content, not by name"


def test_a_change_of_names_sizes_or_labels_changes_the_fingerprint(images: Path, tmp_path: Path) -> None:
    from tiny import write_images

    first = ImageFolder(write_images(tmp_path / "a", train=2, val=1), "train").fingerprint
    assert ImageFolder(write_images(tmp_path / "b", train=2, val=1), "train").fingerprint == first
    (tmp_path / "b/train/class0/000.png").rename(tmp_path / "b/train/class1/zzz.png")
    assert ImageFolder(tmp_path / "b", "train").fingerprint != first


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_every_kind_of_image_becomes_rgb() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = Image.fromarray(ramp)
    rgb = Image.merge("RGB", [grey, grey, grey])
    wide = Image.fromarray(ramp.astype(np.uint16) * 257)
    for image, form in ((grey, "png"), (rgb.quantize(256), "png"), (rgb.convert("RGBA"), "png"), (wide, "png")):
        found = np.asarray(decode(encoded(image, form), "x"))
        assert found.shape == (16, 16, 3) and np.abs(found[..., 0].astype(int) - ramp).max() <= 1
    assert decode(encoded(rgb.convert("CMYK"), "jpeg"), "x").mode == "RGB"


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(Image.new("RGB", (64, 64)), "png")[:40]])
def test_what_is_no_image_is_named(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"cannot decode folder/x\.png: .*skip_bad=true"):
        decode(data, "folder/x.png")


def test_lists_give_classes_or_sets_of_classes_in_their_order(images: Path) -> None:
    (images / "one.txt").write_text("train/class1/003.png 1\r\n\n train/class0/000.png 0\n")
    (images / "many.txt").write_text("train/class1/003.png 0 1 1\ntrain/class0/000.png 1 0 0\n")
    one, many = ImageList(images, "one.txt"), ImageList(images, "many.txt")
    assert one.paths == many.paths == ["train/class1/003.png", "train/class0/000.png"]
    assert one.labels.tolist() == [1, 0] and many.labels.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert one.image(0).size == (20, 20)
    for text, says in (("a.png x", "must be integers"), ("a.png 1\nb.png 1 0", "2 labels"), ("a.png", "0 labels")):
        (images / "bad.txt").write_text(text)
        with pytest.raises(ImageError, match=says):
            ImageList(images, "bad.txt")


def test_a_folder_of_any_depth_needs_no_labels(images: Path) -> None:
    found = Images(images)
    assert len(found) == 54 and found.labels is None


def test_what_is_missing_is_named_with_the_expected_layout(images: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no dataset at .*expected test/<class>/<image>"):
        ImageFolder(images, "test")
    with pytest.raises(FileNotFoundError, match="no image found"):
        Images(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        Images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no list file"):
        ImageList(tmp_path, "list.txt")
    (tmp_path / "list.txt").write_text("gone.png 0\n")
    with pytest.raises(ImageError, match=r"cannot read .*gone\.png"):
        ImageList(tmp_path, "list.txt").image(0)


def test_names_are_a_sequence_of_strings_in_few_bytes(tmp_path: Path) -> None:
    plain = ["a/b.jpg", "", "ä ö/\udcff.png", "z" * 300]
    names = Names(iter(plain))
    assert names == plain and names == Names(names) and list(names) == plain and names[1:] == plain[1:]
    assert names[-1] == plain[-1] and "ä ö/\udcff.png" in names and names.index("") == 1 and len(names) == 4
    assert names != plain[:3] and names != [*plain[:3], "y"] and "a/b.jpg" in repr(names)
    with pytest.raises(IndexError):
        names[4]


def test_many_names_and_labels_lie_on_the_disk(tmp_path: Path) -> None:
    plain = [f"{i:07d}.jpg" for i in range(200_001)]
    (tmp_path / "list.txt").write_text("".join(f"{name} {i % 7}\n" for i, name in enumerate(plain)))
    found = ImageList(tmp_path, "list.txt")
    for images in (found, pickle.loads(pickle.dumps(found))):  # as a decoding process may get it
        assert images.paths == plain and images.paths[199_999:] == plain[199_999:] and images.paths[-1] == plain[-1]
        assert images.labels is not None and images.labels.tolist() == [i % 7 for i in range(200_001)]
        images.paths.release()
        assert images.paths[123_456] == plain[123_456]
    (tmp_path / "list.txt").unlink()
    assert found.paths == Names(iter(plain)) and found.paths != Names(iter([*plain[:-1], "other.jpg"]))
    assert found.labels is not None and found.labels.flags.writeable and found.paths[5:5] == []
    grown, numbers = Growing(np.int64, limit=100), np.arange(1000)
    for part in np.array_split(numbers, 13):
        grown.extend(part)
    assert np.array_equal(grown.whole(), numbers) and Growing(np.int64).whole().shape == (0,)


def test_classes_are_in_order_of_their_names_and_images_of_their_paths(tmp_path: Path) -> None:
    for path in ("a/1.png", "a-b/1.png", "a/0/1.png"):  # "-" comes before "/", so paths order classes otherwise
        (tmp_path / "train" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / path)
    found = ImageFolder(tmp_path, "train")
    assert found.paths == ["train/a-b/1.png", "train/a/0/1.png", "train/a/1.png"]
    assert found.classes == ["a", "a-b"] and found.labels is not None and found.labels.tolist() == [1, 0, 0]


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(b"no archive at all" * 100)
    with pytest.raises(ImageError, match=r"cannot read archive .*set\.tar"):
        ImageFolder(tmp_path, "train", folder="set")


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (20, 20), (23, 31)])
def test_the_centre_view_keeps_the_middle(size: tuple[int, int]) -> None:
    width, height = size
    image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    image.putpixel((width // 2, height // 2), (255, 255, 255))
    view = centre_view(image, 20, 16)
    assert view.shape == (16, 16, 3)
    y, x = np.unravel_index(view[..., 0].argmax(), (16, 16))
    assert abs(int(y) - 8) <= 1 and abs(int(x) - 8) <= 1


@pytest.mark.skipif(
    not (DATA / "cifar10").is_dir(), reason="needs data/cifar10 (or BITSBENCH_DATA=folder that holds it)"
)
def test_cifar10_is_read_as_published() -> None:
    for split, count in (("train", 50_000), ("test", 10_000)):
        found = ImageFolder(DATA, split, folder="cifar10")
        assert len(found) == count and found.classes[0] == "airplane" and found.classes[-1] == "truck"
        assert np.bincount(found.labels).tolist() == [count // 10] * 10 and found.image(0).size == (32, 32)


LINES = [
    "a.jpg 3",
    "b/c 12",
    "d.png 007",
    "e f.jpg 1",
    "g.jpg  2",
    "h.jpg\t4",
    "ü.jpg 5",
    "i.jpg 123456789012345678",
    "j 1_0",
]


@pytest.mark.parametrize("block", [1, 9, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_plain_list_is_read_at_once_as_line_by_line(end, block):
    plain = 0
    for first, second in itertools.product(LINES, repeat=2):
        data = f"{first}\n{second}{end}".encode()
        if (found := plainly_listed(io.BytesIO(data), block)) is None:
            continue
        plain += 1
        paths, labels = listed(io.StringIO(data.decode()), "list.txt")
        assert found[0] == paths and list(found[0]) == list(paths) and found[0][0:1] == paths[0:1]
        np.testing.assert_array_equal(found[1], labels, strict=True)
    assert plain == (0 if end == "\r\n" else 16)
    for data in (b"", b"a.jpg\n", b" 3\n", b"a.jpg \n", b"\n"):
        assert plainly_listed(io.BytesIO(data), block) is None
