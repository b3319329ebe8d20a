"""attention on the GPU, rung 2: FlashAttention, tiles in shared memory and never a T×T plane.

               keys ->              A tile is SIDE queries by SIDE keys, and thread (i, j) of a
    queries  +---+---+---+          block makes its score i, j.  Tiles above the diagonal are left
       |     | d |   |   |          out; on it, keys after the query are masked.
       v     +---+---+---+
             | # | d |   |          attention        a block owns a row of tiles: q stays, k, v pass
             +---+---+---+          d_attention, dq  likewise: q, dy stay, k, v pass
             | # | # | d |             …     dk, dv  a block owns a column: k, v stay, q, dy pass
             +---+---+---+

A row of q, k, v or dy that a block fetches into shared memory is used by SIDE threads.  The tile's
scores are shared too, for the second product, acc += weights·rows, in which thread (i, j) makes the
numbers j, j + SIDE, j + 2·SIDE, … of row i.

The forward does not know a row's largest score before its end.  It keeps the largest so far, m, and
l = Σ exp(S − m); when a tile brings a larger one, what was summed so far is scaled down (step 11).

The backward makes P and dS again, tile by tile, once for dq and once more for dk and dv: seven
products, where five would do if one kernel made all three.  But then blocks would add to the same
dq, in another order on every run; here each number has one owner and the bits are always the same.

Heads of more than HEAD numbers do not fit the tiles; they go to the rung below.

The innermost loops are written with while.  Over `range`, numba-cuda tests each time round whether
it is at its end and whether the index is negative: tile_dot took 23 instructions a multiplication
with it, 4 with while (sm_90, numba-cuda 0.30, ptxas 13.0, 2026-11-24).
"""

import math

from numba import cuda
from numpy import float32

from backglass.device.cuda_threads import SIDE, blocks_for, device, kernel, launch, like
from backglass.ops.attention.ladder import v1_thread
from backglass.ops.attention.ladder.v1_thread import FLOOR, one_a_row, row_dots_kernel, scale_of
from backglass.ops.matmul.ladder.v2_shared import number_at

TILE = SIDE  # queries, and keys, of a tile: a score for each thread
HEAD = 128  # the largest HS: four tiles of 16×128 numbers are 32 of the 48 KB a block may have
EACH = HEAD // SIDE  # sums of a thread
PITCH = HEAD + 1  # of a tile's rows: the numbers of a column lie in different memory banks
SCORES_PITCH = TILE + 1

# ---------------------------------------------------------------- forward


@kernel
def attention_kernel(y, lse, qkv, scale):
    q_tile = cuda.shared.array((TILE, PITCH), float32)
    k_tile = cuda.shared.array((TILE, PITCH), float32)
    v_tile = cuda.shared.array((TILE, PITCH), float32)
    s_tile = cuda.shared.array((TILE, SCORES_PITCH), float32)
    p_tile = cuda.shared.array((TILE, SCORES_PITCH), float32)
    acc = cuda.local.array(EACH, float32)
    i, j, HS = cuda.threadIdx.y, cuda.threadIdx.x, y.shape[3]
    # the longest row of tiles first
    head, first = block_place(cuda.gridDim.x - 1 - cuda.blockIdx.x, y.shape[1], TILE)
    b, h = divmod(head, y.shape[2])
    q, k, v = qkv[b, :, 0, h], qkv[b, :, 1, h], qkv[b, :, 2, h]  # (T, HS)
    fetch(q_tile, q, first, i, j)
    zero(acc)
    m, l = FLOOR, float32(0)
    for n in range(0, first + TILE, TILE):
        fetch(k_tile, k, n, i, j)
        fetch(v_tile, v, n, i, j)
        cuda.syncthreads()
        s_tile[i, j] = tile_dot(q_tile, i, k_tile, j, HS) * scale if n + j <= first + i else FLOOR
        cuda.syncthreads()
        top = m
        for c in range(TILE):
            top = max(top, s_tile[i, c])
        p_tile[i, j] = math.exp(s_tile[i, j] - top)
        shrink = math.exp(m - top)  # 11
        cuda.syncthreads()
        m = top
        l *= shrink
        for c in range(TILE):
            l += p_tile[i, c]
        for c in range(EACH):
            acc[c] *= shrink
        add_rows(acc, p_tile, v_tile, i, j, HS)
        cuda.syncthreads()
    store(y[b, :, h], first + i, j, acc, float32(1) / l)
    if j == 0 and first + i < y.shape[1]:
        lse[b, h, first + i] = m + math.log(l)


