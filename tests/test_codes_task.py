"""What is said of messages and of discrete variables: the measures, the tasks, and what their pictures show."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from frozen import count_forward, folder_data, save_tiny_run, subject
from PIL import Image

from evaluate import importer, pictures, records
from evaluate.evaluator import Evaluator
from evaluate.features import Store
from evaluate.metrics import bit_correlation, bit_entropy, block_entropy, trailing_entropy
from evaluate.metrics.class_bits import class_bits
from evaluate.metrics.surprisal import bit_surprisal, block_surprisal
from evaluate.metrics.tsne import hamming_distances, hamming_tsne, trustworthiness
from evaluate.metrics.units import joint_information, unit_probabilities
from evaluate.run import as_item
from evaluate.tasks import codes, units
from evaluate.tasks.base import Data, Unavailable, binary_logits
from evaluate.tasks.codes import Codes, Messages
from evaluate.tasks.units import Units
from pretrain.datasets import ImageFolder, ImageList, Images
from pretrain.objectives.segments import block_probabilities, joint_probabilities


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_tiny_run(tmp_path_factory.mktemp("runs"), bits=20)


@pytest.fixture(scope="module")
def discrete(tmp_path_factory):
    config = {"objective": {"loss": {"bins": 4, "temperature": 0.1}}}
    return save_tiny_run(tmp_path_factory.mktemp("runs"), "imsvd", bits=12, config=config)


@pytest.fixture
def given(run, images, tmp_path):
    return subject(run, folder_data(images), tmp_path)


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out graphs, which take longer than all the rest."""
    for module, names in ((codes, ("draw_entropy", "draw_correlation", "draw_tsne")), (units, ("draw_joint",))):
        for name in names:
            monkeypatch.setattr(module, name, lambda *given: b"")


@pytest.fixture
def strips(monkeypatch):
    """What each sheet was asked to show, in order."""
    seen = []
    for module in (codes, units):
        monkeypatch.setattr(module, "sheet", lambda title, columns, rows, shown: seen.append((title, rows)) or b"")
    return seen


FAST = {"tsne_images": 0, "sheets": 0}


def evaluator(tmp_path, data):
    store = Store(tmp_path / "cache", batch_size=64, workers=0, quiet=True)
    return Evaluator(store, tmp_path / "records", lambda name: data, quiet=True)


# ---- measures


def test_mean_surprisal_is_entropy(random):
    bits = random.random((300, 19)) < random.random(19)
    bits[:, 4] = False
    assert bit_surprisal(bits).mean() == pytest.approx(bit_entropy(bits).mean())
    with pytest.warns(UserWarning, match="entropy is about"):
        assert block_surprisal(bits, 8).mean() == pytest.approx(block_entropy(bits, 8).mean())
    p = bits[:, 0].mean()
    expected = -np.log2(np.where(bits[:, 0], p, 1 - p))
    np.testing.assert_allclose(bit_surprisal(bits[:, :1]), expected)


def test_the_spread_of_surprisal_is_that_of_the_entropy_estimate(random):
    """It is the influence function: its deviation over the root of n is the estimate's, found here by drawing anew."""
    p = np.array([0.1, 0.3, 0.45])
    estimates = [bit_entropy(random.random((400, 3)) < p).mean() for _ in range(2000)]
    one = bit_surprisal(random.random((40_000, 3)) < p)
    assert one.std() / 400**0.5 == pytest.approx(np.std(estimates), rel=0.08)


def test_a_bit_that_splits_every_class_is_shared_and_one_that_is_the_class_is_not(random):
    labels = np.arange(400) % 4
    split, specific, dead = np.arange(400) // 4 % 2, labels < 2, np.zeros(400)
    found = class_bits(np.stack([split, specific, dead], 1).astype(int), labels)
    np.testing.assert_allclose(found.entropy, [1, 1, 0])
    np.testing.assert_allclose(found.entropy_within, [1, 0, 0])
    np.testing.assert_allclose(found.information, [0, 1, 0])
    np.testing.assert_array_equal(found.rates[:, 1], [1, 1, 0, 0])


