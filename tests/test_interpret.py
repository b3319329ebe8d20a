"""The GPU kernels without a GPU: every op in Triton's interpreter, bugs planted into kernels, a
training step.  Ahead-of-time compilation is in test_aot.py, in processes of its own."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from backglass import presets
from backglass.checks.kernel import check_kernel
from backglass.device import get
from backglass.ops import table
from backglass.program.record import make_call
from backglass.training.session import Session, device_options
from backglass.view import View

# Not importorskip: an import decides whether this process compiles or interprets.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has wheels for Linux only"
)
WITH_KERNELS = [
    name for name, op in table().items() if importlib.util.find_spec(f"{op.package}.gpu")
]


def test_every_op_has_gpu_kernels():
    assert WITH_KERNELS == list(table())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", WITH_KERNELS)
def test_interpreted_kernel_computes_what_the_maths_says(name, dtype):
    results = check_kernel(table()[name], get("interpret"), dtype)
    assert results and all(r.ok for r in results), [r for r in results if not r.ok]


# (op, dtype, what the kernel says, what it says with the bug)
BUGS = [
    ("layernorm", "fp32", "dn - along_ones[:, None] - n", "dn - n"),
    ("layernorm", "fp32", "acc_dw += tl.sum(dy * n, 0)", "acc_dw += tl.sum(dy * x, 0)"),
    ("layernorm", "fp32", "mask = (rows < N)[:, None]", "mask = (rows <= N)[:, None]"),
    ("layernorm", "fp32", "tl.num_programs(0) * ROWS", "tl.num_programs(0) * (ROWS + 1)"),
    ("layernorm", "bf16", "dx_p + offs, dx, mask", "dx_p + offs, dx * 1.05, mask"),
    ("gelu", "fp32", "(s - s * s)", "(s + s * s)"),
    ("gelu", "fp32", "gelu_of(x), offs < N", "gelu_of(x), offs < N - 1"),
    ("add", "fp32", "dy, offs < N, ADD_B", "dy, offs < N, ADD_A"),
    ("matmul", "fp32", "row = piece * M + m", "row = m"),
    ("attention", "bf16", "[None, :] <= rows[:, None]", "[None, :] < rows[:, None]"),
    ("attention", "fp32", "tl.minimum(groups, block + 1)", "tl.minimum(groups, block)"),
    ("attention", "fp32", "heads, slots):", "slots, slots):"),
    ("attention", "fp32", "mask=again", "mask=again | (m > first)"),
    ("softmax_xent", "fp32", "s_i * tl.exp(m_i - m_new)", "s_i"),
    ("softmax_xent", "fp32", "tl.where(cols < vocab_size, z", "tl.where(cols < V, z"),
    ("softmax_xent", "fp32", "weight, V, vocab_size, BLOCK_V)", "weight, V, V, BLOCK_V)"),
    ("embed", "fp32", "begins & (token != after)", "begins"),
    ("embed", "fp32", "at = (at // PIECE + ROWS) * PIECE", "at = N"),
    ("dropout", "fp32", "z >> 27", "z >> 26"),
    ("global_norm", "fp32", "tl.num_programs(0).to(tl.int64) * BLOCK", "BLOCK"),
    ("clip", "fp32", "tl.maximum(norm, max_norm)", "norm"),
    ("adamw", "fp32", "offs < decay_size", "offs <= decay_size"),
    ("adamw", "bf16", "w_p = p_p if master_p is None else master_p", "w_p = p_p"),
]  # fmt: skip


@pytest.mark.parametrize("name, dtype, right, wrong", BUGS)
def test_kernel_check_catches_a_bug_planted_into_a_gpu_kernel(
    name, dtype, right, wrong, monkeypatch, tmp_path
):
    device, op = get("interpret"), table()[name]
    tier = "ladder.v5_tma" if name == "matmul" else "gpu"  # gpu.py's Gluon is not interpreted
    source = op.tier(tier).__file__
    text = Path(source).read_text(encoding="utf-8")
    assert text.count(right) >= 1
    path = tmp_path / "mutant.py"  # a file: the interpreter reads a kernel's source from it
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutant", path)
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    monkeypatch.setitem(sys.modules, f"{op.package}.gpu", mutant)
    with np.errstate(all="ignore"):
        assert not all(r.ok for r in check_kernel(op, device, dtype))


def test_interpreted_d_attention_may_have_tiles_of_more_queries_than_keys(monkeypatch):
    device, op = get("interpret"), table()["attention"]
    wide = {("fp32", False): (64, 32, 8, 1, 1), ("fp32", True): (32, 16, 8, 1, 1)}
    monkeypatch.setattr(op.tier("gpu"), "BACKWARD", wide)
    assert all(r.ok for r in check_kernel(op, device, "fp32"))


def test_interpreted_attention_cached_reads_nothing_beyond_the_last_position():
    B, T, NH, HS, P, start = 1, 3, 2, 16, 90, 70
    shapes = dict(y=(B, T, NH, HS), k=(B, NH, P, HS), v=(B, NH, P, HS), qkv=(B, T, 3, NH, HS))
    views = [View(name, shape, "fp32", "state") for name, shape in shapes.items()]
    views.append(View("start", (B,), "i32", "input"))
    found = {}
    for unwritten in (0, np.nan):
        memory, rng = get("interpret").memory(), np.random.default_rng(0)
        for v in views:
            memory.write(v, start if v.name == "start" else rng.standard_normal(v.shape))
        for v in views[1:3]:
            memory.array(v)[:, :, start:] = unwritten
        call = make_call(table()["attention_cached"].signatures["attention_cached"], views, {}, "")
        get("interpret").bind([call], memory)[0]()
        found[str(unwritten)] = memory.read(views[0])
    assert np.array_equal(found["0"], found["nan"])


def tiny(device, **changes):
    """A session at a size the interpreter does in seconds, with noise on every parameter."""
    s = presets.tiny(
        layers=2, heads=2, channels=32, seq_len=16, batch_size=2, device=device, **changes
    )
    session = Session(s.model_config(61), s, get(s.device.partition(":")[0], **device_options(s)))
    session.init()
    rng = np.random.default_rng(3)
    flat = session.state()["p"].copy()
    for slot in session.t.layout.slots:
        rows = 61 if slot.param.name == "wte" else slot.shape[0]
        window = flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
        window[:rows] += 0.1 * rng.standard_normal(window[:rows].shape)
    session.load_state({"p": flat})
    return session


def batch():
    rng = np.random.default_rng(4)
    ids = rng.integers(0, 61, (2, 17))
    ids[1, 5] = 7
    targets = ids[:, 1:].copy()
    targets[0, 3] = -1
    return ids[:, :-1], targets


# A gradient has passed some 30 lines, each of which errs: by 2⁻²⁰ of its size in fp32 (sums of some
# hundred numbers, each rounded to 2⁻²⁴), by one rounding to 2⁻⁸ in bf16.
LINES = 30


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention": "explicit", "dropout": 0.1}, {"fuse": False}, {"dtype": "bf16"}],
    ids=["flash", "explicit", "unfused", "bf16"],
)
def test_interpreted_step_is_the_numpy_step(changes):
    theirs = {k: v for k, v in changes.items() if k != "dtype"}
    a, b = tiny("interpret", **changes), tiny("numpy", **theirs)
    b.load_state({"p": a.memory.read(a.t.p.flat).astype(np.float32)})  # what bf16 left of them
    limit = (2.0**-8 if changes.get("dtype") == "bf16" else 2.0**-20) * LINES**0.5
    losses = [x.gradients([batch()], 0) for x in (a, b)]
    assert abs(losses[0] - losses[1]) < limit * losses[1]
    for ours, numpy in zip(a.t.dp, b.t.dp, strict=True):
        got, want = ours.numpy().astype(np.float64), numpy.numpy().astype(np.float64)
        assert np.linalg.norm(got - want) <= limit * np.linalg.norm(want), ours.name
    for x in (a, b):
        x.update(0)
    got, want = a.state(), b.state()
    assert np.linalg.norm(got["m"] - want["m"]) <= limit * np.linalg.norm(want["m"])


def test_bf16_session_keeps_an_fp32_master_and_its_rounding():
    session = tiny("interpret", dtype="bf16")
    session.gradients([batch()], 0)
    session.update(0)
    p, master = (session.memory.peek(x.flat) for x in (session.t.p, session.t.master))
    assert p.dtype.itemsize == 2 and master.dtype == np.float32
    assert (master.astype(p.dtype) == p).all() and (master != p.astype(np.float32)).any()
    assert session.state()["p"] is not p and session.state()["p"].dtype == np.float32
