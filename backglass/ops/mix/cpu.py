"""mix on the CPU: each token's mixture of the values, y[i] = Σ_j att[i,j]·v[j].

    att[i]   [ a0 ,  a1 , ... , aT-1 ]
                |     |          |
               v[0]  v[1]  ... v[T-1]      rows of HS floats, inside qkv
                \\_____\\_____+____/
                       y[i]                one task a row

Attention spelled out, to be read and to be looked at. A head costs 2·T²·HS FLOP, the zeros of
the future included: nothing here knows that att is causal. The attention op is the fast form.
"""

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import add_scaled, dot, zero

Q, K, V = range(3)  # the three parts of qkv's axis 2


@kernel
def mix(y, att, qkv, add):
    """y (B,T,NH,HS) = att·v; att (B,NH,T,T), qkv (B,T,3,NH,HS)."""
    B, T, NH, _ = y.shape
    for row in prange(B * NH * T):
        b = row // (NH * T)
        h = row // T % NH
        i = row % T
        zero(y[b, i, h])
        for j in range(T):
            add_scaled(y[b, i, h], att[b, h, i, j], qkv[b, j, V, h])


@kernel
def d_mix(datt, dqkv, dy, att, qkv, add):
    """forward: y[i] = Σ_j att[i,j]·v[j]      so: datt[i,j] = dy[i]·v[j], dv[j] += att[i,j]·dy[i].

    One task a head: it owns the head's columns of dqkv (B,T,3,NH,HS), those of q and k being 0.
    """
    B, T, NH, _ = dy.shape
    for head in prange(B * NH):
        b = head // NH
        h = head % NH
        if not add[1]:
            for t in range(T):
                zero(dqkv[b, t, Q, h])
                zero(dqkv[b, t, K, h])
                zero(dqkv[b, t, V, h])
        _d_head(datt[b, h], dqkv[b], dy[b], att[b, h], qkv[b], h)


@inline
def _d_head(datt, dqkv, dy, att, qkv, h):
    T = dy.shape[0]
    for i in range(T):
        for j in range(T):
            datt[i, j] = dot(dy[i, h], qkv[j, V, h])
            add_scaled(dqkv[j, V, h], att[i, j], dy[i, h])
