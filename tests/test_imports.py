"""Who may import whom, read from the source; nothing of the project is imported here, except in subprocesses."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# cli, arguments: both entry points end in the same one line when the user's input is at fault. trainings: processes.
SHARED = ("distributed", "backbones", "datasets", "shapeworld", "checkpoint", "messages")
FOUNDATION = {f"pretrain.{name}" for name in (*SHARED, "cli", "arguments", "trainings")}
OPENMMLAB = {"mmengine", "mmcv", "mmdet", "mmseg"}
CONFIG_LIBRARIES = {"hydra", "omegaconf"}


def module_name(path: Path) -> str:
    """Dotted name of a source file; a package's is that of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(p): p for top in ("pretrain", "evaluate") for p in sorted((ROOT / top).rglob("*.py"))}


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Every module that `source` imports, at any depth of nesting, relative ones made absolute.

    `from package import name` counts as `package.name` where that is one of our modules, else as `package`.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")
            up = node.level - is_package  # levels above the module itself
            base = ".".join(parents[: len(parents) - up] if node.level else []) + f".{node.module or ''}"
            base = base.strip(".")
            found.update(f"{base}.{a.name}" if f"{base}.{a.name}" in SOURCES else base for a in node.names)
    return found


IMPORTS = {name: imports(p.read_text(), name, p.name == "__init__.py") for name, p in SOURCES.items()}


def inside(module: str, *packages: str) -> bool:
    """Whether `module` is one of `packages` or lies in one."""
    return any(module == p or module.startswith(f"{p}.") for p in packages)


def offences(importers: str, looked_at: tuple[str, ...], allowed: tuple[str, ...]) -> list[str]:
    """`a imports b` for every module a in `importers` and every b in `looked_at` that is not in `allowed`."""
    return [
        f"{name} imports {found}"
        for name in SOURCES
        if inside(name, importers)
        for found in sorted(IMPORTS[name])
        if inside(found, *looked_at) and not inside(found, *allowed)
    ]


def test_the_reader_sees_relative_nested_and_submodule_imports():
    source = (
        "from . import base\nfrom ..ops import rate\nfrom pretrain import heads\ndef f():\n    import timm.layers as t"
    )
    expected = {"pretrain.objectives.base", "pretrain.ops", "pretrain.heads", "timm.layers"}
    assert imports(source, "pretrain.objectives.bits") == expected
    assert imports("from . import base", "pretrain.objectives", is_package=True) == {"pretrain.objectives.base"}


def test_pretrain_never_imports_evaluate():
    assert offences("pretrain", ("evaluate",), ()) == []


def test_evaluate_imports_only_the_foundation_of_pretrain():
    found = offences("evaluate", ("pretrain",), tuple(FOUNDATION))
    assert found == []  # adaptation starts trainings as processes of their own


def test_objectives_import_neither_each_other_nor_anything_of_training():
    # distributed: an objective owns its statistics over processes; schedules: DINO's teacher temperature is a curve.
    # segments: IMSVD and MUSIC are two readings of one loss.
    shared = (
        "objectives.base",
        "objectives.segments",
        "heads",
        "teacher",
        "messages",
        "ops",
        "distributed",
        "schedules",
    )
    allowed = tuple(f"pretrain.{name}" for name in shared)
    assert offences("pretrain.objectives", ("pretrain", "timm", *CONFIG_LIBRARIES), allowed) == []


def test_tasks_import_base_features_and_metrics_alone():
    # probes: the mathematics of the linear probe; records: base takes the type of a score from there; the others are
    # what tasks that read patches share, and pictures what all of them draw with.
    allowed = ("evaluate.tasks.base", "evaluate.features", "evaluate.metrics", "evaluate.probes")
    shared = ("dense", "cuts", "partial", "overlay", "pictures", "storage", "vectors", "views")
    allowed += tuple(f"evaluate.{name}" for name in shared)
    allowed += tuple(name for name in SOURCES if name.startswith("evaluate.tasks._"))  # what several tasks share
    found = offences("evaluate.tasks", ("evaluate",), allowed)
    heads = tuple(
        f"evaluate.tasks.{name} imports evaluate.openmmlab" for name in ("segmentation", "detection", "_heads")
    )
    exceptions = {
        "evaluate.tasks.base imports evaluate.records",
        "evaluate.tasks.segmentation imports evaluate.storage",
    }
    assert [o for o in found if o not in exceptions and not o.startswith(heads)] == []


def test_leaderboard_reads_records_alone():
    # metrics: the paired tests; the one that two records may share a rank by is the one `compare` reports.
    tests = tuple(f"evaluate.metrics.{name}" for name in ("statistics", "segmentation", "interpolated"))
    tests += ("evaluate.metrics.paired_iou", "evaluate.metrics.paired_ap")
    # arguments: a command line without Hydra.
    allowed = ("evaluate.leaderboard", "evaluate.records", "pretrain.arguments", *tests)
    assert offences("evaluate.leaderboard", ("evaluate", "pretrain", "torch"), allowed) == []


def test_leaderboard_and_records_import_where_torch_is_absent():
    modules = [name for name in SOURCES if inside(name, "evaluate.leaderboard", "evaluate.records")]
    assert modules
    blocked = dict.fromkeys(("torch", "torchvision", "timm"))
    code = f"import sys, importlib; sys.modules.update({blocked}); [importlib.import_module(m) for m in {modules}]"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_only_one_package_imports_openmmlab():
    found = {name for name in SOURCES if any(inside(i, *OPENMMLAB) for i in IMPORTS[name])}
    assert found and [name for name in found if not inside(name, "evaluate.openmmlab")] == []


def test_config_objects_stay_at_the_entry_points():
    entry_points = {
        "pretrain.cli",
        "pretrain.prepare",
        "pretrain.train",
        "pretrain.sweep",
        "evaluate.run",
        "evaluate.everything",
        "evaluate.worker",
        "pretrain.adapt",
        "evaluate.adaptation",
    }
    found = {name for name in SOURCES if any(inside(i, *CONFIG_LIBRARIES) for i in IMPORTS[name])}
    assert {n for n in found if not n.endswith(("__main__", ".bench"))} <= entry_points


def test_every_package_on_disk_is_installed():
    on_disk = {name for name, path in SOURCES.items() if path.name == "__init__.py"}
    assert on_disk == set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert on_disk >= {name.rpartition(".")[0] for name in SOURCES if "." in name}, "a folder lacks its __init__.py"


def test_evaluate_is_ours_wherever_python_starts(tmp_path):
    code = "import evaluate, pretrain; print(evaluate.__file__, pretrain.__file__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == [str(ROOT / p / "__init__.py") for p in ("evaluate", "pretrain")], result.stderr


def test_no_requirement_brings_the_public_evaluate():
    names = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    assert "evaluate" not in names


def declared_imports() -> set[str]:
    """Import names that the requirements and the extras of pyproject.toml stand for."""
    project = PYPROJECT["project"]
    requirements = [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]
    names = {re.split(r"[<>=]", r)[0].strip().lower() for r in requirements}
    provided = importlib.metadata.packages_distributions()
    installed = {module for module, distributions in provided.items() if names & {d.lower() for d in distributions}}
    return names | installed | OPENMMLAB


def test_every_third_party_import_is_a_declared_requirement():
    known = declared_imports() | set(sys.stdlib_module_names) | {"pretrain", "evaluate"}
    undeclared = {f"{name} imports {i}" for name in SOURCES for i in IMPORTS[name] if i.partition(".")[0] not in known}
    assert undeclared == set()
