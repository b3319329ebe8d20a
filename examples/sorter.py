"""A model that learns to sort six digits: 3 1 4 1 5 9 -> 1 1 3 4 5 9 (the idea is minGPT's demo).

The targets of the unsorted half are −1.  Training meets at most a tenth of the million inputs.
"""

import argparse

import numpy as np

import backglass as bg
from backglass import device
from backglass.execute.eager import Eager
from backglass.models import gpt2
from backglass.training.session import Session

DIGITS, B = 6, 100


def draw(rng: np.random.Generator, count: int) -> np.ndarray:
    """Rows of six digits and the same six sorted, (count, 12)."""
    digits = rng.integers(0, 10, (count, DIGITS))
    return np.concatenate([digits, np.sort(digits)], 1)


def accuracy(session: Session, rows: np.ndarray) -> float:
    """The share of rows whose second half the model completes without an error."""
    right = 0
    for chunk in rows.reshape(-1, B, 2 * DIGITS):
        ids = np.where(np.arange(2 * DIGITS) < DIGITS, chunk, 0)
        for at in range(DIGITS, 2 * DIGITS):
            session.load_batch((ids[:, :-1], ids[:, 1:]), 1, 0)
            ops, t = Eager(session.device, session.memory), session.t
            gpt2.logits_forward(ops, session.c, t.p, t.a, t.io)
            ids[:, at] = session.memory.array(t.a.logits)[:, at - 1, :10].argmax(-1)
        right += int((ids == chunk).all(1).sum())
    return right / len(rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args(argv).steps
    s = bg.presets.tiny(layers=2, channels=64, seq_len=11, batch_size=B, schedule_steps=steps)
    session = Session(s.model_config(10), s, device.get(s.device))
    session.init()
    test = draw(np.random.default_rng(0), 1000)
    print(f"before: {accuracy(session, test):.1%} of 1000 rows sorted")
    rng = np.random.default_rng(s.seed)
    for step in range(steps):
        ids = draw(rng, B)
        targets = np.where(np.arange(1, 2 * DIGITS) < DIGITS, -1, ids[:, 1:])
        loss = session.gradients([(ids[:, :-1], targets)], step)
        session.update(step)
        print(f"step {step + 1:5d}   loss {loss:.4f}", end="\r", flush=True)
    print(f"\nafter:  {accuracy(session, test):.1%} of 1000 rows sorted")


if __name__ == "__main__":
    main()
