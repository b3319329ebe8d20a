"""A model that learns 2-digit addition: 47 + 85 is the sequence 4 7 8 5 -> 2 3 1, last digit first.

The targets of the prompt are −1, which weighs nothing.  500 of the 10,000 sums are held out.
"""

import argparse

import numpy as np

import backglass as bg
from backglass import device
from backglass.execute.eager import Eager
from backglass.models import gpt2
from backglass.training.session import Session

PROMPT, ANSWER, B = 4, 3, 100


def sums() -> np.ndarray:
    """All 10,000 sums as digits, (10000, 7)."""
    rows = [f"{a:02}{b:02}" + f"{a + b:03}"[::-1] for a in range(100) for b in range(100)]
    return np.array([[int(digit) for digit in row] for row in rows])


def accuracy(session: Session, rows: np.ndarray) -> float:
    """The share of rows whose answer the model completes without an error."""
    right = 0
    for chunk in rows.reshape(-1, B, PROMPT + ANSWER):
        ids = np.where(np.arange(PROMPT + ANSWER) < PROMPT, chunk, 0)
        for at in range(PROMPT, PROMPT + ANSWER):
            session.load_batch((ids[:, :-1], ids[:, 1:]), 1, 0)
            ops, t = Eager(session.device, session.memory), session.t
            gpt2.logits_forward(ops, session.c, t.p, t.a, t.io)
            ids[:, at] = session.memory.array(t.a.logits)[:, at - 1, :10].argmax(-1)
        right += int((ids == chunk).all(1).sum())
    return right / len(rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args(argv).steps
    s = bg.presets.tiny(layers=2, channels=64, seq_len=6, batch_size=B, schedule_steps=steps)
    session = Session(s.model_config(10), s, device.get(s.device))
    session.init()
    rng = np.random.default_rng(s.seed)
    held_out, rows = np.split(rng.permutation(sums()), [500])
    print(f"before: {accuracy(session, held_out):.1%} of 500 sums it will never see")
    for step in range(steps):
        ids = rng.choice(rows, B)
        targets = np.where(np.arange(1, 7) < PROMPT, -1, ids[:, 1:])
        loss = session.gradients([(ids[:, :-1], targets)], step)
        session.update(step)
        print(f"step {step + 1:5d}   loss {loss:.4f}", end="\r", flush=True)
    print(f"\nafter:  {accuracy(session, held_out):.1%} of 500 sums it has never seen")


if __name__ == "__main__":
    main()
