"""Tasks on frozen features: one contract for all of them, then what each one promises; checkpoints and baselines."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen import count_forward, folder_data, save_tiny_run, subject
from tiny import write_images

from evaluate import importer, records
from evaluate.evaluator import Evaluator, Item
from evaluate.features import Store
from evaluate.metrics import hamming_ap, knn_classify, retrieval_ap
from evaluate.run import as_item, choices, load_task
from evaluate.tasks.base import Data, Unavailable
from evaluate.tasks.hamming import Hamming
from evaluate.tasks.knn import KNN
from evaluate.tasks.linear import Linear, LinearCached
from evaluate.tasks.retrieval import Retrieval
from pretrain.checkpoint import CheckpointError, read_json, write_json, write_tensors
from pretrain.datasets import ImageFolder, ImageList, Images

FRESH = ("linear", "linear_fixed", "mlp")  # train on random crops
GLOBAL = (*FRESH, "linear_cached", "mlp_cached", "knn", "knn_fewshot", "retrieval", "hamming")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def data(images: Path) -> Data:
    return folder_data(images)


def evaluator(tmp_path: Path, data: Data) -> Evaluator:
    store = Store(tmp_path / "cache", batch_size=64, workers=0, quiet=True)
    return Evaluator(store, tmp_path / "records", lambda name: data, quiet=True)


# ---- the contract


@pytest.mark.parametrize("name", [name for name in choices("task") if name in GLOBAL])
def test_a_task_scores_records_and_costs_nothing_the_second_time(name, tmp_path, run, data):
    fast = {"epochs": 2, "batch_size": 18} if name in FRESH else {}
    bench, item = evaluator(tmp_path, data), as_item(name, "folder", **fast)
    bench.evaluate({str(run): [item]})
    assert bench.unfit == []
    [record] = records.read_all(bench.root, problems := [])
    assert not problems and record.task == name and record.main in record.scores and record.protocol
    assert record.higher_is_better and record.provenance["seconds"] > 0 and record.provenance["packages"]
    for key, score in record.scores.items():
        assert score.scale == "fraction" and 0 <= score.value <= 1, key
        assert score.low is not None and score.low <= score.value <= score.high, key
    n = record.score.n
    values = record.main_outcomes()
    assert len(record.outcomes["sample_id"]) == len(values) == n == 18
    assert np.nanmean(values) == pytest.approx(record.score.value)
    with count_forward(importer.load(run)) as sizes:
        bench.evaluate({str(run): [item]})
    assert sizes == [] and bench.current == 1 and len(bench.written) == 1


def test_every_task_file_is_a_task_with_a_name_of_its_own():
    names = [load_task(name).name for name in choices("task")]
    assert len(names) == len(set(names)) and set(GLOBAL) <= set(choices("task"))


@pytest.mark.parametrize("name", [name for name in GLOBAL if name not in FRESH])
def test_all_tasks_on_stored_features_share_one_forward_pass(name, images, run, cache):
    shared = subject(run, folder_data(images), cache)
    shared.features("train"), shared.features("test")
    with count_forward(shared.backbone) as sizes:
        load_task(name).run(shared)
    assert sizes == []


def test_a_new_protocol_a_new_dataset_or_other_weights_are_a_new_record(tmp_path, run, data, images):
    bench = evaluator(tmp_path, data)
    other = str(save_tiny_run(tmp_path, "dino", seed=5))
    bench.evaluate(
        {str(run): [Item(KNN(), "folder"), Item(KNN(temperature=0.1), "folder")], other: [Item(KNN(), "folder")]}
    )
    assert len(records.read_all(bench.root)) == 3 and bench.current == 0


def test_overwrite_computes_again(tmp_path, run, data):
    bench = evaluator(tmp_path, data)
    bench.evaluate({str(run): [Item(KNN(), "folder")]})
    bench.overwrite = True
    bench.evaluate({str(run): [Item(KNN(), "folder")]})
    assert len(bench.written) == 2 and bench.current == 0 and len(records.read_all(bench.root)) == 1


# ---- what cannot run


def test_a_task_without_labels_says_so_and_the_others_go_on(tmp_path, run, images):
    data = Data("images", {"train": lambda: Images(images / "train"), "test": lambda: ImageFolder(images, "val")})
    bench = evaluator(tmp_path, data)
    bench.evaluate({str(run): [Item(KNN(), "images"), Item(Retrieval("val-loo"), "images")]})
    [status] = records.read_statuses(bench.root)
    assert status.task == "knn" and status.status == "skipped" and "no labels" in status.reason and status.remedy
    assert [record.task for record in bench.written] == ["retrieval"]


def test_missing_data_is_skipped_with_the_layout_and_data_root_as_remedy(tmp_path, run):
    data = Data("folder", {"train": lambda: ImageFolder(tmp_path / "nowhere", "train")})
    bench = evaluator(tmp_path, data)
    bench.evaluate({str(run): [Item(KNN(), "folder")]})
    [status] = bench.unfit
    assert status.status == "skipped" and "expected train/<class>" in status.reason and "data_root" in status.remedy


def test_a_split_that_a_dataset_lacks_is_named(data):
    with pytest.raises(Unavailable, match="folder has no video split"):
        data.split("video")


def test_a_failure_is_noted_and_does_not_stop_the_rest(tmp_path, run, images):
    broken = importer.load(run)
    broken.vit.norm.bias.fill_(float("nan"))
    state = {name: value for name, value in broken.state_dict().items()}
    digest = write_tensors(run.parent / "broken" / "backbone.safetensors", state)
    info = read_json(run / "run.json")
    info |= {
        "name": "broken",
        "objective": "dino",
        "binary": False,
        "sha256": info["sha256"] | {"backbone.safetensors": digest},
    }
    write_json(run.parent / "broken" / "run.json", info)
    bench = evaluator(tmp_path, folder_data(images))
    bench.evaluate({str(run.parent / "broken"): [Item(KNN(), "folder")], str(run): [Item(KNN(), "folder")]})
    assert [status.status for status in bench.unfit] == ["failed"] and "NaN" in bench.unfit[0].reason
    assert len(bench.written) == 1


def test_a_damaged_checkpoint_fails_alone(tmp_path, run, data):
    damaged = save_tiny_run(tmp_path / "runs", "dino")
    file = damaged / "backbone.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)
    bench = evaluator(tmp_path, data)
    bench.evaluate({str(damaged): [Item(KNN(), "folder")], str(run): [Item(KNN(), "folder")]})
    assert "backbone.safetensors is damaged" in bench.unfit[0].reason and len(bench.written) == 1


# ---- the tasks


def test_knn_is_the_metric_on_class_tokens(images, run, cache):
    given = subject(run, folder_data(images), cache)
    result = KNN().run(given)
    train, test = given.features("train"), given.features("test")
    expected = knn_classify(train.cls(), train.labels, test.cls(), test.labels, ks=[10, 20])
    assert {k: result.scores[f"top1_k{k}"].value for k in (10, 20)} == {k: expected[k]["top1"] for k in (10, 20)}
    assert "100, 200" in result.notes[0] and "top1_k100" not in result.scores


def test_knn_without_enough_training_images_says_which_k_would_do(images, run, cache):
    given = subject(run, folder_data(images), cache)
    with pytest.raises(Unavailable, match="k=37 needs as many training images, folder has 36"):
        KNN(ks=[37], k=37).check(given)


def test_retrieval_presets_choose_queries_and_database(images, run, cache):
    given = subject(run, folder_data(images), cache)
    train, test = given.features("train"), given.features("test")
    across = retrieval_ap(test.cls(), train.cls(), test.labels, train.labels)
    within = retrieval_ap(test.cls(), test.cls(), test.labels, test.labels, self_index=np.arange(len(test)))
    assert Retrieval().run(given).scores["map"].value == pytest.approx(across.mean())
    assert Retrieval("val-loo").run(given).scores["map"].value == pytest.approx(within.mean())
    assert Retrieval("val-loo").splits == ("test",), "training images must not enter the fingerprint"


def test_retrieval_ranks_class_sets_where_images_have_several(tmp_path, images, run):
    for split in ("train", "val"):
        lines = [f"{split}/class{c}/{i:03d}.png {int(c == 0)} {int(c < 2)} 0" for c in range(3) for i in range(6)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    lists = {"train": tmp_path / "train.txt", "test": tmp_path / "val.txt"}
    readers = {split: (lambda file=file: ImageList(images, str(file))) for split, file in lists.items()}
    given = subject(run, Data("lists", readers), tmp_path)
    with pytest.raises(Unavailable, match="several classes"):
        KNN().check(given)
    result = Retrieval().run(given)
    assert result.scores["map"].n == 12 and result.skipped["queries without a relevant image"] == 6


def test_hamming_ranks_by_the_first_bits_of_the_head(images, run, cache):
    given = subject(run, folder_data(images), cache)
    result = Hamming(bits=(256, 32, 16)).run(given)
    train, test = given.features("train"), given.features("test")
    codes = [(given.head(split.cls()) > 0)[:, :16].numpy() for split in (test, train)]
    expected = hamming_ap(*codes, test.labels, train.labels)
    np.testing.assert_allclose(result.outcomes["map_16"], expected)
    assert Hamming(bits=(256, 32, 16)).main(given) == "map_32" and "map_256" not in result.scores
    assert {"map_16_index", "map_16_asymmetric"} <= set(result.scores)
    assert result.notes == ["codes of [256] bits exceed the 40 that can be made and were left out"]


def test_a_channel_shorter_than_all_code_lengths_is_told_which_would_do(tmp_path, images):
    given = subject(save_tiny_run(tmp_path, bits=12), folder_data(images), tmp_path)
    with pytest.raises(Unavailable, match=r"bits=\[256, 128, 64, 32\]: all exceed the 12 bits .*; set bits=\[12\]"):
        Hamming().check(given)
    Hamming(bits=[12]).check(given)


@pytest.mark.parametrize("kind", ["dino", "untrained", "pixels"])
def test_without_a_binary_channel_hamming_says_so(tmp_path, images, run, kind):
    name = save_tiny_run(tmp_path, "dino") if kind == "dino" else f"{kind}:{run}"
    with pytest.raises(Unavailable, match="no binary channel"):
        Hamming().check(subject(name, folder_data(images), tmp_path))


def test_the_cached_probe_learns_what_separates_the_classes(images, run, cache):
    result = LinearCached(batch_size=8).run(subject(run, folder_data(images), cache))
    assert result.scores["top1"].value > 0.8  # chance is a third
    assert result.outcomes["curve_top1"].shape == (10, 52)
    best = result.outcomes["heads"].tolist().index(result.notes[0].removeprefix("best head: "))
    final = result.outcomes["curve_top1"][-1]
    assert final[best] == final.max() == result.scores["top1"].value and best == int(final.argmax())
    assert any("selected on the images that are reported" in note for note in result.notes)


def test_the_exact_probe_sees_fresh_crops_and_shares_one_forward_pass_among_heads(images, run, cache):
    given = subject(run, folder_data(images), cache)
    given.features("test")
    with count_forward(given.backbone) as sizes:
        result = Linear(epochs=3, batch_size=10).run(given)
    assert sum(sizes) == 3 * 4 * 10, "3 epochs of 4 batches of 10 images, once for all 52 heads"
    cached = LinearCached(epochs=3, batch_size=10).run(given)
    assert not np.array_equal(cached.outcomes["curve_top1"], result.outcomes["curve_top1"])
    assert Linear().protocol(given) != LinearCached().protocol(given)


def test_pixels_have_one_block_and_so_thirteen_heads(images, run, cache):
    result = LinearCached(epochs=1).run(subject(f"pixels:{run}", folder_data(images), cache))
    assert result.outcomes["curve_top1"].shape == (1, 13)


def test_a_class_that_training_lacks_is_counted_wrong_and_said(tmp_path, images, run):
    write_images(tmp_path, train=8, val=2, classes=3)
    for file in (tmp_path / "train" / "class2").iterdir():
        file.unlink()
    given = subject(run, folder_data(tmp_path, allow_empty=True), tmp_path)
    result = LinearCached(epochs=2).run(given)
    assert any("1 classes of the test images do not occur in training" in note for note in result.notes)
    assert result.outcomes["top1"][4:].sum() == 0


def test_a_probe_that_is_shown_one_class_alone_is_scored(tmp_path, run):
    write_images(tmp_path, train=6, val=3, classes=1)
    result = LinearCached(epochs=1).run(subject(run, folder_data(tmp_path), tmp_path))
    assert result.scores["top1"].value == 1.0 and result.scores["top1"].n == 3


@pytest.mark.parametrize(
    "make, word", [(lambda: KNN(ks=[5], k=20), "k=20"), (lambda: Retrieval("all"), "all"), (lambda: Hamming([0]), "0")]
)
def test_a_setting_that_cannot_be_is_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()


# ---- checkpoints


def test_a_run_an_epoch_and_the_student_are_different_checkpoints(tmp_path):
    save_tiny_run(tmp_path, name="a")
    save_tiny_run(tmp_path / "a" / "epochs", seed=2).rename(tmp_path / "a" / "epochs" / "010")
    opened = [
        importer.open_checkpoint(name, tmp_path) for name in ("a", tmp_path / "a" / "epochs" / "010", "a@student")
    ]
    assert [c.record["name"] for c in opened] == ["a", "bits_fixed/epochs/010", "a@student"]
    assert len({c.record["weights_digest"] for c in opened}) == 3
    assert all(not c.backbone.training and c.head is not None for c in opened)


@pytest.mark.parametrize("name", ["nowhere", "untrained:nowhere", "timm/vit_base", "a@wrong", ""])
def test_anything_else_is_refused_in_one_line_that_says_what_is_accepted(tmp_path, name):
    save_tiny_run(tmp_path, name="a")
    with pytest.raises(CheckpointError, match="runs/NAME|@teacher") as caught:
        importer.load(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_each_architecture_brings_its_two_baselines_once(tmp_path):
    names = [str(save_tiny_run(tmp_path, name=name, seed=seed)) for seed, name in enumerate(("a", "b"))]
    found = importer.baselines(names)
    assert {name.split(":")[0]: sharing for name, sharing in found.items()} == {"untrained": names, "pixels": names}
    assert importer.baselines(list(found)) == {}, "a baseline needs none of its own"


def test_the_untrained_baseline_is_the_same_draw_every_time_and_has_no_run_in_it(tmp_path):
    one, two = (save_tiny_run(tmp_path, name=name, seed=seed) for seed, name in ((3, "a"), (4, "b")))
    first = importer.open_checkpoint(f"untrained:{one}")
    torch.manual_seed(99)
    second = importer.open_checkpoint(f"untrained:{two}")
    assert first.record == second.record and first.record["kind"] == "baseline"
    assert first.record["weights_digest"] != importer.describe(one)["weights_digest"]
    state = torch.random.get_rng_state()
    importer.load(f"untrained:{one}")
    assert torch.equal(state, torch.random.get_rng_state()), "the draw disturbed the random state of its caller"


def test_patches_of_pixels_are_laid_out_as_the_image(run):
    pixels = importer.load(f"pixels:{run}")
    image = torch.arange(3 * 16 * 16.0).view(1, 3, 16, 16)
    found = pixels.features(image)
    assert found.patches.shape == (1, 2, 2, 3 * 64)
    assert torch.equal(found.patches[0, 1, 0], image[0, :, 8:, :8].flatten())


def test_the_label_of_an_objective_reaches_the_record(tmp_path):
    run = save_tiny_run(tmp_path, "music", label="inferred loss")
    assert importer.describe(run)["label"] == "inferred loss"


def test_an_unfinished_run_is_said_to_be(tmp_path, data):
    bench = evaluator(tmp_path, data)
    bench.evaluate({str(save_tiny_run(tmp_path / "runs", finished=False)): [Item(KNN(), "folder")]})
    assert any("had not finished" in note for note in bench.written[0].notes)
    assert math.isfinite(bench.written[0].score.value)


@pytest.mark.gpu
@pytest.mark.parametrize("name", GLOBAL)
def test_a_gpu_gives_the_scores_of_the_cpu(name, tmp_path, images, run):
    scores = []
    for device in ("cpu", "cuda"):
        given = subject(run, folder_data(images), tmp_path / device)
        given.store.device = torch.device(device)
        scores.append({key: score.value for key, score in load_task(name).run(given).scores.items()})
    assert scores[1] == pytest.approx(scores[0], abs=0.06)  # one of 18 images may fall on the other side
