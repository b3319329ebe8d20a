"""The yardstick on the GPU: NVIDIA's cuBLASLt, `--matmul cublaslt`.

The bias is added in its epilogue; so is the bias gradient made, a sum over what is read anyway.
"""

from backglass.device import cublaslt
from backglass.ops.add.gpu import d_add


def matmul_workspace(**_: object) -> int:
    return cublaslt.WORKSPACE_BYTES


d_matmul_x_workspace = matmul_workspace


def d_matmul_w_workspace(*, O: int, **_: object) -> int:
    """And a db to be added."""
    return cublaslt.WORKSPACE_BYTES + 4 * O


def matmul(y, x, w, b, add, work):
    """y (N, O) = x (N, C)·wᵀ + b; w (O, C), b (O,) or None."""
    cublaslt.product(y, x, w, work, transpose_b=True, bias=b)


def d_matmul_x(dx, dy, w, add, work):
    """dx (N, C) (+)= dy (N, O)·w (O, C)."""
    cublaslt.product(dx, dy, w, work, add=add[0])


def d_matmul_w(dw, db, dy, x, add, work):
    """dw (O, C) (+)= dyᵀ·x, db (O,) (+)= Σ_N dy; dy (N, O), x (N, C)."""
    made = db
    if db is not None and add[1]:
        dtype = "bf16" if db.dtype.itemsize == 2 else "fp32"
        made = work.part(cublaslt.WORKSPACE_BYTES, dtype, *db.shape)
    cublaslt.product(dw, dy, x, work, transpose_a=True, add=add[0], bias_gradient=made)
    if made is not db:
        d_add(db, None, made, (True, False))
