#!/usr/bin/env python3
"""GPT-2 trained from scratch in one file: NumPy, and every gradient by hand.

    python train_gpt2.py              train a small GPT-2 on the text of Python's own documentation
    python train_gpt2.py --check      prove every gradient in this file by finite differences
    python train_gpt2.py --help       the rest: your own text, llm.c's model and token files, sizes

Read it from top to bottom.  Each operation is a pair: `f` computes outputs from inputs, and right
under it `d_f` receives the gradient of the loss with respect to f's outputs and returns it with
respect to f's inputs.  The gradient of any tensor z is called dz and has z's shape.  There is no
autograd: the backward pass is the forward pass read from the last line to the first, with every
`f` replaced by its `d_f`.

Dims: B batch, T time, C channels, L layers, NH heads, HS = C/NH head size, V vocabulary, N = B·T
rows.  Weights are (out, in).  Model: Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners".
"""

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

# ----------------------------------------------------------------------------------------------
# 1. The operations, each beside its derivative.
#
# The one rule used everywhere is the chain rule: if y depends on x, then dx = Σ_k dy_k · ∂y_k/∂x.
# Where a tensor is used in several places, its gradient is the sum over the places.


def embed(ids, wte, wpe):
    """Row n of the residual stream is token ids[n]'s vector plus its position's vector."""
    B, T = ids.shape
    return (wte[ids] + wpe[:T]).reshape(B * T, -1)  # (N, C)


def d_embed(dx, ids, wte, wpe):
    # forward: x[b,t] = wte[ids[b,t]] + wpe[t]
    # so:      every place where a row was used adds its gradient to that row
    B, T = ids.shape
    dx = dx.reshape(B, T, -1)
    dwte, dwpe = np.zeros_like(wte), np.zeros_like(wpe)
    np.add.at(dwte, ids, dx)
    dwpe[:T] = dx.sum(0)
    return dwte, dwpe


def layernorm(x, w, b, eps=1e-5):
    """Rows to mean 0 and variance 1, then a scale and shift per channel (arXiv 1607.06450)."""
    mean = x.mean(-1, keepdims=True)  # (N, 1)
    xmean = x - mean
    rstd = 1 / np.sqrt((xmean * xmean).mean(-1, keepdims=True) + eps)  # (N, 1)
    return xmean * rstd * w + b, mean, rstd


def d_layernorm(dy, x, w, mean, rstd):
    # forward: n = (x − μ)·r,  y = n ⊙ w + b            with r = rstd = 1/√(σ² + ε)
    norm = (x - mean) * rstd
    # so:      db = Σ_rows dy,   dw = Σ_rows dy ⊙ n,   dn = dy ⊙ w
    db = dy.sum(0)
    dw = (dy * norm).sum(0)
    dnorm = dy * w
    # x_j moves n_i in three ways: directly, through μ (∂μ/∂x_j = 1/C), and through r
    # (∂r/∂x_j = −r²·n_j/C):
    #          ∂n_i/∂x_j = r·(δ_ij − 1/C − n_i·n_j/C)
    # so:      dx = Σ_i dn_i·∂n_i/∂x = r·(dn − mean(dn) − n·mean(dn ⊙ n))
    dx = dnorm - dnorm.mean(-1, keepdims=True) - norm * (dnorm * norm).mean(-1, keepdims=True)
    dx *= rstd
    return dx, dw, db


def matmul(x, w, b=None):
    """A linear layer: y = x·wᵀ + b."""
    y = x @ w.T  # (N, in) · (in, out) -> (N, out)
    if b is not None:
        y += b
    return y


def d_matmul(dy, x, w):
    # forward: y[n,o] = Σ_c x[n,c]·w[o,c] + b[o]
    # so:      dx[n,c] = Σ_o dy[n,o]·w[o,c]    dw[o,c] = Σ_n dy[n,o]·x[n,c]    db[o] = Σ_n dy[n,o]
    return dy @ w, dy.T @ x, dy.sum(0)


