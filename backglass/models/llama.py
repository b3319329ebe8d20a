"""LLaMA: forward and backward, line under line.

Pre-norm blocks without biases: RMSNorm, rotated queries and keys, several query heads to one of
keys and values, SwiGLU.  By Config also Mistral (window), Qwen2 (qkv_bias), Qwen3 (qk_norm).
Sources: Touvron et al. 2023, "LLaMA", arXiv 2302.13971; Grattafiori et al. 2024, "The Llama 3 Herd
of Models", arXiv 2407.21783.

Every line is one op call, as in gpt2.py.  The weights of q, k and v are one matrix, q's rows first,
and so are those of gate and up: one matmul each.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from backglass.layout import Param

W = dict(init=0.02, decay=True)
H = "model.layers.{l}."  # names in Hugging Face's files
Q, K, V = (f"{H}self_attn.{x}_proj" for x in "qkv")
PARAMS = (
    Param("wte", "Vp C", **W, hf="model.embed_tokens.weight"),
    Param("norm1w", "L C", ones=True, hf=H + "input_layernorm.weight"),
    Param(
        "qkvw", "L H*HS C", **W,
        hf=f"{Q}.weight NH*HS, {K}.weight KV*HS, {V}.weight KV*HS",
    ),
    Param(
        "qkvb", "L H*HS", only="qkv_bias",
        hf=f"{Q}.bias NH*HS, {K}.bias KV*HS, {V}.bias KV*HS",
    ),
    Param("qnormw", "L HS", ones=True, only="qk_norm", hf=H + "self_attn.q_norm.weight"),
    Param("knormw", "L HS", ones=True, only="qk_norm", hf=H + "self_attn.k_norm.weight"),
    Param("attprojw", "L C NH*HS", **W, residual=True, hf=H + "self_attn.o_proj.weight"),
    Param("norm2w", "L C", ones=True, hf=H + "post_attention_layernorm.weight"),
    Param(
        "gateupw", "L 2*F C", **W,
        hf=f"{H}mlp.gate_proj.weight F, {H}mlp.up_proj.weight F",
    ),
    Param("downw", "L C F", **W, residual=True, hf=H + "mlp.down_proj.weight"),
    Param("normfw", "C", ones=True, hf="model.norm.weight"),
    Param("headw", "Vp C", **W, only="untied", hf="lm_head.weight"),
)  # fmt: skip

ACTS = dict(
    embd="B T C",
    norm1="L B T C", rstd1="L B T | stat", qkv="L B T H HS",
    qkv_norm="L B T H HS", rstdqk="L B T QK | stat", qkv_rope="L B T H HS",
    atty="L B T NH HS", lse="L B NH T | stat", attproj="L B T C", res2="L B T C",
    norm2="L B T C", rstd2="L B T | stat", gateup="L B T 2 F", glu="L B T F",
    down="L B T C", res3="L B T C",
    normf="B T C", rstdf="B T | stat", logits="B T Vp", logits_lse="B T | stat",
)  # fmt: skip
TABLES = dict(cos="P HS2", sin="P HS2")  # constants that the host makes

# What may be recomputed, alone or together: cheap pieces first, the whole block last.
RECOMPUTE = ("glu", "norm1 norm2", "gateup glu", "qkv_rope", "qkv qkv_rope",
             "norm1 qkv qkv_rope atty attproj res2 norm2 gateup glu down")  # fmt: skip
# What `check` tries, in float64: the last variant, which has most lines, is where bugs are planted.
HEADS = dict(heads=4, head_size=6, hidden=7)
VARIANTS = (
    HEADS | dict(kv_heads=2),
    HEADS | dict(kv_heads=4, rope_scaling="2 1 4 70", norm_eps=0.01),
    HEADS | dict(kv_heads=1, tied=False, window=3, qkv_bias=True, qk_norm=True),
)


@dataclass(frozen=True)
class Config:
    """The shape of a LLaMA.  Raises ValueError if the numbers do not fit together.

    rope_scaling: of LLaMA 3, "factor low_freq_factor high_freq_factor original_positions".
    """

    layers: int = 12
    heads: int = 12
    kv_heads: int = 0  # 0: as many as heads
    head_size: int = 0  # 0: channels / heads
    channels: int = 768
    hidden: int = 0  # 0: 8/3 of channels, rounded up to a multiple of 32
    vocab_size: int = 32000
    max_seq_len: int = 1024
    tied: bool = True
    rope_theta: float = 10000.0
    rope_scaling: str = ""
    norm_eps: float = 1e-5
    window: int = 0  # 0: attention looks back to the beginning
    qkv_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "channels", "vocab_size", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("kv_heads", "head_size", "hidden", "window"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.head_size and self.channels % self.heads:
            raise ValueError(f"{self.channels} channels cannot be divided among {self.heads} heads")
        rules = {
            "kv_heads": self.heads,
            "head_size": self.channels // self.heads,
            "hidden": -(-8 * self.channels // 96) * 32,
        }
        for name, value in rules.items():
            object.__setattr__(self, name, getattr(self, name) or value)
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot be shared by {self.kv_heads} kv_heads")
        if self.head_size % 2:
            raise ValueError(f"rope turns pairs; a head of {self.head_size} channels is odd")
        if not (self.rope_theta > 0 and self.norm_eps > 0):
            raise ValueError("rope_theta and norm_eps must be positive")
        scaling(self)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of wte: a multiple of 128, so that the largest matmul has no ragged edge."""
        return -(-self.vocab_size // 128) * 128

    def sizes(self, B: int, T: int) -> dict[str, int]:
        NH, KV, HS = self.heads, self.kv_heads, self.head_size
        return dict(
            B=B, T=T, L=self.layers, C=self.channels, NH=NH, KV=KV, H=NH + 2 * KV, HS=HS,
            HS2=HS // 2, F=self.hidden, V=self.vocab_size, Vp=self.padded_vocab_size,
            P=self.max_seq_len, QK=NH + KV, untied=not self.tied,
            qkv_bias=self.qkv_bias, qk_norm=self.qk_norm,
        )  # fmt: skip


def block_forward(ops, c, p, a, x, io):
    ops.rmsnorm(a.norm1, a.rstd1, x, p.norm1w, eps=c.norm_eps)
    ops.matmul(a.qkv, a.norm1, p.qkvw, p.qkvb if c.qkv_bias else None)
    if c.qk_norm:
        ops.qk_norm(a.qkv_norm, a.rstdqk, a.qkv, p.qnormw, p.knormw, eps=c.norm_eps)
    qkv = a.qkv_norm if c.qk_norm else a.qkv
    ops.rope(a.qkv_rope, qkv, io.cos, io.sin, kv_heads=c.kv_heads)
    ops.gqa(a.atty, a.lse, a.qkv_rope, window=c.window)
    ops.matmul(a.attproj, a.atty, p.attprojw)
    ops.add(a.res2, x, a.attproj)
    ops.rmsnorm(a.norm2, a.rstd2, a.res2, p.norm2w, eps=c.norm_eps)
    ops.matmul(a.gateup, a.norm2, p.gateupw)
    ops.swiglu(a.glu, a.gateup)
    ops.matmul(a.down, a.glu, p.downw)
    ops.add(a.res3, a.res2, a.down)


def block_backward(ops, c, p, a, x, dp, da, dx, io):
    ops.d_add(da.res2, da.down, da.res3)
    ops.d_matmul_w(+dp.downw, da.down, a.glu)
    ops.d_matmul_x(da.glu, da.down, p.downw)
    ops.d_swiglu(da.gateup, da.glu, a.gateup)
    ops.d_matmul_w(+dp.gateupw, da.gateup, a.norm2)
    ops.d_matmul_x(da.norm2, da.gateup, p.gateupw)
    ops.d_rmsnorm(+da.res2, +dp.norm2w, da.norm2, a.res2, p.norm2w, a.rstd2)
    ops.d_add(dx, da.attproj, da.res2)
    ops.d_matmul_w(+dp.attprojw, da.attproj, a.atty)
    ops.d_matmul_x(da.atty, da.attproj, p.attprojw)
    ops.d_gqa(da.qkv_rope, da.atty, a.qkv_rope, a.atty, a.lse, window=c.window)
    dqkv = da.qkv_norm if c.qk_norm else da.qkv
    ops.d_rope(dqkv, da.qkv_rope, io.cos, io.sin, kv_heads=c.kv_heads)
    if c.qk_norm:
        ops.d_qk_norm(
            da.qkv, +dp.qnormw, +dp.knormw, da.qkv_norm, a.qkv, p.qnormw, p.knormw, a.rstdqk
        )
    ops.d_matmul_w(+dp.qkvw, +dp.qkvb if c.qkv_bias else None, da.qkv, a.norm1)
    ops.d_matmul_x(da.norm1, da.qkv, p.qkvw)
    ops.d_rmsnorm(+dx, +dp.norm1w, da.norm1, x, p.norm1w, a.rstd1)


def logits_forward(ops, c, p, a, io):
    """Token ids (B, T) to logits (B, T, Vp): all of the model but the loss."""
    ops.embed(a.embd, io.ids, p.wte)
    x = a.embd
    for l in range(c.layers):
        block_forward(ops, c, p.h[l], a.h[l], x, io)
        x = a.h[l].res3
    ops.rmsnorm(a.normf, a.rstdf, x, p.normfw, eps=c.norm_eps)
    ops.matmul(a.logits, a.normf, p.wte if c.tied else p.headw)


def forward(ops, c, p, a, io):
    logits_forward(ops, c, p, a, io)
    ops.softmax_xent(io.loss, a.logits_lse, a.logits, io.targets, vocab_size=c.vocab_size)


def backward(ops, c, p, a, dp, da, io):
    V = c.vocab_size
    xs, dxs = [a.embd, *(h.res3 for h in a.h)], [da.embd, *(h.res3 for h in da.h)]
    ops.d_softmax_xent(da.logits, io.dloss, a.logits, a.logits_lse, io.targets, vocab_size=V)
    ops.d_matmul_w(+dp.wte if c.tied else +dp.headw, da.logits, a.normf)
    ops.d_matmul_x(da.normf, da.logits, p.wte if c.tied else p.headw)
    ops.d_rmsnorm(dxs[-1], +dp.normfw, da.normf, xs[-1], p.normfw, a.rstdf)
    for l in reversed(range(c.layers)):
        block_backward(ops, c, p.h[l], a.h[l], xs[l], dp.h[l], da.h[l], dxs[l], io)
    ops.d_embed(+dp.wte, da.embd, io.ids)


@cache
def tables(c: Config) -> dict[str, np.ndarray]:
    """cos and sin (P, HS/2) of the angle by which position t turns pair i: t·frequency(i).

    In float64, rounded once when they are put into memory.
    """
    angles = np.arange(c.max_seq_len)[:, None] * frequencies(c)
    return {"cos": np.cos(angles), "sin": np.sin(angles)}


def frequencies(c: Config) -> np.ndarray:
    """theta^(−2i/HS) radians a token for pair i (HS/2,), slowed down as LLaMA 3.1 does.

    A pair that turns less than `low` times within the original context is slowed down by `factor`,
    one that turns more than `high` times is left alone, and what is between is mixed.
    """
    f = c.rope_theta ** (-np.arange(0, c.head_size, 2) / c.head_size)
    if not c.rope_scaling:
        return f
    factor, low, high, original = scaling(c)
    turns = original * f / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return share * f + (1 - share) * f / factor


def scaling(c: Config) -> tuple[float, ...]:
    """rope_scaling as numbers; none if it is not used."""
    try:
        found = tuple(float(part) for part in c.rope_scaling.split())
        fits = not found or (len(found) == 4 and min(found) > 0 and found[1] < found[2])
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"rope_scaling is {c.rope_scaling!r}; expected 'factor low high positions', four "
            "positive numbers with low < high, as in '32 1 4 8192'"
        )
    return found
