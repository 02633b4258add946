"""Which splits of a dataset are trained on and held out where only its images matter, not how they are annotated."""

from __future__ import annotations

from collections.abc import Iterable

#: splits to train on and to test on by kind of annotation, in the order in which they are looked for
PAIRS = (("train", "test"), ("masks_train", "masks_test"), ("instances_train", "instances"))


def image_split(splits: Iterable[str], part: str) -> str:
    """Name of the split that serves as `part`, train or test; both come from one pair.

    Raises ValueError naming the splits that there are when none of them can.
    """
    known, place = list(splits), ("train", "test").index(part)
    pairs = [pair for pair in PAIRS if pair[0] in known] or [pair for pair in PAIRS if pair[place] in known]
    if not pairs or pairs[0][place] not in known:
        wanted = ", ".join(pair[place] for pair in PAIRS)
        raise ValueError(f"no split of images to {part} on: expected one of {wanted}; there are {', '.join(known)}")
    return pairs[0][place]
