"""Claims on a shared disk: one owner at a time, and none for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from evaluate.claims import Claims, process_start, share_out


def elsewhere(root: Path, key: str, **about: str) -> Path:
    """A claim that a process of another machine made."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{key}.1"
    path.write_text(json.dumps({"place": "another boot", "pid": 1, "start": "1", "job": "", "host": "node7"} | about))
    return path


def test_only_one_has_a_key_until_it_is_released(tmp_path: Path) -> None:
    ours, theirs = Claims(tmp_path), Claims(tmp_path)
    claim = ours.take("a")
    assert claim and claim.number == 1 and theirs.take("a") is None and theirs.take("b")
    assert theirs.owner("a").startswith(f"process {os.getpid()} on ")
    claim.release()
    assert theirs.owner("a") == "" and theirs.take("a")


def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    elsewhere(tmp_path, "a")
    many, got, barrier = [Claims(tmp_path, lease=0) for _ in range(8)], [], threading.Barrier(8)

    def come(claims: Claims) -> None:
        barrier.wait()
        if claim := claims.take("a"):
            got.append(claim.number)

    threads = [threading.Thread(target=come, args=(claims,)) for claims in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [2]


def test_a_killed_process_of_this_machine_is_succeeded_at_once(tmp_path: Path) -> None:
    code = f"from evaluate.claims import Claims; import time; Claims({str(tmp_path)!r}).take('a'); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[1])
    while not (tmp_path / "a.1").exists() or not (tmp_path / "a.1").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    claims = Claims(tmp_path)
    assert claims.take("a") is None and f"process {process.pid}" in claims.owner("a")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
    claim = claims.take("a")
    process.wait()
    assert claim and claim.number == 2 and [path.name for path in tmp_path.iterdir()] == ["a.2"]


def test_a_process_number_that_was_given_again_is_no_sign_of_life(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    elsewhere(tmp_path, "a", place=claims.me["place"], pid=os.getpid(), start="12")  # type: ignore[arg-type]
    assert process_start(os.getpid()) != "12" and claims.take("a")


def test_one_elsewhere_is_dead_when_it_shows_no_sign_of_life_for_a_while(tmp_path: Path) -> None:
    path = elsewhere(tmp_path, "a")
    claims = Claims(tmp_path, lease=0.3)
    os.utime(path, (0, 0))  # by a clock that is far behind
    assert claims.take("a") is None
    time.sleep(0.2)
    os.utime(path, (1, 1))
    assert claims.take("a") is None
    time.sleep(0.2)
    assert claims.take("a") is None and "process 1 on node7" in claims.owner("a")
    time.sleep(0.2)
    assert claims.take("a")


def test_an_owner_shows_that_it_is_alive(tmp_path: Path) -> None:
    claim = Claims(tmp_path, beat=0.02).take("a")
    assert claim
    os.utime(claim.path, (0, 0))
    deadline = time.monotonic() + 10
    while claim.path.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_that_was_queued_again_succeeds_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(tmp_path, "a", job="71_3")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "71")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    assert Claims(tmp_path).take("a") is None
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert Claims(tmp_path).take("a")


def test_a_claim_whose_writer_was_killed_while_writing_is_held_for_a_while_only(tmp_path: Path) -> None:
    (tmp_path / "a.1").touch()
    assert Claims(tmp_path).take("a") is None
    assert Claims(tmp_path, lease=0).take("a")


def test_who_was_succeeded_releases_nothing_of_its_successor(tmp_path: Path) -> None:
    slow = Claims(tmp_path).take("a")
    assert slow
    slow.path.write_text("{}")  # its machine stopped for a while
    successor = Claims(tmp_path, lease=0).take("a")
    slow.release()
    assert successor and successor.path.exists() and Claims(tmp_path).take("a") is None


def test_parts_are_shared_out_and_none_is_filled_twice(tmp_path: Path) -> None:
    filled: list[tuple[int, int]] = []
    barrier = threading.Barrier(3)

    def fill(who: int, part: list[int]) -> None:
        time.sleep(0.01)
        filled.extend((number, who) for number in part)

    def missing() -> list[int]:
        return sorted(set(range(20)) - {number for number, _ in filled})

    def come(who: int) -> None:
        barrier.wait()
        share_out(Claims(tmp_path), "features", missing, lambda part: fill(who, part))
        assert not missing()

    threads = [threading.Thread(target=come, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in filled) == list(range(20))
    assert len({who for _, who in filled}) == 3 and not list(tmp_path.iterdir())


def test_what_goes_wrong_with_a_part_comes_through_and_gives_it_free(tmp_path: Path) -> None:
    def fill(part: list[int]) -> None:
        raise ValueError(f"part {part}")

    with pytest.raises(ValueError, match=r"part \[0\]"):
        share_out(Claims(tmp_path), "features", lambda: [0, 1], fill)
    assert not list(tmp_path.iterdir())
