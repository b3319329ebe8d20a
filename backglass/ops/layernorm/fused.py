"""Fused forms of layernorm: what each is equal to, line by line.  Kernels: cpu.py, gpu.py."""

from backglass.spec import OpSpec

FUSED = {
    # The stream takes the branch in and is normalised for the next one while it is at hand.
    "add_layernorm": OpSpec(
        forward="x[N,C] branch[N,C] w[C] b[C] -> res[N,C] y[N,C] | mean[N] rstd[N]",
        equals="""
            res = add(x, branch)
            y, mean, rstd = layernorm(res, w, b)
        """,
        attrs="eps=1e-5",
        inplace="res:x res:branch",
        flops={"add_layernorm": "9*N*C"},
        cases=(dict(N=1, C=3), dict(N=41, C=781)),
    ),
    # The stream's gradient: what came from above plus what comes back through the branch.
    "d_layernorm_add": OpSpec(
        forward="dres[N,C] dy[N,C] x[N,C] w[C] mean[N] rstd[N] -> dx[N,C] dw[C]+ db[C]+",
        equals="""
            dx = d_add(dres)
            dx+, dw, db = d_layernorm(dy, x, w, mean, rstd)
        """,
        phase="backward",
        wide="mean rstd",
        inplace="dx:dres",
        flops={"d_layernorm_add": "15*N*C"},
        cases=(dict(N=1, C=3), dict(N=41, C=781)),
    ),
}
