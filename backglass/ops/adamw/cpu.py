"""adamw on the CPU: one pass over the parameters, their two moments and their gradient.

    p, m, v, dp    |  decayed: weights  | not decayed: biases, layernorms |
                   0               decay_size                             N
    tasks          |chunk|chunk|chunk|ck|chunk|chunk|ch|

A new chunk starts at decay_size, so every chunk has one weight decay and the loop no branch.

Memory is the only cost: each element reads 16 bytes and writes 16 (p, m, v and the zeroed dp),
against some 15 floating-point operations. Zeroing dp here, while its cache line is already at
hand, saves the pass of 8 bytes an element that a separate zeroing would take.

Loshchilov and Hutter 2017, "Decoupled weight decay regularization", arXiv 1711.05101, algorithm 2.
"""

import math

from numpy import float32

from backglass.device.host import kernel, prange
from backglass.device.rows import as_written, start_from

CHUNK = 8192  # elements: four arrays of 32 KiB

# Places in hyper, the small tensor of numbers that change from step to step. BIAS_1 and BIAS_2
# hold 1/(1 - βᵗ), which undoes the start of m and v at 0.
LR, BETA_1, BETA_2, EPS, WEIGHT_DECAY, MAX_NORM, BIAS_1, BIAS_2 = range(8)


@kernel
def adamw(p, m, v, dp, master, scale, hyper, decay_size, add):
    """One AdamW step, all (N,) in place; scale (1,), hyper (8,); dp is 0 afterwards.

    With a master the step is taken there and p is a copy of it.  A scale that is not finite leaves
    everything as it is.
    """
    if not math.isfinite(scale[0]):
        return
    n = p.size
    n_decayed_chunks = (decay_size + CHUNK - 1) // CHUNK
    n_other_chunks = (n - decay_size + CHUNK - 1) // CHUNK
    for chunk in prange(n_decayed_chunks + n_other_chunks):
        if chunk < n_decayed_chunks:
            lo = chunk * CHUNK
            hi = min(lo + CHUNK, decay_size)
            weight_decay = hyper[WEIGHT_DECAY]
        else:
            lo = decay_size + (chunk - n_decayed_chunks) * CHUNK
            hi = min(lo + CHUNK, n)
            weight_decay = float32(0)
        w = p if master is None else master
        _update(w[lo:hi], m[lo:hi], v[lo:hi], dp[lo:hi], scale[0], hyper, weight_decay)
        if master is not None:
            start_from(p[lo:hi], w[lo:hi])


@as_written
def _update(w, m, v, dp, scale, hyper, weight_decay):
    """The step on one chunk.

    hyper is read before the loop: for all LLVM knows, writing w could change it. As written:
    fast-math may turn β·v + (1-β)·g² into g² + β·(v-g²), which cancels (device/rows.py).
    """
    lr, eps = hyper[LR], hyper[EPS]
    beta_1, beta_2 = hyper[BETA_1], hyper[BETA_2]
    bias_1, bias_2 = hyper[BIAS_1], hyper[BIAS_2]
    for i in range(w.size):
        g = dp[i] * scale
        m_i = beta_1 * m[i] + (float32(1) - beta_1) * g
        v_i = beta_2 * v[i] + (float32(1) - beta_2) * g * g
        step = m_i * bias_1 / (math.sqrt(v_i * bias_2) + eps)
        w[i] -= lr * (step + weight_decay * w[i])
        m[i] = m_i
        v[i] = v_i
        dp[i] = float32(0)
