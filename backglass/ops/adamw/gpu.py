"""adamw on the GPU: one launch over the flat buffers.

    bytes an element   dp  m  v  p  master        bf16 beside fp32 m, v, master: 14 + 16
    reads               2  4  4  -  4             (p is a rounding of master and is not read)
    writes              2  4  4  2  4
    fp32, no master: 16 + 16

Memory is the only cost.  dp is set to 0 where its line of cache is at hand already, which saves the
pass that a separate zeroing would take.
"""

import triton
import triton.language as tl

from backglass.device.tiles import store

# Four numbers a thread, the 16 bytes of fp32 that one instruction moves.  With eight, which would
# be 16 bytes of bf16, the fp32 tensors would have to change threads before they are stored.
BLOCK = 1024
WARPS = 8
# What `bench ops --tune` times beside them.
CANDIDATES = {
    ("adamw",): (
        {"BLOCK": 512, "WARPS": 4}, {"BLOCK": 1024, "WARPS": 4}, {"BLOCK": 2048, "WARPS": 8},
        {"BLOCK": 2048, "WARPS": 16}, {"BLOCK": 4096, "WARPS": 8},
    ),
}  # fmt: skip

# Places in hyper; BIAS_1 and BIAS_2 hold 1/(1 − βᵗ), which undoes the start of m and v at 0.
LR, BETA_1, BETA_2, EPS, WEIGHT_DECAY, _, BIAS_1, BIAS_2 = map(tl.constexpr, range(8))


@triton.jit
def adamw_kernel(
    p_p, m_p, v_p, dp_p, master_p, scale_p, hyper_p, N, decay_size, BLOCK: tl.constexpr
):
    scale = tl.load(scale_p)
    if not tl.abs(scale) < float("inf"):  # 7: a bad step changes nothing
        return
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < N
    w_p = p_p if master_p is None else master_p
    w = tl.load(w_p + offs, mask=mask, other=0).to(tl.float32)
    g = tl.load(dp_p + offs, mask=mask, other=0).to(tl.float32) * scale
    m = tl.load(m_p + offs, mask=mask, other=0)
    v = tl.load(v_p + offs, mask=mask, other=0)
    beta_1, beta_2 = tl.load(hyper_p + BETA_1), tl.load(hyper_p + BETA_2)
    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * g * g
    m_hat, v_hat = m * tl.load(hyper_p + BIAS_1), v * tl.load(hyper_p + BIAS_2)
    decay = tl.where(offs < decay_size, tl.load(hyper_p + WEIGHT_DECAY), 0)
    w -= tl.load(hyper_p + LR) * (m_hat / (tl.sqrt(v_hat) + tl.load(hyper_p + EPS)) + decay * w)
    store(p_p + offs, w, mask, False)
    if master_p is not None:
        store(master_p + offs, w, mask, False)
    store(m_p + offs, m, mask, False)
    store(v_p + offs, v, mask, False)
    store(dp_p + offs, tl.zeros_like(g), mask, False)


def adamw(p, m, v, dp, master, scale, hyper, decay_size, add):
    """One step, all (N,) in place; scale (1,), hyper (8,); dp is 0 afterwards."""
    (N,) = p.shape
    adamw_kernel[(triton.cdiv(N, BLOCK),)](
        p, m, v, dp, master, scale, hyper, N, decay_size, BLOCK=BLOCK, num_warps=WARPS
    )
