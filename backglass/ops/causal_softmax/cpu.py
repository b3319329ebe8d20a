"""causal_softmax on the CPU: turn each row of scores into weights that sum to 1, past only.

    row i of preatt   |  0 ... i  |  i+1 ... T-1  |
                        softmax         0

One task a row, n = i+1 of whose T columns count. The future is written as 0 and never read, so
it may hold anything. Forward reads and writes T²/2 floats a head (and writes T²/2 zeros);
backward reads T², writes T²/2 (and the zeros).

This is attention spelled out, to be looked at: (B,NH,T,T) weights in memory. The attention op
computes the same without ever storing them.
"""

from numpy import float32

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import dot, start_from, zero
from backglass.device.simd import fexp, row_max


@kernel
def causal_softmax(att, preatt, add):
    """att[b,h,i,:i+1] = softmax(preatt[b,h,i,:i+1]), 0 after; both (B,NH,T,T)."""
    B, NH, T, _ = preatt.shape
    for row in prange(B * NH * T):
        b = row // (NH * T)
        h = row // T % NH
        i = row % T
        _softmax(att[b, h, i, : i + 1], preatt[b, h, i, : i + 1])
        zero(att[b, h, i, i + 1 :])


@inline
def _softmax(y, x):
    m = row_max(x, 0, x.size)
    acc = float32(0)
    for j in range(y.size):
        e = fexp(x[j] - m)
        y[j] = e
        acc += e
    inverse = float32(1) / acc
    for j in range(y.size):
        y[j] *= inverse


@kernel
def d_causal_softmax(dpreatt, datt, att, add):
    """forward: att = softmax(preatt)      so: dpreatt = att·(datt - Σ_j att·datt).

    All (B,NH,T,T), row by row; dpreatt may be datt's memory.
    """
    B, NH, T, _ = att.shape
    for row in prange(B * NH * T):
        b = row // (NH * T)
        h = row // T % NH
        i = row % T
        past = dpreatt[b, h, i, : i + 1]
        start_from(past, datt[b, h, i, : i + 1])
        _d_softmax_in_place(past, att[b, h, i, : i + 1])
        zero(dpreatt[b, h, i, i + 1 :])


@inline
def _d_softmax_in_place(dx, y):
    """dx holds dy. One weight more takes from all others: hence the mean Σ y·dy is subtracted."""
    mean = dot(y, dx)
    for j in range(dx.size):
        dx[j] = y[j] * (dx[j] - mean)
