"""Records on disk: whole or not at all, one a (weights, task, dataset, protocol), and never trusted blindly."""

import io
import json
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from example_records import checkpoint, record

from evaluate import records
from evaluate.records import Score, find, fingerprint, migrate, read, read_all, read_statuses, verify, write

ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("fork")


def test_a_record_comes_back_as_it_was_written(tmp_path):
    scores = {
        "top1": Score(0.75, 0.5, 1.0, 4),
        "ap": Score(math.nan, None, None, 0, "query"),
        "bits": Score(7.1, None, None, 4, scale="bits"),
    }
    original = record(
        scores=scores,
        skipped={"no label": 2},
        notes=["cached"],
        outcomes={"ap": np.array([0.5, np.nan]), "sample_id": np.array(["a", "ü"])},
    )
    stored = read(write(tmp_path, original))
    assert {k: v for k, v in asdict(stored).items() if k not in ("outcomes", "scores", "path")} == {
        k: v for k, v in asdict(original).items() if k not in ("outcomes", "scores", "path")
    }
    assert stored.scores["top1"] == scores["top1"] and stored.scores["bits"] == scores["bits"]
    assert math.isnan(stored.scores["ap"].value)
    for name, array in original.outcomes.items():
        np.testing.assert_array_equal(stored.outcomes[name], array)
        assert stored.outcomes[name].dtype == array.dtype


def test_numpy_numbers_are_stored_as_numbers(tmp_path):
    score = Score(np.float32(0.5), None, None, np.int64(4))
    stored = read(write(tmp_path, record(scores={"top1": score}, protocol={"k": np.int64(20), "scales": (1, 0.5)})))
    assert stored.score.value == 0.5 and stored.protocol == {"k": 20, "scales": [1, 0.5]}


def test_the_fingerprint_follows_every_choice_and_nothing_else():
    base = ("knn", 1, "data-1", {"k": 20, "T": 0.07, "features": {"token": "cls"}})
    same = fingerprint("knn", 1, "data-1", {"features": {"token": "cls"}, "T": 0.07, "k": 20.0})
    others = [
        fingerprint("retrieval", *base[1:]),
        fingerprint("knn", 2, *base[2:]),
        fingerprint("knn", 1, "data-2", base[3]),
        fingerprint(*base[:3], {**base[3], "k": 10}),
        fingerprint(*base[:3], {**base[3], "features": {"token": "avg"}}),
        fingerprint(*base[:3], {**base[3], "crop": None}),
    ]
    assert fingerprint(*base) == same
    assert len({same, *others}) == 1 + len(others)


def test_a_second_evaluation_replaces_the_first_and_its_outcomes(tmp_path):
    first, second = write(tmp_path, record(correct=[0, 0, 0, 1])), write(tmp_path, record(correct=[1, 1, 1, 1]))
    assert first == second and read(second).score.value == 1.0
    assert len(list(tmp_path.rglob("*.npz"))) == 1 and verify(tmp_path) == []


def test_the_same_weights_under_a_new_name_stay_one_record(tmp_path):
    write(tmp_path, record())
    write(tmp_path, record(checkpoint=checkpoint("renamed", weights_digest="digest-of-bits-s0")))
    assert [r.checkpoint["name"] for r in read_all(tmp_path)] == ["renamed"]
    assert verify(tmp_path) == []


@pytest.mark.parametrize(
    "change", [{"dataset": "food101"}, {"task": "retrieval"}, {"protocol": {"k": 10}}, {"task_version": 2}]
)
def test_another_task_dataset_or_protocol_is_another_record(tmp_path, change):
    write(tmp_path, record())
    write(tmp_path, record(**change))
    assert len(read_all(tmp_path)) == 2


def _die_at(root: Path, call: int) -> None:
    """Overwrite the record in `root`, but end the process before the given file operation."""
    calls = iter(range(100))
    real = os.replace, os.unlink

    def counted(real_call):
        def wrapper(*args, **kwargs):
            if next(calls) == call:
                os._exit(9)
            return real_call(*args, **kwargs)

        return wrapper

    os.replace, os.unlink = map(counted, real)
    write(root, record(correct=[1, 1, 1, 1]))


