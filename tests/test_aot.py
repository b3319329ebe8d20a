"""Every GPU kernel of a real training step compiles for A100 and H100, without spills on H100 and
with tensor cores where they are meant.  In a process of its own: this one may interpret."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from backglass.device.interpret import SWITCHES

# Not importorskip: an import decides whether this process compiles or interprets.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has wheels for Linux only"
)

MATRIX_OPS = ("matmul", "d_matmul_x", "d_matmul_w", "attention", "d_attention", "linear_xent")


def compiled(*args):
    """What `bench ops --aot --json` prints."""
    command = [sys.executable, "-m", "backglass", "bench", "ops", *args, "--aot", "--json"]
    env = {k: v for k, v in os.environ.items() if k not in SWITCHES.values()}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def rows():
    return compiled()


def test_every_line_of_a_step_compiles_for_both_chips(rows):
    ops = {arch: {r["op"] for r in rows if r["arch"] == arch} for arch in (80, 90)}
    assert ops[80] == ops[90]
    assert {"layernorm", "d_embed", "adamw", "attention", "d_attention", "linear_xent"} <= ops[90]


def test_no_kernel_spills_on_hopper(rows):
    spilling = {(r["op"], r["kernel"]): r["spill_bytes"] for r in rows if r["arch"] == 90}
    assert not {k: v for k, v in spilling.items() if v}


def test_matrix_products_use_the_tensor_cores_in_bf16(rows):
    for op in MATRIX_OPS:
        used = {r["tensor_cores"] for r in rows if (r["arch"], r["op"]) == (90, op)}
        assert "wgmma" in used, op


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("nvidia") is None,
    reason="NVIDIA's compiler libraries: pip install 'numba-cuda[cu13]'",
)
@pytest.mark.parametrize("rung", ["v1", "v2", "v3"])
def test_rungs_in_the_cuda_thread_model_compile_and_stay_in_registers(rung):
    ops = ("matmul", "layernorm", "causal_softmax", "attention")
    rows = compiled(*ops, "--rung", ",".join(f"{op}={rung}" for op in ops))
    threads = [r for r in rows if r["arch"] == 90 and not r["tensor_cores"]]
    assert {"matmul", "d_layernorm", "d_causal_softmax", "d_attention"} <= {
        r["op"] for r in threads
    }
    assert not {(r["op"], r["kernel"]): r["spill_bytes"] for r in threads if r["spill_bytes"]}
