"""clip on the CPU: the factor that brings the gradient's norm down to max_norm.

Three scalar operations, so it is compiled as a serial function: a parallel one would take longer
to start its threads than to finish, and Numba warns when it finds nothing to share out.
"""

import math

from numpy import float32

from backglass.device.host import inline

MAX_NORM = 5  # its place in hyper: lr, beta1, beta2, eps, weight_decay, max_norm, ...


@inline
def clip(scale, norm, hyper, add):
    """scale = min(1, max_norm/norm); 1 where max_norm is 0, which means "do not clip".

    scale (1,), norm (1,), hyper (8,). A norm that is not finite gives a scale of NaN.
    """
    max_norm = hyper[MAX_NORM]
    if not math.isfinite(norm[0]):
        scale[0] = float32(math.nan)
    elif max_norm == float32(0):
        scale[0] = float32(1)
    else:
        scale[0] = max_norm / max(norm[0], max_norm)
