"""matmul on the GPU, rung 1: the formula.  One thread, one output; it reads all it needs itself.

    out[m, n] = Σ_k a[m, k]·b[k, n] + bias[n]

    matmul       y  = x·wᵀ + b      b is w transposed
    d_matmul_x   dx = dy·w
    d_matmul_w   dw = dyᵀ·x         a is dy transposed

Every multiplication fetches two numbers.  The 32 threads of a warp stand side by side in a row of
`out`: they ask for the same number of a, one fetch for all of them, and for 32 neighbours in a row
of b, one fetch too.  Where b is transposed those lie a whole row of w apart, and it takes 32.
"""

from numba import cuda
from numpy import float32

from backglass.device.cuda_threads import SIDE, Transposed, blocks_for, f32, kernel, launch, like


@kernel
def matmul_kernel(out, a, b, bias, add):
    n, m = cuda.grid(2)
    if m < out.shape[0] and n < out.shape[1]:
        acc = float32(0)
        for k in range(a.shape[1]):
            acc += f32(a[m, k]) * f32(b[k, n])
        if bias.shape[0] > 0:
            acc += f32(bias[n])
        if add:
            acc += f32(out[m, n])
        out[m, n] = like(acc, out[m, n])


@kernel
def bias_gradient_kernel(db, dy, add):
    """One thread, one column."""
    o = cuda.grid(1)
    if o < db.shape[0]:
        acc = float32(0)
        for n in range(dy.shape[0]):
            acc += f32(dy[n, o])
        if add:
            acc += f32(db[o])
        db[o] = like(acc, db[o])


def product(out, a, b, bias, add):
    """out (M, N) (+)= a (M, K)·b (K, N) + bias (N,)."""
    M, N = out.shape
    blocks = blocks_for(N, SIDE), blocks_for(M, SIDE)
    launch(matmul_kernel, blocks, (SIDE, SIDE), out, a, b, bias, add)


def launchers(product):
    """matmul, d_matmul_x and d_matmul_w by one kernel's product(out, a, b, bias, add)."""

    def matmul(y, x, w, b, add):
        """y (N, O) = x (N, C)·wᵀ + b; w (O, C), b (O,) or None."""
        product(y, x, Transposed(w), b, False)

    def d_matmul_x(dx, dy, w, add):
        """dx (N, C) (+)= dy (N, O)·w (O, C)."""
        product(dx, dy, w, None, add[0])

    def d_matmul_w(dw, db, dy, x, add):
        """dw (O, C) (+)= dyᵀ·x, db (O,) (+)= Σ_N dy; dy (N, O), x (N, C)."""
        product(dw, Transposed(dy), x, None, add[0])
        if db is not None:
            launch(bias_gradient_kernel, blocks_for(db.shape[0], 32), 32, db, dy, add[1])

    return matmul, d_matmul_x, d_matmul_w


matmul, d_matmul_x, d_matmul_w = launchers(product)