@pytest.mark.parametrize("call", range(5))
def test_a_kill_in_the_middle_leaves_the_old_or_the_new_record_whole(tmp_path, call):
    write(tmp_path, record(correct=[0, 0, 0, 1]))
    process = FORK.Process(target=_die_at, args=(tmp_path, call))
    process.start()
    process.join()
    assert process.exitcode == 9, "the write has fewer steps than this test kills at"
    (stored,) = read_all(tmp_path)
    assert stored.score.value == stored.outcomes["correct"].mean()
    assert all("safe to delete" in line for line in verify(tmp_path))
    write(tmp_path, record(correct=[1, 1, 0, 0]))
    assert read_all(tmp_path)[0].score.value == 0.5


def _write_many(root: Path, process: int, rounds: int) -> None:
    for i in range(rounds):
        write(root, record(dataset=f"set-{process}-{i}"))
        write(root, record(f"run-{process}-{i}"))
        write(root, record("shared", correct=[process, 1, 1, i % 2]))


def test_two_processes_writing_at_once_lose_nothing(tmp_path):
    writers = [FORK.Process(target=_write_many, args=(tmp_path, p, 12)) for p in range(2)]
    for writer in writers:
        writer.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a reader beside them never sees a damaged file
        while any(writer.is_alive() for writer in writers):
            read_all(tmp_path)
    for writer in writers:
        writer.join()
    stored = read_all(tmp_path)
    assert len(stored) == 2 * 12 * 2 + 1
    assert all(r.score.value == r.outcomes["correct"].mean() for r in stored)


@pytest.mark.slow
def test_two_processes_writing_a_thousand_records_each_lose_none(tmp_path):
    writers = [FORK.Process(target=_write_many, args=(tmp_path, p, 334)) for p in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    problems: list[str] = []
    assert len(read_all(tmp_path, problems)) == 2 * 334 * 2 + 1 and problems == []
    # Both replace one record all the time: the outcomes of a write that was overtaken may stay, and verify says so.
    assert all("shared" in line and "safe to delete" in line for line in verify(tmp_path))


def test_a_damaged_file_is_named_and_the_rest_is_read(tmp_path):
    damaged, whole = write(tmp_path, record()), write(tmp_path, record("dino-s0"))
    damaged.write_text(damaged.read_text()[:100])
    problems: list[str] = []
    assert [r.path for r in read_all(tmp_path, problems)] == [whole]
    assert len(problems) == 1 and str(damaged) in problems[0] and "\n" not in problems[0]
    with pytest.warns(UserWarning, match="damaged record"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": {}},
        {"checkpoint": {"name": "x"}},
        {"task": 3},
        {"protocol": {"k": 99}},
        {"unknown": 1},
        {"notes": None},
    ],
)
def test_a_record_edited_by_hand_is_refused(tmp_path, change):
    path = write(tmp_path, record())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="damaged record"):
        read(path)


def test_a_newer_schema_is_refused_in_one_line_and_an_older_one_migrated(tmp_path):
    path = write(tmp_path, record())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": records.SCHEMA + 1}))
    newer = rf"schema {records.SCHEMA + 1} is newer than this program reads \({records.SCHEMA}\)"
    with pytest.raises(ValueError, match=newer) as error:
        read(path)
    assert "\n" not in str(error.value)
    steps = {1: lambda data: data | {"a": data["a"] + 1}, 2: lambda data: data | {"a": data["a"] * 10}}
    assert migrate({"schema": 1, "a": 1}, steps, newest=3) == {"schema": 3, "a": 20}
    with pytest.raises(ValueError, match="unknown"):
        migrate({"a": 1})


def test_a_record_of_the_first_schema_is_read_as_the_same_record(tmp_path):
    path = write(tmp_path, record(correct=[1, 0, 0, 1]))
    now, data = read(path), json.loads(path.read_text())
    del data["outcomes"]["names"]  # all that schema 1 lacked
    path.write_text(json.dumps(data | {"schema": 1}))
    old = read(path)
    assert set(old.outcomes) == set(now.outcomes) and old.scores == now.scores and old.fingerprint == now.fingerprint
    np.testing.assert_array_equal(old.main_outcomes(), [1, 0, 0, 1])
    assert verify(tmp_path) == []
    write(tmp_path, old)
    assert json.loads(path.read_text())["schema"] == records.SCHEMA and verify(tmp_path) == []


def test_a_record_names_its_outcomes_without_opening_them(tmp_path):
    stored = read(write(tmp_path, record(outcomes={"correct": np.ones(4), "sample_id": np.arange(4)})))
    content = stored.outcomes.path.read_bytes()
    stored.outcomes.path.unlink()
    assert list(stored.outcomes) == ["correct", "sample_id"] and "group" not in stored.outcomes
    with pytest.raises(FileNotFoundError):
        stored.main_outcomes()
    stored.outcomes.path.write_bytes(content)
    data = json.loads(stored.path.read_text())
    data["outcomes"]["names"] = ["correct"]
    stored.path.write_text(json.dumps(data))
    (line,) = verify(tmp_path)
    assert "holds ['correct', 'sample_id'], recorded were ['correct']" in line


