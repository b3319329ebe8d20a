"""The package and train_gpt2.py tell the same maths: loss, gradients, updates equal to 1e-12 in
float64."""

from types import SimpleNamespace

import numpy as np
import pytest

import train_gpt2 as one
from backglass import device
from backglass.models import gpt2
from backglass.training.session import Session
from backglass.training.settings import Settings

TOP = ("wte", "wpe", "lnfw", "lnfb")


def pair(attention="flash"):
    """(our session, the one file's config and parameters) with the same numbers in float64."""
    c = gpt2.Config(
        layers=3, heads=3, channels=48, vocab_size=101, max_seq_len=40, attention=attention
    )
    s = Settings(
        layers=3, heads=3, channels=48, vocab_size=101, seq_len=37, batch_size=2, device="numpy",
        dtype="fp64", lr=1e-2, warmup_steps=0, schedule="constant", attention=attention,
    )  # fmt: skip
    session = Session(c, s, device.get("numpy"))
    session.init()
    rng = np.random.default_rng(0)
    for view in session.t.p:
        session.memory.array(view)[...] += 0.1 * rng.standard_normal(view.shape)
    session.memory.array(session.t.p.wte)[101:] = 0
    oc = SimpleNamespace(layers=3, heads=3, channels=48, vocab_size=101, max_seq_len=40)
    p = one.zeros(oc, np.float64)
    for name, w in vars(p).items():
        w[...] = ours(session, session.t.p, name)
    return session, oc, p


def ours(session, space, name):
    if name in TOP:
        return session.memory.array(getattr(space, name))[: 101 if name == "wte" else None]
    return np.stack([session.memory.array(getattr(h, name)) for h in space.h])


@pytest.mark.parametrize("attention", ["flash", "explicit"])
def test_loss_and_every_gradient_equal_the_one_file(attention):
    session, oc, p = pair(attention)
    rng = np.random.default_rng(1)
    ids, targets = rng.integers(0, 101, (2, 2, 37))
    dp = one.zeros(oc, np.float64)
    want = one.loss_and_grads(oc, p, dp, ids, targets)
    got = session.gradients([(ids, targets)], 0)
    assert abs(got - want) < 1e-12
    for name, g in vars(dp).items():
        error = np.linalg.norm(ours(session, session.t.dp, name) - g) / np.linalg.norm(g)
        assert error < 1e-12, name


def test_five_updates_equal_the_one_file():
    session, oc, p = pair()
    rng = np.random.default_rng(2)
    dp, m, v = (one.zeros(oc, np.float64) for _ in range(3))
    for step in range(5):
        ids, targets = rng.integers(0, 101, (2, 2, 37))
        want = one.loss_and_grads(oc, p, dp, ids, targets)
        scale, norm = one.clip_scale(dp, 1.0)
        one.adamw(p, dp, m, v, step + 1, 1e-2, scale, weight_decay=0.1)
        got = session.gradients([(ids, targets)], step)
        our_norm, _ = session.update(step)
        assert abs(got - want) < 1e-11 and abs(our_norm - norm) < 1e-11 * norm
    for name, w in vars(p).items():
        error = np.linalg.norm(ours(session, session.t.p, name) - w) / np.linalg.norm(w)
        assert error < 1e-11, name


def test_pad_rows_stay_exactly_zero():
    session, _, _ = pair()
    ids = np.random.default_rng(3).integers(0, 101, (2, 37))
    session.gradients([(ids, ids)], 0)
    assert not session.memory.array(session.t.dp.wte)[101:].any()
    session.update(0)
    assert not session.memory.array(session.t.p.wte)[101:].any()
