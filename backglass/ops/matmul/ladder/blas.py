"""The yardstick: np.dot, which is OpenBLAS, MKL or Accelerate as NumPy was built: `--matmul blas`.

264 / 290 / 239 GFLOP/s for matmul / d_matmul_x / d_matmul_w (N = 256, O = 2304, C = 768, 2 cores
of a Sapphire Rapids, OpenBLAS, 2026-11-22).
Plain Python functions. OpenBLAS has its own threads: set OMP_WAIT_POLICY=passive before Numba
starts, or its spinning threads and Numba's take the cores from each other.
With add, np.dot writes to `work` first, as BLAS's own accumulation is out of NumPy's reach.
"""

import numpy as np


def _dot(out, a, b, add, work):
    if not add:
        np.dot(a, b, out=out)
        return
    product = work[: out.size].reshape(out.shape)
    np.dot(a, b, out=product)
    out += product


def matmul_workspace(**_: int) -> int:
    """The forward never accumulates."""
    return 0


def d_matmul_x_workspace(*, N: int, C: int, **_: int) -> int:
    """Room for dx, in floats."""
    return N * C


def d_matmul_w_workspace(*, O: int, C: int, **_: int) -> int:
    """Room for dw, in floats."""
    return O * C


def matmul(y, x, w, b, add, work=None):
    """y = x · wᵀ + b."""
    np.dot(x, w.T, out=y)
    if b is not None:
        y += b


def d_matmul_x(dx, dy, w, add, work):
    """dx (+)= dy · w."""
    _dot(dx, dy, w, add[0], work)


def d_matmul_w(dw, db, dy, x, add, work):
    """dw (+)= dyᵀ · x and db (+)= the column sums of dy."""
    _dot(dw, dy.T, x, add[0], work)
    if db is not None:
        if add[1]:
            db += dy.sum(axis=0)
        else:
            dy.sum(axis=0, out=db)
