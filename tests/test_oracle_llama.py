"""transformers as the oracle of LLaMA, Mistral, Qwen2 and Qwen3."""

import json

import numpy as np
import pytest

from backglass import device
from backglass.data import tokenizer
from backglass.execute.eager import Eager
from backglass.formats import hf
from backglass.layout import Layout
from backglass.models import llama
from backglass.training import checkpoint
from backglass.training.session import Session
from backglass.training.settings import Settings

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

B, T, V = 2, 37, 101
SHAPE = dict(layers=2, hidden=40, channels=84)  # a multiple of all heads: transformers insists
FAMILIES = {
    "llama": dict(heads=6, kv_heads=2, head_size=16, tied=False),
    "llama-7-to-1": dict(heads=7, kv_heads=1, head_size=24, norm_eps=1e-6),
    "llama-3": dict(heads=4, kv_heads=2, head_size=64, rope_theta=5e5, rope_scaling="8 1 4 24"),
    "mistral": dict(heads=6, kv_heads=3, head_size=16, window=9, tied=False),
    "qwen2": dict(heads=4, kv_heads=2, head_size=24, qkv_bias=True),
    "qwen2-window": dict(heads=4, kv_heads=2, head_size=16, qkv_bias=True, window=12),
    "qwen3": dict(heads=6, kv_heads=2, head_size=24, qk_norm=True, norm_eps=1e-6),
}
# Ours against PyTorch's fp32, whose errors are as large: norms of differences, relative.  cos and
# sin are from angles of which it knows 24 bits.
LIMIT = 1e-5


def session_of(family: str, dev: str) -> Session:
    """Random weights, biases and norms too; every tensor large enough to matter."""
    shape = SHAPE | FAMILIES[family]
    s = Settings(
        model="llama", **shape, vocab_size=V, seq_len=T, batch_size=B, device=dev, dtype="fp32"
    )
    session = Session(s.model_config(V), s, device.get(dev))
    session.init()
    rng = np.random.default_rng(0)
    for view in session.t.p:
        session.memory.array(view)[...] += 0.2 * rng.standard_normal(view.shape)
    for name in ("wte", "headw"):
        if hasattr(session.t.p, name):
            session.memory.array(getattr(session.t.p, name))[V:] = 0
    return session


def save(session: Session, folder):
    """Our own checkpoint folder."""
    tok = tokenizer.build("bytes", ())
    flats = session.state()
    checkpoint.save(folder, session.c, session.t.layout, flats, tok, checkpoint.State(), session.s)
    return folder


def rival_of(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return model.train()


def batch():
    ids, targets = np.random.default_rng(1).integers(0, V, (2, B, T))
    targets[0, 3:5] = -1
    return ids, targets


def logits_of(session: Session, ids) -> np.ndarray:
    """Executed line by line, so that the logits are still there afterwards."""
    session.load_batch((ids, ids), 1, 0)
    ops = Eager(session.device, session.memory)
    llama.logits_forward(ops, session.c, session.t.p, session.t.a, session.t.io)
    return session.memory.array(session.t.a.logits)[..., :V]


def scaled_error(ours, theirs) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("dev", ["numpy", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_logits_loss_and_every_gradient_equal_transformers(tmp_path, family, dev):
    session = session_of(family, dev)
    rival = rival_of(save(session, tmp_path / "m"))
    assert family.split("-")[0] == rival.config.model_type
    ids, targets = batch()
    logits = rival(torch.tensor(ids)).logits
    flat = torch.tensor(np.where(targets < 0, -100, targets)).reshape(-1)
    loss = torch.nn.functional.cross_entropy(logits.reshape(B * T, -1), flat, ignore_index=-100)
    loss.backward()
    ours = session.gradients([(ids, targets)], 0)
    assert abs(ours - loss.item()) < LIMIT * abs(loss.item())
    assert scaled_error(logits_of(session, ids), logits.detach().numpy()) < LIMIT
    grads = hf.tensors_out(session.t.layout, session.flats["dp"])
    theirs = dict(rival.named_parameters())
    assert set(grads) == set(theirs)
    worst = {name: scaled_error(g, theirs[name].grad.numpy()) for name, g in grads.items()}
    assert max(worst.values()) < LIMIT, worst


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_folder_of_transformers_comes_back_byte_for_byte(tmp_path, family):
    session = session_of(family, "numpy")
    theirs = tmp_path / "theirs"
    rival_of(save(session, tmp_path / "ours")).save_pretrained(theirs)
    c = hf.read_config(theirs)
    assert c == session.c
    layout = Layout(llama.PARAMS, c.sizes(1, 1), "fp32")
    flat = hf.tensors_in(layout, theirs)
    assert flat.tobytes() == session.state()["p"].tobytes()
    assert json.loads((theirs / "config.json").read_text())["model_type"] == family.split("-")[0]


def test_llama_rope_tables_equal_transformers_with_llama_3s_scaling():
    c = llama.Config(
        channels=128, heads=2, max_seq_len=300, rope_theta=5e5, rope_scaling="8 1 4 64"
    )
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=300, rope_theta=5e5,
        rope_scaling=dict(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    )  # fmt: skip
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    assert np.allclose(rotary.inv_freq.numpy(), llama.frequencies(c), rtol=1e-6, atol=0)
    cos, sin = rotary(torch.zeros(1, 300, 1), torch.arange(300)[None])
    for name, found in (("cos", cos), ("sin", sin)):
        # half an ulp of an angle of up to 300 radians, and of the result
        assert np.abs(found[0, :, :32].numpy() - llama.tables(c)[name]).max() < 300 * 2.0**-23