def test_class_rates_of_class_sets_count_an_image_for_each_of_its_classes():
    sets = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    found = class_bits(np.array([[1], [0], [0], [1]]), sets)
    np.testing.assert_array_equal(found.classes, [0, 1])
    np.testing.assert_allclose(found.rates[:, 0], [0.5, 0.5])
    assert found.rate[0] == 0.5 and found.images.tolist() == [2, 2]
    with pytest.raises(ValueError, match="no image has a class"):
        class_bits(np.array([[1], [0]]), np.zeros((2, 3), int))


def test_information_of_a_bit_is_that_of_its_joint_histogram(random):
    labels, bits = random.integers(0, 3, 200), random.random((200, 2)) < 0.4
    joint = np.array([[np.mean((labels == c) & (bits[:, 0] == v)) for v in (0, 1)] for c in range(3)])
    outer = joint.sum(1, keepdims=True) * joint.sum(0)
    assert class_bits(bits, labels).information[0] == pytest.approx((joint * np.log2(joint / outer)).sum(), abs=1e-6)


def test_hamming_distances_are_shares_of_differing_bits(random):
    bits = random.random((12, 37)) < 0.5
    np.testing.assert_allclose(hamming_distances(bits), (bits[:, None] != bits[None]).mean(-1), atol=1e-6)


def test_tsne_keeps_clusters_of_codes_together(random):
    labels = np.arange(90) % 3
    bits = (random.random((3, 64)) < 0.5)[labels] ^ (random.random((90, 64)) < 0.05)
    distances = hamming_distances(bits)
    places = hamming_tsne(distances, perplexity=20)
    assert places.shape == (90, 3)
    nearest = np.linalg.norm(places[:, None] - places[None], axis=-1).argsort(1)[:, 1]
    assert (labels[nearest] == labels).mean() > 0.85  # chance is a third
    assert trustworthiness(distances, places) > trustworthiness(distances, random.permutation(places)) + 0.15
    assert trustworthiness(distances, bits) > 0.99  # but for ties


def test_tsne_lowers_a_perplexity_that_the_images_do_not_allow_and_says_so(random):
    distances = hamming_distances(random.random((13, 16)) < 0.5)
    with pytest.warns(UserWarning, match="perplexity 30 needs more than 13 images; 4 is used"):
        found = hamming_tsne(distances, iterations=250)
    np.testing.assert_array_equal(found, hamming_tsne(distances, perplexity=4, iterations=250))
    assert np.isnan(trustworthiness(distances, found)), "ten neighbours of twelve others are no neighbourhood"
    with pytest.raises(ValueError, match="t-SNE of 4 codes"):
        hamming_tsne(distances[:4, :4])


def test_tsne_of_equal_codes_is_finite():
    assert np.isfinite(hamming_tsne(hamming_distances(np.ones((8, 4), int)), perplexity=3, iterations=250)).all()


# ---- the task on messages


def test_codes_are_recorded_and_cost_nothing_the_second_time(tmp_path, run, images):
    bench = evaluator(tmp_path, folder_data(images))
    item = as_item("codes", "folder", iterations=250, sheets=1)
    bench.evaluate({str(run): [item]})
    assert bench.unfit == []
    [record] = records.read_all(bench.root, problems := [])
    assert not problems and record.protocol["tsne"]["images"] == 3925 and record.protocol["tsne"]["perplexity"] == 30
    scales = {name: score.scale for name, score in record.scores.items()}
    entropies = dict.fromkeys(("bit_entropy", "block_entropy", "trailing_entropy"), "bits")
    assert scales == entropies | {"correlation": "fraction", "tsne_trustworthiness": "fraction"}
    assert record.score.low < record.score.value < record.score.high
    assert record.main_outcomes().mean() == pytest.approx(record.score.value), "two runs can be paired image by image"
    names = [file.rpartition("/")[2] for file in record.provenance["files"]]
    assert {"entropy.png", "correlation.png", "tsne.png", "shared_bits.csv"} < set(names) and len(names) == 5
    for file in record.provenance["files"]:
        if file.endswith(".png"):
            assert min(Image.open(tmp_path / file).size) > 150
    assert any("perplexity 30 needs more than 18" in note for note in record.notes)
    with count_forward(importer.load(run)) as sizes:
        bench.evaluate({str(run): [item]})
    assert sizes == [] and bench.current == 1 and len(bench.written) == 1


