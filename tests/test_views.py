"""Views: colours change as in torchvision, crops have its distribution, nothing depends on workers or processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import RandomResizedCrop

from pretrain.datasets import ImageFolder
from pretrain.views import (
    COLUMNS,
    ORDERS,
    Crops,
    EpochBatches,
    Finished,
    View,
    change_colours,
    colour_views,
    crop_box,
    draw_colours,
    finished_views,
    multi_crop,
)


def parameters(n: int, **given: float) -> torch.Tensor:
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0}
    row = [given.get(name, neutral.get(name, 0.0)) for name in COLUMNS]
    return torch.tensor([row] * n)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"flip": 1}, TF.hflip),
        ({"jitter": 1, "brightness": 1.3}, lambda x: TF.adjust_brightness(x, 1.3)),
        ({"jitter": 1, "contrast": 0.7}, lambda x: TF.adjust_contrast(x, 0.7)),
        ({"jitter": 1, "saturation": 1.2}, lambda x: TF.adjust_saturation(x, 1.2)),
        ({"jitter": 1, "hue": 0.07}, lambda x: TF.adjust_hue(x, 0.07)),
        ({"jitter": 0, "brightness": 0.2}, lambda x: x),
        ({"gray": 1}, lambda x: TF.rgb_to_grayscale(x, 3)),
        ({"blur": 1.1}, lambda x: TF.gaussian_blur(x, [9, 9], [1.1, 1.1])),
        ({"solarize": 1}, lambda x: TF.solarize(x, 128 / 255)),
        ({"invert": 1}, TF.invert),
    ],
)
def test_each_colour_change_equals_torchvision(given: dict, expected) -> None:
    x = torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(change_colours(x.clone(), parameters(4, **given)), expected(x), atol=2e-3)


def test_the_order_of_jitter_is_each_images_own() -> None:
    assert len(set(ORDERS)) == 24
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    p = parameters(2, jitter=1, brightness=1.4, contrast=0.6, saturation=1.2, hue=0.1)
    p[:, COLUMNS.index("order")] = torch.tensor([0.0, 23.0])
    changes = (
        lambda y: TF.adjust_brightness(y, 1.4),
        lambda y: TF.adjust_contrast(y, 0.6),
        lambda y: TF.adjust_saturation(y, 1.2),
        lambda y: TF.adjust_hue(y, 0.1),
    )
    for image, order, ours in zip(x, (ORDERS[0], ORDERS[23]), change_colours(x.clone(), p), strict=True):
        for kind in order:
            image = changes[kind](image)
        assert torch.allclose(ours, image, atol=2e-3)


def test_an_images_change_does_not_depend_on_its_batch() -> None:
    generator = np.random.default_rng(0)
    view = View(16, blur_p=0.5, solarize_p=0.5, invert_p=0.3)
    colours = torch.from_numpy(np.stack([draw_colours(view, generator.random(12)) for _ in range(12)]))
    x = torch.rand(12, 3, 16, 16)
    whole = change_colours(x.clone(), colours)
    for i in range(12):
        assert torch.allclose(whole[i], change_colours(x[i : i + 1].clone(), colours[i : i + 1])[0], atol=1e-5)


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (40, 160)])
def test_crops_have_the_distribution_of_torchvision(size: tuple[int, int]) -> None:
    width, height = size
    random, image = np.random.default_rng(0), torch.empty(3, height, width)
    ours = np.array([crop_box(width, height, (0.2, 1.0), random.random(40)) for _ in range(4000)])
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    mine = np.stack([ours[:, 1], ours[:, 0], ours[:, 3] - ours[:, 1], ours[:, 2] - ours[:, 0]], 1)  # top left h w
    assert np.abs(mine.mean(0) - theirs.mean(0)).max() < 0.03 * max(size)
    assert np.abs(mine.std(0) - theirs.std(0)).max() < 0.03 * max(size)
    assert (ours[:, :2] >= 0).all() and (ours[:, 2] <= width).all() and (ours[:, 3] <= height).all()


def test_chances_of_changes_are_those_of_the_view() -> None:
    view, random = View(16, blur_p=0.3, solarize_p=0.2, invert_p=0.1), np.random.default_rng(0)
    drawn = np.stack([draw_colours(view, random.random(12)) for _ in range(8000)])
    p = dict(zip(COLUMNS, drawn.T, strict=True))
    wanted = {"flip": 0.5, "jitter": 0.8, "gray": 0.2, "solarize": 0.2, "invert": 0.1}
    for name, chance in wanted.items():
        assert (p[name] > 0).mean() == pytest.approx(chance, abs=0.02)
    assert (p["blur"] > 0).mean() == pytest.approx(0.3, abs=0.02)
    assert p["blur"][p["blur"] > 0].min() >= 0.1 and p["blur"].max() <= 2.0
    assert p["brightness"].min() >= 0.6 and p["brightness"].max() <= 1.4 and abs(p["hue"]).max() <= 0.1
    assert set(p["order"]) == set(range(24))


def batches(
    images: Path, workers: int, rank: int = 0, world: int = 1, start: int = 0, collate: Finished | None = None
) -> list[dict]:
    found = ImageFolder(images, "train")
    views = multi_crop({"size": 16}, {"blur_p": 1.0}, {"solarize_p": 0.5}, 1, {"size": 8, "scale": [0.1, 0.4]})
    sampler = EpochBatches(len(found), 12, 7, rank, world)
    sampler.epoch, sampler.start = 3, start
    return list(DataLoader(Crops(found, views, 7), batch_sampler=sampler, num_workers=workers, collate_fn=collate))


def equal(a: dict, b: dict) -> bool:
    return torch.equal(a["colours"], b["colours"]) and all(map(torch.equal, a["crops"], b["crops"]))


def test_views_depend_on_seed_epoch_and_image_alone(images: Path) -> None:
    whole = batches(images, 0)
    assert len(whole) == 3 and [tuple(c.shape) for c in whole[0]["crops"]] == [(12, 3, 16, 16)] * 2 + [(12, 3, 8, 8)]
    assert all(map(equal, whole, batches(images, 2))), "the number of workers changes a view"
    assert all(map(equal, whole[1:], batches(images, 0, start=1))), "a resumed epoch differs"
    halves = [batches(images, 0, rank, 2) for rank in (0, 1)]
    for i, batch in enumerate(whole):
        joined = [torch.cat([h[i]["crops"][v] for h in halves]) for v in range(3)]
        assert all(map(torch.equal, batch["crops"], joined)), "two processes see other views than one"


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own() -> None:
    sampler = EpochBatches(37, 12, 0)
    orders = []
    for epoch in (0, 1):
        sampler.epoch = epoch
        orders.append([i for batch in sampler for _, i in batch])
    assert len(orders[0]) == 36 == len(set(orders[0])) and orders[0] != orders[1]


def test_batches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=38 is larger than the data set of 37 images"):
        EpochBatches(37, 38, 0)
    with pytest.raises(ValueError, match="does not divide by 5 processes"):
        EpochBatches(37, 12, 0, 0, 5)


def test_finished_views_are_normalised_and_in_view_order(images: Path) -> None:
    batch = batches(images, 0)[0]
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    views = colour_views(batch, mean, std, torch.device("cpu"))
    assert [tuple(v.shape) for v in views] == [(12, 3, 16, 16)] * 2 + [(12, 3, 8, 8)]
    first = change_colours(batch["crops"][0].float() / 255, batch["colours"][:, 0])
    expected = (first - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert torch.allclose(views[0], expected, atol=1e-5)


def test_a_worker_finishes_views_as_the_training_process_does(images: Path) -> None:
    mean, std, device = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), torch.device("cpu")
    theirs, ours = batches(images, 1, collate=Finished(mean, std)), batches(images, 0)
    assert len(theirs) == len(ours) == 3
    for done, raw in zip(theirs, ours, strict=True):
        views = finished_views(done, mean, std, device)
        assert all(map(torch.equal, views, finished_views(raw, mean, std, device)))
        assert torch.equal(done["bad"], raw["bad"])


def test_unknown_interpolation_and_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="use bicubic, bilinear"):
        View(interpolation="cubic")
    with pytest.raises(ValueError, match="0 < low <= high"):
        View(scale=(0.5, 0.2))


def test_a_plain_image_survives_neutral_parameters() -> None:
    x = torch.from_numpy(np.asarray(Image.linear_gradient("L").resize((16, 16)).convert("RGB")).copy())
    x = x.permute(2, 0, 1)[None].float() / 255
    assert torch.equal(change_colours(x.clone(), parameters(1)), x)
