"""attention on the GPU, rung 3: a thread makes several scores and several sums from numbers it
holds in registers, and a row's threads find its maximum by shuffles.

    a tile of scores, 64 queries × 32 keys          the sums of its queries, HS = 64

         0        16                                     0        16       32       48
      0  t . . .  t . . .                             0  t . . .  t . . .  t . . .  t . . .
     16  t . . .  t . . .    a thread's lie SIDE     16  t . . .  t . . .  t . . .  t . . .
     32  t . . .  t . . .    apart, as in matmul     32  t . . .  t . . .  t . . .  t . . .
     48  t . . .  t . . .                            48  t . . .  t . . .  t . . .  t . . .

    multiplications for reads of shared memory     rung 2     here, forward     backward
        q·kᵀ, dy·vᵀ                                1 for 2        8 for 6        4 for 4
        weights·rows, HS = 64                      4 for 5       16 for 8        8 for 6

The backward has six tiles to keep in shared memory, where the forward has four, and makes do with
32 queries.

The SIDE threads of a row are half a warp.  In rung 2 each of them reads the whole row of scores to
find the largest; here each looks at its own, and log2 SIDE shuffles do the rest, without shared
memory and without waiting.  l is summed over the threads only once, at the end: until then each has
its part, and scales it down as the others do.

What a thread fetches it collects in registers first: so all fetches are under way at once, and only
then does it wait for them.

Heads of more than HEAD numbers do not fit the tiles; they go to the rung below.

What is left to the next rung: tensor cores, which multiply tiles instead of numbers, and fetching
the next tiles while these are multiplied.
"""

import math

from numba import cuda
from numpy import float32

from backglass.device.cuda_threads import SIDE, device, kernel, like, shuffle
from backglass.ops.attention.ladder import v2_shared
from backglass.ops.attention.ladder.v1_thread import FLOOR
from backglass.ops.attention.ladder.v2_shared import block_place, launchers
from backglass.ops.matmul.ladder.v2_shared import number_at

HEAD = 64  # the largest HS
COLUMNS = HEAD // SIDE  # of a thread's sums
DOWN = 4  # queries of a thread in the forward
EACH = 2  # its keys, and its queries in the backward
QUERIES = DOWN * SIDE  # of a tile in the forward
TILE = EACH * SIDE  # its keys, and its queries in the backward
PITCH = HEAD + 1  # of a tile's rows: the numbers of a column lie in different memory banks
SCORES_PITCH = TILE + 1

# ---------------------------------------------------------------- forward


@kernel
def attention_kernel(y, lse, qkv, scale):
    q_tile = cuda.shared.array((QUERIES, PITCH), float32)
    k_tile = cuda.shared.array((TILE, PITCH), float32)
    v_tile = cuda.shared.array((TILE, PITCH), float32)
    p_tile = cuda.shared.array((QUERIES, SCORES_PITCH), float32)
    s = cuda.local.array((DOWN, EACH), float32)
    p = cuda.local.array((DOWN, EACH), float32)
    acc = cuda.local.array((DOWN, COLUMNS), float32)
    m = cuda.local.array(DOWN, float32)
    l = cuda.local.array(DOWN, float32)
    i, j, T, HS = cuda.threadIdx.y, cuda.threadIdx.x, y.shape[1], y.shape[3]
    head, first = block_place(cuda.gridDim.x - 1 - cuda.blockIdx.x, T, QUERIES)
    b, h = divmod(head, y.shape[2])
    q, k, v = qkv[b, :, 0, h], qkv[b, :, 1, h], qkv[b, :, 2, h]  # (T, HS)
    fetch(q_tile, q, first, i, j)
    zero(acc)
    for r in range(DOWN):
        m[r], l[r] = FLOOR, float32(0)
    for n in range(0, min(first + QUERIES, T), TILE):
        fetch(k_tile, k, n, i, j)
        fetch(v_tile, v, n, i, j)
        cuda.syncthreads()
        dots(s, q_tile, k_tile, i, j, HS)
        for r in range(DOWN):
            online_softmax(p, m, l, acc, s, r, first + r * SIDE + i, n + j, scale)
        put(p_tile, p, i, j)
        cuda.syncthreads()
        add_rows(acc, p_tile, v_tile, i, j)
        cuda.syncthreads()
    for r in range(DOWN):
        t, total = first + r * SIDE + i, row_sum(l[r])
        store(y[b, :, h], t, j, acc, r, float32(1) / total)
        if j == 0 and t < T:
            lse[b, h, t] = m[r] + math.log(total)