def test_scores_are_the_metrics_on_the_bits_of_the_head(given, undrawn):
    given.features("test")
    with count_forward(given.backbone) as sizes, pytest.warns(UserWarning, match="18 codes"):
        result = Codes(**FAST).run(given)
    assert sizes == []
    bits = (given.head(given.features("test").cls()) > 0).numpy()
    correlation = bit_correlation(bits)
    varying = bit_entropy(bits) > 0
    pairs = np.abs(correlation[varying][:, varying][np.triu_indices(varying.sum(), 1)])
    with pytest.warns(UserWarning):
        expected = {"bit_entropy": bit_entropy(bits).mean(), "block_entropy": block_entropy(bits).mean()}
    expected |= {"trailing_entropy": trailing_entropy(bits), "correlation": pairs.mean()}
    assert {name: score.value for name, score in result.scores.items()} == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(result.outcomes["correlation"], correlation, atol=1e-6)
    assert result.outcomes["entropy_by_block"].shape == (2,)
    assert (f"{20 - varying.sum()} of 20 bits never change" in result.notes) == (not varying.all())


def test_a_bit_that_never_changes_is_said_and_no_part_of_the_correlation(given, undrawn):
    given.head.mlp[-1].weight[:5] = 0
    given.head.mlp[-1].bias[:5] = 1
    with pytest.warns(UserWarning):
        result = Codes(**FAST).run(given)
    varying = int((result.outcomes["entropy_by_bit"] > 0).sum())
    assert varying <= 15 and f"{20 - varying} of 20 bits never change" in result.notes
    assert result.scores["correlation"].n == varying * (varying - 1) / 2


def test_a_message_shorter_than_a_block_has_a_trailing_one_alone(tmp_path, images, undrawn):
    given = subject(save_tiny_run(tmp_path, bits=5), folder_data(images), tmp_path)
    result = Codes(**FAST).run(given)
    assert "block_entropy" not in result.scores and 0 < result.scores["trailing_entropy"].value <= 5


def test_tsne_takes_so_many_images_of_so_many_classes(given, undrawn):
    with pytest.warns(UserWarning):
        result = Codes(tsne_images=9, classes=2, perplexity=2, iterations=250, sheets=0).run(given)
    found = result.outcomes
    assert found["tsne"].shape == (9, 3) and set(found["tsne_label"]) == {0, 2}, "classes evenly spaced over all"
    ids, labels = given.features("test").ids.tolist(), given.features("test").labels
    assert [labels[ids.index(name)] for name in found["tsne_id"]] == found["tsne_label"].tolist()
    assert "tsne_trustworthiness" in result.scores and Codes(tsne_images=9).protocol(given) != Codes().protocol(given)


def test_too_few_images_for_tsne_are_said(given, undrawn):
    with pytest.warns(UserWarning):
        result = Codes(tsne_images=4, sheets=0).run(given)
    assert "no t-SNE: 4 images, at least 5 are needed" in result.notes and "tsne" not in result.outcomes


