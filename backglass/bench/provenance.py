"""What a result needs to be reproduced: machine, versions, commit, command, date."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import backglass
from backglass.device import kind_of

PACKAGES = ("numpy", "numba", "torch", "transformers")
GPU_PACKAGES = ("triton", "cupy-cuda13x", "cupy-cuda12x", "numba-cuda")


def provenance(device: str, llmc_folder: str | None) -> dict[str, Any]:
    """All of a results file but its rows."""
    cuda = kind_of(device) == "cuda"
    versions = {"backglass": backglass.__version__, "python": platform.python_version()}
    for name in PACKAGES + GPU_PACKAGES * cuda:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # a rival that is not installed
            pass
    if llmc_folder:
        versions["llm.c"] = commit(Path(llmc_folder))
    return {
        "machine": ({"gpu": gpu_name(device)} if cuda else {}) | {
            "cpu": cpu_name(), "cores": os.cpu_count(),
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "versions": versions,
        "commit": commit(Path(__file__).parent),
        "command": shlex.join(["backglass", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def commit(folder: Path) -> str:
    """The short name of a checkout's commit, or unknown."""
    git = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return git.stdout.strip() or "unknown"


def gpu_name(device: str) -> str:
    """Name and driver of the GPU that is cuda:1 here, as nvidia-smi tells them, or unknown."""
    shown, index = os.environ.get("CUDA_VISIBLE_DEVICES"), device.partition(":")[2] or "0"
    which = shown.split(",")[int(index)] if shown else index
    command = ["nvidia-smi", "-i", which]
    command += ["--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.splitlines()[0].replace(", ", ", driver ")


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
