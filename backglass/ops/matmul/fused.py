"""Fused forms of matmul: what follows a product is done on its sums while they are in registers.

Kernels: gpu.py.
"""

from backglass.spec import OpSpec

FUSED = {
    "matmul_gelu": OpSpec(
        forward="x[N,C] w[O,C] b[O] -> pre[N,O] y[N,O]",
        equals="""
            pre = matmul(x, w, b)
            y = gelu(pre)
        """,
        flops={"matmul_gelu": "2*N*C*O + 10*N*O"},
        cases=(dict(N=3, C=5, O=7), dict(N=64, C=33, O=129)),
    ),
    "d_matmul_x_gelu": OpSpec(
        forward="dy[N,O] w[O,C] pre[N,C] -> dpre[N,C]",
        equals="""
            dx = d_matmul_x(dy, w)
            dpre = d_gelu(dx, pre)
        """,
        phase="backward",
        flops={"d_matmul_x_gelu": "2*N*C*O + 16*N*C"},
        cases=(dict(N=3, C=5, O=7), dict(N=64, C=129, O=33)),
    ),
}
