"""rope, gqa and their forms for pieces of a sequence: what is true of them beyond the checks."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from backglass.checks.kernel import check_kernel
from backglass.device import get
from backglass.ops import signature, table
from backglass.ops.attention.maths import attention as attention_maths
from backglass.ops.gqa.maths import gqa as gqa_maths
from backglass.ops.rope.maths import d_rope as d_rope_maths
from backglass.ops.rope.maths import rope as rope_maths
from backglass.program.record import make_call
from backglass.view import View

# Not importorskip: an import decides whether this process compiles or interprets.
INTERPRET = pytest.param(
    "interpret",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton has wheels for Linux only"
    ),
)
DEVICES = ["cpu", INTERPRET]
SHAPES = [(2, 7, 3, 5), (1, 130, 2, 24), (2, 65, 1, 64), (1, 400, 1, 16), (1, 200, 3, 64)]


def run(call, outs, ins, device="cpu", threads=None, **attrs):
    """The outputs of one call; outs: shapes, or arrays that are updated; ins: arrays."""
    sig, on = signature(call), get(device, **({"threads": threads} if device == "cpu" else {}))
    memory, views = on.memory(), []
    for o, given in zip(sig.passed, (*outs, *ins), strict=True):
        x = np.full(given, np.nan, np.float32) if isinstance(given, tuple) else given
        view = View(o.name, x.shape, "i32" if o.holds == "int" else "fp32", "state")
        memory.write(view, x)
        views.append(view)
    on.bind([make_call(sig, tuple(views), attrs, "test")], memory)[0]()
    return [memory.read(v) for v in views[: len(outs)]]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def gqa(qkv, NH, device="cpu", threads=None, window=0):
    """(y, lse) of a device's kernel."""
    B, T, _, HS = qkv.shape
    return run("gqa", [(B, T, NH, HS), (B, NH, T)], [qkv], device, threads, window=window)


def d_gqa(dy, qkv, y, lse, device="cpu", threads=None, window=0):
    return run("d_gqa", [qkv.shape], [dy, qkv, y, lse], device, threads, window=window)[0]


# ---------------------------------------------------------------- gqa


@pytest.mark.parametrize("dev", DEVICES)
@pytest.mark.parametrize("B, T, NH, HS", SHAPES)
def test_gqa_with_a_key_head_for_each_query_head_has_the_bits_of_attention(B, T, NH, HS, dev):
    qkv, dy = normal(B, T, 3 * NH, HS), normal(B, T, NH, HS, seed=1)
    packed = qkv.reshape(B, T, 3, NH, HS)
    y, lse = run("attention", [(B, T, NH, HS), (B, NH, T)], [packed], dev)
    dqkv = run("d_attention", [packed.shape], [dy, packed, y, lse], dev)[0]
    found = gqa(qkv, NH, dev)
    assert np.array_equal(found[0], y) and np.array_equal(found[1], lse)
    assert np.array_equal(d_gqa(dy, qkv, y, lse, dev).ravel(), dqkv.ravel())


@pytest.mark.parametrize("window", [200, 1000])
def test_gqa_window_of_the_whole_sequence_has_the_bits_of_no_window(window):
    qkv, dy = normal(1, 200, 10, 24), normal(1, 200, 6, 24, seed=1)
    y, lse = gqa(qkv, 6)
    assert np.array_equal(gqa(qkv, 6, window=window)[0], y)
    assert np.array_equal(d_gqa(dy, qkv, y, lse, window=window), d_gqa(dy, qkv, y, lse))


@pytest.mark.parametrize("window", [0, 1, 70])
def test_gqa_gives_the_same_bits_with_one_thread(window):
    qkv, dy = normal(1, 330, 9, 24), normal(1, 330, 7, 24, seed=1)
    y, lse = gqa(qkv, 7, threads=2, window=window)
    dqkv = d_gqa(dy, qkv, y, lse, threads=2, window=window)
    assert np.array_equal(gqa(qkv, 7, threads=1, window=window)[0], y)
    assert np.array_equal(d_gqa(dy, qkv, y, lse, threads=1, window=window), dqkv)


