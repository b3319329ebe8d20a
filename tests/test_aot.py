"""Every GPU kernel of a real training step compiles for A100 and H100, without spills on H100 and
with tensor cores where they are meant; in fp32 also for a T4, with what a T4 has.  In a process of
its own: this one may interpret."""

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


ON_T4 = """
import dataclasses, json
from backglass.bench.aot import calls, distinct
from backglass.device.aot import Aot
from backglass.infer.cache import declare_cache, with_cache
from backglass.models import gpt2
from backglass.program.step import record_logits
from backglass.view import View

device, c = Aot(75), gpt2.Config(layers=2)
training = calls(device, 4, 1024, "fp32")
forward = record_logits(gpt2, c, 4, 1, "fp32")
generation = with_cache(forward, declare_cache(c, 4), View("start", (4,), "i32", "input"))
for call in distinct([], [*training, *generation]):
    device.bind([call], device.memory())[0]()
print(json.dumps([dataclasses.asdict(r) for r in device.compiled]))
"""


def found_by(*arguments: str) -> list[dict]:
    """The JSON that Python prints, in a process that compiles."""
    env = {k: v for k, v in os.environ.items() if k not in SWITCHES.values()}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def compiled(*args: str) -> list[dict]:
    """What `bench ops --aot --json` prints."""
    return found_by("-m", "backglass", "bench", "ops", *args, "--aot", "--json")


@pytest.fixture(scope="module")
def rows():
    return compiled()


def test_every_line_of_a_step_compiles_for_both_chips(rows):
    ops = {arch: {r["op"] for r in rows if r["arch"] == arch} for arch in (80, 90)}
    assert ops[80] == ops[90]
    assert {"layernorm", "d_embed", "adamw", "attention", "d_attention", "linear_xent"} <= ops[90]


# What is put aside where a program begins, outside every loop (seen in the machine code).
PUT_ASIDE = {"d_attention_specialised_kernel": 16}


def test_no_kernel_spills_on_hopper(rows):
    spilling = {r["kernel"]: r["spill_bytes"] for r in rows if r["arch"] == 90 and r["spill_bytes"]}
    assert spilling == PUT_ASIDE


def test_matrix_products_use_the_tensor_cores_in_bf16(rows):
    for op in MATRIX_OPS:
        used = {r["tensor_cores"] for r in rows if (r["arch"], r["op"]) == (90, op)}
        assert "wgmma" in used, op


def test_every_kernel_in_fp32_compiles_for_a_t4_and_fits_it():
    rows = found_by("-c", ON_T4)
    assert {r["op"] for r in rows} >= {*MATRIX_OPS, "d_embed", "adamw", "attention_cached"}
    for r in rows:
        assert r["shared_bytes"] <= 64 << 10 and 32 * r["warps"] <= 1024, r
        assert not r["tensor_cores"], r  # a T4's know neither fp32 nor TF32


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