@device
def online_softmax(p, m, l, acc, s, r, t, first, scale):
    """Take the thread's scores of query t, its row r, into m, l and acc; p: their weights.  Its
    keys are first, first + SIDE, …"""
    top = m[r]
    for c in range(EACH):
        s[r, c] = s[r, c] * scale if first + c * SIDE <= t else FLOOR
        top = max(top, s[r, c])
    top = row_max(top)
    shrink = math.exp(m[r] - top)  # 11
    m[r] = top
    l[r] *= shrink
    for c in range(EACH):
        p[r, c] = math.exp(s[r, c] - top)
        l[r] += p[r, c]
    for c in range(COLUMNS):
        acc[r, c] *= shrink


@device
def row_max(x):
    """The largest x of a row's SIDE threads, in each of them."""
    step = SIDE // 2
    while step > 0:
        x = max(x, shuffle(x, step))
        step //= 2
    return x


@device
def row_sum(x):
    """Their sum."""
    step = SIDE // 2
    while step > 0:
        x += shuffle(x, step)
        step //= 2
    return x


# ---------------------------------------------------------------- backward


@kernel
def d_q_kernel(dqkv, dy, qkv, lse, D, scale):
    q_tile = cuda.shared.array((TILE, PITCH), float32)
    k_tile = cuda.shared.array((TILE, PITCH), float32)
    v_tile = cuda.shared.array((TILE, PITCH), float32)
    dy_tile = cuda.shared.array((TILE, PITCH), float32)
    ds_tile = cuda.shared.array((TILE, SCORES_PITCH), float32)
    p = cuda.local.array((EACH, EACH), float32)
    ds = cuda.local.array((EACH, EACH), float32)
    acc = cuda.local.array((EACH, COLUMNS), float32)
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
        d_scores(
            p, ds, q_tile, k_tile, dy_tile, v_tile, i, j, first, n, lse[b, h], D[head], scale, HS
        )
        put(ds_tile, ds, i, j)
        cuda.syncthreads()
        add_rows(acc, ds_tile, k_tile, i, j)  # 3
        cuda.syncthreads()
    for r in range(EACH):
        store(dqkv[b, :, 0, h], first + r * SIDE + i, j, acc, r, scale)


@kernel
def d_kv_kernel(dqkv, dy, qkv, lse, D, scale):
    q_tile = cuda.shared.array((TILE, PITCH), float32)
    k_tile = cuda.shared.array((TILE, PITCH), float32)
    v_tile = cuda.shared.array((TILE, PITCH), float32)
    dy_tile = cuda.shared.array((TILE, PITCH), float32)
    p_tile = cuda.shared.array((TILE, SCORES_PITCH), float32)  # Pᵀ, keys × queries
    ds_tile = cuda.shared.array((TILE, SCORES_PITCH), float32)  # dSᵀ
    p = cuda.local.array((EACH, EACH), float32)
    ds = cuda.local.array((EACH, EACH), float32)
    acc_dk = cuda.local.array((EACH, COLUMNS), float32)
    acc_dv = cuda.local.array((EACH, COLUMNS), float32)
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
        d_scores(
            p, ds, q_tile, k_tile, dy_tile, v_tile, i, j, m, first, lse[b, h], D[head], scale, HS
        )
        put(p_tile.T, p, i, j)
        put(ds_tile.T, ds, i, j)
        cuda.syncthreads()
        add_rows(acc_dk, ds_tile, q_tile, i, j)  # 3
        add_rows(acc_dv, p_tile, dy_tile, i, j)  # 1
        cuda.syncthreads()
    for r in range(EACH):
        store(dqkv[b, :, 1, h], first + r * SIDE + i, j, acc_dk, r, scale)
        store(dqkv[b, :, 2, h], first + r * SIDE + i, j, acc_dv, r, float32(1))


