"""The studio's runs in a browser: a number edited and what follows from it, two recordings held
against each other, a training watched while it goes on.  What is expected is read from files or
computed here."""

import contextlib
import dataclasses
import gzip
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from studio_browser import SMALL, Files, chromium, in_float64, record, serving, tab

from backglass.debugger import server
from backglass.debugger.shelf import id_of
from backglass.tools import runlog

LATE_SECONDS = 1.0
STEP = "step-00000001"
COLOURED = """() => { const c = document.querySelector('.heatmap canvas');
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;
  for (let i = 0; i < d.length; i += 4) n += d[i + 3] && Math.abs(d[i] - d[i + 2]) > 60;
  return n > 50; }"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def once(browser, tmp_path_factory):
    """A step with every tensor, not to be changed.  After the browser, so that nothing is recorded
    without one."""
    return record(tmp_path_factory.mktemp("once") / "a" / "trace" / STEP)


@pytest.fixture
def full(once, tmp_path):
    """A copy of it, alone in a folder of runs."""
    return Files(shutil.copytree(once, tmp_path / "runs" / "a" / "trace" / STEP))


@pytest.fixture
def studio(browser, full):
    with serving(full.folder.parents[2]) as address, tab(browser, address) as found:
        found.open()
        yield found


def octets(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def forks(full: Files) -> list[Path]:
    return sorted(full.folder.parent.glob(f"{STEP}.what-if-*"))


def made(files: Files, k: int) -> list[tuple[str, int, str]]:
    """What event k made: tensor, number and hash."""
    outs = [o["version"] for o in files.operands if (o["event"], o["role"]) == (k, "out")]
    return [(v["tensor"], v["number"], v["hash"]) for v in map(files.versions.get, outs)]


def what_if(studio, full, tensor, index, literal, number=0):
    """By keyboard: the cell, then e, the number, Enter; the fork that was made."""
    version = full.named(tensor)[number]
    k = version["event"] or 0
    studio.tensor(full, k, version["id"], "?ix=" + ",".join(map(str, index)))
    studio.cell()
    before = forks(full)
    studio.press("e")
    studio.page.locator(".edit input").wait_for()
    studio.press("Control+a")
    studio.page.keyboard.type(literal)
    studio.press("Enter")
    studio.page.get_by_test_id("radius").wait_for(timeout=60_000)
    (new,) = set(forks(full)) - set(before)
    return Files(new)


def wait_for_states(studio, count: int) -> list[str]:
    """The state of every event in the list, once all are there."""
    studio.press("Escape")
    studio.page.get_by_role("button", name="unchanged too").click()
    studio.until(f"document.querySelectorAll('.diverging [data-state]').length === {count}")
    studio.until("!document.querySelector('[data-state=pending]')")
    return studio.page.evaluate(
        "[...document.querySelectorAll('.diverging [data-state]')].map(x => x.dataset.state)"
    )


def loss_shown(studio, which: str) -> float:
    cell = studio.page.get_by_test_id(f"loss-{which}")
    studio.until(f"document.querySelector('[data-testid=\"loss-{which}\"]').textContent !== '–'")
    return float(cell.inner_text())


# ------------------------------------------------------------ what if (check 9)


def test_an_edited_weight_changes_what_is_downstream_and_nothing_else(studio, full):
    fork = what_if(studio, full, "h1.fcw", [3, 5], "2.5")
    states = wait_for_states(studio, len(full.events))
    want = ["unchanged" if made(full, e["k"]) == made(fork, e["k"]) else "changed"
            for e in full.events]  # fmt: skip
    assert states == want
    first = next(e["k"] for e in full.events if e["text"].startswith("h1.fch = "))
    assert want.index("changed") == first and want[first:].count("unchanged") < len(want) // 4
    words = studio.text("radius")
    assert list(map(int, re.findall(r"\d+", words))) == [
        want.count("changed"), len(want), want.count("unchanged"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "tensor, index, literal", [("h1.fcw", (3, 5), "2.5"), ("ids", (1, 4), "65")]
)
def test_the_new_loss_is_that_of_the_one_file_in_float64(studio, full, tensor, index, literal):
    def edit(name, k, values):
        if name == tensor and k == 0:
            values[index] = float(literal)

    was, want = in_float64(full)[0], in_float64(full, edit)[0]
    what_if(studio, full, tensor, list(index), literal)
    assert abs(want - was) > 1e-4 * was
    assert abs(loss_shown(studio, "b") - want) < 1e-6 * want
    assert abs(loss_shown(studio, "a") - was) < 1e-6 * was


def test_an_edited_activation_is_in_the_fork_bit_for_bit(studio, full):
    version = full.named("h0.fch_gelu")[0]
    fork = what_if(studio, full, "h0.fch_gelu", [1, 2, 3], "-0.1")
    old, new = full.values(version), fork.values(fork.named("h0.fch_gelu")[0])
    assert new[1, 2, 3] == np.float32(-0.1)
    differ = np.argwhere(old.view(np.int32) != new.view(np.int32))
    assert differ.tolist() == [[1, 2, 3]]
    states = wait_for_states(studio, len(full.events))
    assert states.index("edited") == version["event"]
    assert set(states[: version["event"]]) == {"unchanged"}


def test_undo_restores_the_number_and_every_byte(studio, full):
    before = octets(full.folder)
    version = full.named("h1.fcw")[0]
    want = full.values(version)[3, 5]
    fork = what_if(studio, full, "h1.fcw", [3, 5], "2.5")
    studio.page.get_by_role("button", name="Undo").click()
    studio.page.wait_for_selector(f".inspector[data-version='{version['id']}']")
    assert studio.index() == [3, 5]
    assert np.float32(studio.cell()).tobytes() == want.tobytes()
    assert octets(full.folder) == before
    assert not fork.folder.exists() and forks(full) == []


def test_a_fork_of_a_fork_that_edits_back_has_no_divergence(studio, full):
    old = full.values(full.named("h1.fcw")[0])[3, 5]
    fork = what_if(studio, full, "h1.fcw", [3, 5], "2.5")
    back = what_if(studio, fork, "h1.fcw", [3, 5], repr(float(old)))
    assert [made(back, e["k"]) for e in full.events] == [made(full, e["k"]) for e in full.events]
    studio.go(f"#/s/compare/r/{full.id}/e/0?vs={back.id}")
    studio.page.get_by_test_id("verdict").get_by_text("no divergence").wait_for()


@pytest.mark.parametrize(
    "literal, words",
    [("1+1", "is no number"), ("__import__('os')", "is no number"), ("1e99", "too large"),
     ("0x10", "is no number"), ("1_000", "is no number")],
)  # fmt: skip
def test_what_is_no_number_is_refused_in_words(studio, full, literal, words):
    version = full.named("h1.fcw")[0]
    studio.tensor(full, 0, version["id"], "?ix=3,5")
    studio.cell()
    studio.press("e")
    studio.page.locator(".edit input").fill(literal)
    studio.press("Enter")
    problem = studio.page.locator(".edit .problem", has_text=words)
    problem.wait_for()
    assert forks(full) == []
    assert all("422" in c or "400" in c for c in studio.complaints) and studio.complaints
    studio.complaints.clear()


def test_a_read_only_studio_says_why_it_edits_nothing(browser, full):
    root = full.folder.parents[2]
    with serving(root, read_only=True) as address, tab(browser, address) as studio:
        studio.open()
        studio.tensor(full, 0, full.named("h1.fcw")[0]["id"], "?ix=3,5")
        studio.cell()
        studio.press("e")
        studio.page.locator(".edit input").fill("2")
        studio.press("Enter")
        studio.page.locator(".edit .problem", has_text="--read-only").wait_for()
        assert len(studio.complaints) == 1 and "403" in studio.complaints.pop()
    assert forks(full) == []


# ------------------------------------------------------------ compare (check 16)


def flipped(session):
    """One bit of one weight, its last."""
    w = session.memory.read(session.t.p.h[1].fcw)
    w.view(np.uint32)[7, 9] ^= 1
    session.memory.write(session.t.p.h[1].fcw, w)


def pair(tmp_path, **second):
    """Step 3, and the same step once more with something else."""
    return [
        Files(record(tmp_path / name / "trace" / "step-00000003", step=3, **changes))
        for name, changes in (("a", {}), ("b", second))
    ]


@contextlib.contextmanager
def comparing(browser, tmp_path, a, b, query=""):
    with serving(tmp_path) as address, tab(browser, address) as studio:
        studio.open()
        studio.go(f"#/s/compare/r/{a.id}/e/0?vs={b.id}{query}")
        studio.page.get_by_test_id("verdict").wait_for()
        studio.until("!/comparing/.test(document.querySelector('.compare').innerText)")
        yield studio


def error_of(a: Files, b: Files, x: dict, y: dict) -> float:
    p, q = a.values(x).astype(np.float64), b.values(y).astype(np.float64)
    return float(np.linalg.norm(p - q) / np.linalg.norm(p))


def test_one_flipped_bit_is_named_by_its_first_event_with_its_size(browser, tmp_path):
    a, b = pair(tmp_path, plant=flipped)
    first = next(e["k"] for e in a.events if made(a, e["k"]) != made(b, e["k"]))
    assert a.events[first]["text"].startswith("h1.fch = ")
    x, y = a.named("h1.fch")[0], b.named("h1.fch")[0]
    p, q = a.values(x), b.values(y)
    with comparing(browser, tmp_path, a, b) as studio:
        studio.page.get_by_test_id("verdict").get_by_text(f"event {first}").wait_for()
        assert studio.text("verdict") == f"first divergence: event {first}"
        studio.page.locator(f".diverging [data-k='{first}']").click()
        shown = studio.page.locator(".chosen [data-tensor='h1.fch'] .pair > span").all_inner_texts()
    ulps = np.abs(p.view(np.int32).astype(np.int64) - q.view(np.int32)).max()  # none changes sign
    assert (np.sign(p) == np.sign(q)).all()
    assert shown[1].split("\n")[1] == f"{ulps:,}"
    place = np.unravel_index(np.abs(p.astype(np.float64) - q).argmax(), p.shape)
    assert shown[2].split("\n")[1] == ",".join(map(str, place))
    error = float(shown[0].split("\n")[1].replace("−", "-"))
    assert abs(error - error_of(a, b, x, y)) < 0.01 * error


def test_the_same_step_twice_has_no_divergence(browser, tmp_path):
    a, b = pair(tmp_path)
    with comparing(browser, tmp_path, a, b) as studio:
        assert studio.text("verdict") == "no divergence"
        assert studio.page.locator(".diverging [data-k]").count() == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("interpret", marks=pytest.mark.slow)])
def test_two_devices_get_a_tolerance_and_are_never_equal(browser, tmp_path, device):
    """interpret: the Triton kernels; Numba's are cpu."""
    if device == "interpret":
        pytest.importorskip("triton", reason="Triton is Linux only")
    a, b = pair(tmp_path, device=device)
    errors = {}
    for e in a.events:
        for tensor, number, digest in made(a, e["k"]):
            x, y = (next(v for v in f.named(tensor) if v["number"] == number) for f in (a, b))
            if y["hash"] != digest:
                error = error_of(a, b, x, y)
                errors[e["k"]] = max(errors.get(e["k"], 0), error)
    worst = max(errors, key=errors.get)
    with comparing(browser, tmp_path, a, b) as studio:
        studio.until(f"document.querySelectorAll('.diverging [data-k]').length === {len(errors)}")
        said = studio.page.locator(".said").inner_text()
    assert "not the same program" in said and f"device: numpy and {device}" in said
    assert not re.search(r"no divergence|same bits|equal", said)
    size, k = re.search(r"largest error (\S+) at event (\d+)", said).groups()
    assert int(k) == worst
    assert abs(float(size.replace("−", "-")) - errors[worst]) < 0.01 * errors[worst]


