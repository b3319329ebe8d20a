"""The global norm is the length of the whole gradient, all parameters taken as one vector.

    norm = √(Σ_i dp_i²)

It runs over the flat gradient buffer in one pass; the buffer's alignment gaps are zero and add
nothing.  The sum of squares is carried in float64 whatever the dtype: 1.5·10⁹ float32 terms would
lose the small ones.

Nothing is differentiated here: this is part of the update, after the backward pass.
Source: Pascanu, Mikolov and Bengio 2012, "On the difficulty of training recurrent neural networks",
arXiv 1211.5063, algorithm 1.
"""

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="dp[N] -> norm[1]",
    phase="update",
    wide="norm",
    flops={"global_norm": "2*N"},
    cases=(dict(N=1), dict(N=781), dict(N=70001)),
)


def global_norm(dp):
    exact = dp.astype(np.float64)
    return (np.sqrt(np.dot(exact, exact))[None].astype(dp.dtype),)