@device
def d_scores(
    p, ds, q_tile, k_tile, dy_tile, v_tile, i, j, first_query, first_key, lse, D, scale, HS
):  # fmt: skip
    """P and dS of the thread's queries and keys."""
    s = cuda.local.array((EACH, EACH), float32)
    dp = cuda.local.array((EACH, EACH), float32)
    dots(s, q_tile, k_tile, i, j, HS)
    dots(dp, dy_tile, v_tile, i, j, HS)  # 1
    for r in range(EACH):
        t = first_query + r * SIDE + i
        for c in range(EACH):
            p[r, c], ds[r, c] = float32(0), float32(0)
            if first_key + c * SIDE + j <= t and t < lse.shape[0]:
                p[r, c] = math.exp(s[r, c] * scale - lse[t])  # 5
                ds[r, c] = p[r, c] * (dp[r, c] - D[t])  # 2


# ---------------------------------------------------------------- what the kernels share


@device
def fetch(tile, x, first, i, j):
    """A tile from row `first` on of x (T, HS), 0 beyond the edge; neighbours ask for neighbours."""
    numbers = cuda.local.array((DOWN, COLUMNS), float32)
    for r in range(tile.shape[0] // SIDE):
        for c in range(COLUMNS):
            numbers[r, c] = number_at(x, first + r * SIDE + i, c * SIDE + j)
    put(tile, numbers, i, j)


@device
def put(tile, numbers, i, j):
    """The thread's numbers into shared memory, SIDE apart; a tile's pitch has no room for more."""
    for r in range(tile.shape[0] // SIDE):
        for c in range(tile.shape[1] // SIDE):
            tile[r * SIDE + i, c * SIDE + j] = numbers[r, c]


@device
def zero(acc):
    for r in range(acc.shape[0]):
        for c in range(acc.shape[1]):
            acc[r, c] = float32(0)


@device
def dots(out, a, b, i, j, HS):
    """out[r, c] = a[r·SIDE + i]·b[c·SIDE + j].  The two inner loops are unrolled; then out lies in
    registers, and each number of a and b is read once."""
    zero(out)
    d = 0
    while d < HS:
        for r in range(out.shape[0]):
            for c in range(out.shape[1]):
                out[r, c] += a[r * SIDE + i, d] * b[c * SIDE + j, d]
        d += 1


@device
def add_rows(acc, weights, tile, i, j):
    """acc[r] += Σ_n weights[r·SIDE + i, n] · row n of a tile, in the thread's columns."""
    n = 0
    while n < TILE:
        for r in range(acc.shape[0]):
            for c in range(acc.shape[1]):
                acc[r, c] += weights[r * SIDE + i, n] * tile[n, c * SIDE + j]
        n += 1


@device
def store(x, row, j, acc, r, factor):
    """x[row] = acc[r] · factor, in the thread's columns, inside the edge."""
    for c in range(COLUMNS):
        if row < x.shape[0] and c * SIDE + j < x.shape[1]:
            x[row, c * SIDE + j] = like(acc[r, c] * factor, x[row, c * SIDE + j])


attention, attention_workspace, d_attention, d_attention_workspace = launchers(
    attention_kernel, d_q_kernel, d_kv_kernel, QUERIES, TILE, HEAD, v2_shared
)
