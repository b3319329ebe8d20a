"""matmul on the GPU, rung 2: the threads of a block fetch tiles together, into shared memory.

              b   +------+       A block makes a TILE×TILE piece of `out`, a thread one number of
                  | tile | K     it.  Tile after tile along K: every thread fetches one number of
                  +------+       a's tile and one of b's, all wait, every thread multiplies a row
     a +------+   +------+       of one by a column of the other, all wait again.
       | tile |   | out  |
       +------+   +------+       A number fetched from memory is now used TILE times.
          K

Both tiles are fetched along the rows of the matrix as it lies in memory, so that a warp's threads
ask for neighbours; a transposed matrix is turned on its way into shared memory.
"""

from numba import cuda
from numpy import float32

from backglass.device.cuda_threads import (
    SIDE,
    Transposed,
    blocks_for,
    device,
    f32,
    kernel,
    launch,
    like,
)
from backglass.ops.matmul.ladder.v1_thread import launchers

TILE = SIDE  # numbers on a side: one for each thread
PITCH = TILE + 1  # of a tile's rows: the numbers of a column lie in different memory banks


@kernel
def matmul_kernel(out, a, b, bias, a_transposed, b_transposed, add):
    a_tile = cuda.shared.array((TILE, PITCH), float32)
    b_tile = cuda.shared.array((TILE, PITCH), float32)
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    m, n = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    acc = float32(0)
    for k in range(0, a.shape[1], TILE):
        if a_transposed:
            a_tile[j, i] = number_at(a, m + j, k + i)
        else:
            a_tile[i, j] = number_at(a, m + i, k + j)
        if b_transposed:
            b_tile[j, i] = number_at(b, k + j, n + i)
        else:
            b_tile[i, j] = number_at(b, k + i, n + j)
        cuda.syncthreads()
        for step in range(TILE):
            acc += a_tile[i, step] * b_tile[step, j]
        cuda.syncthreads()
    finish(out, bias, m + i, n + j, acc, add)


@device
def number_at(matrix, row, column):
    """As fp32; 0 beyond the edge."""
    if row < matrix.shape[0] and column < matrix.shape[1]:
        return f32(matrix[row, column])
    return float32(0)


@device
def finish(out, bias, m, n, acc, add):
    """out[m, n] (+)= acc + bias[n], inside the edge."""
    if m < out.shape[0] and n < out.shape[1]:
        if bias.shape[0] > 0:
            acc += f32(bias[n])
        if add:
            acc += f32(out[m, n])
        out[m, n] = like(acc, out[m, n])


def product(out, a, b, bias, add):
    """out (M, N) (+)= a (M, K)·b (K, N) + bias (N,)."""
    M, N = out.shape
    blocks = blocks_for(N, TILE), blocks_for(M, TILE)
    turned = isinstance(a, Transposed), isinstance(b, Transposed)
    launch(matmul_kernel, blocks, (TILE, TILE), out, a, b, bias, *turned, add)


matmul, d_matmul_x, d_matmul_w = launchers(product)
