"""Two checkpoints on the same samples: who is better, by how much, how sure, and what may not be compared."""

import math
from math import comb

import numpy as np
import pytest
from example_records import checkpoint, record

from evaluate.compare import Gate, main
from evaluate.leaderboard.compare import compare_all, compare_records, select, verdict
from evaluate.records import Score, write


def outcomes(wins: int, losses: int, ties: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """0/1 outcomes of a reference and of another that wins, loses and ties so often."""
    reference = np.r_[np.zeros(wins), np.ones(losses), np.ones(ties)]
    return reference, np.r_[np.ones(wins), np.zeros(losses), np.ones(ties)]


def pair(wins: int, losses: int, **changes):
    a, b = outcomes(wins, losses)
    return record("a", a, **changes), record("b", b, **changes)


def exact_mcnemar(wins: int, losses: int) -> float:
    n = wins + losses
    return min(1.0, 2 * sum(comb(n, i) for i in range(min(wins, losses) + 1)) / 2**n)


def continuous(name: str, values, **changes):
    values = np.asarray(values, dtype=float)
    kept = {"ap": values, "sample_id": np.arange(len(values))} | changes.pop("outcomes", {})
    score = Score(float(np.nanmean(values)), None, None, len(values), "query")
    return record(name, scores={"mAP": score}, main="mAP", outcomes=kept, **changes)


def test_binary_outcomes_are_tested_by_mcnemar_and_counted():
    result = compare_records(*pair(12, 3))
    assert result.test == "McNemar" and result.p_value == pytest.approx(exact_mcnemar(12, 3))
    assert result.counts == (12, 20, 3)
    assert result.difference == pytest.approx(9 / 35) == result.mean_difference
    assert result.low < 9 / 35 < result.high and not result.note


def test_the_order_of_the_samples_does_not_matter():
    a, b = pair(12, 3)
    order = np.random.default_rng(0).permutation(35)
    names = np.array([f"image-{i}" for i in range(35)])
    a.outcomes["sample_id"] = names
    shuffled = record(
        "b", b.outcomes["correct"], outcomes={"correct": b.outcomes["correct"][order], "sample_id": names[order]}
    )
    result = compare_records(a, shuffled)
    assert result.counts == (12, 20, 3) and result.p_value == pytest.approx(exact_mcnemar(12, 3))


def test_continuous_outcomes_are_tested_by_permutation_without_undefined_samples():
    b = np.r_[0.6, 0.7, 0.8, 0.9, 0.65, 0.75, np.nan]
    a = np.r_[b[:6] - 0.1, 0.5]
    result = compare_records(continuous("a", a), continuous("b", b))
    assert result.test == "permutation" and result.counts == (6, 0, 0)
    assert result.p_value == pytest.approx(2 / 2**6)  # all of 64 sign patterns: this one and its mirror image
    assert result.mean_difference == pytest.approx(0.1)


def test_samples_in_groups_are_resampled_by_group():
    group = np.repeat(np.arange(6), 30)
    a, b = np.full(180, 0.5), np.full(180, 0.5)
    b[group == 0] = 0.9
    frames = compare_records(continuous("a", a), continuous("b", b))
    videos = compare_records(*(continuous(n, x, outcomes={"group": group}) for n, x in (("a", a), ("b", b))))
    assert videos.test == "permutation of groups" and frames.p_value < 0.001 < 0.05 < videos.p_value


def test_fewer_errors_win_where_lower_is_better():
    a, b = pair(12, 3, main="error", higher_is_better=False)
    for each in (a, b):
        each.outcomes["error"] = 1 - each.outcomes.pop("correct")
        each.scores = {"error": Score(float(each.outcomes["error"].mean()), None, None, 35)}
    (result,), _ = compare_all([[a], [b]])
    assert result.difference < 0 < result.gain and result.counts == (12, 20, 3)
    assert result.verdict == "better"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": {"k": 10, "features": {"token": "cls"}}}, "k = 20 and 10"),
        ({"protocol": {"k": 20, "features": {}}}, "features.token = cls and absent"),
        ({"provenance": {"dataset_fingerprint": "data-2"}}, "dataset fingerprint = data-1 and data-2"),
        ({"task_version": 2}, "task version = 1 and 2"),
    ],
)
def test_unlike_protocols_are_refused_by_the_field_that_differs(change, words):
    with pytest.raises(ValueError, match=words):
        compare_records(record("a"), record("b", **change))
    made, refused = compare_all([[record("a")], [record("b", **change)]])
    assert made == [] and len(refused) == 1 and words in refused[0]


