"""d_layernorm_add on the CPU: dx = dres + the gradient through the layernorm, in one buffer.

The residual stream's gradient arrives in dres and leaves in dx.  Where the planner lays dx over
dres (the usual case) nothing is copied at all: it is d_layernorm accumulating into dres.
"""

from backglass.device.host import kernel, prange
from backglass.device.rows import start_from
from backglass.ops.layernorm.cpu import d_layernorm, d_layernorm_workspace

d_layernorm_add_workspace = d_layernorm_workspace


@kernel
def d_layernorm_add(dx, dw, db, dres, dy, x, w, mean, rstd, add, work):
    """dx (N, C) = dres + d_layernorm(dy, …); dw, db (C,) written or added to."""
    for n in prange(dx.shape[0]):
        start_from(dx[n], dres[n])
    d_layernorm(dx, dw, db, dy, x, w, mean, rstd, (True, add[1], add[2]), work)
