"""matmul on the GPU, rung 3: a thread makes EACH×EACH outputs, from numbers it holds in registers.

    a block's piece of `out`, 4 × SIDE rows and columns (EACH = 4, SIDE = 16 threads):

         0        16       32       48          a thread's 16 outputs lie SIDE apart, so that a
      0  t . . .  t . . .  t . . .  t . . .     warp's threads store neighbours, and read
     16  t . . .  t . . .  t . . .  t . . .     neighbours of b's tile
     32  t . . .  t . . .  t . . .  t . . .
     48  t . . .  t . . .  t . . .  t . . .

Rung 2 reads two numbers from shared memory for each multiplication, and that is what it waits for.
Here a thread reads EACH of a's column and EACH of b's row and multiplies every one by every other:
EACH² multiplications for 2·EACH reads.  A number fetched from memory is used EACH·SIDE times.

What is left to the next rungs: tensor cores, which multiply tiles instead of numbers, and fetching
the next tiles while these are multiplied.
"""

from numba import cuda
from numpy import float32

from backglass.device.cuda_threads import SIDE, Transposed, blocks_for, kernel, launch
from backglass.ops.matmul.ladder.v1_thread import launchers
from backglass.ops.matmul.ladder.v2_shared import finish, number_at

EACH = 4  # outputs of a thread, down and across
TILE = SIDE * EACH
DEPTH = SIDE  # of a tile along K
PITCH = TILE + 1  # of a tile's rows: the numbers of a column lie in different memory banks


@kernel
def matmul_kernel(out, a, b, bias, a_transposed, b_transposed, add):
    a_tile = cuda.shared.array((DEPTH, PITCH), float32)  # k first: turned unless a is transposed
    b_tile = cuda.shared.array((DEPTH, PITCH), float32)
    acc = cuda.local.array((EACH, EACH), float32)
    column = cuda.local.array(EACH, float32)
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    m, n = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    for p in range(EACH):
        for q in range(EACH):
            acc[p, q] = float32(0)
    for k in range(0, a.shape[1], DEPTH):
        for p in range(EACH):
            if a_transposed:
                a_tile[i, p * SIDE + j] = number_at(a, m + p * SIDE + j, k + i)
            else:
                a_tile[j, p * SIDE + i] = number_at(a, m + p * SIDE + i, k + j)
            if b_transposed:
                b_tile[j, p * SIDE + i] = number_at(b, k + j, n + p * SIDE + i)
            else:
                b_tile[i, p * SIDE + j] = number_at(b, k + i, n + p * SIDE + j)
        cuda.syncthreads()
        for step in range(DEPTH):
            for p in range(EACH):
                column[p] = a_tile[step, p * SIDE + i]
            for q in range(EACH):
                along = b_tile[step, q * SIDE + j]
                for p in range(EACH):
                    acc[p, q] += column[p] * along
        cuda.syncthreads()
    for p in range(EACH):
        for q in range(EACH):
            finish(out, bias, m + p * SIDE + i, n + q * SIDE + j, acc[p, q], add)


def product(out, a, b, bias, add):
    """out (M, N) (+)= a (M, K)·b (K, N) + bias (N,)."""
    M, N = out.shape
    blocks = blocks_for(N, TILE), blocks_for(M, TILE)
    turned = isinstance(a, Transposed), isinstance(b, Transposed)
    launch(matmul_kernel, blocks, (SIDE, SIDE), out, a, b, bias, *turned, add)


matmul, d_matmul_x, d_matmul_w = launchers(product)
