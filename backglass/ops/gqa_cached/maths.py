"""Grouped-query attention for new positions only: the keys and values of the past are kept, not
computed again.

Row t of sequence b is position s = start[b] + t. With g = h // (NH/KV), for each query head h and
in order of t:

    k[b,g,s], v[b,g,s] ← the key and value of row t     the cache grows by one position
    S[u] = q·k[b,g,u]/√HS   (u seen from s)             lse = log Σ_u exp S[u]
    y[b,t,h] = Σ_u exp(S[u] − lse)·v[b,g,u]

Seen are max(0, s − window + 1) … s; with window = 0 all up to s. A row at a position s ≥ P is
padding: it writes nothing to the cache and its y is 0.

Why it equals gqa
     1  as attention_cached equals attention: a row sees earlier positions only, whose keys and
        values never change once they are known.
     2  what grouped heads are for: a position costs 2·KV·HS numbers of cache, and a new token reads
        NH/KV times less of it than with a key for every query.
     3  with a window positions before s − window + 1 are never read again by any later row of the
        same layer; they stay where they are, so that a position's place in the cache is its number.
     4  the time of a new token is that of min(s + 1, window) positions.

Nothing is differentiated here: training has whole sequences and uses gqa.
Source: Ainslie et al. 2023, "GQA", arXiv 2305.13245, section 2.2; Shazeer 2019, "Fast Transformer
Decoding", arXiv 1911.02150, section 2.4.
"""

import math

import numpy as np

from backglass.ops.gqa.maths import count_kv_heads
from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="qkv[B,T,H,HS] start[B] k[B,KV,P,HS] v[B,KV,P,HS] -> y[B,T,NH,HS] k v",
    integers="start:0:P",
    attrs="window=0",
    # With a full cache; less in proportion to what it holds.
    flops={"gqa_cached": "4*B*NH*T*min(P, window or P)*HS"},
    bytes={"gqa_cached": "B*T*(2*NH + 2*KV)*HS + 2*B*min(P, (window or P) + T)*KV*HS"},
    cases=(
        dict(B=1, T=1, NH=1, KV=1, H=3, HS=1, P=1),
        dict(B=2, T=3, NH=4, KV=2, H=8, HS=5, P=7),
        dict(B=2, T=5, NH=3, KV=3, H=9, HS=5, P=8, window=2),
        dict(B=3, T=1, NH=7, KV=1, H=9, HS=24, P=130),
        dict(B=3, T=1, NH=7, KV=1, H=9, HS=16, P=130, window=40),
        dict(B=1, T=65, NH=4, KV=2, H=8, HS=64, P=80),
        dict(B=2, T=130, NH=2, KV=1, H=4, HS=24, P=400, window=100),
    ),
    example=dict(B=1, T=2, NH=2, KV=1, H=4, HS=2, P=4, window=2),
)


def gqa_cached(qkv, start, k, v, *, window, NH, HS, P):
    KV = count_kv_heads(qkv.shape[2], NH)
    k, v = k.copy(), v.copy()  # (B, KV, P, HS)
    y = np.zeros_like(qkv[:, :, :NH])  # (B, T, NH, HS)
    for b, t in np.ndindex(qkv.shape[:2]):
        s = start[b] + t
        if s < P:
            k[b, :, s], v[b, :, s] = qkv[b, t, NH:-KV], qkv[b, t, -KV:]  # 1
            seen = slice(max(s - window + 1, 0) if window else 0, s + 1)
            q = qkv[b, t, :NH].reshape(KV, NH // KV, HS)  # (KV, NH/KV, HS)
            S = q @ k[b, :, seen].swapaxes(1, 2) / math.sqrt(HS)  # (KV, NH/KV, seen)
            top = S.max(-1)
            lse = top + np.log(np.exp(S - top[..., None]).sum(-1))  # (KV, NH/KV)
            y[b, t] = (np.exp(S - lse[..., None]) @ v[b, :, seen]).reshape(NH, HS)
    return y, k, v
