"""The residual connection: a branch's result is added to the stream, so gradients reach every layer
undiminished.

Forward:

    y = a + b

Backward, from dy:

    da = dy        db = dy

Derivation
     1  y_i = a_i + b_i depends on a_i with factor 1:   ∂y_i/∂a_j = δ_ij
     2  the chain rule:                                 da_j = Σ_i dy_i·δ_ij = dy_j
     3  a and b are interchangeable:                    db = dy
     4  so a fork in the forward is a sum in the backward and a sum in the forward is a fork in the
        backward.
     5  in a block y = x + f(x) it follows that:        dx = dy + fᵀ'(dy)
     6  however small f' is, dx contains dy unchanged.
     7  over L layers the stream's gradient is a sum over all paths, one of which passes through no
        layer at all: that is why deep residual networks learn.
     8  written as two copies here, so that names never lie.
     9  a pass makes both copies free: the branch's gradient *is* the sum's gradient (share), and
        the stream's is updated in place (plan).
    10  nothing depends on the values of a and b, so neither is read.

Saved: nothing.
Source: He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv 1512.03385, eq. 1.
"""

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="a[N] b[N] -> y[N]",
    backward={"d_add": "dy[N] -> da[N]+ db[N]+?"},
    inplace="y:a y:b da:dy",
    flops={"add": "N"},
    cases=(dict(N=1), dict(N=781), dict(N=5003)),
)


def add(a, b):
    return (a + b,)


def d_add(dy):
    return dy.copy(), dy.copy()  # 2, 3