def test_verify_reports_missing_changed_and_orphaned_outcomes(tmp_path):
    missing, changed = read(write(tmp_path, record())), read(write(tmp_path, record("dino-s0")))
    missing.outcomes.path.unlink()
    changed.outcomes.path.write_bytes(changed.outcomes.path.read_bytes() + b"x")
    (changed.path.parent / "orphan.npz").write_bytes(b"")
    lines = verify(tmp_path)
    assert len(lines) == 3
    for file, word in (
        (missing.outcomes.path, "missing"),
        (changed.outcomes.path, "sha256"),
        ("orphan.npz", "no record"),
    ):
        assert any(str(file) in line and word in line for line in lines)


def test_outcomes_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = write(tmp_path, record())
    data, buffer = json.loads(path.read_text()), io.BytesIO()
    np.savez(buffer, correct=np.array([Bomb()], dtype=object))
    for content in (buffer.getvalue(), pickle.dumps(Bomb())):
        (path.parent / data["outcomes"]["file"]).write_bytes(content)
        data["outcomes"]["sha256"] = records.hashlib.sha256(content).hexdigest()
        path.write_text(json.dumps(data))
        with pytest.raises(ValueError, match="no file of arrays"):
            read(path).main_outcomes()
    assert not (tmp_path / "exploded").exists()


def test_a_record_cannot_name_outcomes_elsewhere(tmp_path):
    path = write(tmp_path, record())
    data = json.loads(path.read_text())
    data["outcomes"]["file"] = "../../../etc/passwd"
    path.write_text(json.dumps(data))
    assert read(path).outcomes.path.parent == path.parent


@pytest.mark.parametrize(
    "name", ["../../escape", "a/b", "", "x" * 300, "<script>", "tab\tname", "\N{SNOWMAN}", ".hidden", "status"]
)
def test_no_name_leaves_the_folder_or_collides(tmp_path, name):
    path = write(tmp_path, record(checkpoint=checkpoint(name or "?"), task=name, dataset=name))
    assert path.resolve().is_relative_to(tmp_path.resolve()) and len(path.name) < 200
    assert [r.task for r in read_all(tmp_path)] == [name]
    write(tmp_path, record(checkpoint=checkpoint(name or "?"), task=name + " ", dataset=name))
    assert len(find(tmp_path, weights_digest=f"digest-of-{name or '?'}")) == 2
    assert len(find(tmp_path, weights_digest=f"digest-of-{name or '?'}", task=name)) == 1


