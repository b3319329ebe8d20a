"""What the gradient bench of the studio's server answers, held against what these tests compute
from the recording's files.  In the browser: test_studio_bench.py."""

import contextlib
import http.client
import json
import shutil
import threading
import time

import numpy as np
import pytest
from studio_server import TOKEN, address, full, plant, record_run, select, serving, tensors

from backglass.checks.op import LIMIT
from backglass.debugger import bench_checks, bench_model, bench_values
from backglass.ops import table

ULP = 2.0**-23


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return record_run(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def recording(run_folder):
    return full(run_folder)


@pytest.fixture(scope="module")
def light(run_folder):
    return run_folder / "trace" / "step-00000001"


@pytest.fixture(scope="module")
def client(run_folder, tmp_path_factory):
    with serving(run_folder, tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture
def copied(run_folder, tmp_path):
    """A copy of the recording, to change, and a Client of it."""
    shutil.copytree(run_folder, tmp_path / "a")
    with serving(tmp_path / "a", tmp_path) as found:
        yield full(tmp_path / "a"), found


def check(client, recording, rest):
    """(progress, the last line) of a job."""
    answer = client.ask(address(recording, rest), "POST")
    assert answer.status == 200, answer.body
    *progress, last = map(json.loads, answer.body.splitlines())
    assert all(row.keys() == {"done", "total"} for row in progress)
    return progress, last


def event_of(recording, op):
    return select(recording, "select min(k) from events where op = ?", op)[0][0]


def operand(recording, k, name, role="in"):
    """The numbers of an event's operand, in float64, from the files."""
    sql = (
        "select v.hash, v.shape, v.constant, v.min from versions v join operands o "
        "on v.id = o.version where o.event = ? and o.name = ? and o.role = ?"
    )
    digest, shape, constant, least = select(recording, sql, k, name, role)[0]
    if constant:
        return np.full(json.loads(shape), least)
    found = tensors(recording)
    if digest not in found:  # a parameter before the step
        pytest.fail(f"{name} of event {k} is not in the recording's files")
    return found[digest].reshape(json.loads(shape)).astype(np.float64)


# ------------------------------------------------------------------ the plan


def test_the_plan_has_a_gradient_for_every_float_input_of_every_forward_line(client, recording):
    events = select(recording, "select k, op from events where phase = 'forward'")
    for k, op in events:
        rows = client.ask(address(recording, f"/events/{k}/bench")).json["maths"]
        assert [row["x"]["version"] for row in rows] == [v for (v,) in select(
            recording, "select v.id from operands o join versions v on v.id = o.version where "
            "o.event = ? and o.role = 'in' and v.dtype = 'fp32' order by o.position", k
        )], op  # fmt: skip


def test_the_plan_of_a_backward_line_has_its_own_gradients_alone(client, recording):
    for k, op in select(recording, "select k, op from events where phase = 'backward'"):
        plan = client.ask(address(recording, f"/events/{k}/bench")).json
        assert [(row["name"], row["recorded"]["version"]) for row in plan["maths"]] == select(
            recording, "select name, version from operands where event = ? and role = 'out' "
            "order by position", k,
        ), op  # fmt: skip


def test_g_is_what_the_recorded_backward_line_read(client, recording):
    for k, twin in select(recording, "select k, twin from events where phase = 'forward'"):
        plan = client.ask(address(recording, f"/events/{k}/bench")).json
        (row,) = plan["upstream"]
        assert row["why_random"] == ""
        assert (row["name"], row["recorded"]["version"]) in select(
            recording, "select name, version from operands where event = ? and role = 'in'", twin
        )


def test_the_optimizer_has_no_gradient_and_shows_one_parameter(client, recording):
    k = event_of(recording, "adamw")
    plan = client.ask(address(recording, f"/events/{k}/bench?tensor=h1.fcb")).json
    assert plan["maths"] == [] and plan["forward"] is None
    assert [o["tensor"] for o in plan["kernel"]] == ["h1.fcb", "h1.fcb/m", "h1.fcb/v", "h1.dfcb"]
    assert plan["parameters"] == [t for (t,) in select(
        recording, "select v.tensor from operands o join versions v on v.id = o.version where "
        "o.event = ? and o.role = 'out' and o.name = 'p' order by o.position", k)]  # fmt: skip


@pytest.mark.parametrize(
    "rest, method, status",
    [
        ("/events/9999/bench", "GET", 404),
        ("/events/3/bench/maths?operand=nothing&row=0&column=0", "POST", 404),
        ("/events/3/bench/maths?operand=qkv&row=0&column=999", "POST", 404),
        ("/events/3/bench/maths?operand=qkv&row=x&column=0", "POST", 400),
        ("/events/3/bench/maths?operand=qkv", "POST", 400),
        ("/events/3/bench/steps?operand=qkv&row=99999&column=0", "POST", 404),
        ("/bench/update?tensor=nothing&row=0&column=0", "GET", 404),
        ("/bench/update?tensor=wte&row=0&column=32", "GET", 404),
        (f"/bench/update?tensor={'x' * 201}&row=0&column=0", "GET", 400),
    ],
)
def test_what_is_not_there_is_refused_before_anything_starts(
    client, recording, rest, method, status
):
    answer = client.ask(address(recording, rest), method)
    assert answer.status == status and answer.json["error"]


def test_an_op_of_somebody_elses_can_be_looked_at_but_not_checked(copied):
    recording, client = copied
    select(recording, "update events set op = 'theirs' where k = 3")
    answer = client.ask(address(recording, "/events/3/bench"))
    assert answer.status == 404 and "theirs is no op" in answer.json["error"]


# ------------------------------------------------------------------ the maths


def test_one_cell_is_the_slope_that_differences_give_here(client, recording):
    k = event_of(recording, "scores")
    qkv, dy = operand(recording, k, "qkv"), operand(recording, twin_of(recording, k), "dpreatt")

    def phi(x):
        q, key = x[:, :, 0], x[:, :, 1]
        found = np.einsum("bthi,bshi->bhts", q, key) / np.sqrt(q.shape[-1])
        return np.sum(np.tril(dy) * found)

    at = 1, 3, 0, 1, 5
    h, e = 1e-4, np.zeros_like(qkv)
    e[at] = 1e-4
    want = (phi(qkv + e) - phi(qkv - e)) / (2 * h)
    row = np.ravel_multi_index(at[:-1], qkv.shape[:-1])
    _, last = check(client, recording, f"/events/{k}/bench/maths?operand=qkv&row={row}&column=5")
    (found,) = last["rows"]
    assert found["cells"] == 1 and found["worst"]["index"] == list(at)
    assert abs(found["worst"]["numeric"] - want) < 1e-9 * max(abs(want), 1e-6)
    assert abs(found["worst"]["by_hand"] - want) < 1e-9 * max(abs(want), 1e-6)


def twin_of(recording, k):
    return select(recording, "select twin from events where k = ?", k)[0][0]


def test_progress_goes_up_to_the_number_of_cells(client, recording):
    k = event_of(recording, "matmul")
    progress, last = check(client, recording, f"/events/{k}/bench/maths")
    cells = [row["cells"] for row in last["rows"]]
    assert cells == [64, 64, 64] and last["seed"] == k
    assert [row["done"] for row in progress] == list(range(sum(cells) + 1))


def test_slow_operands_are_looked_at_in_fewer_cells_and_that_is_said(
    client, recording, monkeypatch
):
    monkeypatch.setattr(bench_checks, "SECONDS", 0.0)
    k = event_of(recording, "matmul")
    _, last = check(client, recording, f"/events/{k}/bench/maths")
    assert [row["cells"] for row in last["rows"]] == [bench_checks.FEWEST] * 3


@pytest.mark.parametrize(
    "change, why",
    [
        ("delete from operands where event = {twin} and name = 'dy'", "was not recorded"),
        ("update versions set norm = 0 where id = {g}", "is zero"),
    ],
)
def test_without_a_gradient_from_above_g_is_random_and_that_is_said(copied, change, why):
    recording, client = copied
    k = event_of(recording, "gelu")
    twin = twin_of(recording, k)
    sql = "select version from operands where event = ? and name = 'dy'"
    select(recording, change.format(twin=twin, g=select(recording, sql, twin)[0][0]))
    (above,) = client.ask(address(recording, f"/events/{k}/bench")).json["upstream"]
    assert above == {"name": "dy", "why_random": why, "recorded": None}
    (row,) = check(client, recording, f"/events/{k}/bench/maths")[1]["rows"]
    assert row["ok"] and row["norm"] > 1


def test_a_number_that_is_not_finite_fails_the_check(copied):
    recording, client = copied
    k = event_of(recording, "gelu")
    x = operand(recording, k, "x").astype(np.float32)
    x[0, 0, 0] = np.nan
    swap(recording, k, "x", plant(recording, x))
    (row,) = check(client, recording, f"/events/{k}/bench/maths")[1]["rows"]
    assert row["ok"] is False and row["error"] == "nan"


def swap(recording, k, name, version, role="in"):
    sql = "update operands set version = ? where event = ? and name = ? and role = ?"
    select(recording, sql, version, k, name, role)


def test_a_backward_whose_result_has_another_shape_fails_in_that_row(
    client, recording, monkeypatch
):
    monkeypatch.setattr(table()["matmul"].maths, "d_matmul_x", lambda dy, w: (dy,))
    k = event_of(recording, "matmul")
    rows = check(client, recording, f"/events/{k}/bench/maths")[1]["rows"]
    assert [(row["name"], row["ok"]) for row in rows] == [("dx", False), ("dw", True), ("db", True)]
    assert rows[0]["error"] == "inf" and rows[0]["worst"] is None


# ------------------------------------------------------------------ step sizes


def test_the_curve_truncates_on_one_side_and_rounds_off_on_the_other(client, recording):
    k = event_of(recording, "layernorm")
    x = operand(recording, k, "x")
    _, last = check(client, recording, f"/events/{k}/bench/steps?operand=x&row=3&column=7")
    assert last["index"] == [0, 3, 7] and last["x"] == x[0, 3, 7]
    points = last["points"]
    h, errors = (np.array([p[key] for p in points]) for key in ("h", "error"))
    np.testing.assert_allclose(h, 10.0 ** -np.arange(1, 12.5, 0.5), rtol=1e-12)
    low = np.median(errors[(h > 1e-8) & (h < 1e-6)])
    assert low < LIMIT < errors[0]
    steep = errors[np.isclose(h, 1e-3)] / errors[np.isclose(h, 1e-4)]
    assert 80 < steep[0] < 120  # h²
    assert errors[-1] > 1e3 * low
    for p in points:
        assert p["error"] == abs(p["numeric"] - last["by_hand"]) / last["norm"]


# ------------------------------------------------------------------ the kernel


def test_the_kernels_error_and_bound_are_those_of_the_design(client, recording):
    k = event_of(recording, "gelu")
    x, y = operand(recording, k, "x"), operand(recording, k, "y", "out")

    def gelu(x):
        return (
            0.5
            * x
            * (1 + np.tanh(x.dtype.type(np.sqrt(2 / np.pi)) * (x + x.dtype.type(0.044715) * x**3)))
        )

    def rms(a):
        return np.sqrt(np.mean(np.square(a.astype(np.float64))))

    true, naive = gelu(x), gelu(x.astype(np.float32)).astype(np.float64)
    _, last = check(client, recording, f"/events/{k}/bench/kernel")
    (row,) = last["rows"]
    assert last["ran"] == "numpy" and row["same"] is True and row["ok"] is True
    np.testing.assert_allclose(row["error"], rms(y - true) / rms(true), rtol=1e-6)
    bound = max(2 * rms(naive - true), 4 * ULP * rms(true)) / rms(true)
    np.testing.assert_allclose(row["bound"], bound, rtol=0.05)
    worst = np.unravel_index(np.abs(y - true).argmax(), y.shape)
    assert row["worst"]["index"] == [int(i) for i in worst]
    assert np.float32(row["worst"]["found"]) == y[worst]


def test_every_line_of_the_step_is_within_its_bound_and_has_the_recorded_bits(client, recording):
    for k, op in select(recording, "select k, op from events"):
        _, last = check(client, recording, f"/events/{k}/bench/kernel")
        assert last["rows"] and all(row["ok"] and row["same"] for row in last["rows"]), (k, op)


def test_a_kernel_that_errs_fails_and_has_other_bits(copied, monkeypatch):
    recording, client = copied
    k = event_of(recording, "d_gelu")
    made = operand(recording, k, "dx", "out").astype(np.float32)
    swap(recording, k, "dx", plant(recording, made * np.float32(1.0001)), "out")
    _, last = check(client, recording, f"/events/{k}/bench/kernel")
    assert [(row["ok"], row["same"]) for row in last["rows"]] == [(True, False)]
    monkeypatch.setattr(bench_checks, "device_of", lambda b: (None, "it is elsewhere"))
    _, last = check(client, recording, f"/events/{k}/bench/kernel")
    assert [(row["ok"], row["same"]) for row in last["rows"]] == [(False, True)]
    assert last["ran"] is None and last["why_not_run"] == "it is elsewhere"


def test_a_step_of_a_device_that_is_not_here_is_judged_by_what_was_recorded(copied):
    recording, client = copied
    manifest = json.loads((recording / "manifest.json").read_text())
    manifest["device"] = "cuda:99"
    (recording / "manifest.json").write_text(json.dumps(manifest))
    _, last = check(client, recording, f"/events/{event_of(recording, 'mix')}/bench/kernel")
    assert last["ran"] is None and last["why_not_run"] and last["rows"][0]["ok"]


# ------------------------------------------------------------------ without stored tensors


def test_a_recording_of_statistics_is_checked_by_doing_the_step_again(client, light):
    k = event_of(light, "d_matmul_w")
    assert client.ask(address(light, f"/events/{k}/bench")).json["stored"] is False
    progress, last = check(client, light, f"/events/{k}/bench/maths")
    assert all(row["ok"] for row in last["rows"])
    assert progress[0]["done"] == 1 and progress[0]["total"] == manifest_events(light)
    _, last = check(client, light, f"/events/{k}/bench/kernel")
    assert all(row["ok"] and row["same"] for row in last["rows"])


def manifest_events(recording):
    return json.loads((recording / "manifest.json").read_text())["events"]


def test_numbers_done_again_with_another_hash_are_not_believed(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "a")
    light = tmp_path / "a" / "trace" / "step-00000001"
    k = event_of(light, "gelu")
    sql = "select version from operands where event = ? and name = 'x'"
    (v,) = select(light, sql, k)[0]
    select(light, "update versions set hash = 'other' where id = ?", v)
    with serving(tmp_path / "a", tmp_path) as client:
        _, last = check(client, light, f"/events/{k}/bench/maths")
    assert "is not what it was" in last["error"]


def test_an_update_without_stored_numbers_says_so_until_a_check_has_had_them(client, light):
    path = address(light, "/bench/update?tensor=h1.qkvb&row=0&column=5")
    assert client.ask(path).status == 404
    assert "was not stored" in client.ask(path).json["error"]
    check(client, light, f"/events/{event_of(light, 'adamw')}/bench/kernel?tensor=h1.qkvb")
    assert client.ask(path).json["tensor"] == "h1.qkvb"


# ------------------------------------------------------------------ the whole model


def test_the_whole_model_holds_and_has_the_recorded_loss(client, recording):
    _, last = check(client, recording, "/bench/model")
    params = {row["name"] for row in last["rows"]}
    names = "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb"
    assert params == {"", *names.split(), "lnfw", "lnfb"}
    assert all(row["ok"] and row["error"] < 1e-6 for row in last["rows"])
    loss = json.loads((recording / "manifest.json").read_text())["loss"]
    assert abs(last["loss"] - loss) < 1e-6 * loss


def test_a_wrong_backward_breaks_the_whole_model_where_it_is_used(client, recording, monkeypatch):
    maths = table()["gelu"].maths
    right = maths.d_gelu
    monkeypatch.setattr(maths, "d_gelu", lambda dy, x: (1.001 * right(dy, x)[0],))
    _, last = check(client, recording, "/bench/model")
    ok = {row["name"]: row["ok"] for row in last["rows"]}
    assert not ok[""] and not ok["fcw"] and not ok["fcb"]
    assert ok["lnfw"] and ok["lnfb"]  # above every gelu


def test_a_model_too_large_for_memory_is_refused_with_the_reason(client, recording, monkeypatch):
    monkeypatch.setattr(bench_model, "MOST_BYTES", 1 << 20)
    _, last = check(client, recording, "/bench/model")
    assert "takes" in last["error"] and "1,048,576 are used" in last["error"]


def test_parameters_that_are_not_the_models_are_refused(copied):
    recording, client = copied
    select(recording, "update versions set shape = '[96, 33]' where tensor = 'h0.qkvw'")
    _, last = check(client, recording, "/bench/model")
    assert "not the shapes" in last["error"]


# ------------------------------------------------------------------ jobs


def test_operands_too_large_are_refused_with_the_reason(client, recording, monkeypatch):
    monkeypatch.setattr(bench_values, "MOST_NUMBERS", 1000)
    _, last = check(client, recording, f"/events/{event_of(recording, 'matmul')}/bench/maths")
    assert "1,000 are computed with at once" in last["error"]


@contextlib.contextmanager
def started(client, path):
    """A job that is under way: its first line has come."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    headers = {"x-backglass-token": TOKEN}
    connection.request("POST", path, headers=headers)
    answer = connection.getresponse()
    assert json.loads(answer.readline())["total"] > 0
    yield
    answer.close()
    connection.close()


def test_a_check_ends_when_its_client_leaves(client, recording, monkeypatch):
    maths, evaluated = table()["gelu"].maths, threading.Semaphore(0)
    right = maths.gelu

    def slow(x):
        evaluated.release()
        time.sleep(0.02)
        return right(x)

    monkeypatch.setattr(maths, "gelu", slow)
    busy = client.guarded.app.state.studio.busy
    with started(client, address(recording, f"/events/{event_of(recording, 'gelu')}/bench/maths")):
        assert not busy.acquire(blocking=False)
    assert busy.acquire(timeout=3)  # of 64·4·0.02 = 5 s
    busy.release()
    assert evaluated._value < 200