def test_d_shows_the_difference_with_both_numbers_of_the_files(browser, tmp_path):
    a, b = pair(tmp_path, plant=flipped)
    x, y = a.named("h1.fch")[0], b.named("h1.fch")[0]
    p, q = a.values(x), b.values(y)
    place = np.unravel_index(np.abs(p.astype(np.float64) - q).argmax(), p.shape)
    with comparing(browser, tmp_path, a, b) as studio:
        studio.page.locator(f".diverging [data-k='{x['event']}']").click()
        studio.press("d")
        studio.page.wait_for_selector(f".inspector[data-version='{x['id']}']")
        other = studio.page.get_by_test_id("cell-before")
        other.wait_for()
        assert studio.index() == list(place)
        assert np.float32(studio.cell()) == p[place] and np.float32(other.inner_text()) == q[place]
        assert studio.page.get_by_role("radio", name="Δ").get_attribute("aria-checked") == "true"
        studio.until(f"({COLOURED})()")
        studio.press("d")
        studio.page.get_by_role("radio", name="mean", checked=True).wait_for()


# ------------------------------------------------------------ live (check 17)

TRAINING = [
    "train", "tiny", "--device", "numpy", "--layers", "2", "--channels", "32", "--heads", "2",
    "--seq-len", "16", "--batch-size", "2", "--val-every", "10", "--schedule-steps", "100000",
]  # fmt: skip


