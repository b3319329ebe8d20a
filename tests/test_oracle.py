"""PyTorch and transformers as oracles.  They are compared with, never used by the package."""

import numpy as np
import pytest

from backglass import device
from backglass.data import tokenizer
from backglass.execute.eager import Eager
from backglass.formats import hf
from backglass.models import gpt2
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

SHAPE = dict(layers=3, heads=3, channels=48, vocab_size=101)
B, T = 2, 37


def session_of(dev: str, attention: str = "flash") -> Session:
    """Random weights of odd shapes, biases and layernorms too."""
    s = Settings(
        **SHAPE, seq_len=T, batch_size=B, device=dev, attention=attention, lr=1e-3, warmup_steps=0,
        schedule="constant", weight_decay=0.1, clip=1.0,
    )  # fmt: skip
    session = Session(gpt2.Config(**SHAPE, max_seq_len=T), s, device.get(dev))
    session.init()
    rng = np.random.default_rng(0)
    for view in session.t.p:
        session.memory.array(view)[...] += 0.1 * rng.standard_normal(view.shape).astype(np.float32)
    session.memory.array(session.t.p.wte)[SHAPE["vocab_size"] :] = 0
    return session


def rival_of(session: Session, folder):
    """The same weights in transformers, through our own checkpoint folder."""
    tok = tokenizer.build("bytes", ())
    checkpoint.save(
        folder, session.c, session.t.layout, session.flats, tok, checkpoint.State(), session.s
    )
    return transformers.GPT2LMHeadModel.from_pretrained(folder)


def batch(seed=1):
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, SHAPE["vocab_size"], (2, B, T))
    targets[0, 3:5] = -1
    return ids, targets


def rival_loss(model, ids, targets):
    logits = model(torch.tensor(ids)).logits
    flat = torch.tensor(np.where(targets < 0, -100, targets)).reshape(-1)
    loss = torch.nn.functional.cross_entropy(logits.reshape(B * T, -1), flat, ignore_index=-100)
    return logits, loss


def logits_of(session: Session, ids) -> np.ndarray:
    """Executed line by line, so that the logits are still there afterwards."""
    session.load_batch((ids, ids), 1, 0)
    gpt2.logits_forward(
        Eager(session.device, session.memory), session.c, session.t.p, session.t.a, session.t.io
    )
    return session.memory.array(session.t.a.logits)[..., : session.c.vocab_size]


def scaled_error(ours, theirs) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize(
    "dev, attention", [("numpy", "flash"), ("cpu", "flash"), ("cpu", "explicit")]
)
def test_logits_loss_and_every_gradient_equal_torch(tmp_path, dev, attention):
    session = session_of(dev, attention)
    model = rival_of(session, tmp_path / "m").train()  # its dropout is 0
    ids, targets = batch()
    logits, loss = rival_loss(model, ids, targets)
    loss.backward()
    ours = session.gradients([(ids, targets)], 0)
    assert abs(ours - loss.item()) < 1e-5 * abs(loss.item())
    found = logits_of(session, ids)
    assert scaled_error(found, logits.detach().numpy()) < 1e-5
    grads = hf.tensors_out(session.t.layout, session.flats["dp"])
    theirs = dict(model.named_parameters())
    assert len(grads) == len(theirs) == 4 + 12 * SHAPE["layers"]
    for name, g in grads.items():
        assert scaled_error(g, theirs[name].grad.numpy()) < 1e-5, name


@pytest.mark.parametrize("dev", ["numpy", "cpu"])
def test_twenty_adamw_steps_follow_torch(tmp_path, dev):
    session = session_of(dev)
    model = rival_of(session, tmp_path / "m").train()
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    for step in range(20):
        ids, targets = batch(seed=step % 4)
        _, loss = rival_loss(model, ids, targets)
        optimizer.zero_grad()
        loss.backward()
        theirs = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ours = session.gradients([(ids, targets)], step)
        norm, _ = session.update(step)
        assert abs(ours - loss.item()) < 1e-4
        assert abs(norm - theirs.item()) < 1e-4 * norm


def test_a_folder_saved_by_transformers_loads(tmp_path):
    config = transformers.GPT2Config(
        vocab_size=101, n_positions=40, n_embd=48, n_layer=3, n_head=3, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    c = hf.read_config(tmp_path / "theirs")
    s = Settings(**SHAPE, seq_len=40, batch_size=B, device="numpy")
    session = Session(c, s, device.get("numpy"))
    session.flats["p"][...] = hf.tensors_in(session.t.layout, tmp_path / "theirs")
    ids = np.random.default_rng(0).integers(0, 101, (B, 40))
    ours = logits_of(session, ids)
    with torch.no_grad():
        assert scaled_error(ours, model(torch.tensor(ids)).logits.numpy()) < 1e-5


def test_the_tokenizer_we_save_is_the_same_in_transformers(tmp_path):
    text = "Hello, wörld!  def f(x):\n\treturn 'é' # 日本"
    for kind in ("bytes", "bpe:400"):
        ours = tokenizer.build(kind, ["the cat sat on the mat. " * 50])
        (tmp_path / "tokenizer.json").write_text(ours.to_json())
        theirs = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(tmp_path / "tokenizer.json")
        )
        assert theirs(text).input_ids == ours.encode(text).tolist()
        assert ours.decode(ours.encode(text)) == text
