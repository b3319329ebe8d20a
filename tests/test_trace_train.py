"""Training that records steps: the same bits as without, whatever happens to the recordings."""

import json
import shutil

import numpy as np
import pytest

from backglass.debugger import record, store
from backglass.debugger.replay import replay
from backglass.debugger.trace import Trace
from backglass.errors import UserError
from backglass.training import checkpoint, loop, tracing
from backglass.training.settings import Settings

SMALL = dict(
    layers=2, heads=2, channels=16, seq_len=8, batch_size=2, total_batch_tokens=32, steps=6,
    warmup_steps=2, val_every=0, val_batches=1, schedule_steps=6, device="numpy", dropout=0.1,
)  # fmt: skip


def small(**changes) -> Settings:
    return Settings(**(SMALL | changes))


def state_of(trainer) -> dict[str, bytes]:
    return {name: flat.tobytes() for name, flat in trainer.session.flats.items()}


@pytest.fixture
def trainer_of():
    """Makes trainers whose log is closed at the end."""
    made = []

    def trainer_of(out, **changes) -> loop.Trainer:
        made.append(loop.Trainer(small(**changes), out, False, quiet=False, debug=False))
        return made[-1]

    yield trainer_of
    for trainer in made:
        trainer.report.close()


@pytest.fixture(scope="module")
def untraced():
    return state_of(loop.train(small(), None, quiet=True))


@pytest.fixture
def traced(tmp_path):
    """A run that recorded steps 2, 4 and 6."""
    loop.train(small(trace_every=2, save_every=3), tmp_path / "run", quiet=True)
    return tmp_path / "run"


def test_recording_leaves_the_bits_of_a_run_unchanged(tmp_path, untraced):
    run = loop.train(small(trace_every=2), tmp_path / "run", quiet=True)
    assert state_of(run) == untraced
    assert sorted(record.recordings(tmp_path / "run")) == [2, 4, 6]


def test_recording_leaves_the_bits_of_a_run_on_the_cpu_unchanged(tmp_path):
    plain = loop.train(small(device="cpu"), None, quiet=True)
    run = loop.train(small(device="cpu", trace_every=2), tmp_path / "run", quiet=True)
    assert state_of(run) == state_of(plain)


def test_a_resumed_run_that_records_has_the_bits_of_an_uninterrupted_one(tmp_path, untraced):
    s = small(trace_every=2)
    loop.train(s.replace(steps=3), tmp_path / "run", quiet=True)
    run = loop.train(s, tmp_path / "run", resume=True, quiet=True)
    assert state_of(run) == untraced
    assert sorted(record.recordings(tmp_path / "run")) == [2, 4, 6]


def test_recording_does_not_change_what_is_logged(tmp_path):
    losses = []
    for every in (0, 1):
        out = tmp_path / str(every)
        loop.train(small(trace_every=every), out, quiet=True)
        lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
        losses.append([(e["step"], e["loss"], e.get("grad_norm")) for e in lines])
    assert losses[0] == losses[1]


def test_a_run_that_does_not_record_has_no_trace_folder(tmp_path):
    loop.train(small(), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "trace").exists()


def test_steps_recorded_while_training_are_replayed_bit_for_bit(traced):
    for number, folder in record.recordings(traced).items():
        with Trace(folder) as trace:
            assert trace.manifest["step"] == number and trace.manifest["level"] == 1
            assert replay(trace, lambda done, total: None) == (trace.manifest["versions"], None)


def test_a_step_after_a_checkpoint_has_its_tensors(traced):
    with Trace(record.recordings(traced)[4]) as trace:
        assert trace.values(trace.versions("h1.fcw")[0]).shape == (64, 16)
    with Trace(record.recordings(traced)[2]) as trace, pytest.raises(UserError, match="level 1"):
        trace.values(trace.versions("h1.fcw")[0])


