"""What stands between OpenMMLab and the suite: operators, schedule, the way to compiled ones. No library of theirs but
mmcv is loaded here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from evaluate.openmmlab import build, library
from evaluate.openmmlab.samples import Augmentation
from evaluate.openmmlab.training import Schedule
from evaluate.tasks._heads import as_table, curve_files

ROOT = Path(__file__).resolve().parents[1]
ALIGN = {"aligned_height": 7, "aligned_width": 7, "spatial_scale": 0.25, "sampling_ratio": 0, "pool_mode": 1}


@pytest.fixture(scope="module")
def operators():
    with library.quiet():
        from evaluate.openmmlab import operators

        operators.install()
    return operators


def regions(n: int = 5) -> torch.Tensor:
    """Regions (n, 5) of a batch of two images of 64 pixels."""
    corners = torch.rand(n, 4, generator=torch.Generator().manual_seed(1)) * 30
    corners[:, 2:] += corners[:, :2] + 2
    return torch.cat([torch.arange(n)[:, None] % 2, corners], dim=1)


@pytest.mark.parametrize("aligned", [True, False])
def test_region_features_and_their_gradient_are_torchvisions_whatever_the_strides(operators, aligned):
    """mmcv's own kernel reads a map in channels-last order as if it were contiguous: silently wrong: none is given."""
    from mmcv.ops import roi_align

    rois, maps = regions(), torch.randn(2, 8, 16, 16)
    wanted_maps = maps.clone().requires_grad_()
    wanted = torchvision.ops.roi_align(wanted_maps, rois, 7, 0.25, 0, aligned)
    (wanted * torch.arange(7.0)).sum().backward()
    orders = [maps] if operators.compiled() else [maps, maps.contiguous(memory_format=torch.channels_last)]
    for given in orders:
        leaf = given.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        found = roi_align(leaf, rois, (7, 7), 0.25, 0, "avg", aligned)
        torch.testing.assert_close(found, wanted)
        (found * torch.arange(7.0)).sum().backward()
        torch.testing.assert_close(leaf.grad, wanted_maps.grad)
    if not operators.compiled():
        half = roi_align(maps.bfloat16(), rois, (7, 7), 0.25, 0, "avg", aligned)
        assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), wanted, atol=0.05)


def test_suppression_counts_pixels_by_the_offset(operators):
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 4.5], [20, 20, 29, 29]])
    scores = torch.tensor([0.5, 0.9, 0.1])
    for offset, area in (
        (0, lambda b: (b[2] - b[0]) * (b[3] - b[1])),
        (1, lambda b: (b[2] - b[0] + 1) * (b[3] - b[1] + 1)),
    ):
        iou = float(area(boxes[1]) / area(boxes[0]))
        assert nms(boxes, scores, iou + 0.01, offset=offset)[1].tolist() == [1, 0, 2]
        assert nms(boxes, scores, iou - 0.01, offset=offset)[1].tolist() == [1, 2]


def test_the_focal_loss_and_its_gradient_are_torchvisions(operators):
    if operators.compiled():
        pytest.skip("mmcv's own focal loss is for GPUs; mmdet takes another on a CPU")
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.randn(6, 4, requires_grad=True)
    target = torch.tensor([0, 3, 4, 1, 4, 2])  # 4: background
    hot = torch.nn.functional.one_hot(target, 5)[:, :4].float()
    wanted = torchvision.ops.sigmoid_focal_loss(logits, hot, 0.25, 2.0, "sum")
    [gradient] = torch.autograd.grad(wanted, logits)
    found = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "sum")
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], gradient)


def test_an_operator_that_is_not_there_says_what_builds_it(operators):
    if operators.compiled():
        pytest.skip("mmcv has its own operators here")
    from mmcv import _ext

    with pytest.raises(NotImplementedError, match="ms_deform_attn_forward of mmcv is not built here; `make mmcv-ops`"):
        _ext.ms_deform_attn_forward(1)
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        _ext.roi_align_forward(*[None] * 5, **ALIGN | {"pool_mode": 0, "aligned": True})


