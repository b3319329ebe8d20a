"""The yardstick on the GPU: NVIDIA's cuBLASLt, `--matmul cublaslt`.

The bias is added in its epilogue; the bias gradient is our own kernel.
"""

from backglass.device import cublaslt
from backglass.ops.matmul.ladder.v4_plain import bias_gradient, bias_programs


def matmul_workspace(**_: object) -> int:
    return cublaslt.WORKSPACE_BYTES


d_matmul_x_workspace = matmul_workspace


def d_matmul_w_workspace(*, N: int, O: int, **_: object) -> int:
    return max(cublaslt.WORKSPACE_BYTES, bias_programs(N) * O * 4)


def matmul(y, x, w, b, add, work):
    """y (N, O) = x (N, C)·wᵀ + b; w (O, C), b (O,) or None."""
    cublaslt.product(y, x, w, work, transpose_b=True, bias=b)


def d_matmul_x(dx, dy, w, add, work):
    """dx (N, C) (+)= dy (N, O)·w (O, C)."""
    cublaslt.product(dx, dy, w, work, add=add[0])


def d_matmul_w(dw, db, dy, x, add, work):
    """dw (O, C) (+)= dyᵀ·x, db (O,) (+)= Σ_N dy; dy (N, O), x (N, C)."""
    cublaslt.product(dw, dy, x, work, transpose_a=True, add=add[0])
    if db is not None:
        bias_gradient(db, dy, add[1], work)
