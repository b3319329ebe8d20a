"""The embedding of a piece of a sequence: token t of sequence b stands at position start[b] + t.

Forward:

    x[b,t] = wte[ids[b,t]] + wpe[start[b] + t]          0 where start[b] + t ≥ P;  0 ≤ start[b] ≤ P

Why it is an op of its own
     1  embed gives token t position t, which is right for a whole sequence only.
     2  in generation the first new token comes after start[b] others, and sequences of one batch
        differ in that: start is a tensor.
     3  a program's lines are constant and its tensors are not: with start in a tensor one recorded
        program serves every step.
     4  past the last position there is only padding, of sequences that are shorter than others or
        finished: x = 0 keeps its rows finite through all layers, and nobody reads them.

Nothing is differentiated here.   P: rows of wpe.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
"""

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="ids[B,T] start[B] wte[V,C] wpe[P,C] -> x[B,T,C]",
    integers="ids:0:V start:0:P",
    flops={"embed_at": "B*T*C"},
    bytes={"embed_at": "B*T + B + 3*B*T*C"},
    cases=(
        dict(B=1, T=1, V=1, P=1, C=1),
        dict(B=3, T=5, V=11, P=8, C=7),
        dict(B=2, T=33, V=5, P=40, C=129),
    ),
)


def embed_at(ids, start, wte, wpe, *, T, P):
    s = start[:, None] + np.arange(T)  # (B, T)
    x = wte[ids] + wpe[np.minimum(s, P - 1)]  # (B, T, C)
    return (np.where(s[..., None] < P, x, 0),)  # 4
