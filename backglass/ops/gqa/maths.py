"""Grouped-query attention: causal self-attention in which several query heads share one head of
keys and values, and which may look back no further than a window.

The heads of qkv are NH of q, then KV of k, then KV of v: H = NH + 2·KV. Query head h reads the keys
and values of head g = h // (NH/KV). Position t sees the positions max(0, t − window + 1) … t; with
window = 0 all up to t. Forward, for each batch entry and query head:

    S = q·k_gᵀ/√HS  (s seen from t)    lse[t] = log Σ_s exp S[t,s]    P = exp(S − lse)    y = P·v_g

Backward, from dy, with D[t] = Σ_i dy[t,i]·y[t,i]:

    dP = dy·v_gᵀ           dS = P ⊙ (dP − D)           dq = dS·k_g/√HS
    dk_g = Σ_h dSᵀ·q/√HS   dv_g = Σ_h Pᵀ·dy            h: the query heads of g

Derivation
     1  y = P·v_g for each query head:                  dP = dy·v_gᵀ
     2  P = softmax(S), the rule of causal_softmax:     dS = P ⊙ (dP − Σ_s dP[s]·P[s])
     3  step 8 of attention gives the sum without a row of P:
                                                        D[t] = Σ_i dy[t,i]·y[t,i]
     4  S = q·k_gᵀ/√HS, and q is this head's own:       dq = dS·k_g/√HS
     5  v_g enters NH/KV products P·v_g; the chain rule adds up what each sends back:
                                                        dv_g = Σ_h Pᵀ·dy
     6  likewise k_g in the scores of these heads:      dk_g = Σ_h dSᵀ·q/√HS
     7  the sums of 5 and 6 are taken head by head, in order: same bits on every run.
     8  outside the window S = −∞, so P = 0 there, and with it every term of 2 to 6: the gradient
        has the forward's mask.
     9  a block of keys that no query of a block sees is skipped, in both directions: time grows
        with T·window, not with T².
    10  KV = NH is attention itself, KV = 1 multi-query attention. What is saved is the cache of a
        generation: 2·KV·HS numbers a position in place of 2·NH·HS.

Saved: y (it exists anyway) and lse.
Source: Ainslie et al. 2023, "GQA", arXiv 2305.13245, section 2.2; the window: Jiang et al. 2023,
"Mistral 7B", arXiv 2310.06825, section 2.
"""

import math

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="qkv[B,T,H,HS] -> y[B,T,NH,HS] | lse[B,NH,T]",
    backward={"d_gqa": "dy[B,T,NH,HS] qkv y lse -> dqkv[B,T,H,HS]"},
    attrs="window=0",
    flops={
        "gqa": "2*B*NH*HS*(T*T - (window > 0)*max(T - window, 0)**2)",
        "d_gqa": "5*B*NH*HS*(T*T - (window > 0)*max(T - window, 0)**2)",
    },
    cases=(
        dict(B=1, T=1, NH=1, H=3, HS=1),
        dict(B=1, T=7, NH=7, H=9, HS=5),
        dict(B=2, T=9, NH=4, H=8, HS=3, window=4),
        dict(B=1, T=130, NH=4, H=8, HS=24, window=1),
        dict(B=1, T=137, NH=7, H=9, HS=16, window=70),
        dict(B=1, T=150, NH=2, H=6, HS=64, window=64),
        # of the GPU's backward: more heads than programs; heads shared by programs, in turns;
        # the tiles for large heads
        dict(B=19, T=3, NH=7, H=9, HS=4),
        dict(B=1, T=389, NH=2, H=4, HS=16, window=100),
        dict(B=1, T=256, NH=2, H=4, HS=64),
        dict(B=1, T=70, NH=2, H=4, HS=96, window=33),
    ),
    example=dict(B=1, T=3, NH=2, H=4, HS=2, window=2),
)


def count_kv_heads(H, NH):
    """KV, where H = NH + 2·KV.  Raises ValueError if the heads do not add up."""
    KV = (H - NH) // 2
    if KV < 1 or H != NH + 2 * KV or NH % KV:
        raise ValueError(
            f"gqa: {H} heads in qkv, {NH} in y; expected NH + 2·KV with NH a multiple of KV. "
            f"Does qkv hold the queries' heads, then the keys', then the values'?"
        )
    return KV


def split_groups(qkv, NH):
    """(B,T,H,HS) -> views: q (B,KV,NH/KV,T,HS), k and v (B,KV,1,T,HS)."""
    KV = count_kv_heads(qkv.shape[2], NH)
    heads = qkv.swapaxes(1, 2)  # (B, H, T, HS)
    return by_group(heads[:, :NH], KV), heads[:, NH:-KV, None], heads[:, -KV:, None]


def by_group(x, KV):
    """A view (B,KV,NH/KV,…) of (B,NH,…)."""
    return x.reshape(len(x), KV, -1, *x.shape[2:])


def seen_scores(q, k, window):
    """S, with −∞ outside what a position sees, so that exp makes it 0."""
    T, HS = q.shape[-2:]
    seen = np.tri(T, dtype=bool)
    if window:
        seen &= ~np.tri(T, k=-window, dtype=bool)
    return np.where(seen, q @ k.swapaxes(-1, -2) / math.sqrt(HS), -np.inf)


def gqa(qkv, *, window, NH):
    q, k, v = split_groups(qkv, NH)
    S = seen_scores(q, k, window)  # (B, KV, NH/KV, T, T)
    top = S.max(-1)
    lse = top + np.log(np.exp(S - top[..., None]).sum(-1))  # (B, KV, NH/KV, T)
    y = np.exp(S - lse[..., None]) @ v  # (B, KV, NH/KV, T, HS)
    B, KV, G, T, HS = y.shape
    return y.reshape(B, KV * G, T, HS).swapaxes(1, 2), lse.reshape(B, KV * G, T)


def d_gqa(dy, qkv, y, lse, *, window, NH):
    q, k, v = split_groups(qkv, NH)
    KV, HS = k.shape[1], k.shape[-1]
    dy, y, lse = (by_group(x, KV) for x in (dy.swapaxes(1, 2), y.swapaxes(1, 2), lse))
    P = np.exp(seen_scores(q, k, window) - lse[..., None])  # 8
    dP = dy @ v.swapaxes(-1, -2)  # 1
    D = (dy * y).sum(-1, keepdims=True)  # 3
    dS = P * (dP - D)  # 2
    dqkv = np.empty_like(qkv)
    dq, dk, dv = split_groups(dqkv, NH)
    dq[...] = dS @ k / math.sqrt(HS)  # 4
    dk[...] = (dS.swapaxes(-1, -2) @ q).sum(2, keepdims=True) / math.sqrt(HS)  # 6
    dv[...] = (P.swapaxes(-1, -2) @ dy).sum(2, keepdims=True)  # 5
    return (dqkv,)