@contextlib.contextmanager
def training(out: Path, *more: str):
    """A training in a process of its own."""
    command = [sys.executable, "-m", "backglass", *TRAINING, "--out", str(out), *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def whole_lines(log: Path) -> list[dict]:
    """The rows of a log, without one that is being written."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def last_step(log: Path) -> int:
    return max((r["step"] for r in whole_lines(log) if r["event"] == "step"), default=0)


def eventually(condition, seconds: float = 60.0) -> float:
    """Seconds until it holds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.005)
    return time.monotonic() - start


def test_points_of_a_training_arrive_within_a_second(browser, tmp_path):
    root, log = tmp_path / "runs", tmp_path / "runs" / "live" / "log.jsonl"
    with training(root / "live", "--steps", "100000", "--total-batch-tokens", "512"):
        eventually(lambda: last_step(log) > 3)
        with serving(root) as address, tab(browser, address) as studio:
            studio.open("#/s/live")
            shown = studio.page.get_by_test_id("latest-live")
            shown.wait_for()
            for _ in range(10):
                written = last_step(log)
                late = eventually(lambda n=written: int(shown.inner_text()) >= n, 10)
                assert late <= LATE_SECONDS, late
                eventually(lambda n=written: last_step(log) > n + 5)


def test_only_new_rows_are_sent(browser, tmp_path):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"settings": dataclasses.asdict(SMALL)}))
    rows = [
        {"event": "step", "step": n, "loss": 5 - n / 1e4, "grad_norm": 1.5, "lr": 1e-3,
         "tokens_per_s": 1e4, "ms": 2.0} for n in range(1, 3002)
    ]  # fmt: skip
    text = [json.dumps(row) + "\n" for row in rows]
    log = run / "log.jsonl"
    log.write_text("".join(text[:3000]))
    sizes = []
    with serving(run.parent) as address, tab(browser, address) as studio:
        studio.page.on("response", lambda r: "/api/live" in r.url and sizes.append(len(r.body())))
        studio.open("#/s/live")
        studio.page.get_by_test_id("latest-a").get_by_text("3000").wait_for()
        eventually(lambda: studio.page.wait_for_timeout(20) or len(sizes) >= 1, 10)
        with log.open("a") as f:
            f.write(text[3000])
        studio.page.get_by_test_id("latest-a").get_by_text("3001").wait_for()
        eventually(lambda: studio.page.wait_for_timeout(20) or len(sizes) >= 2, 10)
        fact = studio.page.locator("[data-run=a] [data-fact=loss]").inner_text()
    assert sizes[0] > 50_000 and max(sizes[1:]) < 1000
    assert float(fact) == pytest.approx(rows[3000]["loss"], abs=5e-4)


