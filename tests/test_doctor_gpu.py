"""What doctor says of a GPU, its driver and the packages for it.  nvidia-smi and CuPy are
pretended."""

from importlib.util import find_spec

import fake_gpu
import pytest

from backglass.tools import doctor_gpu


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def nvidia_smi(tmp_path, monkeypatch, script):
    """A tool of that name, the only one on the path."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(
    "script, ok, words",
    [
        ("echo 'NVIDIA H200, 580.1, 9.0, 143771 MiB'", True, "H200"),
        ("echo 'Tesla T4, 550.54.15, 7.5, 15360 MiB'", True, "trains in fp32"),
        ("echo 'Tesla V100, 550.1, 7.0, 16000 MiB'", False, "7.5"),
        ("echo 'couldn'\\''t communicate with the driver' >&2; exit 9", False, "communicate"),
        ("exit 0", False, "says nothing"),
    ],
)
def test_doctor_reads_nvidia_smi(tmp_path, monkeypatch, script, ok, words):
    nvidia_smi(tmp_path, monkeypatch, script)
    found = doctor_gpu.gpu("gpu")
    assert found.ok == ok and words in found.found + found.why


# (driver, the CuPy that is installed, ok, what is said of it)
CUPYS = [
    ("580.95", {"cupy-cuda13x": "14.2.0"}, True, "cupy-cuda13x 14.2.0"),
    ("550.54", {"cupy-cuda12x": "14.2.0"}, True, "cupy-cuda12x 14.2.0"),
    ("550.54", {"cupy-cuda13x": "14.2.0"}, False, "needs driver 580 or newer, this one is 550"),
    ("550.54", {"cupy-cuda12x": "13.6.0"}, False, "needs 14 or newer"),
    ("550.54", {}, None, "the extra gpu12"),
    ("580.95", {}, None, "the extra gpu has"),
    ("580.95", {"cupy-cuda13x": "14.2.0", "cupy-cuda12x": "14.2.0"}, False, "overwrite each other"),
]


@pytest.mark.parametrize("driver, have, ok, words", CUPYS)
def test_doctor_holds_cupy_against_the_driver(tmp_path, monkeypatch, driver, have, ok, words):
    nvidia_smi(tmp_path, monkeypatch, f"echo 'A GPU, {driver}, 8.0, 40000 MiB'")
    monkeypatch.setattr(doctor_gpu, "version", have.get)
    found = doctor_gpu.cupy("cupy")
    assert found.ok == ok and words in found.found + found.why
    assert ok or "12x" in found.fix or driver == "580.95"


def test_doctor_removes_the_cupy_that_does_not_fit_the_driver(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, monkeypatch, "echo 'A GPU, 550.54, 8.0, 40000 MiB'")
    have = {"cupy-cuda13x": "14.2.0", "cupy-cuda12x": "14.2.0"}
    monkeypatch.setattr(doctor_gpu, "version", have.get)
    assert doctor_gpu.cupy("cupy").fix.endswith("pip uninstall -y 'cupy-cuda13x'")


@pytest.mark.parametrize("gpu, ok", [(True, False), (False, None)])
def test_doctor_asks_for_a_compiler_where_there_is_a_gpu(tmp_path, monkeypatch, gpu, ok):
    if gpu:
        nvidia_smi(tmp_path, monkeypatch, "echo 'A GPU, 580.1, 8.0, 40000 MiB'")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    found = doctor_gpu.compiler("C compiler")
    assert found.ok is ok and "no a C compiler" not in found.found and "gcc" in found.fix


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton has wheels for Linux only")
def test_doctor_says_in_what_each_gpu_trains(monkeypatch):
    fake_gpu.FakeGpu(count=2, capability="75").install(monkeypatch)
    monkeypatch.setattr(doctor_gpu, "version", {"cupy-cuda12x": "14.2.0"}.get)
    found = doctor_gpu.cuda("cuda")
    assert found.ok and "cuda:1 NVIDIA Pretend, sm_75: fp32" in found.found


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton has wheels for Linux only")
def test_doctor_says_why_no_gpu_can_be_used(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, monkeypatch, "echo 'A GPU, 550.1, 8.0, 40000 MiB'")
    gpu = fake_gpu.FakeGpu()
    gpu.absent, gpu.driver = fake_gpu.CUDARuntimeError(35), 12040
    gpu.install(monkeypatch)
    monkeypatch.setattr(doctor_gpu, "version", {"cupy-cuda13x": "14.2.0"}.get)
    found = doctor_gpu.cuda("cuda")
    assert found.ok is False and "the driver knows CUDA 12.4" in found.why