def test_beside_the_recorded_step_is_what_the_run_itself_computed(tmp_path):
    """The run has flash attention and fused ops; the difference is that of float32."""
    loop.train(small(device="cpu", trace_every=2, dropout=0.0), tmp_path / "run", quiet=True)
    lines = map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
    own = {e["step"]: e for e in lines if e["event"] == "step"}
    for number, folder in record.recordings(tmp_path / "run").items():
        m = json.loads((folder / "manifest.json").read_text())
        assert m["own"]["attention"] == "flash" and m["own"]["fused"]
        for name in ("loss", "grad_norm"):
            assert m["own"][name] == own[number][name]
            assert abs(m["own"][name] - m[name]) < 1e-6 * m[name]


def test_a_run_from_before_there_were_recordings_resumes(tmp_path, untraced):
    loop.train(small(steps=3), tmp_path / "run", quiet=True)
    for path in (tmp_path / "run").rglob("*.json"):
        found = json.loads(path.read_text())
        if "settings" in found:
            del found["settings"]["trace_every"], found["settings"]["trace_on_alert"]
            path.write_text(json.dumps(found))
    s = checkpoint.settings_of(checkpoint.find(tmp_path / "run")).replace(steps=6)
    run = loop.train(s, tmp_path / "run", resume=True, quiet=True)
    assert state_of(run) == untraced


# ------------------------------------------------------------ what is in the way


def test_a_recording_that_a_kill_cut_off_is_made_again(traced):
    folder = record.recordings(traced)[6]
    manifest = json.loads((folder / "manifest.json").read_text()) | {"complete": False}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "index.sqlite").write_bytes(b"half")
    shutil.rmtree(checkpoint.step_folder(traced, 6))
    loop.train(small(trace_every=2), traced, resume=True, quiet=True)
    with Trace(folder) as trace:
        assert trace.complete


def test_a_folder_without_a_manifest_is_made_again(traced):
    folder = record.recordings(traced)[6]
    (folder / "manifest.json").unlink()
    shutil.rmtree(checkpoint.step_folder(traced, 6))
    loop.train(small(trace_every=2), traced, resume=True, quiet=True)
    assert 6 in record.recordings(traced)


def test_a_recording_made_by_hand_is_kept(tmp_path, run, capsys):
    loop.train(small(steps=3), tmp_path / "run", quiet=True)
    assert run("trace", tmp_path / "run", "--level", 3)[0] == 0
    folder = record.recordings(tmp_path / "run")[4]
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    loop.train(small(trace_every=2), tmp_path / "run", resume=True)
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before
    assert "step 4 is not recorded: " in capsys.readouterr().out


def test_the_oldest_recordings_of_a_run_go_those_made_by_hand_stay(tmp_path, run, monkeypatch):
    loop.train(small(steps=1), tmp_path / "run", quiet=True)
    assert run("trace", tmp_path / "run", "--step", 1, "--level", 3)[0] == 0
    loop.train(small(steps=2, trace_every=2), tmp_path / "run", resume=True, quiet=True)
    (size,) = (
        sum(f.stat().st_size for f in p.rglob("*") if f.is_file())
        for n, p in record.recordings(tmp_path / "run").items() if n == 2
    )  # fmt: skip
    monkeypatch.setattr(record, "LIMIT_BYTES", int(2.5 * size))
    loop.train(small(trace_every=1), tmp_path / "run", resume=True, quiet=True)
    assert sorted(record.recordings(tmp_path / "run")) == [1, 5, 6]


def test_the_newest_recording_stays_however_large(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "LIMIT_BYTES", 1)
    loop.train(small(trace_every=2), tmp_path / "run", quiet=True)
    assert sorted(record.recordings(tmp_path / "run")) == [6]


