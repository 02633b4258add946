"""`python -m evaluate.davis RESULTS`: DAVIS 2017 scores of masks that any program has written.

RESULTS holds <sequence>/<frame>.png for every frame, as DAVIS' own evaluator reads them. A suite with
`{task: video, data: davis2017, save: FOLDER}` writes them, to FOLDER/davis2017-DIGEST of the weights; J&F is the same
to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluate.leaderboard.escape import terminal
from evaluate.metrics.video import SequenceScores, evaluate_frame, object_count
from evaluate.storage import write_whole
from evaluate.tasks.video import object_table, tables
from pretrain import cli
from pretrain.arguments import Parser
from pretrain.datasets import ImageError
from pretrain.datasets.indexed import decode_labels
from pretrain.datasets.videos import Davis, Video


def score_results(data: Davis, results: Path) -> list[SequenceScores]:
    """J and F of the masks in a folder for every sequence of a dataset, a frame at a time.

    Raises ImageError naming sequence and frame for a missing, damaged or coloured mask, and ValueError for one of
    another size or with a label above the number of objects.
    """
    return [score_sequence(data, video, results / video.name) for video in data.videos]


def score_sequence(data: Davis, video: Video, folder: Path) -> SequenceScores:
    """J and F of the masks of one sequence; raises as `score_results`."""
    objects = object_count(data.annotation(video, 0), video.name)
    scores = []
    for t in range(len(video)):
        file = folder / f"{data.frame_name(video, t)}.png"
        where = f"{video.name}, frame {t}"
        if not file.is_file():
            raise ImageError(f"{where}: no mask {file}; every frame needs one, the first and the last too")
        found = decode_labels(file.read_bytes(), f"{file} ({where})")
        scores.append(evaluate_frame(data.annotation(video, t), found, objects, where=where))
    j, f = (np.stack(part, axis=1) for part in zip(*scores, strict=True))
    return SequenceScores(j, f)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print J&F and its parts, and with --output write the tables by object and by sequence."""
    parser = Parser(prog="python -m evaluate.davis", description=main.__doc__)
    parser.add_argument("results", type=Path, help="folder with <sequence>/<frame>.png")
    parser.add_argument("--data-root", default="data", help="folder that holds DAVIS (default: %(default)s)")
    parser.add_argument("--split", default="val", help="list of sequences in ImageSets/2017 (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for per_object.csv and per_sequence.csv")
    options = parser.parse_args(arguments)
    with cli.one_line_errors(""):
        data = Davis(options.data_root, options.split)
        names, groups, columns = object_table(data.videos, score_results(data, options.results))
        for name, content in tables(names, groups, columns).items() if options.output else ():
            write_whole(options.output / name, content)
    print(terminal(f"{len(names)} objects in {len(data.videos)} sequences of {data.name}"))
    for name, values in columns.items():
        print(f"{name:<10}{100 * values.mean():7.2f}")


if __name__ == "__main__":
    main()
