"""`backglass trace` and `backglass compare` as a user meets them."""

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backglass.cli import main
from backglass.debugger.trace import Trace

ROOT = Path(__file__).parent.parent
TINY = ["tiny", "--device", "numpy", "--batch-size", "1", "--seq-len", "8"]
SMALL = [
    "--device", "numpy", "--layers", "1", "--channels", "16", "--heads", "2", "--seq-len", "8",
    "--batch-size", "2", "--val-batches", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run of two steps, `run`, and a recording of its third, `rec`."""
    folder = tmp_path_factory.mktemp("made")
    run, rec = str(folder / "run"), str(folder / "rec")
    assert main(["train", "tiny", *SMALL, "--steps", "2", "--save-every", "1", "--out", run]) == 0
    assert main(["trace", run, "--level", "3", "--out", rec]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_a_copy(made, tmp_path, monkeypatch):
    """Every test has its own copy, as the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/thesis.doc").write_text("years")
    monkeypatch.chdir(tmp_path)


# (arguments, exit code, words of the message)
WRONG = [
    ("trace nosuch", 2, "there is no such run, recording or preset; presets are tiny"),
    ("trace used", 2, "used is no run: there is no run.json in it"),
    ("trace used/thesis.doc", 2, "there is no such run, recording or preset"),
    ("trace run --step 0", 2, "--step must be at least 1, got 0"),
    ("trace run --step x", 2, "expected a whole number, got 'x'"),
    ("train tiny --trace-level 2", 2, "--trace-level must be 0, 1 or 3, got 2"),
    ("trace run --level 4", 2, "--level must be 0, 1, 2 or 3, got 4"),
    ("trace run --level 2", 2, "--level 2 and --tensors 'h0.*' go together"),
    ("trace run --tensors h0.*", 2, "--level 2 and --tensors 'h0.*' go together"),
    ("trace run --level 2 --tensors h7.*", 2, "--tensors h7.*: this step has no such tensor"),
    ("trace run --level 2 --tensors h0.qkv,nosuch", 2, "--tensors nosuch: this step has no such"),
    ("trace run --max-disk much", 2, "expected a size such as 24GiB or 500MB"),
    ("trace run --max-disk 1MB", 2, "--max-disk 1.0 MB is too little: the statistics"),
    ("trace run --batch-size 2", 2, "--batch-size is for presets"),
    ("trace run --seq-len 2", 2, "--seq-len is for presets"),
    ("trace run --data used/thesis.doc", 2, "--data is for presets"),
    ("trace run --tokenizer bytes", 2, "--tokenizer is for presets"),
    ("trace run --device abacus", 2, "abacus"),
    ("trace run --out used", 2, "used is there already"),
    ("trace run --out used/thesis.doc", 2, "used/thesis.doc is there already"),
    ("trace run --out rec", 2, "rec is there already. `backglass trace rec` shows it"),
    ("trace run --out used/thesis.doc/x", 1, "could not be written"),
    ("trace run --event 3", 2, "--event looks into a recording, and run is none"),
    ("trace run --tensor h0.qkv", 2, "--tensor looks into a recording, and run is none"),
    ("trace run --replay", 2, "--replay looks into a recording, and run is none"),
    ("trace run/checkpoints/step-00000001 --step 3", 2, "the step after run/checkpoints/step-0"),
    ("trace tiny --seq-len 0", 2, "--seq-len must be at least 1"),
    ("trace tiny --data nosuch.txt", 2, "no file found"),
    ("trace rec --level 3", 2, "--level records a step, and rec is a recording"),
    ("trace rec --step 3", 2, "--step records a step, and rec is a recording"),
    ("trace rec --max-disk 1GB", 2, "--max-disk records a step, and rec is a recording"),
    ("trace rec --out x", 2, "--out records a step, and rec is a recording"),
    ("trace rec --event 99", 2, "event 99: the recording has events 0 to"),
    ("trace rec --event -1", 2, "event -1: the recording has events 0 to"),
    ("trace rec --tensor nosuch", 2, "rec has no tensor 'nosuch'; names are like h0.qkv"),
    ("compare nosuch rec", 2, "there is no run or recording nosuch"),
    ("compare run run", 2, "no recording of the same step (steps none and none)"),
    ("compare rec used", 2, "no recording of the same step (steps 3 and none)"),
    ("compare rec", 2, "B"),
]


@pytest.mark.parametrize("command, code, words", WRONG, ids=[case[0] for case in WRONG])
def test_wrong_input_ends_with_a_clear_paragraph(run, tmp_path, command, code, words):
    before = sorted(tmp_path.rglob("*"))
    found, text = run(*command.split())
    assert (found, words in " ".join(text.split())) == (code, True), text
    assert sorted(tmp_path.rglob("*")) == before
    if "For full helptext" not in text:  # tyro says it in a frame
        assert text.strip().splitlines()[-1].startswith("backglass: ")


def test_a_recording_is_shown_event_by_event(run):
    code, text = run("trace", "rec")
    lines = text.splitlines()
    with sqlite3.connect("rec/index.sqlite") as db:
        texts = [t for (t,) in db.execute("select text from events order by k")]
    db.close()
    assert code == 0 and lines[0].startswith(f"step 3 of tiny, {len(texts)} events, level 3, on nu")
    assert "flash attention: its loss differs by" in lines[1]
    assert len(lines) == len(texts) + 2
    assert all(text[:64] in line for text, line in zip(texts, lines[2:], strict=True))


def test_an_event_is_shown_with_its_tensors_and_the_kernels_lines(run):
    code, text = run("trace", "rec", "--event", "2")
    assert code == 0
    for words in (
        "event 2, forward: h0.qkv = matmul(h0.ln1, h0.qkvw, h0.qkvb)", "reads x",
        "h0.qkvw (version 0)  [48, 16] fp32  min ", "makes y", "def matmul(x, w, b):", "twin    ",
        "src/ops/matmul/maths.py, lines ", "called  models/gpt2.py:",
    ):  # fmt: skip
        assert words in text, words


def test_every_version_of_a_tensor_is_shown(run):
    code, text = run("trace", "rec", "--tensor", "dwte")
    made = [line.partition("(")[0] for line in text.splitlines()[::2]]
    assert code == 0 and [re.sub(r"event \d+", "event K", line) for line in made] == [
        "version 0  before the step", "version 1  event K: dwte+ = d_matmul_w",
        "version 2  event K: dwte+, dwpe+ = d_embed", "version 3  event K: p, m, v, dp = adamw",
    ]  # fmt: skip


def test_numbers_that_are_not_finite_stand_out(run):
    with sqlite3.connect("rec/index.sqlite") as db:
        db.execute("update versions set nans = 2, bad = '[[0, 1, 2]]' where tensor = 'h0.fch'")
    db.close()
    (line,) = (x for x in run("trace", "rec")[1].splitlines() if " h0.fch = " in x)
    assert "NOT FINITE" in line
    assert "2 NaN, 0 infinite, first at [0, 1, 2]" in run("trace", "rec", "--tensor", "h0.fch")[1]


def test_what_was_recorded_as_json(run):
    code, text = run("trace", "run", "--step", "2", "--level", "1", "--json")
    found = json.loads(text)
    with Trace("rec") as trace:
        assert code == 0 and found["events"] == trace.count and found["left_out"] == 0
    assert found["recording"] == "run/trace/step-00000002" and found["loss"] > 0
    assert set(found) == {
        "recording", "seconds", "loss", "grad_norm", "events", "stored_bytes", "left_out",
    }  # fmt: skip


def test_a_recording_as_json(run):
    found = json.loads(run("trace", "rec", "--json")[1])
    assert found["level"] == 3 and found["complete"] and len(found["rows"]) == found["events"]
    assert found["rows"][2]["text"] == "h0.qkv = matmul(h0.ln1, h0.qkvw, h0.qkvb)"
    found = json.loads(run("trace", "rec", "--event", "2", "--json")[1])
    assert [(x["name"], x["tensor"], x["number"]) for x in found["in"]] == [
        ("x", "h0.ln1", 1), ("w", "h0.qkvw", 0), ("b", "h0.qkvb", 0),
    ]  # fmt: skip
    assert found["out"][0]["event"] == 2 and not found["out"][0]["adds"]
    found = json.loads(run("trace", "rec", "--tensor", "dwte", "--json")[1])
    assert [x["number"] for x in found] == [0, 1, 2, 3] and "min" in found[1]["statistics"]


def test_a_replay_as_json(run):
    code, text = run("trace", "rec", "--replay", "--json")
    with Trace("rec") as trace:
        want = {"agreed": trace.manifest["versions"], "diverged": None, "damaged": []}
    assert (code, json.loads(text)) == (0, want)


def test_a_comparison_as_json(run):
    code, text = run("compare", "rec", "rec", "--json")
    (found,) = json.loads(text)
    assert code == 0 and found["event"] is None and found["before"] == [] and found["step"] == 3


def test_a_checkpoint_means_the_step_after_it(run):
    code, text = run("trace", "run/checkpoints/step-00000001", "--level", "0")
    assert code == 0 and "run/trace/step-00000002" in text
    assert run("trace", "run/trace/step-00000002", "--replay")[0] == 0


def test_a_run_is_recorded_at_the_step_after_its_newest_checkpoint(run):
    assert "run/trace/step-00000003" in run("trace", "run", "--level", "0")[1]


def test_patterns_choose_the_tensors_of_level_2(run):
    assert run("trace", "run", "--level", "2", "--tensors", "h0.f*, dwte", "--out", "x")[0] == 0
    with sqlite3.connect("x/index.sqlite") as db:
        rows = db.execute(
            "select distinct tensor from versions join tensors using (hash) where kind != 'input'"
        ).fetchall()
    db.close()
    names = {name for (name,) in rows}
    assert {"h0.fch", "h0.fch_gelu", "h0.fcw", "h0.fcb/m", "dwte"} <= names
    assert all(name.startswith("h0.f") or name == "dwte" for name in names)


def test_a_preset_is_recorded_where_runs_are(run):
    code, text = run("trace", *TINY, "--level", "0")
    assert code == 0 and " in runs/tiny-" in text and "/trace/step-00000001\n" in text


def test_a_later_step_of_a_preset_is_replayed_from_the_beginning(run):
    assert run("trace", *TINY, "--step", "3", "--level", "0", "--out", "x")[0] == 0
    code, text = run("trace", "x", "--replay")
    assert code == 0 and "replay bit-exact" in text


def test_a_run_of_another_device_can_be_recorded(run):
    """On another device it is another program: the comparison says how far apart they are."""
    assert run("trace", "run", "--device", "cpu", "--step", "3", "--out", "x")[0] == 0
    assert json.loads(Path("x/manifest.json").read_text())["device"] == "cpu"
    code, text = run("compare", "rec", "x")
    assert code == 1 and "device: numpy and cpu" in text and "largest error at event" in text
    assert "divergence" not in text and "same bits)" not in text.replace("not the same bits", "")
    assert run("trace", "x", "--replay")[0] == 0


def test_two_devices_are_compared_within_what_is_allowed(run):
    assert (
        run("trace", "run", "--device", "cpu", "--step", "3", "--level", "3", "--out", "x")[0] == 0
    )
    assert run("trace", "run", "--step", "3", "--level", "3", "--out", "y")[0] == 0
    code, text = run("compare", "y", "x", "--all", "--json")
    (found,) = json.loads(text)
    errors = [d["error"] for e in found["events"] for d in e["differences"]]
    worst = max(errors)
    assert code == 1 and 0 < worst < 1e-3
    assert run("compare", "y", "x", "--within", f"{worst * 1.01}")[0] == 0
    assert run("compare", "y", "x", "--within", f"{worst * 0.99}")[0] == 1
    code, text = run("compare", "y", "y", "--within", "1e-3")
    assert code == 2 and "its bits must be the same" in text


def test_what_max_disk_leaves_out_is_said(run):
    code, text = run("trace", *TINY, "--level", "3", "--max-disk", "22MB", "--out", "x")
    assert code == 0
    left_out = json.loads(Path("x/manifest.json").read_text())["left_out"]
    assert left_out and f"{left_out} tensors were not stored: --max-disk 22MB is full" in text


@pytest.mark.parametrize("limit", [30_000, 300_000])
def test_a_full_disk_ends_with_a_clear_paragraph_and_leaves_nothing(limit):
    """No file may grow beyond the limit: the index, or a tensor's file."""
    resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX")

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "backglass", "trace", *TINY, "--level", "3", "--out", "x"]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("backglass: x/") and "could not be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not Path("x").exists()


