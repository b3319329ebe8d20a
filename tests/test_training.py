"""The trainer: equivalences, resume, masks, bad steps, signals, files."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from backglass import device
from backglass.data.loader import Loader, split
from backglass.errors import UserError
from backglass.models import gpt2
from backglass.training import checkpoint, loop
from backglass.training.session import Session
from backglass.training.settings import Settings, learning_rate

SMALL = dict(
    layers=2, heads=2, channels=16, seq_len=8, batch_size=2, steps=6, warmup_steps=2, val_every=3,
    val_batches=1, device="numpy", schedule_steps=6,
)  # fmt: skip


def small(**changes) -> Settings:
    return Settings(**(SMALL | changes))


def gradients(batch_size: int, micro_batches: int) -> tuple[float, np.ndarray]:
    """Loss and gradient of the same eight windows, split in one of several ways."""
    total = batch_size * micro_batches * 8
    s = small(batch_size=batch_size, total_batch_tokens=total, dtype="fp64", vocab_size=50)
    session = Session(s.model_config(50), s, device.get("numpy"))
    session.init()
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 50, (8, 9))
    windows[2:5, 4:] = -1  # masked, unevenly
    ids, targets = np.maximum(windows[:, :-1], 0), windows[:, 1:]
    batches = [
        (ids[i : i + batch_size], targets[i : i + batch_size]) for i in range(0, 8, batch_size)
    ]
    loss = session.gradients(batches, 0)
    return loss, session.flats["dp"].copy()


@pytest.mark.parametrize("batch_size, micro_batches", [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_any_split_of_a_batch_gives_the_same_gradient(batch_size, micro_batches):
    loss, dp = gradients(batch_size, micro_batches)
    want_loss, want = gradients(8, 1)
    assert abs(loss - want_loss) < 1e-13
    assert np.linalg.norm(dp - want) < 1e-13 * np.linalg.norm(want)


def test_a_batch_of_masked_targets_counts_nothing():
    s = small(dtype="fp64", vocab_size=50)
    session = Session(s.model_config(50), s, device.get("numpy"))
    session.init()
    ids = np.zeros((2, 8), np.int32)
    loss = session.gradients([(ids, np.full((2, 8), -1))], 0)
    assert loss == 0 and not session.flats["dp"].any()
    norm, _ = session.update(0)
    assert norm == 0 and np.isfinite(session.flats["p"]).all()


@pytest.mark.parametrize("dev", ["numpy", "cpu"])
def test_eager_steps_equal_recorded_steps_bit_for_bit(dev):
    states = []
    for debug in (False, True):
        s = small(device=dev, steps=2, fuse=False)
        trainer = loop.Trainer(s, None, False, quiet=True, debug=debug)
        trainer.run()
        states.append(trainer.session.flats["p"].tobytes())
    assert states[0] == states[1]


@pytest.mark.parametrize("dev", ["numpy", "cpu"])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tmp_path, dev):
    s = small(device=dev, dropout=0.1)
    whole = loop.train(s, tmp_path / "whole", quiet=True)
    loop.train(s.replace(steps=3), tmp_path / "parts", quiet=True)
    parts = loop.train(s, tmp_path / "parts", resume=True, quiet=True)
    for name in ("p", "m", "v"):
        assert whole.session.flats[name].tobytes() == parts.session.flats[name].tobytes()
    last = checkpoint.step_folder(tmp_path / "whole", 6) / "model.safetensors"
    again = checkpoint.step_folder(tmp_path / "parts", 6) / "model.safetensors"
    assert last.read_bytes() == again.read_bytes()

    def losses(run):
        lines = map(json.loads, (tmp_path / run / "log.jsonl").read_text().splitlines())
        return [(e["step"], e["loss"]) for e in lines if e["event"] == "step"]

    assert losses("whole") == losses("parts")


def test_run_directory_has_what_the_design_promises(tmp_path):
    loop.train(small(save_every=2, keep=1, sample_every=3), tmp_path / "run", quiet=True)
    run = tmp_path / "run"
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in steps] == [1, 2, 3, 4, 5, 6]
    assert set(steps[0]) == {"event", "step", "loss", "grad_norm", "lr", "tokens_per_s", "ms"}
    assert [e["step"] for e in events if e["event"] == "val"] == [0, 3, 6]
    assert json.loads((run / "run.json").read_text())["settings"]["seed"] == 1337
    folder = checkpoint.step_folder(run, 6)
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", "model.safetensors",
        "state.safetensors", "meta.json",
    }  # fmt: skip
    assert checkpoint.best_step(run) in checkpoint.steps_in(run)
    assert len(checkpoint.steps_in(run)) <= 2
    assert "continues" in (run / "samples.txt").read_text()


def test_a_nan_stops_before_the_update_and_names_the_first_bad_tensor(tmp_path):
    trainer = loop.Trainer(small(), tmp_path / "run", False, quiet=True, debug=False)
    w = trainer.session.memory.array(trainer.session.t.p.h[1].fcw)
    w[3, 5] = np.nan
    before = trainer.session.flats["p"].copy()
    with pytest.raises(UserError) as caught:
        trainer._step()
    text = str(caught.value)
    assert "h1.fcw[3, 5] = nan" in text and "step 1" in text
    np.testing.assert_array_equal(trainer.session.flats["p"], before)
    assert list((tmp_path / "run").glob("bad-batch-*.npz"))


def test_an_overflow_inside_a_layer_is_traced_to_its_line(tmp_path):
    trainer = loop.Trainer(small(), None, False, quiet=True, debug=False)
    trainer.session.memory.array(trainer.session.t.p.h[0].fcw)[...] = 3e38
    with (
        np.errstate(all="ignore"),
        pytest.raises(UserError, match=r"h0\.fch\[0, 0, \d+\]") as caught,
    ):
        trainer._step()
    assert "models/gpt2.py:" in str(caught.value)


def test_a_full_disk_leaves_the_last_good_checkpoint_alone(tmp_path, monkeypatch):
    s = small(save_every=2, steps=4)
    trainer = loop.Trainer(s, tmp_path / "run", False, quiet=True, debug=False)
    right = checkpoint.save

    def full(folder, *args):
        if trainer.state.step > 2:
            raise OSError(28, "No space left on device", str(folder))
        right(folder, *args)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(UserError, match="last good checkpoint is step 2"):
        trainer.run()
    assert checkpoint.steps_in(tmp_path / "run") == [2]
    layout = trainer.session.t.layout
    flats, state = checkpoint.load(checkpoint.step_folder(tmp_path / "run", 2), layout)
    assert state.step == 2 and np.isfinite(flats["p"]).all()


def test_a_folder_half_written_never_appears(tmp_path):
    from backglass.training.files import new_folder

    with pytest.raises(RuntimeError), new_folder(tmp_path / "x") as part:
        (part / "a").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(tmp_path, number):
    command = [
        sys.executable, "-m", "backglass", "train", "tiny", "--device", "numpy", "--layers", "1",
        "--channels", "16", "--heads", "1", "--seq-len", "8", "--steps", "100000", "--val-every",
        "0", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.time() + 30
    while time.time() < deadline and (not log.exists() or log.read_text().count('"step"') < 5):
        time.sleep(0.1)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "--resume" in out
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    assert last in checkpoint.steps_in(tmp_path / "run")


@pytest.mark.parametrize(
    "schedule, middle, end",
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1, 1), ("wsd", 1, 0.1)],
)
def test_schedules(schedule, middle, end):
    s = Settings(schedule=schedule, lr=1.0, warmup_steps=10, schedule_steps=110, final_lr=0.1)
    assert learning_rate(s, 0) == pytest.approx(0.1) and learning_rate(s, 9) == pytest.approx(1)
    assert learning_rate(s, 60) == pytest.approx(middle)
    assert learning_rate(s, 110) == pytest.approx(end) == learning_rate(s, 5000)


def test_steps_do_not_change_the_schedule():
    s = Settings(steps=50)
    assert learning_rate(s, 20) == learning_rate(s.replace(steps=5000), 20)


def test_loader_visits_every_window_once_an_epoch_in_an_order_fixed_by_the_seed():
    tokens = np.arange(101, dtype=np.uint16)
    firsts = []
    for seed in (1, 1, 2):
        loader = Loader([tokens, tokens + 1000], 10, seed)
        assert loader.windows == 20
        firsts.append([int(loader.batch(1)[0][0, 0]) for _ in range(40)])
    assert sorted(firsts[0][:20]) == sorted([*range(0, 100, 10), *range(1000, 1100, 10)])
    assert firsts[0] == firsts[1] != firsts[2]
    assert firsts[0][:20] != firsts[0][20:]


def test_loader_continues_from_its_position():
    tokens = np.arange(1001)
    a, b = Loader([tokens], 10, 3), Loader([tokens], 10, 3)
    for _ in range(7):
        a.batch(4)
    b.position = 28
    np.testing.assert_array_equal(a.batch(4)[0], b.batch(4)[0])


def test_targets_are_the_next_tokens():
    ids, targets = Loader([np.arange(50)], 7, 0).batch(3)
    np.testing.assert_array_equal(ids + 1, targets)


def test_split_holds_out_the_end():
    train, val = split(np.arange(1000), 10)
    assert len(val) == 100 and val[0] == 900 and len(train) == 900


def test_dropout_uses_another_mask_every_step_and_none_in_validation():
    s = small(dropout=0.5, dtype="fp64", vocab_size=50)
    session = Session(s.model_config(50), s, device.get("numpy"))
    session.init()
    ids = np.random.default_rng(0).integers(0, 50, (2, 8))
    losses = {session.gradients([(ids, ids)], step) for step in (0, 1, 2)}
    assert len(losses) == 3
    windows = np.random.default_rng(1).integers(0, 50, (3, 9)).astype(np.int32)
    c = gpt2.Config(layers=2, heads=2, channels=16, vocab_size=50, max_seq_len=8)
    plain = Session(c, small(dtype="fp64", vocab_size=50), device.get("numpy"))
    plain.flats["p"][...] = session.flats["p"]
    assert session.validate(windows) == pytest.approx(plain.validate(windows), abs=1e-14)
