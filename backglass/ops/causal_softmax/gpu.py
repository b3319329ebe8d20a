"""causal_softmax on the GPU: a program takes a few rows, whole, into registers.

    row t of T:   [ s ≤ t: exp(x − max)/Σ | s > t: 0 ]

The future is never read, and written as 0: the forward reads B·NH·T²/2 numbers and writes B·NH·T²,
the backward reads B·NH·T².
"""

import triton
import triton.language as tl

from backglass.device.tiles import store
from backglass.ops.layernorm.gpu import tile


@triton.jit
def causal_softmax_kernel(att_p, preatt_p, N, T, ROWS: tl.constexpr, BLOCK_T: tl.constexpr):
    offs, inside, past = causal_rows(tl.program_id(0), N, T, ROWS, BLOCK_T)
    x = tl.load(preatt_p + offs, mask=past, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, 1)[:, None])
    store(att_p + offs, e / tl.sum(e, 1)[:, None], inside, False)


@triton.jit
def d_causal_softmax_kernel(
    dpreatt_p, datt_p, att_p, N, T, ROWS: tl.constexpr, BLOCK_T: tl.constexpr
):
    offs, inside, past = causal_rows(tl.program_id(0), N, T, ROWS, BLOCK_T)
    da = tl.load(datt_p + offs, mask=past, other=0).to(tl.float32)
    a = tl.load(att_p + offs, mask=past, other=0).to(tl.float32)
    mean = tl.sum(da * a, 1)  # derivation step 8
    store(dpreatt_p + offs, a * (da - mean[:, None]), inside, False)  # 7, 11


@triton.jit
def causal_rows(pid, N, T, ROWS: tl.constexpr, BLOCK_T: tl.constexpr):
    """(offsets, what to write, what to read) of a program's rows; row n is position n mod T.

    A row beyond the last reads the last, so that it is a softmax too, and is not written.
    """
    rows, cols = pid.to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_T)
    inside = (rows < N)[:, None] & (cols < T)[None, :]
    rows = tl.minimum(rows, N - 1)
    past = cols[None, :] <= (rows % T)[:, None]
    return rows[:, None] * T + cols[None, :], inside, past


def causal_softmax(att, preatt, add):
    """att from preatt, both (B, NH, T, T); att may be preatt."""
    B, NH, T, _ = preatt.shape
    rows, block, warps = tile(T, 1)
    causal_softmax_kernel[(triton.cdiv(B * NH * T, rows),)](
        att, preatt, B * NH * T, T, ROWS=rows, BLOCK_T=block, num_warps=warps
    )


def d_causal_softmax(dpreatt, datt, att, add):
    """dpreatt from datt and att, all (B, NH, T, T); dpreatt may be datt."""
    B, NH, T, _ = att.shape
    rows, block, warps = tile(T, 1)
    d_causal_softmax_kernel[(triton.cdiv(B * NH * T, rows),)](
        dpreatt, datt, att, B * NH * T, T, ROWS=rows, BLOCK_T=block, num_warps=warps
    )
