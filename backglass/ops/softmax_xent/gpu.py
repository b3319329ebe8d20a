"""softmax_xent on the GPU: a program takes one row and walks over it, a block at a time.

    logits[n]  |-- block --|-- block --|-- … --|- pad -|        pad: never read, dlogits 0
                m, s ------> m, s ------> …  -> lse = m + log s

    softmax_xent            reads N·V numbers; loss and lse cost 8 bytes a row
    d_softmax_xent          reads N·V, writes N·V
    softmax_xent_in_place   reads N·V twice, the second time from the L2 cache, writes N·V

m is the largest logit so far and s = Σ exp(logit − m); when a block raises m, s is scaled down by
what m rose.  (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", arXiv
1805.02867, algorithm 3.)

A target of −1 marks a row that does not count: loss 0, gradient exactly 0, whatever its logits are.
Any other target outside the vocabulary makes the loss NaN, which the trainer stops on.

linear_xent is the whole head, a chunk of rows at a time: the product with w, the loss, and, while
the chunk's logits are there, what they owe to x and w.  GPT-2's logits would be 6.6 GB at B = 64; a
chunk of them is 0.8 GB.  dw is summed in fp32 over the chunks and rounded once.
"""

from dataclasses import replace

import triton
import triton.language as tl

from backglass.device.gpu import Tensor
from backglass.device.tiles import power_of_2, store, sum_splits

IGNORED = tl.constexpr(-1)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of fp32
BLOCK_BYTES = 8192  # of a row at a time: a row of GPT-2 in bf16 is thirteen blocks
WARPS = 8  # 0.57 ms for a chunk of rows in place, with twice the bytes 0.68 (H200, 2026-11-24)

CHUNK = 8192  # rows: enough for the matmuls to run at full speed
# What `bench ops --tune` times beside them.
CANDIDATES = {
    ("linear_xent",): (
        {"WARPS": 4}, {"WARPS": 16}, {"BLOCK_BYTES": 4096, "WARPS": 4}, {"BLOCK_BYTES": 16384},
        {"BLOCK_BYTES": 16384, "WARPS": 16}, {"CHUNK": 4096}, {"CHUNK": 16384},
    ),
}  # fmt: skip