def test_the_table_has_the_numbers_of_the_log(browser, tmp_path):
    root, log = tmp_path / "runs", tmp_path / "runs" / "a" / "log.jsonl"
    with training(root / "a", "--steps", "30") as process:
        assert process.wait(timeout=120) == 0
    want = {r["step"]: r for r in whole_lines(log) if r["event"] == "step"}
    val = {r["step"]: r["loss"] for r in whole_lines(log) if r["event"] == "val"}
    with serving(root) as address, tab(browser, address) as studio:
        studio.open("#/s/live?f=table")
        studio.page.locator(".rows-table tbody tr").nth(29).wait_for()
        found = [row.locator("th, td").all_inner_texts()
                 for row in studio.page.locator(".rows-table tbody tr").all()]  # fmt: skip
        assert studio.text("state-a") == "finished"
    assert [int(row[0]) for row in found] == sorted(want, reverse=True)
    for step, loss, val_loss, norm, lr, rate, ms in found:
        r = want[int(step)]
        assert [float(x) for x in (loss, norm, lr, rate, ms)] == [
            r["loss"], r["grad_norm"], r["lr"], r["tokens_per_s"], r["ms"]
        ]  # fmt: skip
        assert (float(val_loss) if val_loss else None) == val.get(int(step))


def events_in(recording: Path) -> int:
    """How many a recording has that is being made, 0 while it has no tables."""
    if not (recording / "index.sqlite").exists():
        return 0
    uri = f"file:{recording / 'index.sqlite'}?mode=ro"
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(uri, uri=True)) as db,
    ):
        return db.execute("select count(*) from events").fetchone()[0]
    return 0