class OutOfMemoryError(Exception):
    """CuPy's, where there is no CuPy."""


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), MemoryError("no more"), OutOfMemoryError("4 bytes")]
)
def test_training_goes_on_where_a_step_cannot_be_recorded(
    tmp_path, untraced, monkeypatch, capsys, error
):
    right = store.Writer.event

    def event(self, e, *rest):
        if e.index == 20 and self.manifest["step"] == 4:
            raise error
        right(self, e, *rest)

    monkeypatch.setattr(store, "known", lambda module, path: (OutOfMemoryError,))
    monkeypatch.setattr(store.Writer, "event", event)
    run = loop.train(small(trace_every=2), tmp_path / "run")
    assert state_of(run) == untraced
    assert sorted(p.name[-1] for p in (tmp_path / "run/trace").iterdir()) == ["2", "6"]
    assert f"step 4 is not recorded: {error}" in capsys.readouterr().out


# ------------------------------------------------------------ alerts


def alerted(trainer):
    """The recording of a first step that ends the run."""
    before = trainer.session.flats["p"].copy()
    with np.errstate(all="ignore"), pytest.raises(UserError, match="step 1: the loss is"):
        trainer._step()
    np.testing.assert_array_equal(trainer.session.flats["p"], before)
    return Trace(record.recordings(trainer.out)[1])


def test_a_loss_that_is_not_finite_is_recorded(tmp_path, trainer_of, capsys):
    trainer = trainer_of(tmp_path / "run", trace_on_alert=True)
    trainer.session.memory.array(trainer.session.t.p.h[1].fcw)[3, 5] = np.nan
    with alerted(trainer) as trace:
        first = next(e for e in trace.events() if any(v.bad for v in trace.outs(e.k)))
        assert first.text.startswith("h1.fch = ") and trace.complete
        assert trace.values(trace.versions("h1.fcw")[0]).shape  # a bad step is saved
    said = "step 1: its loss or gradient norm is not finite; recorded in"
    assert said in capsys.readouterr().out


def test_a_gradient_norm_that_is_not_finite_is_recorded(tmp_path, trainer_of):
    trainer = trainer_of(tmp_path / "run", trace_on_alert=True)
    h, array = trainer.session.t.p.h[1], trainer.session.memory.array
    array(h.ln2w)[...], array(h.fcw)[...], array(h.fcprojw)[...] = 1e37, 0, 1e4
    with alerted(trainer) as trace:
        assert np.isfinite(trace.manifest["loss"]) and not np.isfinite(trace.manifest["grad_norm"])
        first = next(e for e in trace.events() if any(v.bad for v in trace.outs(e.k)))
        assert first.text.startswith("h1.dfcw+, ")


@pytest.mark.parametrize("asked", [True, False])
def test_a_loss_that_leaps_is_recorded_if_asked_for(tmp_path, capsys, trainer_of, asked):
    trainer = trainer_of(tmp_path / "run", trace_on_alert=asked)
    trainer.tracing.losses.extend([1.0, 1.1] * (tracing.WINDOW // 2))
    trainer._step()  # 5.5
    found = record.recordings(tmp_path / "run")
    assert sorted(found) == [1] * asked
    assert ("step 1: the loss leapt; recorded in" in capsys.readouterr().out) == asked
    assert trainer.state.step == 1


@pytest.mark.parametrize("losses", [[1.0, 1.1] * 24, [9.0, 9.1] * 25, [1.0, 9.0] * 25])
def test_a_loss_is_no_leap_too_early_or_falling_or_as_usual(tmp_path, trainer_of, losses):
    trainer = trainer_of(tmp_path / "run", trace_on_alert=True)
    trainer.tracing.losses.extend(losses)
    trainer._step()
    assert record.recordings(tmp_path / "run") == {}


def test_only_the_newest_losses_count(tmp_path, trainer_of):
    trainer = trainer_of(tmp_path / "run", trace_on_alert=True)
    trainer.tracing.losses.extend([100.0] * 50 + [1.0, 1.1] * (tracing.WINDOW // 2))
    trainer._step()
    assert sorted(record.recordings(tmp_path / "run")) == [1]
    assert len(trainer.tracing.losses) == tracing.WINDOW
