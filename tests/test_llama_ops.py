"""rope, gqa and their forms for pieces of a sequence: what is true of them beyond the checks."""

import numpy as np
import pytest

from backglass.device import get
from backglass.ops import signature
from backglass.ops.gqa.maths import gqa as gqa_maths
from backglass.ops.rope.maths import d_rope as d_rope_maths
from backglass.ops.rope.maths import rope as rope_maths
from backglass.program.record import make_call
from backglass.view import View

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


@pytest.mark.parametrize("B, T, NH, HS", SHAPES)
def test_gqa_with_a_key_head_for_each_query_head_has_the_bits_of_attention(B, T, NH, HS):
    qkv, dy = normal(B, T, 3 * NH, HS), normal(B, T, NH, HS, seed=1)
    packed = qkv.reshape(B, T, 3, NH, HS)
    y, lse = run("attention", [(B, T, NH, HS), (B, NH, T)], [packed])
    dqkv = run("d_attention", [packed.shape], [dy, packed, y, lse])[0]
    found = gqa(qkv, NH)
    assert np.array_equal(found[0], y) and np.array_equal(found[1], lse)
    assert np.array_equal(d_gqa(dy, qkv, y, lse).ravel(), dqkv.ravel())


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
    from backglass.ops.attention.maths import attention

    repeated = np.stack([q, k.repeat(G, 2), v.repeat(G, 2)], 2)
    grouped = gqa_maths(np.concatenate([q, k, v], 2), window=0, NH=KV * G)
    for found, want in zip(grouped, attention(repeated), strict=True):
        assert np.abs(found - want).max() < 1e-14


@pytest.mark.parametrize("NH, H", [(4, 4), (4, 7), (4, 10), (3, 7)])
def test_gqa_names_heads_that_do_not_add_up(NH, H):
    with pytest.raises(ValueError, match=rf"{H} heads in qkv, {NH} in y"):
        gqa(normal(1, 3, H, 8), NH)


def test_gqa_touches_no_tile_outside_the_window():
    T, NH, window, spoilt = 384, 2, 64, 64
    qkv, dy = normal(1, T, 4, 16), normal(1, T, NH, 16, seed=1)
    y, lse = gqa(qkv, NH, window=window)
    dqkv = d_gqa(dy, qkv, y, lse, window=window)
    early = qkv.copy()
    early[:, :spoilt] = np.nan
    later = slice(2 * spoilt, T)  # rows with no tile in common with the first block of keys
    assert np.array_equal(gqa(early, NH, window=window)[0][:, later], y[:, later])
    late = dy.copy()
    late[:, -spoilt:] = np.nan
    before = slice(0, T - 2 * spoilt)
    assert np.array_equal(d_gqa(late, qkv, y, lse, window=window)[:, before], dqkv[:, before])


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
