"""AdamW moves every weight by about the learning rate, in the direction its recent gradients agree
on.

For update t = 1, 2, …, element by element, with g = dp·scale:

    m ← β1·m + (1 − β1)·g               running mean of the gradient
    v ← β2·v + (1 − β2)·g²              running mean of its square
    p ← p − lr·( m̂/(√v̂ + ε) + λ·p )     m̂ = m/(1 − β1ᵗ),  v̂ = v/(1 − β2ᵗ)
    dp ← 0                              ready for the next step's sum

With a master, p holds bf16 numbers: the step is taken on master, in fp32, and p is its rounding.
An update is about lr = 1e-3 of a weight's size and bf16's next number is 2⁻⁸ = 4e-3 away: without
a master most updates would round to nothing.

hyper = (lr, β1, β2, ε, λ, max_norm, 1/(1 − β1ᵗ), 1/(1 − β2ᵗ)): a tensor, since its numbers change
every step and a program's lines do not.  Weight decay λ applies to the first decay_size elements
only: the layout places the weight matrices first; biases and layernorms do not decay.

Why it works
     1  if all gradients agree, m̂ = g and √v̂ = |g|:   the step is lr·sign(g)
     2  if they are noise around 0, |m̂| ≪ √v̂:         the step is small
     3  multiply a weight's gradients by any constant:  m̂/√v̂ is the same
     4  m starts at 0, so after t updates it holds only the share:
                                                        1 − β1ᵗ of what it should
     5  dividing by that share undoes it:               m̂ = m/(1 − β1ᵗ), and the same for v
     6  in Adam with L2 the decay λ·p was part of g and was divided by √v̂ too: weights with large
        gradients hardly decayed. AdamW adds it outside the fraction ("decoupled").
     7  a scale that is not finite means the step is bad:
                                                        nothing is changed

Nothing is differentiated here.
Source: Loshchilov and Hutter 2017, "Decoupled Weight Decay Regularization", arXiv 1711.05101,
algorithm 2; Kingma and Ba 2014, arXiv 1412.6980, section 3 for 4 and 5.
"""

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="p[N] m[N] v[N] dp[N] master[N]? scale[1] hyper[8] -> p m v dp master?",
    attrs="decay_size=0",
    phase="update",
    wide="m v master scale hyper",
    positive="v scale hyper",
    flops={"adamw": "14*N"},
    cases=(dict(N=1, decay_size=1), dict(N=781, decay_size=300), dict(N=70001, decay_size=70000)),
)


def adamw(p, m, v, dp, master, scale, hyper, *, decay_size):
    lr, beta1, beta2, eps, weight_decay, _, correct1, correct2 = hyper
    if not np.isfinite(scale[0]):
        return p, m, v, dp, master
    w = p if master is None else master
    g = dp * scale
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    decays = np.arange(p.size) < decay_size
    step = m * correct1 / (np.sqrt(v * correct2) + eps) + np.where(decays, weight_decay, 0) * w
    w = w - lr * step
    return w, m, v, np.zeros_like(dp), w