def test_sheets_show_each_value_in_each_class_the_most_confident_first(given, undrawn, strips):
    with pytest.warns(UserWarning):
        files = Codes(tsne_images=0, bits=[7]).run(given).files
    [(title, rows)] = strips
    assert (
        "bit007.png" in files
        and title.startswith("Bit 7")
        and [row.label.split("\n")[0] for row in rows]
        == [
            "class0",
            "class1",
            "class2",
        ]
    )
    test = given.features("test")
    logits = given.head(test.cls())[:, 7].numpy()
    for c, row in enumerate(rows):
        member = test.labels == c
        assert row.label.endswith(f"{(logits[member] > 0).mean():.0%} ones")
        for value, shown in zip((False, True), row.groups, strict=True):
            mine = np.flatnonzero(member & ((logits > 0) == value))
            order = mine[np.argsort(-np.abs(logits[mine]), kind="stable")]
            assert len(shown) == len(order)
            for image, i in zip(shown, order, strict=True):
                assert np.array_equal(np.asarray(image), np.asarray(test.images.image(i)))


def test_the_list_of_shared_bits_is_ordered_and_the_sheets_show_its_head(given, undrawn, strips):
    with pytest.warns(UserWarning):
        result = Codes(tsne_images=0, sheets=2).run(given)
    rows = list(csv.DictReader(io.StringIO(result.files["shared_bits.csv"].decode())))
    within = [float(row["entropy_within_classes"]) for row in rows]
    assert len(rows) == 20 and within == sorted(within, reverse=True) and within[0] > within[-1]
    assert [f"bit{int(row['bit']):03d}.png" for row in rows[:2]] == [n for n in result.files if n.startswith("bit")]
    bits, labels = (given.head(given.features("test").cls()) > 0).numpy(), given.features("test").labels
    for row in rows:
        rates = [bits[labels == c, int(row["bit"])].mean() for c in range(3)]
        assert float(row["highest_rate"]) == pytest.approx(max(rates), abs=1e-4)
        assert float(row["rate_of_ones"]) == pytest.approx(np.mean(rates), abs=1e-4)
        assert int(row["classes_with_both"]) == sum(0.1 <= rate <= 0.9 for rate in rates) and row["classes"] == "3"


def test_class_names_are_no_formulas_and_no_line_breaks(random):
    found = class_bits(random.random((40, 2)) < 0.5, np.arange(40) % 2)
    text = codes.listing(found, ["=cmd()", "two\nlines"]).decode()
    assert "'=cmd()" in text and "two lines" in text and len(text.splitlines()) == 3


def test_without_labels_sheets_show_all_images_and_no_bit_is_called_shared(run, images, tmp_path, undrawn, strips):
    data = Data("images", {"test": lambda: Images(images / "val")})
    with pytest.warns(UserWarning):
        result = Codes(sheets=1, iterations=250).run(subject(run, data, tmp_path))
    assert "shared_bits.csv" not in result.files and set(result.outcomes["tsne_label"]) == {-1}
    [(_, [row])] = strips
    assert row.label.startswith("all images") and sum(map(len, row.groups)) >= 6


def test_images_of_several_classes_are_shown_by_their_first(run, images, tmp_path, undrawn):
    lines = [f"val/class{c}/{i:03d}.png {int(c == 0)} {int(c < 2)} 0" for c in range(3) for i in range(6)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    data = Data("sets", {"test": lambda: ImageList(images, str(tmp_path / "list.txt"))})
    given = subject(run, data, tmp_path)
    with pytest.warns(UserWarning):
        result = Codes(**FAST).run(given)
    assert len(result.files["shared_bits.csv"].decode().splitlines()) == 21
    test = given.features("test")
    messages = Messages.of(test, binary_logits(given, test).numpy(), 10)
    assert messages.label.tolist() == [0] * 6 + [1] * 6 + [-1] * 6 and messages.chosen.tolist() == [0, 1]


def test_what_has_no_channel_is_skipped_and_a_channel_that_diverged_fails(run, discrete, images, tmp_path, undrawn):
    bench = evaluator(tmp_path, folder_data(images))
    both = [as_item("codes", "folder", **FAST), as_item("units", "folder", sheets=0)]
    bench.evaluate({str(run): both, str(discrete): both})
    assert {(s.checkpoint["objective"], s.task, s.status) for s in bench.unfit} == {
        ("bits_fixed", "units", "skipped"),
        ("imsvd", "codes", "skipped"),
    }
    assert all(status.remedy.startswith("evaluate a run of") for status in bench.unfit)
    assert {(r.checkpoint["objective"], r.task) for r in bench.written} == {("bits_fixed", "codes"), ("imsvd", "units")}
    given = subject(run, folder_data(images), tmp_path)
    given.head.mlp[-1].bias[3] = float("nan")
    with pytest.raises(ValueError, match="logits hold NaN or infinity, first in row 0"):
        Codes().run(given)


def test_settings_that_cannot_be_are_refused(given, undrawn):
    for settings in ({"block": 0}, {"classes": 0}, {"perplexity": 0}, {"iterations": 100}, {"sheets": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))}={next(iter(settings.values()))}"):
            Codes(**settings)
    with pytest.raises(ValueError, match=r"bits=\[20\]: 20 is outside 0..19"), pytest.warns(UserWarning):
        Codes(bits=[20], tsne_images=0).run(given)