def test_a_task_that_only_one_has_is_named():
    a, b = pair(12, 3)
    made, refused = compare_all([[a, record("a", dataset="food101")], [b, record("b", dataset="inat")]])
    assert len(made) == 1
    assert [line.partition(",")[0] for line in refused] == [
        "knn on food101: only a has it",
        "knn on inat: only b has it",
    ]


def test_scores_without_common_samples_are_compared_but_not_tested():
    a, b = pair(12, 3)
    b.outcomes["sample_id"] = b.outcomes["sample_id"] + 1
    (result,), _ = compare_all([[a], [b]])
    assert result.verdict == "not tested" and result.p_value is None and "not the same samples" in result.note
    assert result.difference == pytest.approx(9 / 35)


def test_outcomes_that_do_not_average_to_the_score_are_said_so_and_never_overrule_it():
    a, b = pair(30, 0)
    b.scores["top1"] = Score(a.score.value - 0.1, None, None, 50)  # say a mIoU: worse, though better on most images
    (result,), _ = compare_all([[a], [b]])
    assert "not of the score itself" in result.note
    assert result.adjusted < 0.05 and result.verdict == "no difference shown"


def test_holm_corrects_over_all_tasks_and_checkpoints():
    tasks = {"t1": (12, 2), "t2": (11, 3), "t3": (9, 4)}
    a = [pair(*counts, task=task)[0] for task, counts in tasks.items()]
    b = [pair(*counts, task=task)[1] for task, counts in tasks.items()]
    made, _ = compare_all([a, b])
    p = [exact_mcnemar(*counts) for counts in tasks.values()]
    expected = [3 * p[0], max(3 * p[0], 2 * p[1]), max(3 * p[0], 2 * p[1], p[2])]
    assert [c.adjusted for c in made] == pytest.approx(expected)
    assert [c.verdict for c in made] == ["better", "no difference shown", "no difference shown"]
    twice, _ = compare_all([a[:1], b[:1], b[:1]])
    assert [c.adjusted for c in twice] == pytest.approx([2 * p[0]] * 2)


def test_the_verdict_says_where_which_is_better():
    better, worse, same = (
        pair(*counts, dataset=name) for name, counts in {"up": (30, 2), "down": (2, 30), "flat": (5, 5)}.items()
    )
    made, _ = compare_all([[p[0] for p in (better, worse, same)], [p[1] for p in (better, worse, same)]])
    sentence = verdict(made)
    assert sentence.startswith("Verdict: b against a, of 3 comparisons better on 1 (knn/up); worse on 1 (knn/down); ")
    assert "no difference shown on 1 (knn/flat)" in sentence


def test_a_checkpoint_is_found_by_name_run_folder_or_digest():
    stored = [
        record("bits-s0"),
        record("dino-s0"),
        record("twin"),
        record("twin", checkpoint=checkpoint("twin", weights_digest="fedcba987")),
    ]
    for wanted in ("bits-s0", "runs/bits-s0", "runs/bits-s0/", "digest-of-bits-s0", "digest-of-bits"):
        assert select(stored, wanted)[0].checkpoint["name"] == "bits-s0"
    assert select(stored, "fedcba")[0].checkpoint["weights_digest"] == "fedcba987"
    with pytest.raises(ValueError, match="nearest: dino-s0"):
        select(stored, "dino_s0")
    with pytest.raises(ValueError, match="'twin' names 2 checkpoints"):
        select(stored, "twin")