# ---------------------------------------------------------------- backward


@kernel
def d_q_kernel(dqkv, dy, qkv, lse, D, scale):
    q_tile = cuda.shared.array((TILE, PITCH), float32)
    k_tile = cuda.shared.array((TILE, PITCH), float32)
    v_tile = cuda.shared.array((TILE, PITCH), float32)
    dy_tile = cuda.shared.array((TILE, PITCH), float32)
    ds_tile = cuda.shared.array((TILE, SCORES_PITCH), float32)
    acc = cuda.local.array(EACH, float32)
    i, j, HS = cuda.threadIdx.y, cuda.threadIdx.x, qkv.shape[4]
    head, first = block_place(cuda.gridDim.x - 1 - cuda.blockIdx.x, qkv.shape[1], TILE)
    b, h = divmod(head, qkv.shape[3])
    q, k, v = qkv[b, :, 0, h], qkv[b, :, 1, h], qkv[b, :, 2, h]
    fetch(q_tile, q, first, i, j)
    fetch(dy_tile, dy[b, :, h], first, i, j)
    zero(acc)
    for n in range(0, first + TILE, TILE):
        fetch(k_tile, k, n, i, j)
        fetch(v_tile, v, n, i, j)
        cuda.syncthreads()
        _, ds_tile[i, j] = d_score(
            q_tile, dy_tile, i, k_tile, v_tile, j, first + i, n + j, lse[b, h], D[head], scale, HS
        )
        cuda.syncthreads()
        add_rows(acc, ds_tile, k_tile, i, j, HS)  # 3
        cuda.syncthreads()
    store(dqkv[b, :, 0, h], first + i, j, acc, scale)


@kernel
def d_kv_kernel(dqkv, dy, qkv, lse, D, scale):
    q_tile = cuda.shared.array((TILE, PITCH), float32)
    k_tile = cuda.shared.array((TILE, PITCH), float32)
    v_tile = cuda.shared.array((TILE, PITCH), float32)
    dy_tile = cuda.shared.array((TILE, PITCH), float32)
    p_tile = cuda.shared.array((TILE, SCORES_PITCH), float32)  # Pᵀ, keys × queries
    ds_tile = cuda.shared.array((TILE, SCORES_PITCH), float32)  # dSᵀ
    acc_dk = cuda.local.array(EACH, float32)
    acc_dv = cuda.local.array(EACH, float32)
    i, j, T, HS = cuda.threadIdx.y, cuda.threadIdx.x, qkv.shape[1], qkv.shape[4]
    head, first = block_place(cuda.blockIdx.x, T, TILE)
    b, h = divmod(head, qkv.shape[3])
    q, k, v = qkv[b, :, 0, h], qkv[b, :, 1, h], qkv[b, :, 2, h]
    fetch(k_tile, k, first, i, j)
    fetch(v_tile, v, first, i, j)
    zero(acc_dk)
    zero(acc_dv)
    for m in range(first, T, TILE):
        fetch(q_tile, q, m, i, j)
        fetch(dy_tile, dy[b, :, h], m, i, j)
        cuda.syncthreads()
        p_tile[j, i], ds_tile[j, i] = d_score(
            q_tile, dy_tile, i, k_tile, v_tile, j, m + i, first + j, lse[b, h], D[head], scale, HS
        )
        cuda.syncthreads()
        add_rows(acc_dk, ds_tile, q_tile, i, j, HS)  # 3
        add_rows(acc_dv, p_tile, dy_tile, i, j, HS)  # 1
        cuda.syncthreads()
    store(dqkv[b, :, 1, h], first + i, j, acc_dk, scale)
    store(dqkv[b, :, 2, h], first + i, j, acc_dv, float32(1))


