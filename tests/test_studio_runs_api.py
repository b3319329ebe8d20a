"""What the studio's server answers about runs that go on, two recordings, and what-ifs."""

import contextlib
import json
import shutil
import threading
import time

import numpy as np
import pytest
from studio_server import Client, address, full, record_run, select, serving

from backglass.debugger import server, whatif
from backglass.debugger.compare import compare, most_ulps
from backglass.debugger.edit import parse
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading
from backglass.debugger.replay import replay
from backglass.debugger.shelf import Shelf, id_of
from backglass.debugger.trace import Trace
from backglass.errors import UserError

SILENT = lambda done, total: None  # noqa: E731


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    return record_run(tmp_path_factory.mktemp("studio"))


@pytest.fixture
def run_folder(run_once, tmp_path):
    """A copy of a run with a recorded step, to write beside."""
    return shutil.copytree(run_once, tmp_path / "runs" / "a")


@pytest.fixture
def client(run_folder, tmp_path):
    with serving(run_folder.parent, tmp_path) as found:
        yield found


def ask_live(client: Client, run, cursor="", wait=0):
    path = f"/api/live?on={id_of(run.resolve())}:{cursor}&wait={wait}"
    return client.ask(path).json["runs"]


def logged(run, event):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == event]


def posted(client, recording, what, **asked):
    """(status, the rows of the answer)."""
    path = address(recording, what)
    answer = client.ask(path, "POST", json.dumps(asked).encode())
    return answer.status, [json.loads(line) for line in answer.body.splitlines()]


def version_of(recording, tensor, number=0):
    sql = "select id from versions where tensor = ? and number = ?"
    return select(recording, sql, tensor, number)[0][0]


def hashes(recording):
    """Of every version, in order."""
    return select(recording, "select tensor, number, event, hash from versions order by id")