@pytest.mark.slow
def test_without_openmmlab_the_suite_imports_and_the_reason_names_the_command():
    code = (
        "import sys; [sys.modules.update({m: None}) for m in ('mmengine', 'mmcv', 'mmseg', 'mmdet')]\n"
        "import evaluate.run, evaluate.tasks.segmentation, evaluate.tasks.detection\n"
        "from evaluate.openmmlab import library\n"
        "try: library.load('mmseg')\n"
        "except library.Missing as error: print(error, '|', error.remedy)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.stdout.strip().endswith("mmengine, which is not installed | run `make openmmlab`"), result.stderr


def test_openmmlab_is_installed_beside_the_headless_opencv_alone():
    import importlib.metadata

    names = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    assert {n for n in names if "opencv" in n} == {"opencv-python-headless"}
    assert {"onedl-mmengine", "onedl-mmcv", "onedl-mmdetection", "onedl-mmsegmentation"} <= names


# ---- schedule and curve


def test_the_linear_schedule_warms_up_and_falls_to_zero():
    schedule = Schedule(100, 4, 1e-3, 0.0, 10, 1e-6)
    assert schedule.factor(0) == pytest.approx(1e-6) and schedule.factor(5) == pytest.approx(0.5, abs=1e-5)
    assert schedule.factor(10) == 1 and schedule.factor(55) == pytest.approx(0.5) and 0 < schedule.factor(99) < 0.02


def test_milestones_divide_the_rate_by_ten():
    schedule = Schedule(12, 4, 1e-3, 0.0, 0, 1.0, (8, 11))
    assert [schedule.factor(i) for i in (0, 7, 8, 10, 11)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"batch_size": 0}, {"lr": 0.0}, {"warmup": 10}])
def test_a_schedule_that_cannot_be_is_refused_by_value(wrong):
    settings = {"iterations": 10, "batch_size": 2, "lr": 0.1, "weight_decay": 0.0, "warmup": 2, "start": 0.1} | wrong
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Schedule(**settings)


def test_the_curve_is_a_table_and_a_picture_and_a_diverged_head_leaves_a_gap():
    history = [{"iteration": 1, "lr": 0.1, "loss": 2.0}, {"iteration": 2, "lr": 0.05, "loss": float("nan")}]
    assert as_table(history).decode().splitlines() == ["iteration,lr,loss", "1,0.1,2", "2,0.05,"]
    files = curve_files("a $x$ b", history)
    assert set(files) == {"curve.csv", "curve.png"} and files["curve.png"].startswith(b"\x89PNG")
    assert curve_files("none", []) == {}


def test_an_augmentation_is_plain_values_in_a_protocol():
    plain = Augmentation((96, 96), (0.5, 2.0), (64, 64)).protocol()
    assert plain["ratio"] == (0.5, 2.0) and plain["crop"] == (64, 64) and plain["flip"] == 0.5


# ---- compiled operators


def test_a_torch_that_is_too_new_for_compiled_operators_is_named(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.14.0+cpu")
    assert "torch 2.14.0+cpu wants C++20" in build.problem() and "torch<2.14" in build.problem()
    monkeypatch.setattr(torch, "__version__", "2.12.1")
    monkeypatch.setattr(build.shutil, "which", lambda *_, **__: None)
    assert "no C++ compiler" in build.problem()


@pytest.mark.parametrize(
    "cuda, toolkit, named, gpu, says",
    [
        (None, "13.0", "", False, "has no CUDA"),
        ("13.0", "", "9.0", False, "CUDA_HOME"),
        ("13.0", "12.4", "9.0", False, "CUDA 12.4, torch 13.0"),
        ("13.0", "13.1", "", False, "no GPU here; set TORCH_CUDA_ARCH_LIST"),
        ("13.0", "13.1", "9.0", True, "CPU and GPU"),
    ],
)
def test_operators_for_a_gpu_need_the_toolkit_of_torch_and_a_gpu(monkeypatch, cuda, toolkit, named, gpu, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", named)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(build, "cuda_toolkit", lambda: toolkit)
    found, words = build.for_gpu()
    assert found is gpu and says in words


def test_a_kept_wheel_is_not_built_again(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "for_gpu", lambda: (False, "for the CPU"))
    monkeypatch.setattr(build, "problem", lambda: "")
    assert build.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "MMCV_WITH_OPS=1 FORCE_CUDA=0" in said and f"torch-{torch.__version__}" in said
    place = tmp_path / ".cache" / "wheels" / f"torch-{torch.__version__}"
    place.mkdir(parents=True)
    (place / "onedl_mmcv-2.3.6-cp311-cp311-linux_x86_64.whl").touch()
    assert build.main(["--dry-run"]) == 0 and "pip" not in capsys.readouterr().out


def test_a_point_of_a_schedule_is_never_beyond_its_rate():
    factors = np.array([Schedule(40, 2, 0.1, 0.0, 7, 1e-6).factor(i) for i in range(40)])
    assert factors.max() == 1 and (np.diff(factors[:8]) > 0).all() and (np.diff(factors[7:]) < 0).all()
