"""train --tensorboard and --wandb: what is logged, at which step, across a resume, and without the
libraries."""

import json
import shutil
import struct
import sys
from types import ModuleType, SimpleNamespace

import pytest
from test_cli import TINY, fails

from backglass.cli import main

RUN = [*TINY[:-4], "--val-batches", "1", "--val-every", "2", "--sample-every", "2", "--out", "run"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Written:
    """A fake of both libraries that keeps what it is told: (tag, step, value)."""

    def __init__(self):
        self.made: list[dict] = []
        self.values: list[tuple] = []
        self.closed = 0

    def writer(self, folder, **options):
        self.made.append({"folder": folder, **options})
        return SimpleNamespace(
            add_scalar=lambda tag, value, step: self.values.append((tag, step, value)),
            add_text=lambda tag, text, step: self.values.append((tag, step, text)),
            close=self._close,
        )

    def init(self, **options):
        self.made.append(options)
        return SimpleNamespace(log=self._log, finish=self._close)

    def _log(self, values, step):
        self.values += [(tag, step, value) for tag, value in values.items()]

    def _close(self):
        self.closed += 1

    def steps(self, tag: str) -> list[int]:
        return [step for name, step, _ in self.values if name == tag]


@pytest.fixture
def board(monkeypatch):
    written, module = Written(), ModuleType("tensorboardX")
    module.SummaryWriter = written.writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    return written


@pytest.fixture
def wandb(monkeypatch):
    written, module = Written(), ModuleType("wandb")
    module.init, module.Html, module.Error = written.init, str, type("Error", (Exception,), {})
    module.Settings = SimpleNamespace
    monkeypatch.setitem(sys.modules, "wandb", module)
    return written


def logged(tmp_path, event: str, key: str) -> list[tuple[int, float]]:
    """(step, value) in log.jsonl."""
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    return [(e["step"], e[key]) for e in lines if e["event"] == event]


@pytest.mark.parametrize(
    "which, flags", [("board", ["--tensorboard"]), ("wandb", ["--wandb", "p"])]
)
def test_loggers_get_what_log_jsonl_gets(request, tmp_path, which, flags):
    written = request.getfixturevalue(which)
    assert main([*RUN, "--steps", "3", *flags]) == 0
    for event, key, tag in [
        ("step", "loss", "train/loss"), ("step", "grad_norm", "train/grad_norm"),
        ("step", "lr", "train/lr"), ("step", "tokens_per_s", "train/tokens_per_s"),
        ("val", "loss", "val/loss"),
    ]:  # fmt: skip
        found = [(step, value) for name, step, value in written.values if name == tag]
        assert found == logged(tmp_path, event, key) and found
    assert written.steps("train/loss") == [1, 2, 3] and written.steps("val/loss") == [0, 2, 3]
    assert written.steps("sample") == [2, 3] and written.closed == 1


def test_a_sample_reaches_the_logger_as_it_stands(board, tmp_path):
    (tmp_path / "a.txt").write_text("<b>&" * 100)
    assert main([*RUN, "--steps", "1", "--data", "a.txt", "--tensorboard"]) == 0
    (text,) = [value for tag, _, value in board.values if tag == "sample"]
    assert text.startswith("<pre>--- step 1: the model continues") and "&lt;b&gt;&amp;" in text


def test_tensorboard_continues_after_the_checkpoint(board, tmp_path):
    assert main([*RUN, "--steps", "4", "--save-every", "3", "--tensorboard"]) == 0
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")  # as if it had been killed at 4
    assert main([*RUN, "--steps", "5", "--resume"]) == 0
    first, second = board.made
    assert (
        first["folder"]
        == second["folder"]
        == str(tmp_path / "run/tensorboard").replace(str(tmp_path) + "/", "")
    )
    assert first["purge_step"] is None and second["purge_step"] == 4
    assert board.steps("train/loss") == [1, 2, 3, 4, 4, 5]


def test_wandb_continues_the_same_run(wandb, tmp_path):
    assert main([*RUN, "--steps", "2", "--wandb", "my-project"]) == 0
    assert main([*RUN, "--steps", "3", "--resume"]) == 0
    first, second = wandb.made
    assert first["project"] == second["project"] == "my-project"
    assert first["id"] == second["id"] == (tmp_path / "run/wandb-id.txt").read_text().strip()
    assert first["config"]["layers"] == 1 and first["resume"] == "allow"


def test_two_runs_of_wandb_have_two_ids(wandb):
    for out in ("a", "b"):
        assert main([*RUN, "--steps", "0", "--wandb", "p", "--out", out]) == 0
    assert wandb.made[0]["id"] != wandb.made[1]["id"]


@pytest.mark.parametrize(
    "flags, module", [(["--tensorboard"], "tensorboardX"), (["--wandb", "p"], "wandb")]
)
@pytest.mark.parametrize("present", [None, ModuleType("a folder of that name")])
def test_a_logger_that_is_not_installed_is_told_before_training(
    tmp_path, capsys, monkeypatch, flags, module, present
):
    monkeypatch.setitem(sys.modules, module, present)
    code, text = fails(capsys, *RUN, "--steps", "1", *flags)
    assert code == 2 and f"{flags[0]} needs {module}" in text and len(text.splitlines()) == 1
    assert f"python -m pip install {module}" in text and not (tmp_path / "run").exists()


def test_wandb_that_cannot_start_leaves_no_run_directory(wandb, tmp_path, capsys):
    def refuse(**options):
        (tmp_path / "run/wandb").mkdir()
        raise sys.modules["wandb"].Error("No API key\nconfigured")

    sys.modules["wandb"].init = refuse
    code, text = fails(capsys, *RUN, "--steps", "1", "--wandb", "p")
    assert code == 1 and "wandb could not start (No API key configured)" in text
    assert "WANDB_MODE=offline" in text and not (tmp_path / "run").exists()


def test_loggers_need_a_run_directory(board):
    import backglass as bg
    from backglass.errors import UserError

    with pytest.raises(UserError, match="this run keeps none"):
        bg.train(bg.presets.tiny(device="numpy", steps=0, tensorboard=True), quiet=True)


def test_event_files_hold_the_log(tmp_path):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    )
    assert main([*RUN, "--steps", "4", "--save-every", "3", "--tensorboard"]) == 0
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")
    assert main([*RUN, "--steps", "5", "--resume"]) == 0
    found = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    found.Reload()
    for tag, key in [("train/loss", "loss"), ("train/lr", "lr"), ("train/grad_norm", "grad_norm")]:
        steps = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in found.Scalars(tag)]
        assert steps == logged(tmp_path, "step", key) and [s for s, _ in steps] == [1, 2, 3, 4, 5]
    assert "sample/text_summary" in found.Tags()["tensors"]


def test_wandb_offline_keeps_its_log_in_the_run_directory(tmp_path, monkeypatch):
    pytest.importorskip("wandb.sdk")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert main([*RUN, "--steps", "2", "--wandb", "p"]) == 0
    name = (tmp_path / "run/wandb-id.txt").read_text().strip()
    (file,) = (tmp_path / "run/wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")
    records = [r for r in read_wandb(file) if r.WhichOneof("record_type") == "history"]
    seen = [
        {".".join(i.nested_key) or i.key: i.value_json for i in r.history.item} for r in records
    ]
    losses = [(int(s["_step"]), json.loads(s["train/loss"])) for s in seen if "train/loss" in s]
    assert losses == [(step, pytest.approx(v)) for step, v in logged(tmp_path, "step", "loss")]


def read_wandb(file):
    """The records of a .wandb file, LevelDB's log format: blocks of 32 KiB, in which each part of a
    record has a header of checksum, length and kind (1: whole; 2, 3, 4: first, middle, last)."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # no header fits: the block ends in zeros
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