def test_a_trainer_killed_in_a_recording_leaves_everything_readable(browser, tmp_path):
    root, run = tmp_path / "runs", tmp_path / "runs" / "a"
    many = ("--steps", "100000", "--total-batch-tokens", "1024", "--trace-every", "4")
    with training(run, *many) as process:
        second = run / "trace" / "step-00000008"
        eventually(lambda: events_in(second) > 20, 120)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    cut = Files(second)
    assert not cut.manifest["complete"] and 20 < len(cut.events) < cut.manifest["events"]
    last = last_step(run / "log.jsonl")
    with serving(root) as address, tab(browser, address) as studio:
        studio.open("#/s/live")
        studio.page.get_by_test_id("latest-a").get_by_text(str(last)).wait_for()
        assert last == 7
        whole = studio.page.locator("[data-recording='4']")
        assert whole.get_attribute("data-complete") == "true"
        assert studio.page.locator("[data-recording='8']").get_attribute("data-complete") == "false"
        studio.page.locator("[data-recording='8']").click()
        studio.arrived(0)
        studio.press("End")
        studio.arrived(len(cut.events) - 1)
        out = next(
            o for o in cut.operands if (o["event"], o["role"]) == (len(cut.events) - 1, "out")
        )
        norm = cut.versions[out["version"]]["norm"]
        studio.press("i")
        shown = studio.page.locator(".side [data-stat=norm]")
        shown.wait_for()
        assert float(shown.get_attribute("title")) == norm


def test_a_recording_appears_when_it_is_finished(browser, full, once):
    run = full.folder.parents[1]
    (run / "run.json").write_text(json.dumps({"settings": dataclasses.asdict(SMALL)}))
    with serving(run.parent) as address, tab(browser, address) as studio:
        studio.open("#/s/live")
        studio.page.locator("[data-recording='1']").wait_for()
        part = shutil.copytree(once, run / "trace" / ".new")
        manifest = json.loads((part / "manifest.json").read_text())
        (part / "manifest.json").write_text(json.dumps(manifest | {"step": 2}))
        start = time.monotonic()
        part.rename(run / "trace" / "step-00000002")
        studio.page.locator("[data-recording='2']").wait_for()
        assert time.monotonic() - start <= LATE_SECONDS


def test_a_log_that_is_written_anew_is_shown_anew(browser, tmp_path):
    """As a resumed run does."""
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"settings": dataclasses.asdict(SMALL)}))
    row = {"event": "step", "grad_norm": 1.5, "lr": 1e-3, "tokens_per_s": 1e4, "ms": 2.0}
    lines = [json.dumps(row | {"step": n, "loss": 9.0 - n}) + "\n" for n in range(1, 6)]
    (run / "log.jsonl").write_text("".join(lines))
    with serving(run.parent) as address, tab(browser, address) as studio:
        studio.open("#/s/live?f=table")
        studio.page.locator(".rows-table tbody tr").nth(4).wait_for()
        (run / "new").write_text("".join(lines[:2]))
        (run / "new").replace(run / "log.jsonl")
        studio.until("document.querySelectorAll('.rows-table tbody tr').length === 2")
        assert runlog.read(run / "log.jsonl").steps == 2


# ------------------------------------------------------------ links, keyboard, export (check 20)


def test_a_link_restores_a_comparison_in_a_new_context(browser, full, once, tmp_path):
    with serving(full.folder.parents[2]) as address:
        with tab(browser, address) as studio:
            studio.open()
            fork = what_if(studio, full, "h1.fcw", [3, 5], "2.5")
            k = next(e["k"] for e in full.events if e["op"] == "d_gelu")
            wait_for_states(studio, len(full.events))
            studio.page.locator(f".diverging [data-k='{k}']").click()
            studio.page.wait_for_timeout(300)
            link, shown = studio.page.url, studio.page.locator(".chosen").inner_text()
        with tab(browser, address) as studio:
            studio.open("#" + link.partition("#")[2])
            studio.page.locator(f".chosen[data-shown='{k}']").wait_for()
            studio.until("!document.querySelector('[data-state=pending]')")
            assert studio.page.locator(".chosen").inner_text() == shown
            assert studio.page.locator(".diverging [data-k]").count() == len(full.events)
            assert f"vs={fork.id}" in studio.page.url


def test_comma_and_point_go_to_the_recorded_steps_beside(browser, tmp_path):
    files = [Files(record(tmp_path / "a" / "trace" / f"step-{n:08d}", step=n, level=1))
             for n in (1, 2)]  # fmt: skip
    with serving(tmp_path / "a") as address, tab(browser, address) as studio:
        studio.open()
        version = files[0].named("h1.fch")[0]
        studio.tensor(files[0], version["event"], version["id"])
        studio.press(".")
        studio.until(f"location.hash.startsWith('#/r/{files[1].id}/e/{version['event']}/t/')")
        other = files[1].named("h1.fch")[0]
        studio.page.wait_for_selector(f".inspector[data-version='{other['id']}']")
        studio.press(",")
        studio.until(f"location.hash.startsWith('#/r/{files[0].id}/')")


