"""plan against what was measured, and what it says of dtypes, of workspace, of the GPU's context.

In processes of their own where the workspace is asked for: that imports Triton to compile, and this
process may interpret."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backglass.device.interpret import SWITCHES
from backglass.program.budget import CUDA_CONTEXT_BYTES

RESULTS = Path(__file__).parent.parent / "bench" / "results"
TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has wheels for Linux only"
)


def plan(*args: str) -> str:
    """What `backglass plan …` prints."""
    env = {k: v for k, v in os.environ.items() if k not in SWITCHES.values()}
    command = [sys.executable, "-m", "backglass", "plan", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


# (results, our rows in them, what plan is asked)
MEASURED = [
    ("cuda-train-b4", "--batch-size 4 --dtype bf16"),
    ("cuda-train-b64", "--batch-size 64 --dtype bf16"),
    ("cuda-train-b64-recompute-gelu-ln",
     "--batch-size 64 --dtype bf16 --recompute fch_gelu,ln1,ln2"),
    ("cuda-train-b64-recompute-block",
     "--batch-size 64 --dtype bf16 "
     "--recompute ln1,qkv,atty,attproj,res2,ln2,fch,fch_gelu,fcproj"),
    ("cuda-train-tf32-b32", "--batch-size 32 --dtype tf32"),
]  # fmt: skip
MATMULS = {
    "backglass, fastest": "fastest", "backglass": "own", "backglass, cuBLASLt": "cublaslt"
}  # fmt: skip


@TRITON
@pytest.mark.parametrize("file, asked", MEASURED, ids=[file for file, _ in MEASURED])
def test_plan_foretells_what_the_driver_reported(file, asked):
    results = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
    others = (results.get("contexts", 1) - 1) * CUDA_CONTEXT_BYTES  # see the file's note
    rows = [r for r in results["rows"] if "peak_bytes" in r]
    measured = {r["implementation"]: r["peak_bytes"] - others for r in rows}
    ours = {name: matmul for name, matmul in MATMULS.items() if name in measured}
    assert ours
    for name, matmul in ours.items():
        words = f"gpt2-124m --seq-len 1024 --device cuda --matmul {matmul} {asked} --json".split()
        said = json.loads(plan(*words))["total_bytes"]
        assert abs(said - measured[name]) <= 0.03 * measured[name], (name, said, measured[name])


@TRITON
def test_plan_shows_every_part_of_the_total_and_where_the_context_was_measured():
    text = plan(*"gpt2-124m --batch-size 64 --seq-len 1024 --device cuda".split())
    parts = [float(x) for x in re.findall(r"^  \S.*? ([\d.]+) GiB   ", text, re.M)]
    assert abs(sum(parts[:-1]) - parts[-1]) < 0.05 and len(parts) == 9
    assert "kernel workspace" in text and "on sm_90" in text
    assert re.search(r"CUDA context .*measured on an H200", text)


@TRITON
def test_plan_fits_workspace_and_context_into_a_device():
    words = "tiny --batch-size 8 --dtype bf16 --device-memory 2GiB --json"
    found = json.loads(plan(*words.split()))
    found |= json.loads(plan(*words.replace("size 8", f"size {found['largest_batch']}").split()))
    assert found["total_bytes"] <= 2 << 30
    words = words.replace("size 8", f"size {found['largest_batch'] + 1}")
    assert json.loads(plan(*words.split()))["total_bytes"] > 2 << 30


def test_plan_without_triton_says_that_the_workspace_is_unknown(run, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "triton" else real(name, package),
    )
    code, text = run("plan", "tiny", "--device", "cuda")
    assert code == 0 and re.search(r"kernel workspace +unknown +.*pip install 'triton", text)
    assert "and the workspace" in text


# dtype -> (what is held in which dtype)
HELD = {
    "fp32": {"fp32": ["p", "dp", "m", "v", "qkv", "mean1", "lse", "loss"], "i32": ["ids"]},
    "bf16": {
        "bf16": ["p", "dp", "qkv", "dqkv", "fch_gelu"],
        "fp32": ["m", "v", "master", "mean1", "rstd1", "lse", "loss", "hyper"],
        "i32": ["ids", "targets"],
    },
    "tf32": {"tf32": ["p", "dp", "qkv"], "fp32": ["m", "v", "mean1", "lse"], "i32": ["ids"]},
}


@pytest.mark.parametrize("dtype", HELD)
def test_plan_names_what_is_held_in_which_dtype(dtype):
    from backglass import presets
    from backglass.program.budget import Machine
    from backglass.training.fit import budget_of

    s = presets.tiny(device="cuda", dtype=dtype)
    held = budget_of(s, s.model_config(256), Machine(())).held()
    for kept, names in HELD[dtype].items():
        found = {name for group in held[kept].values() for name in group}
        assert set(names) <= found
    everything = [n for kinds in held.values() for names in kinds.values() for n in names]
    assert len(everything) == len(set(everything))


def test_plan_prints_dtypes_beside_the_states_and_as_a_list(run, monkeypatch):
    monkeypatch.setattr("backglass.commands.plan.machine_for", lambda s: (machine(), 90))
    code, text = run("plan", "tiny", "--dtype", "bf16")
    assert code == 0 and re.search(r"master weights +[\d.]+ GiB   fp32", text)
    assert "held in bf16: parameters p; gradients dp; activations embd ln1 qkv" in text
    assert "held in fp32: optimiser m v master; activations mean1" in text


def machine():
    from backglass.program.budget import Machine

    return Machine(context=CUDA_CONTEXT_BYTES)