def test_ctrl_c_leaves_no_half_recording():
    command = [
        sys.executable, "-m", "backglass", "trace", "tiny", "--device", "numpy", "--level", "3",
        "--out", "x",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # not of a background job
    )  # fmt: skip
    deadline = time.time() + 60
    while time.time() < deadline and not Path("x/t/000003.safetensors").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.strip() == "backglass: stopped"
    assert not Path("x").exists()


def test_a_terminal_sees_one_bar_after_the_other(tmp_path):
    """Training up to the step, then recording it: two bars of rich, of which only one may live."""
    pty = pytest.importorskip("pty")
    code = f"from backglass.cli import main; exit(main({['trace', *TINY, '--step', '3']!r}))"
    shown = []

    def read(fd):
        shown.append(os.read(fd, 4096))
        return shown[-1]

    status = pty.spawn([sys.executable, "-c", code], read)
    text = b"".join(shown).decode()
    assert os.waitstatus_to_exitcode(status) == 0 and "step 3: " in text
    assert "training up to it" in text and "recording" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.slow
def test_the_commands_and_the_python_of_the_page_run_one_after_the_other(run):
    text = (ROOT / "docs" / "trace.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
    lines = [x for _, block in blocks for x in block.splitlines() if x.startswith("backglass ")]
    assert len(lines) > 8
    for line in lines:
        code, said = run(*shlex.split(line)[1:])
        assert code == 0, f"{line}\n{said}"
    (python,) = (block for kind, block in blocks if kind == "python")
    exec(python, {})