def attention(qkv, B, NH):
    """Every position looks at itself and the past (arXiv 1706.03762, eq. 1)."""
    N, C3 = qkv.shape
    T, HS = N // B, C3 // 3 // NH
    q, k, v = qkv.reshape(B, T, 3, NH, HS).transpose(2, 0, 3, 1, 4)  # each (B, NH, T, HS)
    scores = q @ k.swapaxes(-1, -2)  # (B, NH, T, T): how well query t fits key s
    scores *= HS**-0.5
    scores += np.triu(np.full((T, T), -np.inf, qkv.dtype), 1)  # nobody sees the future
    scores -= scores.max(-1, keepdims=True)  # softmax does not change, exp cannot overflow
    att = np.exp(scores, out=scores)
    att /= att.sum(-1, keepdims=True)  # rows sum to 1
    y = att @ v  # (B, NH, T, HS): a weighted mean of the values
    return y.transpose(0, 2, 1, 3).reshape(N, C3 // 3), att


def d_attention(dy, qkv, att):
    B, NH, T, _ = att.shape
    HS = dy.shape[-1] // NH
    q, k, v = qkv.reshape(B, T, 3, NH, HS).transpose(2, 0, 3, 1, 4)
    dy = dy.reshape(B, T, NH, HS).transpose(0, 2, 1, 3)  # (B, NH, T, HS)
    # forward: y = att·v
    # so:      datt = dy·vᵀ,  dv = attᵀ·dy                (the two matmul rules)
    datt = dy @ v.swapaxes(-1, -2)
    dv = att.swapaxes(-1, -2) @ dy
    # forward: att = softmax(scores), and ∂att_i/∂scores_j = att_i·(δ_ij − att_j)
    # so:      dscores = att ⊙ (datt − Σ_j datt_j·att_j)
    #          where the mask hid the future att is 0, so dscores is 0 there too
    dscores = datt
    dscores -= (datt * att).sum(-1, keepdims=True)
    dscores *= att
    # forward: scores = q·kᵀ/√HS
    # so:      dq = dscores·k/√HS,  dk = dscoresᵀ·q/√HS
    dscores *= HS**-0.5
    dqkv = np.empty_like(qkv)
    dq_dk_dv = dqkv.reshape(B, T, 3, NH, HS).transpose(2, 0, 3, 1, 4)
    dq_dk_dv[0] = dscores @ k
    dq_dk_dv[1] = dscores.swapaxes(-1, -2) @ q
    dq_dk_dv[2] = dv
    return dqkv


GELU_SCALE = float(np.sqrt(2 / np.pi))


def gelu(x):
    """A smooth ReLU: x times nearly P(standard normal < x), as GPT-2 has it (arXiv 1606.08415)."""
    return 0.5 * x * (1 + gelu_tanh(x))


def gelu_tanh(x):
    u = x * x
    u *= 0.044715 * GELU_SCALE
    u += GELU_SCALE
    u *= x  # √(2/π)·(x + 0.044715·x³)
    return np.tanh(u, out=u)


def d_gelu(dy, x):
    # forward: y = ½·x·(1 + t),  t = tanh(u),  u = √(2/π)·(x + 0.044715·x³)
    # so:      dy/dx = ½·(1 + t) + ½·x·(1 − t²)·u',      u' = √(2/π)·(1 + 3·0.044715·x²)
    t = gelu_tanh(x)
    slope = x * x
    slope *= 3 * 0.044715 * GELU_SCALE
    slope += GELU_SCALE  # u'
    slope *= x
    slope *= 1 - t * t
    slope += 1 + t
    slope *= 0.5 * dy
    return slope


def softmax_xent(logits, targets):
    """Mean of −log softmax(logits)[target], as log-sum-exp − logit: nothing underflows to log 0."""
    rows = np.arange(len(targets))
    top = logits.max(-1, keepdims=True)
    probs = np.exp(logits - top)
    total = probs.sum(-1, keepdims=True)
    losses = (np.log(total) + top)[:, 0] - logits[rows, targets]
    probs /= total
    return losses.mean(), probs


def d_softmax_xent(probs, targets):
    # forward: loss_n = log Σ_v exp(logits[n,v]) − logits[n,target],    loss = Σ_n loss_n / N
    # so:      dlogits = (softmax(logits) − onehot(target)) / N,   ∂ log Σ exp(z)/∂z = softmax(z)
    dlogits = probs  # reuse the memory: probs is not needed after this
    dlogits[np.arange(len(targets)), targets] -= 1
    dlogits /= len(targets)
    return dlogits


# ----------------------------------------------------------------------------------------------
# 2. The model: its parameters, its forward pass, and the same pass backward.


def parameter_shapes(c):
    """Name -> shape, in llm.c's order; a leading L means one per layer."""
    L, C, V, F = c.layers, c.channels, c.vocab_size, 4 * c.channels
    return {
        "wte": (V, C), "wpe": (c.max_seq_len, C),
        "ln1w": (L, C), "ln1b": (L, C), "qkvw": (L, 3 * C, C), "qkvb": (L, 3 * C),
        "attprojw": (L, C, C), "attprojb": (L, C),
        "ln2w": (L, C), "ln2b": (L, C), "fcw": (L, F, C), "fcb": (L, F),
        "fcprojw": (L, C, F), "fcprojb": (L, C),
        "lnfw": (C,), "lnfb": (C,),
    }  # fmt: skip


WEIGHTS = (
    "wte",
    "wpe",
    "qkvw",
    "attprojw",
    "fcw",
    "fcprojw",
)  # these decay; biases and layernorms do not


def zeros(c, dtype=np.float32):
    """All parameters, named, zero.  Also for their gradients and AdamW's two moments."""
    shapes = parameter_shapes(c)
    flat = np.zeros(sum(int(np.prod(s)) for s in shapes.values()), dtype)
    named, at = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        named[name] = flat[at : at + size].reshape(shape)
        at += size
    return SimpleNamespace(**named)


def init(c, rng, dtype=np.float32):
    """GPT-2's start: weights N(0, 0.02²), projections into the residual stream smaller by √(2L)."""
    p = zeros(c, dtype)
    for name in WEIGHTS:
        std = 0.02 / np.sqrt(2 * c.layers) if name in ("attprojw", "fcprojw") else 0.02
        w = getattr(p, name)
        w[...] = std * rng.standard_normal(w.shape, dtype=np.float32)
    for name in ("ln1w", "ln2w", "lnfw"):
        getattr(p, name)[...] = 1
    return p


def block_forward(c, p, l, x, B):
    """x + attention(ln(x)), then that + mlp(ln(that)).  `a` keeps what the backward needs."""
    a = SimpleNamespace(x=x)
    a.ln1, a.mean1, a.rstd1 = layernorm(x, p.ln1w[l], p.ln1b[l])
    a.qkv = matmul(a.ln1, p.qkvw[l], p.qkvb[l])
    a.atty, a.att = attention(a.qkv, B, c.heads)
    a.res2 = x + matmul(a.atty, p.attprojw[l], p.attprojb[l])
    a.ln2, a.mean2, a.rstd2 = layernorm(a.res2, p.ln2w[l], p.ln2b[l])
    a.fch = matmul(a.ln2, p.fcw[l], p.fcb[l])
    a.fch_gelu = gelu(a.fch)
    return a.res2 + matmul(a.fch_gelu, p.fcprojw[l], p.fcprojb[l]), a


def block_backward(dp, p, l, a, dx):
    """dx: the gradient of the block's output on the way in, of its input on the way out."""
    # forward: y = res2 + mlp(res2), so dy goes to both: it stays in dx and enters the branch
    dfch_gelu, dp.fcprojw[l], dp.fcprojb[l] = d_matmul(dx, a.fch_gelu, p.fcprojw[l])
    dfch = d_gelu(dfch_gelu, a.fch)
    dln2, dp.fcw[l], dp.fcb[l] = d_matmul(dfch, a.ln2, p.fcw[l])
    dres2, dp.ln2w[l], dp.ln2b[l] = d_layernorm(dln2, a.res2, p.ln2w[l], a.mean2, a.rstd2)
    dx = dx + dres2
    # forward: res2 = x + attention(x), the same fork again
    datty, dp.attprojw[l], dp.attprojb[l] = d_matmul(dx, a.atty, p.attprojw[l])
    dqkv = d_attention(datty, a.qkv, a.att)
    dln1, dp.qkvw[l], dp.qkvb[l] = d_matmul(dqkv, a.ln1, p.qkvw[l])
    dx1, dp.ln1w[l], dp.ln1b[l] = d_layernorm(dln1, a.x, p.ln1w[l], a.mean1, a.rstd1)
    return dx + dx1


def forward(c, p, ids):
    """Token ids (B, T) -> logits (N, V), and everything kept for the backward pass."""
    if ids.shape[1] > c.max_seq_len:
        raise ValueError(
            f"{ids.shape[1]} tokens in a row, but the model has {c.max_seq_len} positions"
        )
    x = embed(ids, p.wte, p.wpe)
    a = SimpleNamespace(h=[])
    for l in range(c.layers):
        x, block = block_forward(c, p, l, x, len(ids))
        a.h.append(block)
    a.x = x
    a.lnf, a.meanf, a.rstdf = layernorm(x, p.lnfw, p.lnfb)
    return matmul(a.lnf, p.wte), a  # the output layer is the embedding table itself ("tied")


def loss_and_grads(c, p, dp, ids, targets):
    """One step's mathematics.  Overwrites every gradient in dp, returns the mean loss per token."""
    logits, a = forward(c, p, ids)
    loss, probs = softmax_xent(logits, targets.reshape(-1))

    dlogits = d_softmax_xent(probs, targets.reshape(-1))
    dlnf, dwte_out, _ = d_matmul(dlogits, a.lnf, p.wte)
    dx, dp.lnfw[...], dp.lnfb[...] = d_layernorm(dlnf, a.x, p.lnfw, a.meanf, a.rstdf)
    for l in reversed(range(c.layers)):
        dx = block_backward(dp, p, l, a.h[l], dx)
    dp.wte[...], dp.wpe[...] = d_embed(dx, ids, p.wte, p.wpe)
    dp.wte += dwte_out  # wte was used twice, so its gradient is a sum of two
    return float(loss)


def mean_loss(c, p, ids, targets):
    return float(softmax_xent(forward(c, p, ids)[0], targets.reshape(-1))[0])


# ----------------------------------------------------------------------------------------------
# 3. The optimizer: AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101, algorithm 2).

CHUNK = 1 << 15  # elements at a time, so that the temporaries stay in the cache


def clip_scale(dp, max_norm):
    """The factor that shortens the whole gradient to max_norm, and the norm it had."""
    flats = (g.reshape(-1) for g in vars(dp).values())
    pieces = (g[i : i + CHUNK] for g in flats for i in range(0, g.size, CHUNK))
    norm = sum(float(g @ g) for g in pieces) ** 0.5
    return max_norm / max(norm, max_norm), norm


def adamw(p, dp, m, v, t, lr, scale, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1):
    """Update t = 1, 2, …: m and v are running means of g and g²; a weight moves by lr·m/√v."""
    lr_t = lr / (1 - beta1**t)  # m and v start at 0 and are too small at first: divide by 1 − βᵗ
    root_t = (1 - beta2**t) ** -0.5
    for name in vars(p):
        decay = lr * weight_decay if name in WEIGHTS else 0.0
        tensors = [getattr(s, name).reshape(-1) for s in (p, dp, m, v)]
        for i in range(0, tensors[0].size, CHUNK):
            wi, gi, mi, vi = (x[i : i + CHUNK] for x in tensors)
            g = gi * scale
            mi *= beta1
            mi += (1 - beta1) * g
            vi *= beta2
            g *= g
            g *= 1 - beta2
            vi += g
            step = np.sqrt(vi)
            step *= root_t
            step += eps
            np.divide(mi, step, out=step)
            step *= lr_t
            if decay:
                wi *= 1 - decay
            wi -= step


def learning_rate(step, steps, peak, warmup):
    """Linear warm-up, then a cosine down to a tenth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.1 + 0.45 * (1 + np.cos(np.pi * progress)))


# ----------------------------------------------------------------------------------------------
# 4. Data.  Text becomes one token per byte; llm.c's token shards are read as they are.


def python_docs():
    """The help texts inside every CPython: real English on every machine, no download."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def header(data):
    """The 256 int32 that every file of llm.c starts with; zeros if there are not that many."""
    return np.frombuffer(data[:1024], np.int32) if len(data) >= 1024 else np.zeros(256, np.int32)


def read_tokens(source, vocab_size):
    """Token ids: 'python-docs', a text file, or a shard of llm.c (1 KiB header, then uint16)."""
    if source == "python-docs":
        return np.frombuffer(python_docs(), np.uint8)
    data = Path(source).read_bytes()
    h = header(data)
    if h[0] != 20240520:
        return np.frombuffer(data, np.uint8)
    if h[1] != 1 or len(data) != 1024 + 2 * int(h[2]):
        raise ValueError(f"{source} is a damaged shard: {len(data)} bytes for {h[2]} tokens")
    tokens = np.frombuffer(data, np.uint16, offset=1024)
    if tokens.size and int(tokens.max()) >= vocab_size:
        raise ValueError(
            f"{source} holds token {tokens.max()}, but the model knows only 0 .. {vocab_size - 1}"
        )
    return tokens


def batch(tokens, B, T, rng):
    """B random windows of T tokens, and the same one token later: what to predict."""
    starts = rng.integers(0, len(tokens) - T, B)
    window = tokens[starts[:, None] + np.arange(T + 1)].astype(np.int32)
    return window[:, :-1], window[:, 1:]


def sample(c, p, prompt, count, temperature, rng):
    """Continue prompt: run the model on the last T tokens, draw the next one, repeat."""
    tokens = list(prompt)
    for _ in range(count):
        ids = np.array([tokens[-c.max_seq_len :]])
        logits = forward(c, p, ids)[0][-1].astype(np.float64) / temperature
        probs = np.exp(logits - logits.max())
        tokens.append(int(rng.choice(len(probs), p=probs / probs.sum())))
    return tokens[len(prompt) :]


def show(tokens, vocab_size):
    """Bytes print as text; ids of another vocabulary as numbers."""
    if vocab_size <= 256:
        return bytes(tokens).decode(errors="replace")
    return " ".join(map(str, tokens))


# ----------------------------------------------------------------------------------------------
# 5. llm.c's model file: 256 int32 of header, then the tensors in the same order, wte padded.


def load(path):
    data = Path(path).read_bytes()
    h = header(data)
    if h[0] != 20240326:
        raise ValueError(f"{path} is not a model of llm.c: it does not start with 20240326")
    if h[1] not in (3, 5):
        raise ValueError(f"{path} has version {h[1]}; 3 (float32) and 5 (bfloat16) can be read")
    max_seq_len, vocab_size, layers, heads, channels, padded = (int(i) for i in h[2:8])
    if (
        min(max_seq_len, vocab_size, layers, heads, channels) < 1
        or padded < vocab_size
        or channels % heads
    ):
        raise ValueError(f"{path} is damaged: impossible sizes {h[2:8].tolist()}")
    c = SimpleNamespace(
        max_seq_len=max_seq_len,
        vocab_size=vocab_size,
        layers=layers,
        heads=heads,
        channels=channels,
    )
    shapes = parameter_shapes(c) | {"wte": (padded, channels)}
    size, width = sum(int(np.prod(s)) for s in shapes.values()), 4 if h[1] == 3 else 2
    if len(data) != 1024 + size * width:
        raise ValueError(
            f"{path} has {len(data)} bytes instead of {1024 + size * width}: a partial download?"
        )
    raw = np.frombuffer(data, np.float32 if h[1] == 3 else np.uint16, offset=1024)
    p, at = zeros(c), 0
    for name, shape in shapes.items():
        piece = raw[at : at + int(np.prod(shape))]
        at += piece.size
        if h[1] == 5:  # bfloat16 is the upper half of a float32
            piece = (piece.astype(np.uint32) << 16).view(np.float32)
        w = getattr(p, name)
        w[...] = piece.reshape(shape)[: len(w)]  # drops the pad rows of wte
    return c, p


def save(path, c, p):
    """Write to a neighbour and rename, so that the file is always whole."""
    padded = -(-c.vocab_size // 128) * 128
    h = np.zeros(256, np.int32)
    h[:8] = 20240326, 3, c.max_seq_len, c.vocab_size, c.layers, c.heads, c.channels, padded
    part = Path(f"{path}.part")
    with part.open("wb") as f:
        f.write(h.tobytes())
        for name, w in vars(p).items():
            f.write(w.astype(np.float32).tobytes())
            if name == "wte":
                f.write(bytes(4 * (padded - c.vocab_size) * c.channels))
    part.replace(path)


# ----------------------------------------------------------------------------------------------
# 6. The proof.  If dp is the gradient of the loss, then moving the parameters a little way ε along
#    any direction u must change the loss by ε·⟨dp, u⟩.  Everything in float64, u random, one proof
#    per operation and one per parameter tensor.


def slope(f, eps=2e-4):
    """df/dε at 0 by central differences of fourth order: the error falls with ε⁴."""
    return (8 * (f(eps) - f(-eps)) - (f(2 * eps) - f(-2 * eps))) / (12 * eps)


def prove(name, numeric, exact, size):
    """Print one line; True if the two slopes agree to 1e-8 of the gradient's own size."""
    error = abs(numeric - exact) / max(size, 1e-300)
    print(f"  {name:22s} finite difference {numeric:+.10f}   by hand {exact:+.10f}   {error:.0e}")
    return error < 1e-8


def check_operations(rng):
    """⟨v, J·u⟩ by finite differences is ⟨Jᵀ·v, u⟩ by hand; v random, as v = 1 hides bugs."""

    def check(name, f, d_f, *inputs):
        u = [rng.standard_normal(x.shape) for x in inputs]
        v = rng.standard_normal(f(*inputs).shape)
        numeric = slope(
            lambda e: np.sum(v * f(*(x + e * ux for x, ux in zip(inputs, u, strict=True))))
        )
        grads = d_f(v, *inputs)
        exact = sum(np.sum(g * ux) for g, ux in zip(grads, u, strict=True))
        return prove(name, numeric, exact, np.sqrt(sum(np.sum(g * g) for g in grads)))

    r = rng.standard_normal
    ids, targets = rng.integers(0, 7, (2, 3)), rng.integers(0, 7, 6)
    return [
        check("embed", lambda e, w: embed(ids, e, w),
              lambda v, e, w: d_embed(v, ids, e, w), r((7, 5)), r((4, 5))),
        check("layernorm", lambda x, w, b: layernorm(x, w, b)[0],
              lambda v, x, w, b: d_layernorm(v, x, w, *layernorm(x, w, b)[1:]),
              r((3, 5)), r(5), r(5)),
        check("matmul", matmul, lambda v, x, w, b: d_matmul(v, x, w), r((3, 5)), r((7, 5)), r(7)),
        check("attention", lambda z: attention(z, 2, 3)[0],
              lambda v, z: (d_attention(v, z, attention(z, 2, 3)[1]),), r((10, 27))),
        check("gelu", gelu, lambda v, x: (d_gelu(v, x),), r((3, 5))),
        check("softmax_xent", lambda z: softmax_xent(z, targets)[0][None],
              lambda v, z: (v * d_softmax_xent(softmax_xent(z, targets)[1], targets),), r((6, 7))),
    ]  # fmt: skip


def check_model(rng, plant=0.0):
    """Every parameter tensor of a small GPT-2 with odd sizes.  `plant` spoils dqkvw on purpose."""
    c = SimpleNamespace(layers=2, heads=3, channels=15, vocab_size=11, max_seq_len=8)
    p, dp = init(c, rng, np.float64), zeros(c, np.float64)
    for w in vars(p).values():
        w += 0.3 * rng.standard_normal(w.shape)  # biases away from 0, nothing special left
    ids, targets = rng.integers(0, 11, (2, 7)), rng.integers(0, 11, (2, 7))
    loss_and_grads(c, p, dp, ids, targets)
    dp.qkvw *= 1 + plant
    results = []
    for name, w in vars(p).items():
        g, start, u = getattr(dp, name), w.copy(), rng.standard_normal(w.shape)

        def moved(e, w=w, start=start, u=u):
            w[...] = start + e * u
            return mean_loss(c, p, ids, targets)

        numeric = slope(moved)
        w[...] = start
        results.append(
            prove(f"d{name} {g.shape}", numeric, float(np.sum(g * u)), float(np.linalg.norm(g)))
        )
    return results


def check():
    rng = np.random.default_rng(0)
    print("each operation: its backward against finite differences of its forward")
    operations = check_operations(rng)
    print("the whole model: the gradient of every parameter tensor")
    model = check_model(rng)
    print("and can this check fail?  the same with dqkvw wrong by 0.1 %")
    planted = check_model(rng, plant=0.001)
    caught = planted.count(False) == 1
    ok = all(operations) and all(model) and caught
    print(f"{sum(operations) + sum(model)} of {len(operations) + len(model)} gradients proven, "
          f"the planted error was {'caught' if caught else 'MISSED'}")  # fmt: skip
    return 0 if ok else 1


# ----------------------------------------------------------------------------------------------
# 7. Training.


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--check", action="store_true", help="prove every gradient by finite differences, then exit"
    )
    add(
        "--data",
        default="python-docs",
        help="text file, or token shard of llm.c (default: python-docs)",
    )
    add("--init", metavar="FILE", help="start from a model file of llm.c, e.g. gpt2_124M.bin")
    add("--save", metavar="FILE", help="write the trained model as a model file of llm.c")
    add("--steps", type=int, default=1000)
    add("--batch-size", type=int, default=16)
    add("--seq-len", type=int, default=64)
    add("--layers", type=int, default=4)
    add("--heads", type=int, default=4)
    add("--channels", type=int, default=128)
    add("--vocab-size", type=int, default=256, help="256: one token per byte")
    add("--lr", type=float, help="peak learning rate (default: 2e-3, or 1e-4 with --init)")
    add("--warmup-steps", type=int, default=20)
    add("--weight-decay", type=float, default=0.1)
    add("--seed", type=int, default=1337)
    args = parser.parse_args(argv)
    for name in ("batch_size", "seq_len", "layers", "heads", "channels", "vocab_size"):
        if getattr(args, name) < 1:
            parser.error(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}"
            )
    if args.steps < 0 or args.warmup_steps < 0:
        parser.error("--steps and --warmup-steps cannot be negative")
    if args.channels % args.heads:
        parser.error(f"--channels {args.channels} cannot be divided among --heads {args.heads}")
    if args.lr is None:
        args.lr = 1e-4 if args.init else 2e-3
    if not (0 < args.lr < 1 and 0 <= args.weight_decay < 1):
        parser.error(
            "--lr must be in (0, 1) and --weight-decay in [0, 1), "
            f"got {args.lr} and {args.weight_decay}"
        )
    return args


