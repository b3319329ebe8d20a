"""A linear layer: every output channel is a weighted sum of the input channels, plus a bias.

Forward:

    y[n,o] = Σ_c x[n,c]·w[o,c] + b[o]               y = x·wᵀ + b          w is (out, in)

Backward, in two calls because they are two matrix products, wanted at different times:

    d_matmul_x:   dx = dy·w
    d_matmul_w:   dw = dyᵀ·x      db = Σ_n dy

Derivation
     1  the loss sees x[n,c] only through row n of y:   dx[n,c] = Σ_o dy[n,o]·∂y[n,o]/∂x[n,c]
     2  y is linear in x, its factor is w:              ∂y[n,o]/∂x[n,c] = w[o,c]
     3  1 and 2 are a matrix product over o:            dx = dy·w
     4  the loss sees w[o,c] through column o of y, in every row:
                                                        dw[o,c] = Σ_n dy[n,o]·∂y[n,o]/∂w[o,c]
     5  y is linear in w, its factor is x:              ∂y[n,o]/∂w[o,c] = x[n,c]
     6  4 and 5 are a matrix product over n:            dw = dyᵀ·x
     7  b[o] is added to every row with factor 1:       db[o] = Σ_n dy[n,o]
     8  shapes check themselves: dx must be (N,C), and (N,O)·(O,C) is the only way to get there; dw
        must be (O,C), and (O,N)·(N,C) is the only way.
     9  each of the three products costs 2·N·C·O FLOPs, so a backward costs two forwards.
    10  without b (GPT-2's output layer) only db falls away.

Saved: nothing of its own.  The backward reads x, an activation that exists anyway, and w.
Source: any textbook; the 1 : 2 cost ratio is used in Kaplan et al. 2020, arXiv 2001.08361, section
2.1.
"""

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="x[N,C] w[O,C] b[O]? -> y[N,O]",
    backward={
        "d_matmul_w": "dy[N,O] x -> dw[O,C]+ db[O]+?",
        "d_matmul_x": "dy[N,O] w -> dx[N,C]+",
    },
    flops={"matmul": "2*N*C*O", "d_matmul_w": "2*N*C*O", "d_matmul_x": "2*N*C*O"},
    cases=(
        dict(N=1, C=1, O=1),
        dict(N=3, C=5, O=7),
        dict(N=37, C=48, O=144),
        dict(N=64, C=781, O=129),
        dict(N=2100, C=8, O=24),
    ),
)


def matmul(x, w, b):
    y = x @ w.T  # (N, C)·(C, O)
    return (y if b is None else y + b,)


def d_matmul_w(dy, x):
    dw = dy.T @ x  # 6
    db = dy.sum(0)  # 7
    return dw, db


def d_matmul_x(dy, w):
    return (dy @ w,)  # 3
