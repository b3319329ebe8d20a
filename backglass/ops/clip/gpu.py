"""clip on the GPU: one thread, so that nothing has to be fetched to the host in the middle of a
step."""

import triton
import triton.language as tl

MAX_NORM = tl.constexpr(5)  # its place in hyper: lr, beta1, beta2, eps, weight_decay, max_norm, …


@triton.jit
def clip_kernel(scale_p, norm_p, hyper_p):
    norm, max_norm = tl.load(norm_p), tl.load(hyper_p + MAX_NORM)
    scale = tl.where(tl.abs(norm) < float("inf"), 1.0, float("nan"))
    if max_norm > 0:
        scale *= max_norm / tl.maximum(norm, max_norm)
    tl.store(scale_p, scale)


def clip(scale, norm, hyper, add):
    """scale (1,) = min(1, max_norm/norm); 1 if max_norm is 0, NaN if norm (1,) is not finite."""
    clip_kernel[(1,)](scale, norm, hyper, num_warps=1)