# ---- discrete variables


def test_unit_probabilities_and_their_joint_are_those_of_training(random):
    logits = torch.from_numpy(random.standard_normal((30, 12)) * 3)
    p = unit_probabilities(logits, 4, 0.5)
    torch.testing.assert_close(p, block_probabilities(logits.float(), 4, 0.5))
    torch.testing.assert_close(p.sum(2), torch.ones(30, 3))
    for bad, word in (((logits, 5, 1.0), "bins=5"), ((logits, 4, 0.0), "temperature=0")):
        with pytest.raises(ValueError, match=word):
            unit_probabilities(*bad)
    logits[6, 1] = float("inf")
    with pytest.raises(ValueError, match="first in row 6"):
        unit_probabilities(logits, 4, 0.5)


def test_information_is_nothing_for_independent_variables_and_all_for_equal_ones():
    a, b = np.repeat(np.eye(4), 4, axis=0), np.tile(np.eye(4), (4, 1))  # all pairs of units, each once
    rows = np.concatenate([a, b, a], axis=1)
    found = joint_information(rows.T @ rows / 16, 4)
    np.testing.assert_allclose(found, [[2, 0, 2], [0, 2, 0], [2, 0, 2]], atol=1e-12)
    spread = np.full((5, 8), 0.25)
    np.testing.assert_allclose(joint_information(spread.T @ spread / 5, 4), 0, atol=1e-12)


def test_units_are_counted_in_parts_as_in_one(discrete, images, tmp_path, monkeypatch):
    given = subject(discrete, folder_data(images), tmp_path)
    test = given.features("test")
    p = unit_probabilities(given.segments.head(test.cls()), 4, 0.1)
    monkeypatch.setattr(units, "ROWS_AT_ONCE", 7)
    found = units.discretise(given, test)
    np.testing.assert_allclose(found.joint, joint_probabilities(p, p), atol=1e-6)
    np.testing.assert_allclose(found.share, p.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.confidence, p.amax(2).mean(1), atol=1e-6)
    np.testing.assert_array_equal(found.best, p.flatten(1).T.sort(descending=True, stable=True).indices[:, :10])
    expected = [[p.flatten(1)[test.labels == c, unit].sum() for c in range(3)] for unit in range(12)]
    np.testing.assert_allclose(found.mass, expected, atol=1e-5)