@pytest.fixture
def stored(tmp_path):
    for each in (*pair(2, 10), *pair(12, 3, dataset="food101")):
        write(tmp_path, each)
    write(tmp_path, record("c", outcomes(1, 1)[1]))
    return ["--records", str(tmp_path), "--samples", "500"]


@pytest.mark.parametrize(
    ("gates", "status"),
    [
        ([], 0),
        (["knn/cifar10:30"], 0),
        (["knn/cifar10:20"], 1),
        (["knn:20"], 1),
        (["knn/food101:0"], 0),
        (["knn/food101:0", "knn/cifar10:0"], 1),
    ],
)
def test_a_gate_fails_by_its_margin_in_points(stored, capsys, gates, status):
    arguments = [word for gate in gates for word in ("--fail-if-worse", gate)]
    assert main(["a", "b", *stored, *arguments]) == status
    shown = capsys.readouterr().out
    assert ("FAIL knn on cifar10: -25.00 points" in shown) == (status == 1)
    assert "-25.00" in shown and "McNemar" in shown and "Verdict: b against a" in shown


def test_a_gate_that_guards_nothing_is_an_error(stored, capsys):
    for arguments in (["a", "b", "--fail-if-worse", "linear:1"], ["a", "b", "c", "--fail-if-worse", "knn/food101:1"]):
        with pytest.raises(SystemExit) as error:
            main([*arguments, *stored])
        assert error.value.code == 2 and "nothing guards it" in capsys.readouterr().err


def test_an_undefined_score_fails_its_gate():
    a, b = pair(12, 3)
    b.scores["top1"] = Score(math.nan, None, None, 0)
    assert Gate("knn", 50.0).fails(compare_records(a, b))


@pytest.mark.parametrize(
    "wrong", [["a"], ["a", "z"], ["a", "b", "--fail-if-worse", "knn"], ["a", "b", "--fail-if-worse", "knn:-1"]]
)
def test_a_wrong_request_is_one_line(stored, capsys, wrong):
    with pytest.raises(SystemExit) as error:
        main([*wrong, *stored])
    assert error.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m evaluate.compare: error: ")


def test_lost_outcomes_stop_the_comparison_with_their_file(stored, tmp_path, capsys):
    lost = next((tmp_path).glob("b-*/*.npz"))
    lost.unlink()
    with pytest.raises(SystemExit):
        main(["a", "b", *stored])
    assert str(lost) in capsys.readouterr().err


# ---- seeds, and the samples that differ most


def seeds_of(name: str, shares, *, n=200, **changes):
    """Records of one recipe, a seed for each share of right outcomes."""
    made = []
    for i, share in enumerate(shares):
        correct = (np.random.default_rng([i, int(1000 * share)]).random(n) < share).astype(int)
        about = checkpoint(f"{name}-s{i}", seed=i)
        made.append(record(f"{name}-s{i}", correct, checkpoint=about, **changes))
    return made


def test_a_recipe_is_its_seeds_together():
    a, b = seeds_of("bits", (0.7, 0.72, 0.74)), seeds_of("dino", (0.5, 0.52, 0.51))
    one, two = (select([*a, *b], name) for name in ("bits", "dino"))
    assert [r.checkpoint["name"] for r in one] == ["bits, 3 seeds"]
    assert one[0].score.value == pytest.approx(np.mean([r.score.value for r in a]))
    (result,), _ = compare_all([two, one])
    assert result.test == "two-level bootstrap" and result.verdict == "better" and not result.note
    assert result.mean_difference == pytest.approx(result.difference)
    assert select([*a, *b], "bits-s1")[0].checkpoint["name"] == "bits-s1"


def test_seeds_that_disagree_show_no_difference_where_one_seed_alone_would():
    a, b = seeds_of("bits", (0.9, 0.5), n=2000), seeds_of("dino", (0.6, 0.6), n=2000)
    alone = compare_records(b[0], a[0])
    together, _ = compare_all([select([*a, *b], "dino"), select([*a, *b], "bits")])
    assert alone.p_value < 0.001 and together[0].verdict == "no difference shown"


