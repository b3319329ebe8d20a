"""Fused forms of rmsnorm: what each is equal to, line by line.  Kernels: cpu.py, gpu.py."""

from backglass.spec import OpSpec

FUSED = {
    # The stream takes the branch in and is normalised for the next one while it is at hand.
    "add_rmsnorm": OpSpec(
        forward="x[N,C] branch[N,C] w[C] -> res[N,C] y[N,C] | rstd[N]",
        equals="""
            res = add(x, branch)
            y, rstd = rmsnorm(res, w)
        """,
        attrs="eps=1e-5",
        inplace="res:x res:branch",
        flops={"add_rmsnorm": "5*N*C"},
        cases=(dict(N=1, C=3), dict(N=41, C=781)),
    ),
    # The stream's gradient: what came from above plus what comes back through the branch.
    "d_rmsnorm_add": OpSpec(
        forward="dres[N,C] dy[N,C] x[N,C] w[C] rstd[N] -> dx[N,C] dw[C]+",
        equals="""
            dx = d_add(dres)
            dx+, dw = d_rmsnorm(dy, x, w, rstd)
        """,
        phase="backward",
        wide="rstd",
        inplace="dx:dres",
        flops={"d_rmsnorm_add": "10*N*C"},
        cases=(dict(N=1, C=3), dict(N=41, C=781)),
    ),
}