@device
def d_score(q_tile, dy_tile, i, k_tile, v_tile, j, t, s, lse, D, scale, HS):
    """P and dS of query t, row i of its tiles, and key s, row j of its."""
    if s > t or t >= lse.shape[0]:
        return float32(0), float32(0)
    p = math.exp(tile_dot(q_tile, i, k_tile, j, HS) * scale - lse[t])  # 5
    dp = tile_dot(dy_tile, i, v_tile, j, HS)  # 1
    return p, p * (dp - D[t])  # 2


# ---------------------------------------------------------------- what the kernels share


@device
def block_place(block, T, rows):
    """(head, the first of its `rows` rows) of a block; a head's blocks follow each other."""
    head, tile = divmod(block, (T + rows - 1) // rows)
    return head, tile * rows


@device
def fetch(tile, x, first, i, j):
    """The TILE rows from `first` on of x (T, HS), 0 beyond the edge; neighbours ask for
    neighbours."""
    for c in range(0, x.shape[1], SIDE):
        tile[i, c + j] = number_at(x, first + i, c + j)


@device
def zero(acc):
    for c in range(EACH):
        acc[c] = float32(0)


@device
def tile_dot(a, i, b, j, HS):
    """a[i]·b[j]."""
    acc = float32(0)
    d = 0
    while d < HS:
        acc += a[i, d] * b[j, d]
        d += 1
    return acc


@device
def add_rows(acc, weights, tile, i, j, HS):
    """acc += Σ_n weights[i, n] · row n of a tile, in the thread's columns.  There are always EACH,
    so that the loop is unrolled and acc can lie in registers."""
    n = 0
    while n < TILE:
        weight = weights[i, n]
        for c in range(EACH):
            if c * SIDE < HS:
                acc[c] += weight * tile[n, c * SIDE + j]
        n += 1


@device
def store(x, row, j, acc, factor):
    """x[row] = acc · factor, in the thread's columns, inside the edge."""
    for c in range(EACH):
        if row < x.shape[0] and c * SIDE + j < x.shape[1]:
            x[row, c * SIDE + j] = like(acc[c] * factor, x[row, c * SIDE + j])


# ---------------------------------------------------------------- launchers


def launchers(forward, d_q, d_kv, queries, tile, head, below):
    """attention, d_attention and their workspaces by three kernels, for heads of up to `head`
    numbers; larger ones go to the rung `below`.  queries, tile: rows of a block, forward and
    backward."""

    def attention_workspace(*, HS: int, **sizes) -> int:
        """Nothing but for the rung below."""
        return below.attention_workspace(HS=HS, **sizes) if HS > head else 0

    def attention(y, lse, qkv, add, work=None):
        """y (B, T, NH, HS) and lse (B, NH, T) from qkv (B, T, 3, NH, HS)."""
        B, T, NH, HS = y.shape
        if HS > head:
            return below.attention(y, lse, qkv, add, work)
        blocks = B * NH * blocks_for(T, queries)
        launch(forward, blocks, (SIDE, SIDE), y, lse, qkv, scale_of(HS))

    def d_attention_workspace(*, B: int, T: int, NH: int, HS: int, **_: object) -> int:
        """D in fp32; for large heads what the rung below wants."""
        if HS > head:
            return below.d_attention_workspace(B=B, T=T, NH=NH, HS=HS)
        return B * NH * T * 4

    def d_attention(dqkv, dy, qkv, y, lse, add, work):
        """dqkv (B, T, 3, NH, HS) from dy (B, T, NH, HS)."""
        B, T, NH, HS = y.shape
        if HS > head:
            return below.d_attention(dqkv, dy, qkv, y, lse, add, work)
        D = work.part(0, "fp32", B * NH, T)
        one_a_row(row_dots_kernel, B * NH, T, D, dy, y)
        blocks = B * NH * blocks_for(T, tile)
        for run in d_q, d_kv:
            launch(run, blocks, (SIDE, SIDE), dqkv, dy, qkv, lse, D, scale_of(HS))

    return attention, attention_workspace, d_attention, d_attention_workspace


attention, attention_workspace, d_attention, d_attention_workspace = launchers(
    attention_kernel, d_q_kernel, d_kv_kernel, TILE, TILE, HEAD, v1_thread
)
