"""The embedding looks up one vector per token and one per position, and adds them.

Forward:

    x[b,t] = wte[ids[b,t]] + wpe[t]        or wte[ids[b,t]], where positions come in later

Backward, from dx:

    dwte[i] = Σ over all (b,t) with ids[b,t] = i of dx[b,t]            dwpe[t] = Σ_b dx[b,t]

Derivation
     1  a lookup is a product with a one-hot row:       wte[i] = Σ_v onehot(i)[v]·wte[v]
     2  so x is linear in wte:                          ∂x[b,t]/∂wte[v] = onehot(ids[b,t])[v]
     3  the chain rule sums over all places of x:
                                                       dwte[v] = Σ_{b,t} dx[b,t]·onehot(ids[b,t])[v]
     4  the one-hot is 1 where ids[b,t] = v and 0 elsewhere:
                                                        dwte[v] = Σ_{b,t: ids[b,t]=v} dx[b,t]
     5  a token that occurs five times collects five gradients, one that does not occur collects
        none.
     6  so it is a scatter-add, not an assignment: dwte[ids] = dx would keep only the last
        occurrence.
     7  position t is used once in every sequence of the batch:
                                                        dwpe[t] = Σ_b dx[b,t]
     8  positions from T on were not used:              dwpe[t ≥ T] = 0
     9  ids are integers; nothing is differentiated with respect to them.
    10  in GPT-2 wte is the output layer too, so dwte receives a second term from there (hence the
        +).

Saved: nothing; the backward needs only ids.   P: rows of wpe, at least T.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
"""

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="ids[B,T] wte[V,C] wpe[P,C]? -> x[B,T,C]",
    backward={"d_embed": "dx[B,T,C] ids -> dwte[V,C]+ dwpe[P,C]+?"},
    integers="ids:0:V",
    flops={"embed": "B*T*C", "d_embed": "2*B*T*C"},
    bytes={"embed": "B*T + 2*B*T*C + T*C", "d_embed": "B*T + 3*B*T*C + 2*T*C"},
    cases=(
        dict(B=1, T=1, V=1, P=1, C=1),
        dict(B=2, T=5, V=11, P=8, C=7),
        dict(B=347, T=3, V=3, P=4, C=5),
    ),
)


def embed(ids, wte, wpe=None):
    return (wte[ids] if wpe is None else wte[ids] + wpe[: ids.shape[1]],)


def d_embed(dx, ids, *, T, C, V, P=0):
    dwte = np.zeros((V, C), dx.dtype)
    np.add.at(dwte, ids, dx)  # 4, 6
    dwpe = np.zeros((P, C), dx.dtype)  # 8
    dwpe[:T] = dx.sum(0)[:P]  # 7; P is 0 without wpe
    return dwte, dwpe