def octets(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------ live


def test_a_runs_rows_are_those_of_its_log(client, run_folder):
    (found,) = ask_live(client, run_folder)
    for name in ("step", "loss", "grad_norm", "lr", "tokens_per_s", "ms"):
        assert found["step"][name] == [row[name] for row in logged(run_folder, "step")]
    assert found["val"]["loss"] == [row["loss"] for row in logged(run_folder, "val")]
    assert [r["step"] for r in found["recordings"]] == [1, 3] and found["steps"] == 2


def test_with_its_cursor_nothing_is_new_until_a_line_is_whole(client, run_folder):
    (found,) = ask_live(client, run_folder)
    assert ask_live(client, run_folder, found["cursor"]) == []
    row = json.dumps(logged(run_folder, "step")[-1] | {"step": 3, "loss": 1.25})
    with (run_folder / "log.jsonl").open("a") as f:
        f.write(row[:20])
        f.flush()
        assert ask_live(client, run_folder, found["cursor"]) == []
        f.write(row[20:] + "\n")
    (more,) = ask_live(client, run_folder, found["cursor"])
    assert more["step"]["step"] == [3] and more["step"]["loss"] == [1.25] and not more["again"]
    assert "recordings" not in more


def test_an_answer_waits_for_what_is_new_and_comes_within_a_second_of_it(client, run_folder):
    (found,) = ask_live(client, run_folder)
    row = json.dumps(logged(run_folder, "step")[-1] | {"step": 3}) + "\n"
    written = []

    def write():
        time.sleep(0.5)
        with (run_folder / "log.jsonl").open("a") as f:
            f.write(row)
        written.append(time.monotonic())

    threading.Thread(target=write).start()
    (more,) = ask_live(client, run_folder, found["cursor"], wait=10)
    assert time.monotonic() - written[0] < 1 and more["step"]["step"] == [3]


def test_a_log_that_is_another_file_is_sent_from_its_beginning(client, run_folder):
    (found,) = ask_live(client, run_folder)
    first = (run_folder / "log.jsonl").read_text().splitlines(keepends=True)[:2]
    (run_folder / "new").write_text("".join(first))
    (run_folder / "new").replace(run_folder / "log.jsonl")
    (more,) = ask_live(client, run_folder, found["cursor"])
    assert more["again"] and len(more["step"]["step"]) + len(more["val"]["step"]) == 2


def test_a_recording_that_is_gone_is_news_and_rows_are_not_sent_again(client, run_folder):
    (found,) = ask_live(client, run_folder)
    shutil.rmtree(run_folder / "trace" / "step-00000001")
    (more,) = ask_live(client, run_folder, found["cursor"])
    assert [r["step"] for r in more["recordings"]] == [3] and "step" not in more


def test_a_damaged_line_is_told_and_the_others_are_there(client, run_folder):
    with (run_folder / "log.jsonl").open("a") as f:
        f.write("no json\n" + json.dumps(logged(run_folder, "step")[-1] | {"step": 9}) + "\n")
    (found,) = ask_live(client, run_folder)
    assert found["step"]["step"][-1] == 9 and len(found["damaged"]) == 1


def test_a_loss_that_is_not_finite_is_a_word(client, run_folder):
    row = json.dumps(logged(run_folder, "step")[-1] | {"step": 3, "loss": float("nan")})
    with (run_folder / "log.jsonl").open("a") as f:
        f.write(row + "\n")
    (found,) = ask_live(client, run_folder)
    assert found["step"]["loss"][-1] == "nan"


def test_the_rest_of_a_long_log_comes_with_the_next_answer(client, run_folder, monkeypatch):
    from backglass.debugger import live

    monkeypatch.setattr(live, "MOST_LINES", 2)
    cursor, steps = "", []
    while found := ask_live(client, run_folder, cursor):
        cursor = found[0]["cursor"]
        steps += found[0].get("step", {"step": []})["step"]
    assert steps == [row["step"] for row in logged(run_folder, "step")]


@pytest.mark.parametrize("cursor", ["x", "../..", "9" * 40 + "-1-" + "0" * 16, "-1-1-1", "1-1"])
def test_a_cursor_that_is_none_means_from_the_beginning(client, run_folder, cursor):
    (found,) = ask_live(client, run_folder, cursor)
    assert len(found["step"]["step"]) == 2


@pytest.mark.parametrize("on", ["nosuch", "..", "%2fetc", "x:1-1-1"])
def test_a_run_that_there_is_not_is_404(client, on):
    assert client.ask(f"/api/live?on={on}").status == 404


def test_too_many_runs_are_refused(client):
    assert client.ask("/api/live?on=" + ",".join(["a"] * 33)).status == 400


def test_a_waiting_answer_does_not_keep_the_server_from_ending(run_folder, tmp_path):
    with serving(run_folder.parent, tmp_path) as client:
        (found,) = ask_live(client, run_folder)
        asking = threading.Thread(
            target=lambda: (
                contextlib.suppress(OSError)
                and ask_live(client, run_folder, found["cursor"], wait=20)
            )
        )
        asking.start()
        time.sleep(0.3)
        start = time.monotonic()
    assert time.monotonic() - start < 1
    asking.join(5)


# ------------------------------------------------------------------ what if


def test_a_what_if_is_a_recording_whose_upstream_hashes_are_those_of_the_step(client, run_folder):
    recording = full(run_folder)
    before = octets(recording)
    status, rows = posted(
        client, recording, "/what-if", version=version_of(recording, "h1.fcw"), index=[3, 5],
        value="2.5",
    )  # fmt: skip
    assert status == 200 and rows[0].keys() == {"done", "total"} and len(rows) > 10
    fork = recording.with_name(recording.name + ".what-if-1")
    assert rows[-1] == {"recording": id_of(fork.resolve()), "event": None}
    (first,) = select(recording, "select k from events where text like 'h1.fch = %'")[0]
    for ours, theirs in zip(hashes(recording), hashes(fork), strict=True):
        upstream = (ours[2] or 0) < first and ours[:2] != ("h1.fcw", 0)
        assert (ours == theirs) or not upstream, ours
    assert octets(recording) == before
    with Trace(fork) as trace:
        assert trace.complete and replay(trace, SILENT)[1] is None
        value = trace.values(trace.versions("h1.fcw")[0])[3, 5]
    assert value == np.float32(2.5)


def test_an_edit_and_its_reverse_give_the_same_bits_as_none(run_folder):
    recording = full(run_folder)
    with Trace(recording) as trace:
        old = trace.values(trace.versions("h0.att")[0])[1, 0, 4, 2]
    folder = recording
    for value in ("0.75", repr(float(old))):
        reading = Reading(folder)
        edit, event = whatif.edit_of(reading, version_of(folder, "h0.att", 1), [1, 0, 4, 2], value)
        folder = whatif.what_if(reading, edit, event, SILENT)
    assert hashes(folder) == hashes(recording)
    with Trace(recording) as a, Trace(folder) as b:
        assert compare(a, b).equal


WRONG = [
    ({}, 400, "An edit is"), ({"version": "3"}, 400, "An edit is"),
    ({"index": [3]}, 400, "has no cell"), ({"index": [3, 10**9]}, 400, "has no cell"),
    ({"index": [-1, 0]}, 400, "An edit is"), ({"index": [True, 0]}, 400, "An edit is"),
    ({"value": 2.5}, 400, "An edit is"), ({"value": "2.5.1"}, 422, "no number"),
    ({"value": "open('x')"}, 422, "no number"), ({"value": "1e40"}, 422, "too large"),
    ({"value": "1" * 65}, 422, "characters"), ({"version": 10**9}, 404, "no such version"),
]  # fmt: skip


@pytest.mark.parametrize("changes, status, words", WRONG, ids=str)
def test_an_edit_that_is_none_is_refused_and_nothing_is_written(
    client, run_folder, changes, status, words
):
    recording = full(run_folder)
    asked = {"version": version_of(recording, "h1.fcw"), "index": [3, 5], "value": "2.5"}
    found, (row,) = posted(client, recording, "/what-if", **(asked | changes if changes else {}))
    assert found == status and words in row["error"]
    assert len(list(recording.parent.iterdir())) == 2


@pytest.mark.parametrize(
    "value, words",
    [("256", "can be 0 to 255"), ("-1", "can be 0 to"), ("1.5", "no whole"), ("nan", "no whole")],
)
def test_a_token_that_the_vocabulary_lacks_is_refused(client, run_folder, value, words):
    recording = full(run_folder)
    status, (row,) = posted(
        client, recording, "/what-if", version=version_of(recording, "ids"), index=[0, 0],
        value=value,
    )  # fmt: skip
    assert status == 422 and words in row["error"]


@pytest.mark.parametrize("body", [b"", b"[]", b"\x80\x02]q\x00.", b"[" * 4000, b"{" + b" " * 5000])
def test_a_body_that_is_no_object_is_refused(client, run_folder, body):
    answer = client.ask(address(full(run_folder), "/what-if"), "POST", body)
    assert answer.status in (400, 413)


def test_a_step_that_this_machine_does_not_repeat_is_not_forked(client, run_folder):
    recording = full(run_folder)
    select(recording, "update versions set hash = 'x' where tensor = 'h0.ln1'")
    status, rows = posted(
        client, recording, "/what-if", version=version_of(recording, "h1.fcw"), index=[3, 5],
        value="2.5",
    )  # fmt: skip
    assert status == 200 and "error" not in rows[-1]  # the edit comes before h0.ln1
    status, rows = posted(
        client, recording, "/what-if", version=version_of(recording, "h1.fch", 1),
        index=[0, 0, 0], value="2.5",
    )  # fmt: skip
    assert "h0.ln1 differs at event 1, before the edit" in rows[-1]["error"]
    assert not recording.with_name(recording.name + ".what-if-2").exists()


def test_a_step_of_another_device_is_refused_with_what_to_do(run_folder):
    recording = full(run_folder)
    manifest = json.loads((recording / "manifest.json").read_text())
    (recording / "manifest.json").write_text(json.dumps(manifest | {"device": "cuda"}))
    with pytest.raises(Problem, match="recorded on cuda.*--device cpu"):
        whatif.edit_of(Reading(recording), version_of(recording, "h1.fcw"), [3, 5], "2.5")


@contextlib.contextmanager
def capped(run_folder, folder, cap):
    """A Client of a server that allows what-ifs `cap` bytes."""
    with serving(run_folder.parent, folder) as client:
        state = client.guarded.app.state
        state.studio = server.Studio(Shelf(run_folder.parent), state.studio.static, cap=cap)
        yield client


def size_of(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_what_ifs_never_take_more_than_their_cap(run_folder, tmp_path):
    """What does not fit is left out and counted; then they are refused."""
    recording, cap = full(run_folder), 22_000_000
    asked = {"version": version_of(recording, "h1.fcw"), "index": [3, 5], "value": "2.5"}
    with capped(run_folder, tmp_path, cap) as client:
        rows = [posted(client, recording, "/what-if", **asked)[1][-1] for _ in range(12)]
    forks = list(recording.parent.glob("*.what-if-*"))
    assert forks and sum(map(size_of, forks)) <= cap
    assert "recording" in rows[0] and "error" in rows[-1]
    assert "--max-disk" in rows[-1]["error"]


def test_only_what_ifs_can_be_deleted(client, run_folder):
    recording = full(run_folder)
    asked = {"version": version_of(recording, "h1.fcw"), "index": [3, 5], "value": "2.5"}
    posted(client, recording, "/what-if", **asked)
    fork = recording.with_name(recording.name + ".what-if-1")
    assert client.ask(address(recording, "/delete"), "POST").status == 403
    assert client.ask(address(fork)).status == 200
    assert client.ask(address(fork, "/delete"), "POST").status == 200
    assert not fork.exists() and recording.exists()
    assert client.ask(address(fork)).status == 404
    names = [r["name"] for r in client.ask("/api/runs").json[0]["recordings"]]
    assert names == ["step-00000001", "step-00000003"]


def test_one_job_at_a_time(client, run_folder):
    recording = full(run_folder)
    busy = client.guarded.app.state.studio.busy
    asked = {"version": version_of(recording, "h1.fcw"), "index": [3, 5], "value": "2.5"}
    with busy:
        assert posted(client, recording, "/what-if", **asked)[0] == 409
    assert posted(client, recording, "/what-if", **asked)[0] == 200


def test_a_fork_in_a_manifest_that_means_harm_is_damage(client, run_folder):
    recording = full(run_folder)
    path = recording / "manifest.json"
    manifest = json.loads(path.read_text())
    for fork in ([], "x", {"of": "a", "event": 0, "edits": []},
                 {"of": 3, "event": 0, "edits": [{}]},
                 {"of": "a", "event": "<img>", "edits": [
                     {"tensor": "x", "number": 0, "index": [0], "value": "1"}]}):  # fmt: skip
        path.write_text(json.dumps(manifest | {"fork": fork}))
        answer = client.ask(address(recording))
        assert answer.status == 422 and "fork is damaged" in answer.json["error"], fork


@pytest.mark.parametrize(
    "text, dtype, want",
    [("0.1", "fp32", np.float32(0.1)), ("-3", "fp32", np.float32(-3)), ("1e-4", "fp32", 1e-4),
     (".5", "fp32", 0.5), ("inf", "fp32", np.inf), ("-inf", "fp32", -np.inf), ("65", "i32", 65)],
)  # fmt: skip
def test_a_literal_is_the_number_it_says(text, dtype, want):
    found = parse(text, dtype)
    assert found == np.asarray(want, found.dtype)


@pytest.mark.parametrize("text", ["", " 1", "1 ", "0x1", "1_0", "1j", "１", "e", "--1", "inf()"])
def test_a_text_that_is_no_literal_is_refused(text):
    for dtype in ("fp32", "i32"):
        with pytest.raises(UserError):
            parse(text, dtype)


# ------------------------------------------------------------------ compare


def compared(client, a, b):
    answer = client.ask(address(a, f"/compare/{id_of(b.resolve())}"))
    assert answer.status == 200
    return [json.loads(line) for line in answer.body.splitlines()]


def test_a_recording_has_no_divergence_from_its_copy(client, run_folder):
    copy = shutil.copytree(full(run_folder), run_folder / "trace" / "step-00000004")
    head, *rows, last = compared(client, full(run_folder), copy)
    events = [k for (k,) in select(copy, "select k from events order by k")]
    assert head["before"] == head["unlike"] == [] and head["total"] == len(events)
    assert [row["k"] for row in rows] == events and not any(r["differences"] for r in rows)
    made = select(copy, "select count(*) from versions where event is not null")[0][0]
    assert last == {"compared": made, "differ": 0, "equal": True}


def test_other_kernels_are_not_equal_though_no_number_differs(client, run_folder):
    copy = shutil.copytree(full(run_folder), run_folder / "trace" / "step-00000004")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["sources"]["ops/gelu/maths.py"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    head, *_, last = compared(client, full(run_folder), copy)
    assert head["unlike"] == ["the kernels of gelu, d_gelu"]
    assert last["differ"] == 0 and last["equal"] is False


def test_another_step_is_compared_where_it_is_the_same_program(client, run_folder):
    a, b = full(run_folder), run_folder / "trace" / "step-00000001"
    head, *rows, last = compared(client, a, b)
    assert {d["tensor"] for d in head["before"]} >= {"ids", "wpe", "hyper"}
    assert last["differ"] == sum(bool(row["differences"]) for row in rows) > 60
    (found,) = next(row["differences"] for row in rows if row["k"] == 2)  # no values of step 1
    assert found["tensor"] == "h0.qkv" and found["error"] is None and found["norms"][0] > 0


def test_a_tensor_that_claims_to_be_huge_is_compared_by_its_statistics(client, run_folder):
    copy = shutil.copytree(full(run_folder), run_folder / "trace" / "step-00000004")
    for recording, least in ((full(run_folder), 0.0), (copy, 1.0)):
        select(recording, "update versions set shape = '[1000000, 1000000]', constant = 1, "
               "min = ?, hash = ? where tensor = 'h0.ln1'", least, f"x{least:.0f}")  # fmt: skip
    rows = compared(client, full(run_folder), copy)
    (found,) = next(row["differences"] for row in rows if row.get("k") == 1)
    assert found["tensor"] == "h0.ln1" and found["error"] is None


@pytest.mark.parametrize(
    "a, b, want",
    [([1.0], [np.nextafter(np.float32(1), np.float32(2))], 1), ([0.0], [-0.0], 0),
     ([1e-45], [-1e-45], 2), ([1.0, 2.0], [1.0, np.nan], 0), ([np.inf], [1.0], 0)],
)  # fmt: skip
def test_ulps_are_counted_over_zero_and_without_what_is_not_finite(a, b, want):
    assert most_ulps(np.float32(a), np.float32(b)) == want


def test_a_version_is_found_by_its_name_in_another_recording(client, run_folder):
    for tensor, number in (("h0.qkv", 1), ("h0.qkvw/m", 1)):
        path = address(full(run_folder), f"/named/{tensor}?number={number}")
        assert client.ask(path).json["id"] == version_of(full(run_folder), tensor, number)
    assert client.ask(address(full(run_folder), "/named/nosuch?number=1")).status == 404