def test_units_are_recorded_with_their_images(discrete, images, tmp_path):
    bench = evaluator(tmp_path, folder_data(images))
    bench.evaluate({str(discrete): [as_item("units", "folder", variables=[1])]})
    [record] = records.read_all(bench.root)
    scores = {name: score.value for name, score in record.scores.items()}
    assert record.main == "variable_entropy" and 0 < scores["variable_entropy"] <= 2
    assert set(scores) == {"variable_entropy", "own_information", "pair_information", "confidence"}
    assert 0.25 < scores["confidence"] <= 1 and record.outcomes["joint"].shape == (12, 12)
    information = record.outcomes["information"]
    assert scores["own_information"] == pytest.approx(np.diag(information).mean())
    assert scores["pair_information"] == pytest.approx((information.sum() - np.trace(information)) / 6)
    files = {file.rpartition("/")[2]: tmp_path / file for file in record.provenance["files"]}
    assert set(files) == {"joint.png", "units.json", "variable001.png"}
    listed = json.loads(files["units.json"].read_text())
    assert len(listed) == 12 and listed[5]["variable"] == listed[5]["unit"] == 1
    assert listed[5]["share"] == pytest.approx(float(record.outcomes["share"][1, 1]), abs=1e-5)
    assert len(listed[5]["images"]) == 10 and listed[5]["class"] in ("class0", "class1", "class2")
    chances = [p for _, p in listed[5]["images"]]
    assert chances == sorted(chances, reverse=True)
    assert any("18 images for 4 x 4 cells" in note for note in record.notes)
    bench.evaluate({str(discrete): [as_item("units", "folder", variables=[1])]})
    assert bench.current == 1


def test_sheets_of_variables_show_the_most_used_units_first(discrete, images, tmp_path, undrawn, strips):
    given = subject(discrete, folder_data(images), tmp_path)
    result = Units(sheets=2, units=3).run(given)
    drawn = [int(title.split(":")[0].removeprefix("Variable ")) for title, _ in strips]
    own = np.diag(result.outcomes["information"])
    assert drawn == np.argsort(-own, kind="stable")[:2].tolist() and "3 of 4 units" in strips[0][0]
    shares = [float(row.label.split("\n")[1].rstrip("%")) for row in strips[0][1]]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True)
    with pytest.raises(ValueError, match="3 is outside 0..2"):
        Units(variables=(3,)).run(given)
    with pytest.raises(ValueError, match="units=0"):
        Units(units=0)


def test_the_protocol_tells_one_head_from_another(discrete, given, images, tmp_path):
    with pytest.raises(Unavailable, match="no discretised variables"):
        Units().check(given)
    protocol = Units().protocol(subject(discrete, folder_data(images), tmp_path))
    assert protocol["units"] == 4 and protocol["temperature"] == 0.1


# ---- sheets of images


def test_a_sheet_puts_images_in_their_rows_and_leaves_places_without_one_pale():
    red, blue = (Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
    made = pictures.sheet("title", ["zeros", "ones"], [pictures.Strip("a", [[red, red], [blue]])], 2)
    pixels = np.asarray(Image.open(io.BytesIO(made)).convert("RGB")).astype(int)
    areas = [int((pixels == colour).all(-1).sum()) for colour in ((255, 0, 0), (0, 0, 255), pictures.PALE)]
    assert areas[:2] == [2 * pictures.TILE**2, pictures.TILE**2]
    assert areas[2] == pytest.approx(4 * pictures.TILE - 4, abs=20), "some edge of a letter may have this shade too"
    xs = [np.flatnonzero((pixels == colour).all(-1).any(0)) for colour in ((255, 0, 0), (0, 0, 255))]
    assert xs[0].max() < xs[1].min()
    assert pictures.printable("a\x1b[31mb" + "c" * 60, 12) == "a [31mbcccc…"


def test_labels_of_other_scripts_and_formulas_are_drawn_as_text():
    strip = pictures.Strip("鳥\n$x", [[Image.new("RGB", (9, 9))]])
    assert pictures.sheet("$\\frac", ["∑"], [strip], 1).startswith(b"\x89PNG")
    places = np.random.default_rng(0).standard_normal((6, 3))
    assert pictures.draw_tsne(places, np.zeros(6, int), {0: "$\\frac{"}, 0.5).startswith(b"\x89PNG")


def test_folders_give_classes_their_names(images, given):
    test = given.features("test")
    assert isinstance(test.images, ImageFolder)
    assert Messages.of(test, np.ones((18, 2), np.float32), 10).name(1) == "class1"