def test_shift_d_and_shift_r_open_the_screens_and_the_palette_finds_them(studio, full):
    studio.event(full, 0)
    studio.press("Shift+D")
    studio.page.locator(".compare").wait_for()
    studio.press("Shift+R")
    studio.page.locator("main.live").wait_for()
    studio.press("/")
    studio.type("compare two")
    studio.press("Enter")
    studio.page.locator(".compare").wait_for()


def test_exported_screens_have_the_numbers_and_ask_for_nothing(browser, full, tmp_path):
    run = full.folder.parents[1]
    (run / "run.json").write_text(json.dumps({"settings": dataclasses.asdict(SMALL)}))
    row = {"event": "step", "step": 1, "loss": 5.012345678901234, "grad_norm": 1.5,
           "lr": 1e-3, "tokens_per_s": 1e4, "ms": 2.0}  # fmt: skip
    (run / "log.jsonl").write_text(json.dumps(row) + "\n")
    texts = []
    with serving(run.parent) as address, tab(browser, address) as studio:
        studio.open()
        fork = what_if(studio, full, "h1.fcw", [3, 5], "2.5")
        wait_for_states(studio, len(full.events))
        for link in (None, "#/s/live"):
            if link:
                studio.go(link)
                studio.page.get_by_test_id("latest-a").get_by_text("1").wait_for()
            with studio.page.expect_download() as download:
                studio.press("x")
            file = tmp_path / f"{len(texts)}.html"
            download.value.save_as(file)
            page, asked = browser.new_page(), []
            page.on("request", lambda r, asked=asked: asked.append(r.url))
            page.goto(file.as_uri())
            texts.append(page.inner_text("body"))
            assert [u for u in asked if not u.startswith("data:")] == [file.as_uri()]
            page.context.close()
    assert repr(fork.manifest["loss"]) in texts[0] and repr(full.manifest["loss"]) in texts[0]
    x, y = full.named("h1.fch")[0], fork.named("h1.fch")[0]
    assert repr(error_of(full, fork, x, y)) in texts[0]
    assert "5.012345678901234" in texts[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_moves_while_a_run_grows(browser, tmp_path, scheme):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"settings": dataclasses.asdict(SMALL)}))
    row = {"event": "step", "grad_norm": 1.5, "lr": 1e-3, "tokens_per_s": 1e4, "ms": 2.0}
    places = "['.plot.loss', '.plot.lr', '.run-row', '.facts-grid', '.toolbar'].map(s => {"
    places += " const r = document.querySelector(s).getBoundingClientRect();"
    places += " return [r.x, r.y, r.width, r.height] })"
    options = {"viewport": {"width": 1280, "height": 720}, "color_scheme": scheme}
    log = run / "log.jsonl"
    log.write_text(json.dumps(row | {"step": 1, "loss": 5.5}) + "\n")
    with serving(run.parent) as address, tab(browser, address, **options) as studio:
        studio.open("#/s/live")
        studio.page.get_by_test_id("latest-a").get_by_text("1", exact=True).wait_for()
        first = studio.page.evaluate(places)
        for n in (2, 30, 4000):
            with log.open("a") as f:
                f.write(json.dumps(row | {"step": n, "loss": 1e-5 * n}) + "\n")
            studio.page.get_by_test_id("latest-a").get_by_text(str(n), exact=True).wait_for()
            assert studio.page.evaluate(places) == first, n


def test_a_run_without_recordings_opens_with_its_curves(browser, tmp_path):
    run = tmp_path / "a"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"settings": dataclasses.asdict(SMALL)}))
    with serving(run) as address, tab(browser, address) as studio:
        studio.open()
        studio.page.get_by_text("Nothing logged yet").wait_for()
        assert id_of(run.resolve()) and server.STATIC.is_dir()


def test_the_script_still_fits_the_budget(capsys):
    sizes = [len(gzip.compress(p.read_bytes(), 9)) for p in (server.STATIC / "assets").glob("*.js")]
    assert sizes and sum(sizes) <= 100_000
    print(f"first load: {sum(sizes):,} bytes of gzipped JavaScript")
