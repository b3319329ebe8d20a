"""GPT-2: forward and backward, line under line.

Pre-norm blocks with biases, learned positions, GELU, the output layer tied to the embedding.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

Every line is one op call: outputs first, then inputs.  A `+` before an output accumulates into it.
The backward functions are the forward functions read from the last line to the first: `matmul`
becomes `d_matmul_w` and `d_matmul_x`, x becomes dx. `ops` decides what a line does: execute now
(Eager), append to a program (Record).
"""

from dataclasses import dataclass

from backglass.layout import Param

H = "transformer.h.{l}."  # names in Hugging Face's files
PARAMS = (
    Param("wte", "Vp C", init=0.02, decay=True, hf="transformer.wte.weight"),
    Param("wpe", "P C", init=0.02, decay=True, hf="transformer.wpe.weight"),
    Param("ln1w", "L C", ones=True, hf=H + "ln_1.weight"),
    Param("ln1b", "L C", hf=H + "ln_1.bias"),
    Param("qkvw", "L 3*C C", init=0.02, decay=True, hf=H + "attn.c_attn.weight^T"),
    Param("qkvb", "L 3*C", hf=H + "attn.c_attn.bias"),
    Param("attprojw", "L C C", init=0.02, residual=True, decay=True, hf=H + "attn.c_proj.weight^T"),
    Param("attprojb", "L C", hf=H + "attn.c_proj.bias"),
    Param("ln2w", "L C", ones=True, hf=H + "ln_2.weight"),
    Param("ln2b", "L C", hf=H + "ln_2.bias"),
    Param("fcw", "L F C", init=0.02, decay=True, hf=H + "mlp.c_fc.weight^T"),
    Param("fcb", "L F", hf=H + "mlp.c_fc.bias"),
    Param("fcprojw", "L C F", init=0.02, residual=True, decay=True, hf=H + "mlp.c_proj.weight^T"),
    Param("fcprojb", "L C", hf=H + "mlp.c_proj.bias"),
    Param("lnfw", "C", ones=True, hf="transformer.ln_f.weight"),
    Param("lnfb", "C", hf="transformer.ln_f.bias"),
)

ACTS = dict(
    embd="B T C", embd_drop="B T C",
    ln1="L B T C", mean1="L B T | stat", rstd1="L B T | stat", qkv="L B T 3 NH HS",
    atty="L B T NH HS", lse="L B NH T | stat", preatt="L B NH T T", att="L B NH T T",
    attproj="L B T C", attproj_drop="L B T C", res2="L B T C",
    ln2="L B T C", mean2="L B T | stat", rstd2="L B T | stat", fch="L B T F", fch_gelu="L B T F",
    fcproj="L B T C", fcproj_drop="L B T C", res3="L B T C",
    lnf="B T C", meanf="B T | stat", rstdf="B T | stat", logits="B T Vp", logits_lse="B T | stat",
)  # fmt: skip

# What may be recomputed, alone or together: cheap pieces first, the whole block last.
RECOMPUTE = ("fch_gelu", "ln1 ln2", "fch fch_gelu", "qkv",
             "ln1 qkv atty attproj res2 ln2 fch fch_gelu fcproj")  # fmt: skip
# What `check` tries, in float64: the last variant, which has most lines, is where bugs are planted.
VARIANTS = ({}, {"dropout": 0.2}, {"attention": "explicit"})


