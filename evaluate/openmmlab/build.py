"""`make mmcv-ops`: build mmcv's compiled operators and put them in place of the pure-Python mmcv.

Needs a C++ compiler, and nvcc of torch's CUDA version for the operators on a GPU. The wheel is kept below .cache/wheels
in a folder named by torch's version, which its file name does not carry; given again, nothing is compiled.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from pretrain.arguments import Parser

TOOLS = ("setuptools>=80,<82", "wheel", "ninja", "packaging")
TOO_NEW = (2, 14)  # wants C++20; mmcv is written in C++17


def cuda_toolkit() -> str:
    """Version of nvcc, as "13.0"; empty where there is none."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which("nvcc")
    if nvcc is None:
        return ""
    found = re.search(r"release (\d+\.\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    return found[1] if found else ""


def problem() -> str:
    """Why nothing can be built here, if so."""
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release >= TOO_NEW:
        return f"torch {torch.__version__} wants C++20, mmcv's operators are C++17: install torch<2.14 for them"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        return "no C++ compiler found: install g++, or name one in CXX"
    return ""


def for_gpu() -> tuple[bool, str]:
    """Whether operators for a GPU can be built, and the reason in words."""
    wanted, toolkit = torch.version.cuda, cuda_toolkit()
    if wanted is None:
        return False, "for the CPU: this torch has no CUDA"
    if not toolkit:
        return False, f"for the CPU: no CUDA toolkit found; set CUDA_HOME to one of version {wanted} for a GPU"
    if toolkit.split(".")[0] != wanted.split(".")[0]:
        return False, f"for the CPU: the toolkit found has CUDA {toolkit}, torch {wanted}; set CUDA_HOME to the latter"
    if not (torch.cuda.is_available() or os.environ.get("TORCH_CUDA_ARCH_LIST")):
        return False, "for the CPU: no GPU here; set TORCH_CUDA_ARCH_LIST, as 9.0, to build for one elsewhere"
    return True, f"for CPU and GPU, with CUDA {toolkit}"


def commands(place: Path, gpu: bool) -> list[tuple[list[str], dict[str, str]]]:
    """What is run, each with what it finds in the environment beside the usual."""
    pip = [sys.executable, "-m", "pip"]
    options = {"MMCV_WITH_OPS": "1", "FORCE_CUDA": "1" if gpu else "0", "MAX_JOBS": str(os.cpu_count() or 1)}
    package = f"onedl-mmcv=={version('onedl-mmcv')}"
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--no-binary", "onedl-mmcv"]
    return [([*pip, "install", "-q", *TOOLS], {}), ([*build, "-w", str(place), package], options)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: build unless a wheel is kept, then install it."""
    parser = Parser(prog="make mmcv-ops", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    options = parser.parse_args(arguments)
    if reason := problem():
        print(reason, file=sys.stderr)
        return 1
    gpu, words = for_gpu()
    place = Path(".cache/wheels") / f"torch-{torch.__version__}{'-gpu' if gpu else ''}"
    kept = sorted(place.glob("onedl_mmcv-*.whl"))
    print(
        f"{kept[0]} is there"
        if kept
        else f"building mmcv's operators, minutes on many cores, half an hour on two, {words}",
        flush=True,
    )
    steps = [] if kept else commands(place, gpu)
    for command, environment in steps:
        if options.dry_run:
            print(*(f"{key}={value}" for key, value in environment.items()), shlex.join(command))
        elif code := subprocess.run(command, env=os.environ | environment).returncode:
            print(
                "mmcv's operators could not be built, see above; all works without them but what needs them",
                file=sys.stderr,
            )
            return code
    if options.dry_run:
        return 0
    [wheel] = sorted(place.glob("onedl_mmcv-*.whl"))[:1]
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", str(wheel)]
    return subprocess.run(install).returncode


if __name__ == "__main__":
    sys.exit(main())