def test_names_that_differ_only_in_unsafe_characters_have_files_of_their_own(tmp_path):
    for task in ("a b", "a/b", "a-b", "a?b"):
        write(tmp_path, record(task=task))
        records.write_status(tmp_path, checkpoint(), task, "food101", "skipped", "no data", "download it")
    assert len(read_all(tmp_path)) == len(read_statuses(tmp_path)) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": {"crop": {"scale": math.nan}}}, "protocol.crop.scale = nan"),
        ({"protocol": {"k": {20}}}, r"protocol.k = \{20\}"),
        ({"scores": {"top1": Score(72.4, None, None, 4)}}, "72.4 is no fraction"),
        ({"main": "top5"}, "main = 'top5'"),
        ({"provenance": {}}, "dataset_fingerprint is missing"),
        ({"checkpoint": checkpoint(weights_digest="")}, "weights_digest = ''"),
        ({"checkpoint": checkpoint(kind="mine")}, "run, baseline, foreign"),
        ({"outcomes": {"correct": np.array([None])}}, "Python objects"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        write(tmp_path, record(**changes))
    assert list(tmp_path.rglob("*.json")) == []


def test_weights_with_a_label_are_a_row_of_their_own(tmp_path):
    labelled = record(checkpoint=checkpoint("music-s0", label="inferred", weights_digest="w" * 8))
    for each in (record(checkpoint=checkpoint("imsvd-s0", weights_digest="w" * 8)), labelled):
        write(tmp_path, each)
    assert {r.checkpoint["name"] for r in read_all(tmp_path)} == {"imsvd-s0", "music-s0"}
    for label, name in (("", "imsvd-s0"), ("inferred", "music-s0")):
        [found] = find(tmp_path, weights_digest="w" * 8, label=label)
        assert found.checkpoint["name"] == name
    write(tmp_path, record(checkpoint=checkpoint("renamed", weights_digest="w" * 8)))
    assert {r.checkpoint["name"] for r in read_all(tmp_path)} == {"renamed", "music-s0"}


def test_find_combines_properties(tmp_path):
    kept = [record(), record("dino-s0"), record(dataset="food101"), record(protocol={"k": 10})]
    for each in kept:
        write(tmp_path, each)
    assert len(find(tmp_path)) == 4
    assert len(find(tmp_path, weights_digest="digest-of-bits-s0")) == 3
    assert len(find(tmp_path, dataset="cifar10", task="knn")) == 3
    exact = find(
        tmp_path, weights_digest="digest-of-bits-s0", task="knn", dataset="cifar10", fingerprint=kept[3].fingerprint
    )
    assert [r.protocol for r in exact] == [{"k": 10}]
    assert find(tmp_path, weights_digest="unknown") == []


def test_a_status_yields_to_the_record(tmp_path):
    unread = {"name": "bits-s0"}  # its weights could not be loaded, so there is no digest
    records.write_status(tmp_path, checkpoint(), "knn", "cifar10", "skipped", "no data", "download it")
    records.write_status(tmp_path, checkpoint(), "knn", "cifar10", "failed", "out of memory", "smaller batch")
    records.write_status(tmp_path, unread, "knn", "cifar10", "failed", "no such file", "check the path")
    records.write_status(tmp_path, checkpoint(), "knn", "food101", "skipped", "no data", "download it")
    assert sorted(s.reason for s in read_statuses(tmp_path)) == ["no data", "no such file", "out of memory"]
    assert read_all(tmp_path) == []
    write(tmp_path, record())
    assert [(s.dataset, s.remedy) for s in read_statuses(tmp_path)] == [("food101", "download it")]
    with pytest.raises(ValueError, match="'lost' is unknown: use one of skipped, failed"):
        records.write_status(tmp_path, checkpoint(), "knn", "cifar10", "lost", "", "")


def test_the_command_line_lists_verifies_and_exports(tmp_path, capsys):
    write(tmp_path, record())
    path = write(tmp_path, record("dino-s0", checkpoint=checkpoint("dino-s0", objective="dino")))
    root = ["--root", str(tmp_path)]
    assert records.main(["list", *root, "--objective", "dino"]) == 0
    listed = capsys.readouterr().out
    assert "dino-s0" in listed and "bits-s0" not in listed and "75.00" in listed
    for option, value in (("checkpoint", "dino-s0"), ("fingerprint", "0" * 12), ("dataset", "x"), ("task", "knn")):
        assert records.main(["list", *root, f"--{option}", value]) == 0
        listed = capsys.readouterr().out
        kept = {"checkpoint": (True, False), "task": (True, True)}.get(option, (False, False))
        assert ("dino-s0" in listed, "bits-s0" in listed) == kept
    assert records.main(["verify", *root]) == 0
    assert records.main(["export", *root, "--to", str(tmp_path / "out.csv")]) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3
    capsys.readouterr()
    path.write_text("{")
    assert records.main(["verify", *root]) == 1
    assert str(path) in capsys.readouterr().out
    for wrong in (["list", "--root", str(tmp_path / "none")], ["export", *root, "--to", "x.xlsx"]):
        with pytest.raises(SystemExit) as error, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            records.main(wrong)
        said = capsys.readouterr().err
        assert error.value.code == 2 and said.startswith("python -m evaluate.records: error: ")
        assert said.count("\n") == 1 and wrong[-1] in said


def test_parquet_holds_the_scores(tmp_path):
    write(tmp_path, record())
    assert records.main(["export", "--root", str(tmp_path), "--to", str(tmp_path / "out.parquet")]) == 0
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()[0]["value"] == 0.75


@pytest.mark.thorough
def test_records_leaderboard_and_compare_never_load_torch(tmp_path):
    write(tmp_path / "records", record(correct=[1, 0, 1, 1]))
    write(tmp_path / "records", record("dino-s0", correct=[1, 0, 0, 1]))
    code = (
        "import sys, evaluate.compare, evaluate.records\n"
        "from evaluate.leaderboard.__main__ import main\n"
        "from evaluate.compare import main as compare\n"
        "main(['--records', 'records', '--output', '.'])\n"
        "compare(['bits-s0', 'dino-s0', '--records', 'records'])\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "leaderboard.html").exists()