def test_gqa_equals_attention_with_every_key_head_repeated():
    B, T, KV, G, HS = 2, 37, 2, 3, 16
    q, k, v = (normal(B, T, n, HS, seed=n).astype(np.float64) for n in (KV * G, KV, KV))
    repeated = np.stack([q, k.repeat(G, 2), v.repeat(G, 2)], 2)
    grouped = gqa_maths(np.concatenate([q, k, v], 2), window=0, NH=KV * G)
    for found, want in zip(grouped, attention_maths(repeated), strict=True):
        assert np.abs(found - want).max() < 1e-14


@pytest.mark.parametrize("NH, H", [(4, 4), (4, 7), (4, 10), (3, 7)])
def test_gqa_names_heads_that_do_not_add_up(NH, H):
    with pytest.raises(ValueError, match=rf"{H} heads in qkv, {NH} in y"):
        gqa(normal(1, 3, H, 8), NH)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter, about the NaN
@pytest.mark.parametrize("dev", DEVICES)
def test_gqa_touches_no_tile_outside_the_window(dev):
    """A NaN in a tile would show, masked or not: 0·NaN = NaN."""
    T, NH, window, block = 384, 2, 64, 64
    qkv, dy = normal(1, T, 4, 16), normal(1, T, NH, 16, seed=1)
    y, lse = gqa(qkv, NH, dev, window=window)
    dqkv = d_gqa(dy, qkv, y, lse, dev, window=window)
    early = qkv.copy()
    early[:, :block] = np.nan
    later = slice(2 * block, T)  # rows with no tile in common with the first block of keys
    assert np.array_equal(gqa(early, NH, dev, window=window)[0][:, later], y[:, later])
    late = dy.copy()
    late[:, -block:] = np.nan
    before = slice(0, T - 2 * block)
    found = d_gqa(late, qkv, y, lse, dev, window=window)
    assert np.array_equal(found[:, before], dqkv[:, before])


# ---------------------------------------------------------------- rope


def tables(P, half, dtype=np.float32):
    angles = np.arange(P)[:, None] * 10000.0 ** (-np.arange(half) / half)  # (P, HS/2)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def test_d_rope_undoes_rope():
    qkv, (cos, sin) = normal(2, 37, 9, 24), tables(40, 12)
    turned = run("rope", [qkv.shape], [qkv, cos, sin], kv_heads=1)[0]
    back = run("d_rope", [qkv.shape], [turned, cos, sin], kv_heads=1)[0]
    assert not np.allclose(turned, qkv, atol=0.1)
    assert np.abs(back - qkv).max() <= 4 * 2.0**-23 * np.abs(qkv).max()


def test_rope_keeps_the_length_of_every_head():
    qkv, (cos, sin) = normal(2, 37, 9, 24), tables(40, 12)
    turned = run("rope", [qkv.shape], [qkv, cos, sin], kv_heads=1)[0]
    lengths = [np.linalg.norm(x.astype(np.float64), axis=-1) for x in (turned, qkv)]
    assert np.abs(lengths[0] / lengths[1] - 1).max() <= 4 * 2.0**-23


def test_rope_carries_the_value_heads_bit_for_bit():
    qkv, (cos, sin) = normal(2, 37, 9, 24), tables(40, 12)
    turned = run("rope", [qkv.shape], [qkv, cos, sin], kv_heads=2)[0]
    assert np.array_equal(turned[:, :, -2:], qkv[:, :, -2:])
    assert not np.array_equal(turned[:, 1:, -3], qkv[:, 1:, -3])


