"""Every GPU kernel of a real training step compiles for A100 and H100, without spills on H100 and
with tensor cores where they are meant.  In a process of its own: this one may interpret."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

# Not importorskip: an import decides whether this process compiles or interprets.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has wheels for Linux only"
)

MATRIX_OPS = ("matmul", "d_matmul_x", "d_matmul_w", "attention", "d_attention", "linear_xent")


@pytest.fixture(scope="module")
def rows():
    """What `bench ops --aot --json` prints."""
    command = [sys.executable, "-m", "backglass", "bench", "ops", "--aot", "--json"]
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


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
