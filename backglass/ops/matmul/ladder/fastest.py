"""What `--device cuda` uses unless told otherwise: for every product the faster of two.

Ours where something is done with the sums: matmul with gelu 0.51 ms and d_matmul_x with its
derivative 0.50 ms, where cuBLASLt's product takes 0.43 and the pass over memory 0.2 to 0.3 more.
cuBLASLt for the bare ones: 4 to 15 % faster (65,536 rows of GPT-2 124M, bf16, H200, 2026-11-24).
"""

from backglass.ops.matmul.gpu import (
    d_matmul_w,
    d_matmul_w_workspace,
    d_matmul_x_gelu,
    matmul_gelu,
)
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