def test_rope_makes_a_dot_product_depend_on_the_distance_only():
    T, HS = 33, 24
    q, k = normal(HS).astype(np.float64), normal(HS, seed=1).astype(np.float64)
    cos, sin = tables(T, HS // 2, np.float64)
    same = np.tile(np.stack([q, k]), (1, T, 1, 1))  # (1, T, 2, HS): the same pair everywhere
    (turned,) = rope_maths(same, cos, sin, kv_heads=0, T=T)
    products = turned[0, :, 0] @ turned[0, :, 1].T  # (T, T), rows t, columns s
    for distance in range(T):
        along = np.diagonal(products, -distance)
        assert np.ptp(along) < 1e-13
    assert np.ptp(products[:, 0]) > 1


def test_rope_of_hugging_face_is_this_one():
    T, HS = 9, 8
    x = normal(1, T, 1, HS).astype(np.float64)
    cos, sin = tables(T, HS // 2, np.float64)
    rotated = np.concatenate([-x[..., HS // 2 :], x[..., : HS // 2]], -1)  # its rotate_half
    full = (np.concatenate([table, table], -1)[:, None] for table in (cos, sin))
    wide_cos, wide_sin = full
    (turned,) = rope_maths(x, cos, sin, kv_heads=0, T=T)
    assert np.abs(turned - (x * wide_cos + rotated * wide_sin)).max() < 1e-15
    (back,) = d_rope_maths(turned, cos, sin, kv_heads=0, T=T)
    assert np.abs(back - x).max() < 1e-15


# ---------------------------------------------------------------- pieces of a sequence


def decode(qkv, KV, splits, window, dev="cpu", threads=None, P=None, starts=None, cache=None):
    """y of rope_at and gqa_cached for qkv (B, T, H, HS), `splits` positions at a time."""
    (B, T, heads, HS), ys = qkv.shape, []
    NH = heads - 2 * KV
    P = P or T
    cos, sin = tables(P, HS // 2)
    k, v = cache if cache else np.full((2, B, KV, P, HS), np.nan, np.float32)
    start = np.zeros(B, np.int32) if starts is None else starts.astype(np.int32)
    for n in splits:
        piece, qkv = qkv[:, :n].copy(), qkv[:, n:]
        turned = run("rope_at", [piece.shape], [piece, start, cos, sin], dev, kv_heads=KV)[0]
        y, k, v = run(
            "gqa_cached", [(B, n, NH, HS), k, v], [turned, start], dev, threads, window=window
        )
        ys.append(y)
        start = start + np.int32(n)
    return np.concatenate(ys, 1)


def whole(qkv, KV, window, dev="cpu"):
    """y of rope and gqa."""
    cos, sin = tables(qkv.shape[1], qkv.shape[3] // 2)
    turned = run("rope", [qkv.shape], [qkv, cos, sin], dev, kv_heads=KV)[0]
    return gqa(turned, qkv.shape[2] - 2 * KV, dev, window=window)[0]


def rms(x):
    return np.sqrt(np.mean(x.astype(np.float64) ** 2))


@pytest.mark.parametrize("dev", DEVICES)
@pytest.mark.parametrize("window", [0, 1, 10])
@pytest.mark.parametrize("splits", [(37,), (20, 17), (5, 31, 1), (30, *[1] * 7), (1,) * 37])
def test_gqa_with_a_cache_equals_gqa_for_any_split_of_the_prompt(splits, window, dev):
    qkv = normal(2, 37, 9, 16)
    want = whole(qkv, 1, window, dev)
    assert rms(decode(qkv, 1, splits, window, dev) - want) < 4 * 2.0**-23 * rms(want)


@pytest.mark.parametrize("splits", [(900,), (128,) * 7 + (4,), (500, 400), (9,) * 100])
@pytest.mark.parametrize("threads", [1, 2])
def test_gqa_cached_gives_the_same_bits_for_a_prompt_in_any_chunks(splits, threads):
    qkv = normal(1, 900, 4, 24)
    want = decode(qkv, 1, (700, 200), 300)
    assert np.array_equal(decode(qkv, 1, splits, 300, threads=threads), want)


@pytest.mark.parametrize("T", [1, 5])
def test_gqa_cached_gives_a_sequence_the_same_bits_alone_and_in_a_batch(T):
    P, KV, starts = 60, 2, np.array([0, 17, 60, 50])  # a new one, two in progress, a parked one
    qkv, cache = normal(4, T, 8, 24), [normal(4, KV, P, 24, seed=s) for s in (1, 2)]
    batch = decode(qkv, KV, (T,), 10, P=P, starts=starts, cache=cache)
    for b in range(4):
        own = [x[b : b + 1] for x in cache]
        alone = decode(qkv[b : b + 1], KV, (T,), 10, P=P, starts=starts[b : b + 1], cache=own)
        assert np.array_equal(alone[0], batch[b])
    assert not batch[2].any() and batch[3].any()


@pytest.mark.parametrize("dev", DEVICES)
def test_gqa_cached_reads_nothing_before_the_windows_tile_or_beyond_the_last_position(dev):
    P, start, window = 200, 150, 20
    qkv, cache = normal(1, 1, 8, 24), [normal(1, 2, P, 24, seed=s) for s in (1, 2)]
    options = dict(P=P, starts=np.array([start]))
    want = decode(qkv, 2, (1,), window, dev, cache=cache, **options)
    for x in cache:
        x[:, :, :128] = np.nan  # tiles have at most 64 keys
        x[:, :, start:] = np.nan
    assert np.array_equal(decode(qkv, 2, (1,), window, dev, cache=cache, **options), want)


def test_gqa_cached_writes_the_new_positions_of_the_cache_and_no_others():
    B, T, KV, P, HS, starts = 3, 4, 2, 6, 8, np.array([0, 3, 6], np.int32)
    qkv, cache = normal(B, T, 8, HS), [normal(B, KV, P, HS, seed=s) for s in (1, 2)]
    _, *found = run("gqa_cached", [(B, T, 4, HS), *cache], [qkv, starts])
    for new, old, rows in zip(found, cache, (qkv[:, :, 4:6], qkv[:, :, 6:]), strict=True):
        want = old.copy()
        want[0, :, :4] = rows[0].swapaxes(0, 1)
        want[1, :, 3:] = rows[1, :3].swapaxes(0, 1)
        assert np.array_equal(new, want)


# ---------------------------------------------------------------- bugs in kernels

NARROW = dict(B=1, T=70, NH=1, H=3, HS=16, window=33)
BUGS = [
    ("rope", "row // H % T", "row % T", dict(B=1, T=5, H=3, HS=8, HS2=4, P=5, kv_heads=1)),
    ("rope", "sin = -sin", "sin = sin", dict(B=1, T=5, H=3, HS=8, HS2=4, P=5, kv_heads=1)),
    ("gqa", "keys > rows - window", "keys >= rows - window", NARROW),
    ("gqa", "keys <= rows", "keys < rows", NARROW),
    ("gqa", "rows[:, None] - window", "rows[:, None] - window - 1", NARROW),
    ("gqa", "first - window + 1", "first - window + 1 + BLOCK_N", NARROW),
    ("gqa", "first + BLOCK_N + window - 1", "first + window - 1", NARROW),
    ("gqa", "NH + h // (NH // KV)", "NH + h % KV", dict(B=1, T=5, NH=4, H=8, HS=16)),
    ("gqa", "i * G + g,", "i + 2 * KV * g,", dict(B=1, T=5, NH=4, H=8, HS=16)),
    ("gqa", "zero_rows(dq_p, part, BLOCK_M, BLOCK_D)", "pass", NARROW),
    ("gqa_cached", "s[:, None] - window", "s[:, None] - window - 1", None),
    ("gqa_cached", "P), 0) - window + 1", "P), 0) - window + 1 + BLOCK_N", None),
    ("gqa_cached", "g * G + row % G", "g + KV * (row % G)", None),
]  # fmt: skip
CACHED = dict(B=2, T=3, NH=4, KV=2, H=8, HS=8, P=70, window=20)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")
@pytest.mark.parametrize("name, right, wrong, case", BUGS)
def test_kernel_check_catches_a_bug_planted_into_a_gpu_kernel(
    name, right, wrong, case, monkeypatch, tmp_path
):
    device, op = get("interpret"), table()[name]
    assert all(r.ok for r in check_kernel(op, device, "fp32", (case or CACHED,)))
    text = Path(op.tier("gpu").__file__).read_text(encoding="utf-8")
    assert right in text
    path = tmp_path / "mutant.py"  # a file: the interpreter reads a kernel's source from it
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutant", path)
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    monkeypatch.setitem(sys.modules, f"{op.package}.gpu", mutant)
    with np.errstate(all="ignore"):
        assert not all(r.ok for r in check_kernel(op, device, "fp32", (case or CACHED,)))
