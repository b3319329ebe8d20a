"""QK-norm is an rmsnorm of every head of q and of k on its own, so that no score can grow without
bound.

Forward, for each position and each of the QK = NH + KV heads x of q and k, with w = qw or kw:

    r = 1/√(mean(x²) + ε)    n = x·r    out = n ⊙ w

The heads of v, the last KV of H, are carried over as they are.

Backward, from dout:

    dx = r·(dn − n·mean(dn ⊙ n))  with dn = dout ⊙ w                 dv = dout
    dqw = Σ over positions and heads of q of dout ⊙ n                dkw = the same over heads of k

Derivation
     1  out_i = n_i·w_i; all heads of q share one w, all heads of k another: two sums,
                                                        dqw = Σ_q dout ⊙ n,   dkw = Σ_k dout ⊙ n
     2  the same for n, whose factor is w:              dn = dout ⊙ w
     3  a head is a row of an rmsnorm of HS numbers. n_i = x_i·r, and r moves with every x_j:
                                                        ∂n_i/∂x_j = r·δ_ij + x_i·∂r/∂x_j
     4  r = (s + ε)^(−1/2) with s = mean(x²):           ∂r/∂x_j = −½·r³·(2/HS)·x_j
     5  with x_j = n_j/r:                               ∂r/∂x_j = −r²·n_j/HS
     6  5 in 3, with x_i = n_i/r:                       ∂n_i/∂x_j = r·(δ_ij − n_i·n_j/HS)
     7  the chain rule over 6, term by term:            dx = r·(dn − n·mean(dn ⊙ n))
     8  heads do not see each other, so nothing else is added.
     9  v passes unchanged:                             dv = dout
    10  why: n has length √HS whatever x was, so |q·k|/√HS ≤ √HS·max|qw ⊙ kw|. Attention cannot
        saturate because a projection has grown.
    11  it comes before the rotation, which changes no length: w could not be moved past it, as it
        scales the two numbers of a pair differently.

Saved: rstd (that is r), one number for each head of q and k.
Source: Henry et al. 2020, "Query-Key Normalization for Transformers", arXiv 2010.04245, section 3;
in this form, with rmsnorm and weights: Yang et al. 2025, "Qwen3 Technical Report", arXiv
2505.09388, section 2.
"""

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="qkv[B,T,H,HS] qw[HS] kw[HS] -> out[B,T,H,HS] | rstd[B,T,QK]",
    backward={
        "d_qk_norm": "dout[B,T,H,HS] qkv qw kw rstd -> dqkv[B,T,H,HS] dqw[HS]+ dkw[HS]+",
    },
    attrs="eps=1e-6",
    inplace="dqkv:dout",
    flops={"qk_norm": "4*B*T*QK*HS", "d_qk_norm": "9*B*T*QK*HS"},
    cases=(
        dict(B=1, T=1, H=3, QK=2, HS=3),
        dict(B=2, T=7, H=9, QK=8, HS=16),
        dict(B=2, T=37, H=8, QK=6, HS=24),
        dict(B=1, T=300, H=3, QK=2, HS=128),
        dict(B=3, T=33, H=12, QK=8, HS=65),
    ),
    example=dict(B=1, T=2, H=3, QK=2, HS=3),
)


def qk_norm(qkv, qw, kw, *, QK, H, eps):
    out = qkv.copy()  # (B, T, H, HS)
    x = qkv[:, :, :QK]
    rstd = 1 / np.sqrt((x * x).mean(-1) + eps)  # (B, T, QK)
    out[:, :, :QK] = x * rstd[..., None] * weights(qw, kw, QK, H - QK)
    return out, rstd


def weights(qw, kw, QK, KV):
    """(QK, HS): of each head the weights it is scaled by."""
    return np.stack([qw] * (QK - KV) + [kw] * KV)


def d_qk_norm(dout, qkv, qw, kw, rstd, *, QK, H):
    KV = H - QK
    dqkv = dout.copy()  # 9
    n = qkv[:, :, :QK] * rstd[..., None]  # (B, T, QK, HS)
    dy = dout[:, :, :QK]
    dw = (dy * n).sum((0, 1))  # (QK, HS)
    dqw, dkw = dw[:-KV].sum(0), dw[-KV:].sum(0)  # 1
    dn = dy * weights(qw, kw, QK, KV)  # 2
    along_n = n * (dn * n).mean(-1, keepdims=True)  # 7, second term
    dqkv[:, :, :QK] = rstd[..., None] * (dn - along_n)  # 7
    return dqkv, dqw, dkw