def train(args):
    rng = np.random.default_rng(args.seed)
    if args.init:
        c, p = load(args.init)
    else:
        c = SimpleNamespace(
            max_seq_len=args.seq_len, vocab_size=args.vocab_size,
            layers=args.layers, heads=args.heads, channels=args.channels,
        )  # fmt: skip
        p = init(c, rng)
    B, T = args.batch_size, args.seq_len
    tokens = read_tokens(args.data, c.vocab_size)
    held_out = max(len(tokens) // 10, T + 1)
    if len(tokens) < held_out + T + 1:
        raise ValueError(
            f"{args.data} has {len(tokens)} tokens; --seq-len {T} needs at least {2 * T + 2}"
        )
    if len(tokens) and int(tokens.max()) >= c.vocab_size:
        raise ValueError(
            f"{args.data} holds byte {tokens.max()}, but --vocab-size is {c.vocab_size}"
        )
    train_tokens, val_tokens = tokens[:-held_out], tokens[-held_out:]
    count = sum(w.size for w in vars(p).values())
    print(f"GPT-2, {c.layers} layers, {c.channels} channels, {count:,} parameters; "
          f"{len(tokens):,} tokens of {args.data}; {B} x {T} tokens a step")  # fmt: skip

    val_batches = [batch(val_tokens, B, T, np.random.default_rng(i)) for i in range(4)]

    def val():
        return sum(mean_loss(c, p, *b) for b in val_batches) / len(val_batches)

    if not args.init:
        print(
            f"step    0   val loss {val():.4f}   "
            f"(knowing nothing is ln {c.vocab_size} = {np.log(c.vocab_size):.4f})"
        )
    dp, m, v = zeros(c), zeros(c), zeros(c)
    start = time.perf_counter()
    for step in range(args.steps):
        t0 = time.perf_counter()
        loss = loss_and_grads(c, p, dp, *batch(train_tokens, B, T, rng))
        scale, norm = clip_scale(dp, 1.0)
        if not np.isfinite(loss + norm):
            raise ValueError(
                f"step {step + 1}: loss {loss}, gradient norm {norm}: stopped before the update. "
                "A lower --lr may help."
            )
        lr = learning_rate(step, args.steps, args.lr, args.warmup_steps)
        adamw(p, dp, m, v, step + 1, lr, scale, weight_decay=args.weight_decay)
        ms = (time.perf_counter() - t0) * 1e3
        done = step + 1
        if done <= 5 or done % 25 == 0 or done == args.steps or ms > 500:
            note = f"   val loss {val():.4f}" if done % 100 == 0 or done == args.steps else ""
            progress = f"loss {loss:.4f}   norm {norm:6.3f}   lr {lr:.1e}"
            speed = f"{ms:4.0f} ms   {B * T / ms * 1e3:,.0f} tokens/s"
            print(f"step {done:4d}   {progress}   {speed}{note}", flush=True)
    print(f"{args.steps} steps in {time.perf_counter() - start:.0f} s")
    if args.save:
        save(args.save, c, p)
        print(f"saved {args.save}")
    prompt = val_tokens[:T].tolist()
    text = show(sample(c, p, prompt, 300 if c.vocab_size <= 256 else 20, 0.8, rng), c.vocab_size)
    print(f"--- the model continues {show(prompt[-20:], c.vocab_size)!r} ---\n{text}")
    return 0


def main(argv=None):
    args = arguments(argv)
    try:
        return check() if args.check else train(args)
    except (ValueError, OSError) as error:
        print(f"train_gpt2.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
