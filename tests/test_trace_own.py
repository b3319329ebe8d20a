"""Level 0 of a recording: statistics of the program that the run itself executes, transformed."""

import json

import pytest
from studio_browser import Files, chromium, serving, tab
from test_trace import SILENT, Raw, record, small

from backglass.cli import main
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading
from backglass.debugger.record import Wanted, note_own, record_step
from backglass.debugger.replay import before_step, replay
from backglass.debugger.store import digest_of
from backglass.debugger.trace import Trace
from backglass.debugger.whatif import edit_of
from backglass.execute.trace import kin
from backglass.models import gpt2
from backglass.program.step import record_micro
from backglass.program.validate import twins
from backglass.training import loop

OWN = dict(device="cpu", recompute="fch_gelu")


def test_level_0_records_the_lines_that_the_run_executes(tmp_path):
    s = small(**OWN)
    folder = record(tmp_path / "x", s, wanted=Wanted(0))
    session = before_step(s, None, 1).start.session
    micro, update = (list(session.plans[name].program) for name in ("micro", "update"))
    with Trace(folder) as trace:
        assert [e.text for e in trace.events()] == [
            str(c) for c in (*micro * s.micro_batches, *update)
        ]
        ops = {e.op for e in trace.events()}
    assert "attention" in ops and "scores" not in ops and trace.manifest["program"] == "own"
    assert sum(c.op == "gelu" for c in micro) == 2 * s.layers  # half of them again, in the backward


def test_level_0_has_the_bits_of_the_runs_own_step(tmp_path):
    s = small(**OWN)
    before = before_step(s, None, 2)
    session = before.start.session
    found = record_step(
        session, before.batches, before.step, tmp_path / "x", Wanted(0), before.start.tokenizer,
        before.origin,
    )  # fmt: skip
    assert found.loss == session.gradients(before.batches, before.step)
    assert found.grad_norm == session.update(before.step)[0]
    with Raw(tmp_path / "x") as raw:
        for slot in session.t.layout.slots:
            after = session.state()["p"][slot.offset : slot.offset + slot.size]
            assert raw.last(slot.name)["hash"] == digest_of(after), slot.name


def test_level_0_is_replayed_bit_for_bit(tmp_path):
    folder = record(tmp_path / "x", small(**OWN), wanted=Wanted(0))
    with Trace(folder) as trace:
        count, divergence = replay(trace, SILENT)
    assert divergence is None and count == trace.manifest["versions"]


def test_kin_are_the_twins_where_nothing_was_transformed():
    program = record_micro(gpt2, gpt2.Config(2, 2, 32, 256, 16), 2, 16)
    for call, of_names, of_mirror in zip(program, kin(program), twins(program), strict=True):
        if call.op not in ("add", "d_add"):  # their gradients alone tie them
            assert of_names == of_mirror, call


@pytest.mark.parametrize("level", [0, 3])
def test_a_run_records_at_the_level_it_was_told(tmp_path, level):
    loop.train(
        small(**OWN, steps=2, trace_every=2, trace_level=level), tmp_path / "run", quiet=True
    )
    recording = tmp_path / "run" / "trace" / "step-00000002"
    manifest = json.loads((recording / "manifest.json").read_text())
    assert (manifest["level"], manifest["program"]) == (level, "plain" if level else "own")
    assert (manifest["own"]["loss"] == manifest["loss"]) == (level == 0)


def test_level_0_and_a_plain_recording_are_not_compared(tmp_path, capsys):
    for level, name in enumerate(("own", "plain")):
        record(tmp_path / name, small(**OWN), wanted=Wanted(level))
    assert main(["compare", str(tmp_path / "own"), str(tmp_path / "plain")]) == 2
    assert "are not the same program" in capsys.readouterr().err


def test_what_if_of_level_0_says_which_level_it_needs(tmp_path):
    reading = Reading(record(tmp_path / "x", small(**OWN), wanted=Wanted(0)))
    (number, *_) = [e["first"] for e in reading.events()]
    with pytest.raises(Problem, match=r"--step 1 --level 1"):
        edit_of(reading, number, [0, 0, 0], "1")


# ------------------------------------------------------------ in the studio


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    before = before_step(small(**OWN), None, 1)
    session, folder = before.start.session, root / "a" / "trace" / "step-00000001"
    record_step(
        session, before.batches, 0, folder, Wanted(0), before.start.tokenizer, before.origin
    )
    loss = session.gradients(before.batches, 0)
    note_own(folder, session, loss, session.update(0)[0])
    return root, Files(folder)


@pytest.fixture
def studio(own):
    with chromium() as browser, serving(own[0]) as address, tab(browser, address) as found:
        found.open()
        yield found


def test_the_studio_steps_through_level_0_and_says_what_it_is(studio, own):
    files = own[1]
    studio.event(files, 0)
    badge = studio.page.locator(".badge.note")
    assert badge.inner_text().split() == (
        "as it ran: flash attention + fused ops Δloss 0 · Δ‖g‖ 0".split()
    )
    for k in range(1, len(files.events), 5):
        studio.event(files, k)
        assert studio.text("call") == files.events[k]["text"]
    k = next(e["k"] for e in files.events if e["op"] == "d_layernorm_add")
    studio.event(files, k)
    studio.page.get_by_text("d_layernorm_add is a fused op").wait_for()
    assert "dx = d_add(dres)" in studio.page.inner_text(".maths")
    k = next(e["k"] for e in files.events if e["op"] == "attention")
    assert files.events[files.events[k]["twin"]]["op"] == "d_attention"
    studio.event(files, k)
    studio.press("t")
    studio.arrived(files.events[k]["twin"])


def test_level_0_has_flow_and_says_why_it_has_no_attention_maps(studio, own):
    files = own[1]
    studio.event(files, 0)
    studio.press("f")
    last = [v for v in files.named("h1.res3") if files.events[v["event"]]["run"] == 0][-1]
    shown = studio.page.locator("[data-part=h1] [data-figure=x]").get_attribute("title")
    assert float(shown) == last["norm"]
    studio.press("a")
    studio.page.get_by_text("the run's own program is recorded").wait_for()
