"""Dropout sets a random share of the numbers to zero and scales the rest up, so that no unit can be
relied on.

Forward, with keep_i = 1 with probability 1 − rate, else 0:

    y_i = x_i·keep_i/(1 − rate)

Backward, with the same keep:

    dx_i = dy_i·keep_i/(1 − rate)

Derivation
     1  keep does not depend on x, so y is linear in x:
                                                        ∂y_i/∂x_j = δ_ij·keep_i/(1 − rate)
     2  the chain rule:                                 dx_i = dy_i·keep_i/(1 − rate)
     3  the backward is the forward applied to dy, given the same keep.
     4  the factor 1/(1 − rate) keeps the mean:         E[y_i] = x_i·(1 − rate)/(1 − rate) = x_i
     5  so nothing needs to change when dropout is switched off for evaluation.
     6  where does "the same keep" come from? Storing it costs memory; a generator with a state
        cannot be repeated.
     7  a counter-based one is a hash of the element's place:
                                                        bits_i = hash(key, step, site, i)
     8  it depends on nothing else: threads need no order, recomputation gives the same mask.
     9  compare 32 bits with a threshold:               keep_i = bits_i ≥ round(rate·2³²)
    10  site is a constant of the call, seed a tensor the host changes each micro-batch.

The hash is SplitMix64: element i's bits are the i-th output of the generator, mix64(start +
(i+1)·GAMMA) modulo 2⁶⁴, for any i at once.  NumPy and the kernels run the very functions below, so
they agree bit for bit.

Saved: nothing.
Source: Srivastava et al. 2014, "Dropout", JMLR 15; Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators", doi 10.1145/2660193.2660195, section 5, with Stafford's "Mix13"
constants.
"""

import numpy as np
from numpy import uint64

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="x[N] seed[2] -> y[N]",
    backward={"d_dropout": "dy[N] seed -> dx[N]"},
    attrs="rate=0.1 site=0",
    integers="seed:0:1000",
    inplace="y:x dx:dy",
    flops={"dropout": "8*N", "d_dropout": "8*N"},
    cases=(dict(N=1), dict(N=781, site=3), dict(N=5003, site=7)),
)

GAMMA = uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, odd: i·GAMMA visits every 64-bit number
MULTIPLIER_1 = uint64(0xBF58476D1CE4E5B9)
MULTIPLIER_2 = uint64(0x94D049BB133111EB)


def dropout(x, seed, *, rate, site):
    return (x * keep_mask(x.size, seed, site, rate) / (1 - rate),)


def d_dropout(dy, seed, *, rate, site):
    return (dy * keep_mask(dy.size, seed, site, rate) / (1 - rate),)  # 2


def keep_mask(n: int, seed: np.ndarray, site: int, rate: float) -> np.ndarray:
    """(n,) bool, True where an element is kept; seed is int64[2] = (key, step)."""
    start = np.zeros(1, np.uint64)  # an array: NumPy's integer arrays wrap, its scalars warn
    for part in (int(seed[0]), int(seed[1]), int(site)):
        start = mix64(start + np.array([part % 2**64], np.uint64) + GAMMA)
    counter = np.arange(1, n + 1, dtype=np.uint64)
    bits = mix64(start + counter * GAMMA) >> uint64(32)  # 7
    return bits >= keep_threshold(rate)  # 9


def mix64(z):
    """SplitMix64's finaliser: every bit of z changes about half of the result's bits."""
    z = (z ^ (z >> uint64(30))) * MULTIPLIER_1
    z = (z ^ (z >> uint64(27))) * MULTIPLIER_2
    return z ^ (z >> uint64(31))


def keep_threshold(rate):
    """Keep an element whose 32 random bits, as an integer, reach this: P(keep) = 1 − rate."""
    return uint64(rate * 4294967296.0 + 0.5)
