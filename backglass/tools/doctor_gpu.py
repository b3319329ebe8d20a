"""doctor's look at what --device cuda needs: a GPU and its driver, Triton with a C compiler, CuPy
for the driver's CUDA, cuBLASLt; and whether a GPU then answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from backglass.tools.finding import Finding, pip, version

# CuPy's packages, with cuBLASLt's, the extra that asks for both, and the least driver
CUDA_13 = ("cupy-cuda13x", "nvidia-cublas", "gpu", 580)
CUDA_12 = ("cupy-cuda12x", "nvidia-cublas-cu12", "gpu12", 525)
LEAST_CUPY = 14  # brings the package that finds cuBLASLt
LEAST_CAPABILITY = 7.5  # that the kernels are compiled for in the tests


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi says: a row for every GPU, or why there is none."""

    rows: list[list[str]]  # [name, driver, compute capability, memory]
    why: str = ""

    @property
    def major(self) -> int | None:
        """580 of driver 580.95.05."""
        return int(self.rows[0][1].partition(".")[0]) if self.rows else None


def driver() -> Driver | None:
    """None without nvidia-smi, which comes with every driver."""
    tool = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    if not Path(tool).exists():
        return None
    query = "--query-gpu=name,driver_version,compute_cap,memory.total"
    command = [tool, query, "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    said = done.stdout.strip()
    if done.returncode or not said:
        why = (done.stderr or said).strip().partition("\n")[0] or "nvidia-smi says nothing"
        return Driver([], why)
    return Driver([[part.strip() for part in line.split(",")] for line in said.splitlines()])


def gpu(name: str) -> Finding:
    there = driver()
    if there is None and not has_nvidia_card():
        return Finding(name, None, "no NVIDIA GPU", "everything runs on the CPU")
    if there is None:
        return Finding(name, False, "no driver", "there is an NVIDIA card, but no nvidia-smi",
                       "sudo ubuntu-drivers install && sudo reboot")  # fmt: skip
    if not there.rows:
        return Finding(name, False, "not working", there.why, "sudo modprobe nvidia && nvidia-smi")
    found = "; ".join(", ".join(row) for row in there.rows)
    least = min(float(row[2]) for row in there.rows)
    if least < LEAST_CAPABILITY:
        why = f"kernels are compiled for compute capability {LEAST_CAPABILITY} and newer"
        return Finding(name, False, found, why)
    if least < 8.0:
        why = "no bf16 and TF32 before compute capability 8.0: --dtype auto trains in fp32"
        return Finding(name, True, found, why)
    return Finding(name, True, found)


def has_nvidia_card() -> bool:
    """Whether a device of NVIDIA's is on the PCI bus."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(p.read_text().strip() == "0x10de" for p in vendors)


def triton(name: str) -> Finding:
    found = version("triton")
    fix = pip("triton>=3.6,<3.10")
    if found is None:
        return Finding(name, None, "absent", "needed for --device cuda and interpret", fix)
    parts = found.split(".")
    near = parts[0] == "3" and 6 <= int(parts[1]) < 10
    return Finding(name, near, found, "" if near else "needs 3.6 to 3.9", "" if near else fix)


def compiler(name: str) -> Finding:
    """With which Triton builds its launcher."""
    asked = os.environ.get("CC")
    tool = shutil.which(asked) if asked else shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing = [
        what for what, ok in (("C compiler", tool), (str(header), header.exists())) if not ok
    ]
    if not missing:
        return Finding(name, True, f"{tool}, {header}")
    why = "Triton builds its launcher for --device cuda with it"
    needed = None if driver() is None else False
    return Finding(name, needed, f"no {' and no '.join(missing)}", why,
                   "sudo apt install gcc python3-dev")  # fmt: skip


def fitting() -> tuple[str, str, str, int]:
    """The packages for this driver; for CUDA 13 if there is none to ask."""
    there = driver()
    major = there.major if there else None
    return CUDA_12 if major is not None and major < CUDA_13[3] else CUDA_13


def cupy(name: str) -> Finding:
    packages, library, extra, _ = fitting()
    names = (CUDA_13[0], CUDA_12[0], "cupy")
    have = [f"{n} {version(n)}" for n in names if version(n)]
    if not have:
        why = f"needed for --device cuda; the extra {extra} has all it needs"
        return Finding(name, None, "absent", why, pip(packages, library))
    found = ", ".join(have)
    if len(have) > 1:
        others = [h.split()[0] for h in have if not h.startswith(f"{packages} ")]
        fix = pip(*others).replace("pip install", "pip uninstall -y")
        return Finding(name, False, found, "two CuPys overwrite each other", fix)
    if have[0].startswith(CUDA_13[0]) and packages == CUDA_12[0]:
        there = driver()
        why = (
            f"CUDA 13 needs driver {CUDA_13[3]} or newer, this one is {there and there.major}: "
            f"update it, or take CuPy for CUDA 12 (the extra {extra})"
        )
        fix = f"{pip(CUDA_13[0]).replace('pip install', 'pip uninstall -y')} && "
        return Finding(name, False, found, why, fix + pip(packages, library))
    if int(have[0].split()[1].partition(".")[0]) < LEAST_CUPY:
        package = have[0].split()[0]
        return Finding(
            name, False, found, f"needs {LEAST_CUPY} or newer", pip(f"{package}>={LEAST_CUPY}")
        )
    return Finding(name, True, found)


def cublaslt(name: str) -> Finding:
    """From a package, or wherever NVIDIA's pathfinder finds it."""
    have = [f"{n} {version(n)}" for _, n, *_ in (CUDA_13, CUDA_12) if version(n)]
    if have:
        return Finding(name, True, ", ".join(have))
    why = "multiplies where it is faster than our kernels; without it: --matmul own"
    if version("cuda-pathfinder"):
        from backglass.device.cublaslt import library
        from backglass.errors import UserError

        try:
            return Finding(name, True, str(library()._name))
        except UserError:
            pass
    return Finding(name, None, "absent", why, pip(fitting()[1]))


def cuda(name: str) -> Finding:
    """Does CuPy see a GPU, and in what can it train?"""
    from backglass.errors import UserError

    needed = None if driver() is None else False
    if not any(version(n) for n in (CUDA_13[0], CUDA_12[0], "cupy")):
        return Finding(name, None, "not tried", "CuPy is absent")
    try:
        from backglass.device import cuda as device

        cp = device.usable_cupy()
    except UserError as error:
        return Finding(name, needed, "no GPU can be used", str(error))
    found = []
    for index in range(cp.cuda.runtime.getDeviceCount()):
        sm = device.arch(index, cp)
        called = cp.cuda.runtime.getDeviceProperties(index)["name"].decode()
        found.append(f"cuda:{index} {called}, sm_{sm}: {', '.join(reversed(device.dtypes_of(sm)))}")
    return Finding(name, True, "; ".join(found))
