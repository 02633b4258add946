"""ShapeWorld, the embedded world: images, masks, boxes and videos in the layouts of real data sets, from a seed alone.

The class is the shape; colour, polarity, texture, size, rotation, place and light are free: mean colour tells nothing.
Every file is the same, byte for byte, on every machine. Run `python -m pretrain.shapeworld --root data`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pretrain._render import (
    CLASSES,
    FINE_CLASSES,
    FRAMES,
    SCENE_SIDE,
    SPLITS,
    VERSION,
    render_fine,
    render_scene,
    render_shapes,
    render_style,
    render_video,
)
from pretrain.arguments import Parser

NOTE = "ShapeWorld is a smoke world: it shows that a method and its evaluation run and learn, it is no benchmark."
PARTS = {
    "shapes": "ImageFolder, 10 shapes of equal area, 3 or 4 of the same shape an image, 64 x 64",
    "scenes": "different shapes an image with occlusion: semantic masks, COCO instances, multi-label lists, 96 x 96",
    "videos": "DAVIS-2017 layout, 1 to 3 moving and rotating objects a sequence, 96 x 128",
    "style": "ImageFolder, the 10 shapes as line drawings on hatched paper: a shifted domain, 64 x 64",
    "fine": "ImageFolder, 8 classes of notched discs that differ in number and form of the notches, 64 x 64",
}
SIZES = {"shapes": (4000, 1000), "scenes": (1000, 300), "videos": (4, 8), "style": (2000, 500), "fine": (1600, 400)}

# File formats. A compressing zlib may emit other bytes in another build, so PNGs hold stored (uncompressed) deflate
# blocks, which have one spelling, no filter and no ancillary chunks. The files are larger, and still small.

_STORED_MAX = 65535  # the length field of a stored block has 16 bits
_GREY, _COLOUR, _PALETTE = 0, 2, 3


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _stored(data: bytes) -> bytes:
    """A zlib stream of stored blocks (RFC 1950, RFC 1951 section 3.2.4)."""
    parts = [b"\x78\x01"]
    for start in range(0, len(data), _STORED_MAX):
        block = data[start : start + _STORED_MAX]
        last = start + _STORED_MAX >= len(data)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    return b"".join([*parts, struct.pack(">I", zlib.adler32(data))])


def encode_png(pixels: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """PNG of uint8 `pixels`: (H, W, 3) colour, (H, W) grey, or (H, W) indices into `palette` (n, 3), n <= 256."""
    height, width = pixels.shape[:2]
    kind = _COLOUR if pixels.ndim == 3 else _GREY if palette is None else _PALETTE
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)  # column 0: filter type 0 (none)
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = [_chunk(b"IHDR", header)]
    if palette is not None:
        chunks.append(_chunk(b"PLTE", palette.astype(np.uint8).tobytes()))
    chunks += [_chunk(b"IDAT", _stored(rows.tobytes())), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def davis_palette() -> np.ndarray:
    """The colours of DAVIS and VOC masks, uint8 (256, 3): a label's bits dealt to red, green, blue, top bit first."""
    palette = np.zeros((256, 3), np.uint8)
    for label in range(256):
        for bit in range(8):
            palette[label, bit % 3] |= ((label >> bit) & 1) << (7 - bit // 3)
    return palette


def run_lengths(mask: np.ndarray) -> list[int]:
    """Uncompressed COCO run lengths of a boolean (H, W) mask: column by column, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges, [mask.size]])).astype(int).tolist()


def coco_annotation(number: int, image: int, category: int, mask: np.ndarray) -> dict[str, object]:
    """One entry of a COCO instances file from a boolean mask (H, W), not empty; box: left, top, width, height."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "area": int(np.count_nonzero(mask)),
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
    }