def test_seeds_whose_samples_lie_in_another_order_are_brought_into_line():
    a = seeds_of("bits", (0.7, 0.7))
    order = np.random.default_rng(0).permutation(200)
    for name in ("correct", "sample_id"):
        a[1].outcomes[name] = a[1].outcomes[name][order]
    b = seeds_of("dino", (0.5, 0.5))
    plain, _ = compare_all([select(b, "dino"), select(seeds_of("bits", (0.7, 0.7)), "bits")])
    mixed, _ = compare_all([select(b, "dino"), select(a, "bits")])
    assert mixed[0].counts == plain[0].counts and mixed[0].low == pytest.approx(plain[0].low)


def test_one_seed_against_several_says_what_it_cannot_know():
    a, b = seeds_of("bits", (0.7, 0.72)), seeds_of("dino", (0.5,))
    (result,), _ = compare_all([select([*a, *b], "dino-s0"), select([*a, *b], "bits")])
    assert "one side has one seed" in result.note


def test_recipes_of_one_name_are_not_guessed_between():
    a = seeds_of("bits", (0.7, 0.72))
    other = [
        record(f"bits-s{i}", checkpoint=checkpoint(f"bits-s{i}", seed=i, backbone="vit_b", weights_digest=f"x{i}"))
        for i in range(2)
    ]
    with pytest.raises(ValueError, match="'bits' names 2 recipes"):
        select([*a, *other], "bits")


def test_the_samples_that_differ_most_are_named_in_both_directions():
    names = np.array([f"val/{i}.png" for i in range(6)])
    a = continuous("a", [0.5, 0.5, 0.5, 0.5, 0.5, np.nan], outcomes={"sample_id": names})
    b = continuous("b", [0.9, 0.5, 0.1, 0.6, 0.4, 0.9], outcomes={"sample_id": names})
    result = compare_records(a, b)
    assert [s.id for s in result.most_better] == ["val/0.png", "val/3.png"]
    assert [s.id for s in result.most_worse] == ["val/2.png", "val/4.png"]
    assert (result.most_worse[0].a, result.most_worse[0].b) == (0.5, 0.1)
    lower = [
        continuous(n, x.outcomes["ap"], higher_is_better=False, outcomes={"sample_id": names})
        for n, x in (("a", a), ("b", b))
    ]
    assert [s.id for s in compare_records(*lower).most_better] == ["val/2.png", "val/4.png"]


def test_a_protocol_that_only_one_has_is_named_beside_a_common_one():
    a, b = pair(12, 3)
    made, refused = compare_all([[a], [b, record("b", protocol={"k": 10})]])
    assert len(made) == 1 and len(refused) == 1 and "only b has it, by protocol" in refused[0]


def test_a_kept_epoch_is_found_by_its_folder():
    kept = record("bits", checkpoint=checkpoint("bits/epochs/010", parent="bits"))
    assert select([kept, record("bits")], "runs/bits/epochs/010") == [kept]


def test_the_sheet_shows_the_images_or_says_that_they_are_not_there(tmp_path, capsys):
    from PIL import Image

    names = [f"val/{'cat' if i % 2 else 'dog'}/{i}.png" for i in range(8)]
    a, b = np.array([0, 1] * 4), np.array([1, 0] * 4)
    for name, values in (("a", a), ("b", b)):
        kept = {"correct": values, "sample_id": np.array(names)}
        write(tmp_path / "records", record(name, values, dataset="folder", outcomes=kept))
    arguments = ["a", "b", "--records", str(tmp_path / "records"), "--sheet", str(tmp_path / "sheet.png")]
    assert main([*arguments, "--data-root", str(tmp_path / "nowhere")]) == 0
    assert "0 images in 2 rows; no images of folder" in capsys.readouterr().out
    for split in ("train", "val"):
        for i, name in enumerate(names):
            path = tmp_path / "data" / name.replace("val", split)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (200, 10 * i, 0)).save(path)
    assert main([*arguments, "--data-root", str(tmp_path / "data")]) == 0
    assert "8 images in 2 rows" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}
    assert {(200, 10 * i, 0) for i in range(8)} <= colours
