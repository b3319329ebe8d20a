"""What `--device cuda` uses unless told otherwise: for every product the faster of two.

Ours where something is done with the sums: matmul with gelu 0.51 ms and d_matmul_x with its
derivative 0.50 ms, where cuBLASLt's product takes 0.43 and the pass over memory 0.2 to 0.3 more.
Ours for the weight gradient, whose bias gradient costs nothing: 1.06 to 1.31 times cuBLASLt (65,536
rows of GPT-2 124M, bf16, H200, 2026-11-24); unless much of its tiles would be beyond the edge, as
with 1,600 channels, where a step with cuBLASLt's is 3 % faster.
cuBLASLt for the bare ones: 4 to 15 % faster.
"""

import triton

from backglass.ops.matmul import gpu_dw
from backglass.ops.matmul.gpu import d_matmul_x_gelu, matmul_gelu
from backglass.ops.matmul.ladder import cublaslt
from backglass.ops.matmul.ladder.cublaslt import (
    d_matmul_x,
    d_matmul_x_workspace,
    matmul,
    matmul_workspace,
)

__all__ = [
    "d_matmul_w",
    "d_matmul_w_workspace",
    "d_matmul_x",
    "d_matmul_x_gelu",
    "d_matmul_x_workspace",
    "matmul",
    "matmul_gelu",
    "matmul_workspace",
]

LEAST_USED = 0.95  # of our tiles' area, for the weight gradient …
SMALL = 1 << 20  # … unless it is small, and costs nothing either way


def weights_of(O: int, C: int):
    """Who computes dw (O, C): gpu_dw or cublaslt."""
    rows, columns = 2 * gpu_dw.HALF_M, gpu_dw.BLOCK_N
    area = triton.cdiv(O, rows) * rows * triton.cdiv(C, columns) * columns
    return cublaslt if O * C > SMALL and O * C < LEAST_USED * area else gpu_dw


def d_matmul_w_workspace(*, N: int, C: int, O: int, dtype: str, **rest: object) -> int:
    return weights_of(O, C).d_matmul_w_workspace(N=N, C=C, O=O, dtype=dtype, **rest)


def d_matmul_w(dw, db, dy, x, add, work):
    """dw (O, C) (+)= dyᵀ·x, db (O,) (+)= Σ_N dy; dy (N, O), x (N, C)."""
    weights_of(dy.shape[1], x.shape[1]).d_matmul_w(dw, db, dy, x, add, work)
