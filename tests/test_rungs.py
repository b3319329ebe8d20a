"""The GPU ladders' first rungs, in the CUDA thread model: simulated on the host, thread by thread.
Their compilation ahead of time is in test_aot.py, in a process of its own."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backglass.checks.kernel import check_kernel
from backglass.device import get
from backglass.device.interpret import SWITCHES
from backglass.ops import rungs_of, table

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("triton", "numba_cuda"))),
    reason="Triton and numba-cuda are for Linux: pip install 'backglass[interpret]'",
)
LADDERS = [op for op in table() if rungs_of(op, "gpu")]
# Small: each simulated thread is a Python thread.  The slow ones have more tiles than one each way.
CASES = {
    "matmul": (dict(N=3, C=5, O=7),),
    "layernorm": (dict(N=3, C=5),),
    "causal_softmax": (dict(B=1, T=5, NH=2),),
    "attention": (dict(B=1, T=6, NH=2, HS=3),),
}
LARGER = {
    "matmul": (dict(N=1, C=1, O=1), dict(N=18, C=5, O=17)),
    "layernorm": (dict(N=5, C=37), dict(N=19, C=3)),
    "causal_softmax": (dict(B=2, T=7, NH=3), dict(B=1, T=37, NH=1)),
    "attention": (
        dict(B=1, T=1, NH=1, HS=1),
        dict(B=2, T=7, NH=3, HS=5),
        dict(B=1, T=19, NH=1, HS=8),
    ),
}
RUNGS = [(op, rung) for op in LADDERS for rung in ("v1", "v2", "v3")]


def failures(op, rung, cases, dtype):
    results = check_kernel(table()[op], get("interpret", rungs={op: rung}), dtype, cases)
    assert results
    return [r for r in results if not r.ok]


def test_the_ladders_are_those_of_the_design():
    assert set(LADDERS) == {"matmul", "layernorm", "causal_softmax", "attention"}
    assert all({"v1", "v2", "v3", "v4"} <= set(rungs_of(op, "gpu")) for op in LADDERS)


@pytest.mark.parametrize("op, rung", RUNGS)
def test_simulated_rung_computes_what_the_maths_says(op, rung):
    assert not failures(op, rung, CASES[op], "fp32")


def test_rungs_are_simulated_in_a_process_that_has_used_numba_on_the_cpu():
    code = (
        "from backglass.device import get, host\n"
        "folder = host.numba.config.CACHE_DIR\n"
        "get('interpret')\n"
        "from backglass.device.cuda_threads import SIMULATED\n"
        "print(SIMULATED, host.numba.config.CACHE_DIR == folder)"
    )
    env = {k: v for k, v in os.environ.items() if k not in SWITCHES.values()}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("op, rung", RUNGS)
def test_simulated_rung_computes_what_the_maths_says_at_several_tiles(op, rung, dtype):
    assert not failures(op, rung, LARGER[op], dtype)


# (op, rung, what the kernel says, what it says with the bug)
BUGS = [
    ("matmul", "v1_thread", "f32(a[m, k]) * f32(b[k, n])", "f32(a[m, k]) + f32(b[k, n])"),
    ("matmul", "v2_shared", "number_at(a, m + j, k + i)", "number_at(a, m + i, k + j)"),
    ("matmul", "v3_registers", "k in range(0, a.shape[1], DEPTH)", "k in range(0, DEPTH, DEPTH)"),
    ("layernorm", "v1_row", "/ float32(C) + eps", "/ float32(C)"),
    ("layernorm", "v2_block", "for n in range(i, x.shape[0], SIDE)", "for n in range(i, SIDE)"),
    ("layernorm", "v3_warp", "warp_sum(squares)", "squares"),
    ("attention", "v1_thread", "if s <= t", "if s < t"),
    ("causal_softmax", "v1_row", "* f32(att[n, s])  # 8", "# 8"),
    ("causal_softmax", "v2_block", "if s <= t", "if s < t"),
    ("causal_softmax", "v3_warp", "largest = warp_max(top)", "largest = top"),
]


@pytest.mark.parametrize("op, file, right, wrong", BUGS)
def test_kernel_check_catches_a_bug_planted_into_a_rung(
    op, file, right, wrong, monkeypatch, tmp_path
):
    get("interpret")  # decides that numba-cuda simulates
    name = f"{table()[op].package}.ladder.{file}"
    source = Path(importlib.import_module(name).__file__).read_text(encoding="utf-8")
    assert right in source
    path = tmp_path / "mutant.py"
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutant", path)
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    monkeypatch.setitem(sys.modules, name, mutant)
    rung = next(r for r, module in rungs_of(op, "gpu").items() if module == name)
    with np.errstate(all="ignore"):
        assert failures(op, rung, CASES[op], "fp32")