def json_bytes(value: object) -> bytes:
    """JSON with one spelling: sorted keys, no spaces; the callers keep floats out of it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def tree_digest(files: Mapping[str, str]) -> str:
    """SHA-256 of a folder, from {relative path: SHA-256 of the bytes}: that of a `sha256sum` listing sorted by path."""
    return hashlib.sha256("".join(f"{files[path]}  {path}\n" for path in sorted(files)).encode()).hexdigest()


# Files: every writer yields (path relative to its part, bytes)

Files = Iterator[tuple[str, bytes]]


def _folder(render: Callable[[int, int, str], tuple[np.ndarray, int]], names: Sequence[str]) -> Callable[..., Files]:
    def files(seed: int, split: str, count: int) -> Files:
        for index in range(count):
            image, label = render(seed, index, split)
            yield f"{split}/{names[label]}/{index:05d}.png", encode_png(image)

    return files


def _scene_files(seed: int, split: str, count: int) -> Files:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    lines = []
    for index in range(count):
        image, semantic, objects = render_scene(seed, index, split)
        name = f"{index:05d}.png"
        images.append({"id": index + 1, "file_name": name, "height": SCENE_SIDE, "width": SCENE_SIDE})
        for label, mask in objects:
            annotations.append(coco_annotation(len(annotations) + 1, index + 1, label + 1, mask))
        present = {label for label, _ in objects}
        lines.append(f"images/{split}/{name} " + " ".join(str(int(k in present)) for k in range(len(CLASSES))))
        yield f"images/{split}/{name}", encode_png(image)
        yield f"annotations/{split}/{name}", encode_png(semantic)
    categories = [{"id": k + 1, "name": name, "supercategory": "shape"} for k, name in enumerate(CLASSES)]
    info = {"description": NOTE, "version": str(VERSION)}
    coco = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    yield f"annotations/instances_{split}.json", json_bytes(coco)
    yield f"{split}.txt", ("\n".join(lines) + "\n").encode()


def _video_files(seed: int, split: str, count: int) -> Files:
    palette = davis_palette()
    for index in range(count):
        frames, masks = render_video(seed, index, split)
        for t in range(FRAMES):
            # The layout names frames .jpg; the bytes are PNG, since JPEG encoders differ, and decoders go by content.
            yield f"JPEGImages/480p/{split}-{index:02d}/{t:05d}.jpg", encode_png(frames[t])
            yield f"Annotations/480p/{split}-{index:02d}/{t:05d}.png", encode_png(masks[t], palette)
    yield f"ImageSets/2017/{split}.txt", "".join(f"{split}-{index:02d}\n" for index in range(count)).encode()


_WRITERS: dict[str, Callable[[int, str, int], Files]] = {
    "shapes": _folder(render_shapes, CLASSES),
    "scenes": _scene_files,
    "videos": _video_files,
    "style": _folder(render_style, CLASSES),
    "fine": _folder(render_fine, FINE_CLASSES),
}
_FILE_COUNTS = {"scenes": (2, 2), "videos": (2 * FRAMES, 1)}  # files (an item, a split); the others: (1, 0)


# A world on disk


def _write_part(folder: Path, part: str, seed: int, size: tuple[int, int], bar: tqdm) -> dict[str, object]:
    digests, made = {}, set()
    for split, count in zip(SPLITS, size, strict=True):
        for name, content in _WRITERS[part](seed, split, count):
            path = folder / name
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            path.write_bytes(content)
            digests[name] = hashlib.sha256(content).hexdigest()
            bar.update()
    return {"description": PARTS[part], "files": len(digests), "sha256": tree_digest(digests)}


def _publish(world: Path, target: Path) -> None:
    """Move a finished world to its place; a previous one goes the way of the scratch folder."""
    if target.exists():
        os.rename(target, world.with_name("replaced"))
    try:
        os.rename(world, target)
    except OSError:  # another process published first: fine when it is the same world
        if read_manifest(target.parent) != json.loads((world / "manifest.json").read_bytes()):
            raise


def generate(
    root: Path,
    *,
    seed: int = 0,
    parts: Sequence[str] | None = None,
    progress: bool = True,
    sizes: Mapping[str, tuple[int, int]] = SIZES,
) -> Path:
    """Write `<root>/shapeworld` with exactly these parts (default: all) and return it; it appears whole or not at all.

    `sizes` holds the train and val counts of each part; smaller ones give a prefix of the same images. What was in
    `<root>/shapeworld` is replaced. An unknown part is a ValueError.
    """
    chosen = [part for part in PARTS if parts is None or part in parts]
    for part in parts or ():
        if part not in PARTS:
            raise ValueError(f"ShapeWorld has no part {part!r}; available: {', '.join(PARTS)}")
    counts = {part: (int(sizes[part][0]), int(sizes[part][1])) for part in chosen}
    each = {part: _FILE_COUNTS.get(part, (1, 0)) for part in chosen}
    total = sum(sum(counts[part]) * each[part][0] + 2 * each[part][1] for part in chosen)
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".shapeworld-", dir=root))
    try:
        world = scratch / "shapeworld"
        world.mkdir()
        with tqdm(total=total, desc="ShapeWorld", unit="file", disable=None if progress else True) as bar:
            entries = {part: _write_part(world / part, part, seed, counts[part], bar) for part in chosen}
        manifest = {"note": NOTE, "version": VERSION, "seed": seed, "sizes": counts, "parts": entries}
        (world / "manifest.json").write_bytes(json_bytes(manifest))
        _publish(world, root / "shapeworld")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root / "shapeworld"


def read_manifest(root: Path) -> dict | None:
    """The manifest of `<root>/shapeworld`, or None when there is none of this version that can be read."""
    try:
        manifest = json.loads((Path(root) / "shapeworld" / "manifest.json").read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("version") == VERSION else None


def ensure(root: Path, *, seed: int | None = None, parts: Sequence[str] | None = None, progress: bool = True) -> Path:
    """Generate `<root>/shapeworld` unless a world of this version with these parts is there, and return it.

    `seed` None takes the world that is there, whatever its seed, and 0 for a new one. Missing parts join those present.
    """
    manifest = read_manifest(root) or {"seed": seed or 0, "sizes": {}, "parts": {}}
    wanted = set(PARTS if parts is None else parts)
    if seed in (None, manifest["seed"]) and wanted <= set(manifest["parts"]):
        folder = Path(root) / "shapeworld"
        print(f"ShapeWorld {VERSION}, seed {manifest['seed']}, is already in {folder}: nothing to do")
        return folder
    return generate(
        root,
        seed=manifest["seed"] if seed is None else seed,
        parts=sorted(wanted | set(manifest["parts"])),
        progress=progress,
        sizes={**SIZES, **manifest["sizes"]},
    )


def verify(root: Path) -> list[str]:
    """The parts of `<root>/shapeworld` whose files differ from the manifest; without a manifest a FileNotFoundError."""
    manifest = read_manifest(root)
    folder = Path(root) / "shapeworld"
    if manifest is None:
        raise FileNotFoundError(
            f"{folder} is no ShapeWorld {VERSION}; python -m pretrain.shapeworld --root {root} makes it"
        )
    wrong = []
    for part, entry in manifest["parts"].items():
        digests = {
            path.relative_to(folder / part).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (folder / part).rglob("*")
            if path.is_file()
        }
        if tree_digest(digests) != entry["sha256"]:
            wrong.append(part)
    return wrong


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: generate the world where it is missing, or check it against its manifest."""
    parser = Parser(prog="python -m pretrain.shapeworld", description=main.__doc__, epilog=NOTE)
    parser.add_argument("--root", type=Path, default=Path("data"), help="data folder; it goes to ROOT/shapeworld")
    parser.add_argument("--seed", type=int, default=None, help="default: that of the world already there, else 0")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="default: all")
    parser.add_argument("--verify", action="store_true", help="compare the files with the manifest, write nothing")
    options = parser.parse_args(arguments)
    if not options.verify:
        ensure(options.root, seed=options.seed, parts=options.parts)
        return
    try:
        wrong = verify(options.root)
    except FileNotFoundError as error:
        parser.exit(1, f"{error}\n")
    if wrong:
        parser.exit(1, f"{options.root / 'shapeworld'}: files differ from the manifest in {', '.join(wrong)}\n")
    print(f"{options.root / 'shapeworld'}: every file is as the manifest says")


if __name__ == "__main__":
    main()