@dataclass(frozen=True)
class Config:
    """The shape of a GPT-2.  Raises ValueError if the numbers do not fit together."""

    layers: int = 12
    heads: int = 12
    channels: int = 768
    vocab_size: int = 50257
    max_seq_len: int = 1024
    dropout: float = 0.0
    attention: str = "flash"  # or explicit: scores, causal_softmax, mix; all weights in memory

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "channels", "vocab_size", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.channels % self.heads:
            raise ValueError(f"{self.channels} channels cannot be divided among {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.attention not in ("flash", "explicit"):
            raise ValueError(f"attention is 'flash' or 'explicit', got {self.attention!r}")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of wte: a multiple of 128, so that the largest matmul has no ragged edge."""
        return -(-self.vocab_size // 128) * 128

    def sizes(self, B: int, T: int) -> dict[str, int]:
        C, NH = self.channels, self.heads
        return dict(B=B, T=T, L=self.layers, C=C, NH=NH, KV=NH, HS=C // NH, F=4 * C,
                    V=self.vocab_size, Vp=self.padded_vocab_size, P=self.max_seq_len)  # fmt: skip


def block_forward(ops, c, p, a, x, io, l):
    ops.layernorm(a.ln1, a.mean1, a.rstd1, x, p.ln1w, p.ln1b)
    ops.matmul(a.qkv, a.ln1, p.qkvw, p.qkvb)
    attention_forward(ops, c, a)
    ops.matmul(a.attproj, a.atty, p.attprojw, p.attprojb)
    attproj = dropout_forward(ops, c, a.attproj_drop, a.attproj, io, 2 * l + 1)
    ops.add(a.res2, x, attproj)
    ops.layernorm(a.ln2, a.mean2, a.rstd2, a.res2, p.ln2w, p.ln2b)
    ops.matmul(a.fch, a.ln2, p.fcw, p.fcb)
    ops.gelu(a.fch_gelu, a.fch)
    ops.matmul(a.fcproj, a.fch_gelu, p.fcprojw, p.fcprojb)
    fcproj = dropout_forward(ops, c, a.fcproj_drop, a.fcproj, io, 2 * l + 2)
    ops.add(a.res3, a.res2, fcproj)


def block_backward(ops, c, p, a, x, dp, da, dx, io, l):
    ops.d_add(da.res2, da.fcproj_drop if c.dropout else da.fcproj, da.res3)
    dropout_backward(ops, c, da.fcproj, da.fcproj_drop, io, 2 * l + 2)
    ops.d_matmul_w(+dp.fcprojw, +dp.fcprojb, da.fcproj, a.fch_gelu)
    ops.d_matmul_x(da.fch_gelu, da.fcproj, p.fcprojw)
    ops.d_gelu(da.fch, da.fch_gelu, a.fch)
    ops.d_matmul_w(+dp.fcw, +dp.fcb, da.fch, a.ln2)
    ops.d_matmul_x(da.ln2, da.fch, p.fcw)
    ops.d_layernorm(+da.res2, +dp.ln2w, +dp.ln2b, da.ln2, a.res2, p.ln2w, a.mean2, a.rstd2)
    ops.d_add(dx, da.attproj_drop if c.dropout else da.attproj, da.res2)
    dropout_backward(ops, c, da.attproj, da.attproj_drop, io, 2 * l + 1)
    ops.d_matmul_w(+dp.attprojw, +dp.attprojb, da.attproj, a.atty)
    ops.d_matmul_x(da.atty, da.attproj, p.attprojw)
    attention_backward(ops, c, a, da)
    ops.d_matmul_w(+dp.qkvw, +dp.qkvb, da.qkv, a.ln1)
    ops.d_matmul_x(da.ln1, da.qkv, p.qkvw)
    ops.d_layernorm(+dx, +dp.ln1w, +dp.ln1b, da.ln1, x, p.ln1w, a.mean1, a.rstd1)


def attention_forward(ops, c, a):
    if c.attention == "flash":
        ops.attention(a.atty, a.lse, a.qkv)
    else:
        ops.scores(a.preatt, a.qkv)
        ops.causal_softmax(a.att, a.preatt)
        ops.mix(a.atty, a.att, a.qkv)


def attention_backward(ops, c, a, da):
    if c.attention == "flash":
        ops.d_attention(da.qkv, da.atty, a.qkv, a.atty, a.lse)
    else:
        ops.d_mix(da.att, da.qkv, da.atty, a.att, a.qkv)
        ops.d_causal_softmax(da.preatt, da.att, a.att)
        ops.d_scores(+da.qkv, da.preatt, a.qkv)


def dropout_forward(ops, c, y, x, io, site):
    """Returns what the next line reads: y, or x itself when there is no dropout."""
    if not c.dropout:
        return x
    ops.dropout(y, x, io.seed, rate=c.dropout, site=site)
    return y


def dropout_backward(ops, c, dx, dy, io, site):
    if c.dropout:
        ops.d_dropout(dx, dy, io.seed, rate=c.dropout, site=site)


def logits_forward(ops, c, p, a, io):
    """Token ids (B, T) to logits (B, T, Vp): all of the model but the loss."""
    ops.embed(a.embd, io.ids, p.wte, p.wpe)
    x = dropout_forward(ops, c, a.embd_drop, a.embd, io, 0)
    for l in range(c.layers):
        block_forward(ops, c, p.h[l], a.h[l], x, io, l)
        x = a.h[l].res3
    ops.layernorm(a.lnf, a.meanf, a.rstdf, x, p.lnfw, p.lnfb)
    ops.matmul(a.logits, a.lnf, p.wte)


def forward(ops, c, p, a, io):
    logits_forward(ops, c, p, a, io)
    ops.softmax_xent(io.loss, a.logits_lse, a.logits, io.targets, vocab_size=c.vocab_size)


def backward(ops, c, p, a, dp, da, io):
    V = c.vocab_size
    xs, dxs = ([s.embd_drop if c.dropout else s.embd, *(h.res3 for h in s.h)] for s in (a, da))
    ops.d_softmax_xent(da.logits, io.dloss, a.logits, a.logits_lse, io.targets, vocab_size=V)
    ops.d_matmul_w(+dp.wte, da.logits, a.lnf)
    ops.d_matmul_x(da.lnf, da.logits, p.wte)
    ops.d_layernorm(dxs[-1], +dp.lnfw, +dp.lnfb, da.lnf, xs[-1], p.lnfw, a.meanf, a.rstdf)
    for l in reversed(range(c.layers)):
        block_backward(ops, c, p.h[l], a.h[l], xs[l], dp.h[l], da.h[l], dxs[l], io, l)
    dropout_backward(ops, c, da.embd, da.embd_drop, io, 0)
    ops.d_embed(+dp.wte, +dp.wpe, da.embd, io.ids)
