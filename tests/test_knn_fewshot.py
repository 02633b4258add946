"""Few-shot k-NN: n images a class by draw, averaged over draws, with intervals that cover draws and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from frozen import folder_data, save_tiny_run, subject

from evaluate.metrics import bootstrap_interval, knn_classify
from evaluate.tasks.base import Unavailable
from evaluate.tasks.knn_fewshot import KNNFewShot, draw, few_shot_score


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, images: Path):
    folder = tmp_path_factory.mktemp("fewshot")
    return subject(save_tiny_run(folder), folder_data(images), folder / "cache")


def test_a_draw_takes_n_images_of_every_class_and_holds_its_smaller_draws():
    labels = np.repeat([0, 2, 5], [4, 9, 1])[np.random.default_rng(0).permutation(14)]
    places = draw(labels, np.random.default_rng(1))
    for label, count in ((0, 4), (2, 9), (5, 1)):
        assert sorted(places[labels == label]) == list(range(count))
    other = draw(labels, np.random.default_rng(2))
    assert np.array_equal(places, draw(labels, np.random.default_rng(1))) and not np.array_equal(places, other)


def test_every_image_of_a_class_is_drawn_first_equally_often():
    labels = np.zeros(4, int)
    first = [int(np.argmin(draw(labels, np.random.default_rng((0, i))))) for i in range(2000)]
    assert np.abs(np.bincount(first) - 500).max() < 80  # 4 standard deviations


def test_scores_are_the_means_over_draws_of_the_vote_among_the_images_drawn(given):
    task = KNNFewShot(per_class=[2, 5], ks=[1, 3], tries=3)
    result = task.run(given)
    train, test = given.features("train"), given.features("test")
    for n, ks in ((2, [1, 2]), (5, [1, 3, 5])):
        tries = []
        for attempt in range(3):
            shown = draw(train.labels, np.random.default_rng((0, attempt))) < n
            assert shown.sum() == 3 * n
            tries.append(knn_classify(train.cls()[shown], train.labels[shown], test.cls(), test.labels, ks=ks))
        for k in ks:
            accuracies = [found[k]["top1"] for found in tries]
            assert result.scores[f"top1_n{n}_k{k}"].value == pytest.approx(np.mean(accuracies))
            np.testing.assert_allclose(result.outcomes[f"top1_n{n}_k{k}_by_try"], accuracies)
            correct = np.mean([found[k]["predictions"] == test.labels for found in tries], axis=0)
            np.testing.assert_allclose(result.outcomes[f"top1_n{n}_k{k}"], correct)
    assert task.main(given) == "top1_n5_k5" and set(result.scores) == {
        f"top1_n{name}" for name in ("2_k1", "2_k2", "5_k1", "5_k3", "5_k5")
    }


def test_the_interval_is_wider_than_that_over_images_where_draws_differ():
    random = np.random.default_rng(0)
    correct = (random.random((5, 400)) < np.array([0.3, 0.4, 0.5, 0.6, 0.7])[:, None]).astype(float)
    score, images_only = few_shot_score(correct), bootstrap_interval(correct.mean(0))
    assert score.value == pytest.approx(correct.mean()) and score.n == 400
    assert score.high - score.low > 2 * (images_only.high - images_only.low)
    assert few_shot_score(np.ones((3, 4))).high == 1.0


def test_another_seed_draws_other_images_and_is_another_protocol(given):
    task = KNNFewShot(per_class=[1], tries=1)
    first, protocol = task.run(given), task.protocol(given)
    given.seed = 7
    try:
        assert task.protocol(given) != protocol
        assert not np.array_equal(task.run(given).outcomes["top1_n1_k1"], first.outcomes["top1_n1_k1"])
    finally:
        given.seed = 0
    assert any("of one draw" in note for note in first.notes)


def test_classes_with_fewer_images_are_said_to_give_all_they_have(given):
    result = KNNFewShot(per_class=[20], tries=1).run(given)
    assert "3 classes have fewer than 20 training images and gave all they have" in result.notes
    with pytest.raises(Unavailable, match="50 neighbours .* has 36; set a smaller per_class"):
        KNNFewShot(per_class=[50]).check(given)


@pytest.mark.parametrize("settings", [{"per_class": []}, {"per_class": [0]}, {"ks": [0]}, {"tries": 0}])
def test_a_setting_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match="at least 1"):
        KNNFewShot(**settings)
