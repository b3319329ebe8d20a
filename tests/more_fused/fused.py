"""More fused ops, without kernels, so that the rewriter meets every kind of pattern: outputs shared
between lines, a tensor that disappears inside, an input read twice."""

from backglass.spec import OpSpec

FUSED = {
    "add_layernorm": OpSpec(
        forward="a[N,C] b[N,C] w[C] bias[C] -> res[N,C] y[N,C] mean[N] rstd[N]",
        equals="""
            res = add(a, b)
            y, mean, rstd = layernorm(res, w, bias)
        """,
        inplace="res:b",
    ),
    "matmul_gelu": OpSpec(
        forward="x[N,C] w[O,C] b[O] -> y[N,O] act[N,O]",
        equals="""
            y = matmul(x, w, b)
            act = gelu(y)
        """,
    ),
    "d_matmul_x_dgelu": OpSpec(
        forward="dy[N,O] w[O,C] pre[N,C] -> dpre[N,C]",
        equals="""
            dx = d_matmul_x(dy, w)
            dpre = d_gelu(dx, pre)
        """,
    ),
}