@triton.jit
def max_and_sum(row_p, V, vocab_size, BLOCK_V: tl.constexpr):
    """m = max and s = Σ exp(row − m) of the first vocab_size numbers of a row of V, fp32.

    Every eight columns that a thread holds have an m and s of their own until the row has been
    read: nobody waits for anybody on the way.  Their m begins at the lowest number, not at −∞, for
    −∞ − (−∞) is NaN.

    The padding is loaded and then put aside: a mask that ends at V, a multiple of 16, lets 16 bytes
    come in one load, and one that ends at 50,257 does not.
    """
    m_i = tl.full((BLOCK_V // 8,), LOWEST, tl.float32)
    s_i = tl.zeros((BLOCK_V // 8,), tl.float32)
    for first in range(0, vocab_size, BLOCK_V):
        cols = first + tl.arange(0, BLOCK_V)
        z = tl.load(row_p + cols, mask=cols < V, other=0).to(tl.float32)
        z = tl.reshape(tl.where(cols < vocab_size, z, float("-inf")), (BLOCK_V // 8, 8))
        m_new = tl.maximum(m_i, tl.max(z, 1))
        s_i = s_i * tl.exp(m_i - m_new) + tl.sum(tl.exp(z - m_new[:, None]), 1)
        m_i = m_new
    m = tl.max(m_i, 0)
    return m, tl.sum(s_i * tl.exp(m_i - m), 0)


@triton.jit
def logit_of(row_p, target, vocab_size):
    """row[target], or NaN where there is none."""
    exists = (target >= 0) & (target < vocab_size)
    return tl.load(row_p + target, mask=exists, other=float("nan")).to(tl.float32)


@triton.jit
def d_row(drow_p, row_p, lse, target, weight, V, vocab_size, BLOCK_V: tl.constexpr):
    """drow = (softmax(row) − onehot(target))·weight, and 0 in the padding; drow may be row.

    The last block comes first: it is what the caches have seen last.
    """
    width = tl.where(target == IGNORED, 0, vocab_size)
    readable = tl.where(target == IGNORED, 0, V)
    blocks = tl.cdiv(V, BLOCK_V)
    for back in range(blocks):
        cols = (blocks - 1 - back) * BLOCK_V + tl.arange(0, BLOCK_V)
        z = tl.load(row_p + cols, mask=cols < readable, other=0).to(tl.float32)
        p = tl.exp(z - lse)  # 1
        dz = (p - (cols == target).to(tl.float32)) * weight  # 7, 8
        dz = tl.where(cols < width, dz, 0)  # 11, 12
        store(drow_p + cols, dz, cols < V, False)


@triton.jit
def softmax_xent_kernel(loss_p, lse_p, logits_p, targets_p, V, vocab_size, BLOCK_V: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    row_p = logits_p + n * V
    target = tl.load(targets_p + n)
    z_target = logit_of(row_p, target, vocab_size)
    m, s = max_and_sum(row_p, V, vocab_size, BLOCK_V)
    log_s = tl.log(s)
    tl.store(lse_p + n, m + log_s)
    tl.store(loss_p + n, tl.where(target == IGNORED, 0, log_s + (m - z_target)))


@triton.jit
def d_softmax_xent_kernel(
    dlogits_p, dloss_p, logits_p, lse_p, targets_p, V, vocab_size, BLOCK_V: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_p + n)
    lse, weight = tl.load(lse_p + n), tl.load(dloss_p + n)
    d_row(dlogits_p + n * V, logits_p + n * V, lse, target, weight, V, vocab_size, BLOCK_V)


@triton.jit
def softmax_xent_in_place_kernel(
    loss_p, logits_p, targets_p, dloss_p, V, vocab_size, BLOCK_V: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    row_p = logits_p + n * V
    target = tl.load(targets_p + n)
    z_target = logit_of(row_p, target, vocab_size)
    m, s = max_and_sum(row_p, V, vocab_size, BLOCK_V)
    log_s = tl.log(s)
    tl.store(loss_p + n, tl.where(target == IGNORED, 0, log_s + (m - z_target)))
    weight = tl.load(dloss_p + n)
    d_row(row_p, row_p, m + log_s, target, weight, V, vocab_size, BLOCK_V)


def softmax_xent(loss, lse, logits, targets, vocab_size, add):
    """loss, lse (N,) of logits (N, V), over the first vocab_size columns; targets (N,)."""
    N, V = logits.shape
    softmax_xent_kernel[(N,)](loss, lse, logits, targets, V, vocab_size, **tile(logits))


def d_softmax_xent(dlogits, dloss, logits, lse, targets, vocab_size, add):
    """dlogits (N, V) from dloss (N,), logits (N, V), lse, targets (N,); dlogits may be logits."""
    N, V = logits.shape
    d_softmax_xent_kernel[(N,)](dlogits, dloss, logits, lse, targets, V, vocab_size, **tile(logits))


def softmax_xent_in_place(loss, logits, targets, dloss, vocab_size):
    """loss (N,) of logits (N, V), which become their gradient; targets, dloss (N,)."""
    N, V = logits.shape
    softmax_xent_in_place_kernel[(N,)](loss, logits, targets, dloss, V, vocab_size, **tile(logits))


def linear_xent_workspace(*, N, C, V, dtype, matmul, **_) -> int:
    """A chunk's logits, dw in fp32 beside bf16, and what the matmuls need."""
    sizes = dict(N=min(N, CHUNK), C=C, O=V, dtype=dtype)
    return sum(shares(sizes["N"], C, V, dtype)) + max(
        getattr(matmul, f"{call}_workspace", lambda **_: 0)(**sizes)
        for call in ("matmul", "d_matmul_x", "d_matmul_w")
    )


def linear_xent(loss, dx, dw, x, w, targets, dloss, vocab_size, add, work, matmul):
    """loss (N,) of x (N, C)·wᵀ, w (V, C), with targets and dloss (N,); dx and dw may accumulate."""
    (N, C), V = x.shape, w.shape[0]
    dtype = "bf16" if x.dtype.itemsize == 2 else "fp32"
    for_logits, for_dw = shares(min(N, CHUNK), C, V, dtype)
    sums = work.part(for_logits, "fp32", V, C) if for_dw else dw
    rest = work.part(for_logits + for_dw, "u8", 0)
    for start in range(0, N, CHUNK):
        count = min(CHUNK, N - start)
        some, dsome = x.rows(start, count), dx.rows(start, count)
        logits = replace(work, dtype=x.dtype, shape=(count, V), precision=x.precision)
        multiply(matmul, "matmul", rest, logits, some, w, None, (False,))
        softmax_xent_in_place(
            loss.rows(start, count), logits, targets.rows(start, count),
            dloss.rows(start, count), vocab_size,
        )  # fmt: skip
        adds = (start > 0 or (not for_dw and add[2]), False)
        multiply(matmul, "d_matmul_w", rest, sums, None, logits, some, adds)
        multiply(matmul, "d_matmul_x", rest, dsome, logits, w, (add[1],))
    if for_dw:
        sum_splits(dw, replace(sums, shape=(1, V, C)), add[2])


def linear_xent_loss_workspace(*, N, C, V, dtype, matmul, **_) -> int:
    """A chunk's logits and lse, and what the matmul needs."""
    rows = min(N, CHUNK)
    size = getattr(matmul, "matmul_workspace", lambda **_: 0)
    return shares(rows, C, V, dtype)[0] + 4 * rows + size(N=rows, C=C, O=V, dtype=dtype)


def linear_xent_loss(loss, x, w, targets, vocab_size, add, work, matmul):
    """loss (N,) of x (N, C)·wᵀ, w (V, C), with targets (N,)."""
    (N, C), V = x.shape, w.shape[0]
    for_logits, _ = shares(min(N, CHUNK), C, V, "bf16" if x.dtype.itemsize == 2 else "fp32")
    lse = work.part(for_logits, "fp32", min(N, CHUNK))
    rest = work.part(for_logits + 4 * min(N, CHUNK), "u8", 0)
    for start in range(0, N, CHUNK):
        count = min(CHUNK, N - start)
        logits = replace(work, dtype=x.dtype, shape=(count, V), precision=x.precision)
        multiply(matmul, "matmul", rest, logits, x.rows(start, count), w, None, (False,))
        part = loss.rows(start, count), lse.rows(0, count), logits, targets.rows(start, count)
        softmax_xent(*part, vocab_size, (False, False))


def shares(rows: int, C: int, V: int, dtype: str) -> tuple[int, int]:
    """Bytes of the workspace for (a chunk's logits, dw in fp32)."""
    logits = rows * V * (2 if dtype == "bf16" else 4)
    return -(-logits // 256) * 256, V * C * 4 if dtype == "bf16" else 0


def multiply(matmul, call, work, *operands) -> None:
    """A launcher of the matmul in use, with workspace if it declares some."""
    launcher = getattr(matmul, call)
    launcher(*operands, work) if hasattr(matmul, f"{call}_workspace") else launcher(*operands)


def tile(logits: Tensor) -> dict[str, int]:
    """Columns of a block, and fewer warps if a thread would have less than 32 bytes of it."""
    size = logits.dtype.itemsize
    block = min(BLOCK_BYTES // size, power_of_2(logits.shape[1], 16))
    return {"BLOCK_V": block, "num_warps": min(WARPS, max(1, block * size // 1024))}
