"""Softmax and cross-entropy: how surprised the model is by the token that came, in nats.

Forward, for one row of V logits z and its target:

    lse = log Σ_v exp(z_v)        loss = lse − z_target        ( = −log softmax(z)_target )

Backward, from dloss, the weight of this row in the step's loss (1/number of counted tokens):

    dz = (softmax(z) − onehot(target))·dloss            softmax(z)_v = exp(z_v − lse)

Derivation
     1  softmax gives each token a probability:         p_v = exp(z_v)/Σ_u exp(z_u) = exp(z_v − lse)
     2  the surprise of the target:                     loss = −log p_target = lse − z_target
     3  computed as lse − z_target it cannot underflow; log(p_target) is −∞ as soon as p_target
        rounds to 0.
     4  nor overflow, with m = max z:                   lse = m + log Σ_v exp(z_v − m)
     5  the log's derivative:                           ∂lse/∂z_v = exp(z_v)/Σ_u exp(z_u) = p_v
     6  the other term is one logit:                    ∂z_target/∂z_v = onehot(target)_v
     7  5 and 6:                                        ∂loss/∂z_v = p_v − onehot(target)_v
     8  the chain rule with dloss:                      dz_v = (p_v − onehot(target)_v)·dloss
     9  Σ_v dz_v = 0: a step can only move probability from some tokens to others.
    10  |dz_v| ≤ dloss: no row can shout, however wrong the model is.
    11  target −1 (masked) means the row counts nothing:
                                                        loss = 0, dz = 0
    12  columns from vocab_size on are padding and take no part:
                                                        dz_v = 0

Saved: lse, one number a row; the probabilities (V numbers a row) are recomputed from the logits by
one exp each.
Source: Bridle 1990, "Probabilistic Interpretation of Feedforward Classification
Network Outputs", eq. 12.
"""

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="logits[N,V] targets[N] -> loss[N] | lse[N]",
    backward={"d_softmax_xent": "dloss[N] logits lse targets -> dlogits[N,V]"},
    attrs="vocab_size=0",
    integers="targets:-1:vocab_size",
    wide="loss dloss",
    inplace="dlogits:logits",
    flops={"softmax_xent": "4*N*V", "d_softmax_xent": "4*N*V"},
    cases=(
        dict(N=1, V=1, vocab_size=1),
        dict(N=7, V=16, vocab_size=11),
        dict(N=40, V=8, vocab_size=3),
        dict(N=33, V=781, vocab_size=781),
        dict(N=5, V=8208, vocab_size=8195),
    ),
)


def softmax_xent(logits, targets, *, vocab_size):
    z = logits[:, :vocab_size]
    top = z.max(-1)
    lse = top + np.log(np.exp(z - top[:, None]).sum(-1))  # 4
    z_target = z[np.arange(len(z)), np.maximum(targets, 0)]
    return np.where(targets < 0, 0, lse - z_target), lse  # 2, 11


def d_softmax_xent(dloss, logits, lse, targets, *, vocab_size):
    dlogits = np.zeros_like(logits)  # 12
    p = np.exp(logits[:, :vocab_size] - lse[:, None])  # 1
    p[np.arange(len(p)), np.maximum(targets, 0)] -= 1  # 7
    weight = np.where(targets < 0, 0, dloss)  # 11
    dlogits[:, :vocab_size] = p * weight[:, None]  # 8
    return (dlogits,)
