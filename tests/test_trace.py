"""Recorded steps: what is on disk is what was computed, all of it, and can be done again.

Raw reads a recording with sqlite3 and safetensors alone; expected values come from it, from the
maths in float64 and from train_gpt2.py, never from the reader under test.
"""

import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import train_gpt2 as one
from backglass.checks.kernel import ULP, rms
from backglass.debugger import store
from backglass.debugger.compare import compare
from backglass.debugger.record import Wanted, record_step
from backglass.debugger.replay import before_step, replay, settings_of_run
from backglass.debugger.store import digest_of, is_constant
from backglass.debugger.trace import NotStored, Trace
from backglass.device.health import health
from backglass.device.reference import evaluate
from backglass.errors import UserError
from backglass.models import gpt2
from backglass.ops import signature, table
from backglass.program.step import record_micro, record_update
from backglass.training import checkpoint, loop
from backglass.training.settings import Settings
from backglass.view import DTYPES, gradient_name

SMALL = dict(
    layers=2, heads=2, channels=16, seq_len=8, batch_size=2, total_batch_tokens=32, steps=6,
    warmup_steps=2, val_every=0, val_batches=1, schedule_steps=6, device="numpy",
)  # fmt: skip
SILENT = lambda done, total: None  # noqa: E731


def small(**changes) -> Settings:
    return Settings(**(SMALL | changes))


def record(folder, s=None, run=None, step=1, wanted=None):
    """Record update `step` of a run, or from the beginning; the folder."""
    before = before_step(s or settings_of_run(run, step), run, step)
    if "checkpoint" in before.origin:
        before.origin["checkpoint"] = os.path.relpath(before.origin["checkpoint"], folder)
    wanted = wanted or Wanted(3)
    record_step(
        before.start.session, before.batches, before.step, folder, wanted, before.start.tokenizer,
        before.origin,
    )  # fmt: skip
    return folder


class Raw:
    """A recording without the reader under test."""

    def __init__(self, folder):
        self.folder = folder
        self.db = sqlite3.connect(folder / "index.sqlite")
        self.db.row_factory = sqlite3.Row

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.db.close()

    def rows(self, sql, *values):
        return self.db.execute(sql, values).fetchall()

    def version(self, tensor, number):
        return self.rows("select * from versions where tensor = ? and number = ?", tensor, number)[
            0
        ]

    def last(self, tensor, below=10**9):
        """The newest version that an event before `below` left."""
        sql = "select max(number) from versions where tensor = ? and (event < ? or event is null)"
        return self.version(tensor, self.rows(sql, tensor, below)[0][0])

    def values(self, row):
        shape, dtype = json.loads(row["shape"]), DTYPES[row["dtype"]]
        if row["constant"]:
            return np.full(shape, row["min"], dtype)
        ((file,),) = self.rows("select file from tensors where hash = ?", row["hash"])
        return self.file(file)[row["hash"]].view(dtype).reshape(shape)

    def file(self, name):
        return load_file(self.folder / "t" / f"{name}.safetensors")

    def operands(self, k, role):
        """{name in the spec: rows of versions}, several where it is a flat buffer."""
        found = {}
        for row in self.rows(
            "select operands.name as operand, operands.adds as adds, versions.* from operands join "
            "versions on versions.id = version where operands.event = ? and role = ? "
            "order by position", k, role,
        ):  # fmt: skip
            found.setdefault(row["operand"], []).append(row)
        return found


def program_of(s, vocab_size=256, micro_batches=None):
    """The lines of the plain step with attention spelled out, (run, call)."""
    c = s.replace(attention="explicit").model_config(vocab_size)
    micro = record_micro(gpt2, c, s.batch_size, s.seq_len, s.dtype)
    runs = [micro] * (micro_batches or s.micro_batches) + [record_update(gpt2, c, s.dtype)]
    return [(i, call) for i, program in enumerate(runs) for call in program]


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """The third step of a small model on the CPU's kernels, everything stored; moments are there
    already, two micro-batches, no dropout."""
    folder = tmp_path_factory.mktemp("step") / "recording"
    return record(folder, small(device="cpu"), step=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of six steps with dropout and a checkpoint after the third; not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "run"
    loop.train(small(dropout=0.1, save_every=3), folder, quiet=True)
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


# ------------------------------------------------------------ what is recorded


def test_events_are_the_programs_calls_in_order_once_per_micro_batch(step):
    lines = program_of(small(device="cpu"))
    with Raw(step) as raw:
        found = [
            tuple(row)
            for row in raw.rows("select k, run, text, op, phase, model from events order by k")
        ]
    assert found == [(k, r, str(c), c.op, c.phase, c.where) for k, (r, c) in enumerate(lines)]
    manifest = json.loads((step / "manifest.json").read_text())
    assert manifest["events"] == len(lines) and manifest["complete"]


def test_the_manifest_knows_how_many_versions_there_are(step):
    with Raw(step) as raw:
        ((count,),) = raw.rows("select count(*) from versions")
    assert json.loads((step / "manifest.json").read_text())["versions"] == count


def test_fifty_random_values_are_those_of_the_files(step):
    rng = np.random.default_rng(0)
    with Trace(step) as trace, Raw(step) as raw:
        for k in rng.integers(0, trace.count, 50):
            role = rng.choice(["in", "out"])
            _, version, _ = rng.choice(np.array(trace.operands(int(k), role), object))
            at = tuple(rng.integers(0, n) for n in version.shape)
            want = raw.values(raw.version(version.tensor, version.number))
            assert repr(trace.values(version)[at]) == repr(want[at])


def test_every_output_is_what_the_maths_says_of_the_recorded_inputs(step):
    """Bound as in DESIGN.md: twice the error of the maths in float32, or 4 ulp of the size."""
    checked = 0
    with Raw(step) as raw:
        for k, (_, call) in enumerate(program_of(small(device="cpu"))):
            if call.phase == "update":
                continue
            ins, outs = raw.operands(k, "in"), raw.operands(k, "out")
            env = {name: raw.values(row) for name, (row,) in ins.items()}
            truth, naive = (of_maths(call, env, dtype) for dtype in (np.float64, np.float32))
            for o, true, rough in zip(call.signature.outs, truth, naive, strict=True):
                if o.name not in outs:
                    continue
                (row,) = outs[o.name]
                got = raw.values(row).astype(np.float64)
                base = env[o.name].astype(np.float64) if row["adds"] else 0.0
                true, rough = (x.reshape(got.shape) + base for x in (true, rough))
                naive_error = rms(rough.astype(np.float32) - true)
                bound = max(2 * naive_error, 4 * ULP["fp32"] * rms(true))
                assert rms(got - true) <= bound, (str(call), o.name)
                checked += 1
    assert checked > 200


def of_maths(call, env, dtype):
    """The maths of a call on these inputs, in a dtype."""
    sizes = call.sizes
    given = {o.name: o.shape(sizes) for o in call.signature.passed}
    inputs = [
        None if o.name not in env
        else env[o.name].reshape(given[o.name]).astype(
            env[o.name].dtype if env[o.name].dtype.kind == "i" else dtype
        )
        for o in call.signature.ins
    ]  # fmt: skip
    return evaluate(call.signature, inputs, call.attrs, sizes)


def test_loss_and_gradients_are_those_of_the_one_file(step):
    s = small(device="cpu")
    oc = SimpleNamespace(layers=2, heads=2, channels=16, vocab_size=256, max_seq_len=8)
    p, dp = one.zeros(oc, np.float64), one.zeros(oc, np.float64)
    total, grads = 0.0, one.zeros(oc, np.float64)
    with Raw(step) as raw:
        update = len(program_of(s)) - 3
        for name, w in vars(p).items():
            w[...] = stacked(name, lambda tensor: raw.values(raw.version(tensor, 0)), w.shape)
        for k in range(2):
            ids, targets = (raw.values(raw.version(name, k)) for name in ("ids", "targets"))
            total += one.loss_and_grads(oc, p, dp, ids, targets) / 2
            for name, g in vars(grads).items():
                g += getattr(dp, name) / 2
        for name, g in vars(grads).items():
            got = stacked(name, lambda t: raw.values(raw.last(gradient_name(t), update)), g.shape)
            assert np.linalg.norm(got - g) < 1e-5 * np.linalg.norm(g), name
        want = np.sqrt(sum(np.sum(g * g) for g in vars(grads).values()))
        manifest = json.loads((step / "manifest.json").read_text())
        assert abs(manifest["loss"] - total) < 1e-6 * total
        assert abs(manifest["grad_norm"] - want) < 1e-5 * want


def stacked(name, read, shape):
    """A parameter of the one file, which keeps all layers in one array; pad rows dropped."""
    if name in ("wte", "wpe", "lnfw", "lnfb"):
        return read(name)[: shape[0]]
    return np.stack([read(f"h{l}.{name}") for l in range(shape[0])])


def test_an_in_place_sum_is_a_new_version_and_the_old_one_stays(step):
    """dwte: 0 before; + of the output layer and + of the embedding, twice; 0 after the update."""
    with Raw(step) as raw:
        rows = raw.rows("select * from versions where tensor = 'dwte' order by number")
        texts = [
            raw.rows("select text from events where k = ?", row["event"])[0][0] for row in rows[1:]
        ]
        values = [raw.values(row) for row in rows]
        before = raw.operands(rows[2]["event"], "in")["dwte"][0]
    assert [text.split(" = ")[1].split("(")[0] for text in texts] == [
        "d_matmul_w", "d_embed", "d_matmul_w", "d_embed", "adamw",
    ]  # fmt: skip
    assert not values[0].any() and not values[-1].any()
    assert [digest_of(x) for x in values] == [row["hash"] for row in rows]
    assert len({row["hash"] for row in rows[:-1]}) == 5
    assert before["number"] == 1 and rows[0]["event"] is None


def test_adamw_done_again_in_float32_is_within_an_ulp(step):
    with Raw(step) as raw:
        k = len(program_of(small(device="cpu"))) - 1
        ins, outs = raw.operands(k, "in"), raw.operands(k, "out")
        lr, beta1, beta2, eps, decay, _, fix1, fix2 = raw.values(ins["hyper"][0])
        scale = raw.values(ins["scale"][0])[0]
        assert lr > 0 and 0 < scale < 1  # the step is clipped
        for i, row in enumerate(outs["p"]):
            p, m, v, dp = (raw.values(ins[name][i]) for name in ("p", "m", "v", "dp"))
            assert v.any() and p.dtype == np.float32
            name = row["tensor"].rpartition(".")[2]
            g = dp * scale
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            step_ = m * fix1 / (np.sqrt(v * fix2) + eps)
            want = p - lr * (step_ + (decay if name in one.WEIGHTS else np.float32(0)) * p)
            got = raw.values(row)
            ulp = np.spacing(np.maximum(np.abs(p), np.abs(got)))
            assert want.dtype == np.float32 and (got != p).any()
            assert (np.abs(got.astype(np.float64) - want) <= ulp).all(), row["tensor"]
            for name, again in (("m", m), ("v", v)):
                got = raw.values(outs[name][i]).astype(np.float64)
                assert rms(got - again) <= 4 * ULP["fp32"] * rms(again)


def test_the_twin_of_a_twin_is_itself(step):
    with Raw(step) as raw:
        rows = {row["k"]: row for row in raw.rows("select * from events")}
    assert {row["phase"] for row in rows.values() if row["twin"] is None} == {"update"}
    for row in rows.values():
        if row["phase"] == "forward":
            twin = rows[row["twin"]]
            assert rows[twin["twin"]] is row and twin["phase"] == "backward"
            assert row["twin"] == min(k for k, r in rows.items() if r["twin"] == row["k"])
        elif row["phase"] == "backward":
            twin = rows[row["twin"]]
            assert twin["phase"] == "forward" and twin["run"] == row["run"]
            assert row["op"] in table()[signature(twin["op"]).op].spec.backward


def test_every_backward_event_reads_the_gradient_of_what_its_twin_made(step):
    with Raw(step) as raw:
        for row in raw.rows("select * from events where phase = 'backward'"):
            made = {r["tensor"] for rows in raw.operands(row["twin"], "out").values() for r in rows}
            read = {r["tensor"] for rows in raw.operands(row["k"], "in").values() for r in rows}
            assert read & {gradient_name(name) for name in made}, row["text"]


def test_layers_are_those_of_the_blocks(step):
    with Raw(step) as raw:
        for text, layer in raw.rows("select text, layer from events where phase = 'forward'"):
            made = text.partition(" = ")[0]
            assert layer == (int(made[1]) if made.startswith("h") else None), text


def test_kernel_lines_are_the_source_of_the_function_that_ran(step):
    with Raw(step) as raw:
        for row in raw.rows("select * from events"):
            lines = (step / "src" / row["kernel"]).read_text().splitlines()
            text = "\n".join(lines[row["first_line"] - 1 : row["last_line"]])
            assert f"def {row['op']}(" in text and text.startswith("@"), row["op"]


def test_the_line_that_called_an_op_is_among_the_sources(step):
    with Raw(step) as raw:
        for op, where in raw.rows("select op, model from events"):
            file, number = where.split(":")
            line = (step / "src" / file).read_text().splitlines()[int(number) - 1]
            assert f"ops.{op}(" in line.replace(" ", ""), where


def test_statistics_are_those_of_the_stored_tensors(step):
    with Raw(step) as raw:
        for row in raw.rows("select * from versions where constant = 0"):
            x = raw.values(row).astype(np.float64)
            assert (row["min"], row["max"], row["zeros"]) == (x.min(), x.max(), (x == 0).sum())
            assert abs(row["norm"] - np.linalg.norm(x)) <= 1e-12 * row["norm"]


def test_picture_and_histogram_are_those_of_health(step):
    with Raw(step) as raw:
        row = raw.last("h1.fch")
        h = health(raw.values(row))
        planes = np.frombuffer(row["planes"], ml_dtypes.bfloat16)
        assert planes.reshape(4, row["down"], row["across"]).tobytes() == (
            h.planes.astype(ml_dtypes.bfloat16).tobytes()
        )
        assert np.frombuffer(row["histogram"], np.int64).tolist() == h.histogram.tolist()


def test_constants_are_not_stored_and_can_be_read(step):
    with Raw(step) as raw, Trace(step) as trace:
        rows = raw.rows("select * from versions where constant = 1")
        stored = {h for (h,) in raw.rows("select hash from tensors")}
        assert len(rows) > 30 and not stored & {row["hash"] for row in rows}
        for row in rows:
            assert row["planes"] is None
            assert digest_of(trace.values(trace.version(row["id"]))) == row["hash"]


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.full((3, 5), 0.1, np.float32), True),
        (np.zeros((3, 5), ml_dtypes.bfloat16), True),
        (np.full((2, 2), 1337), True),
        (np.full((2, 2), 0.1), False),  # SQLite would keep it, but health rounds it to fp32
        (np.full((2, 2), 0.5), True),
        (np.float32([0, -0.0, 0]), False),
        (np.float32([-0.0, -0.0]), False),  # SQLite keeps no −0
        (np.array([2**24, 2**24 + 1]), False),  # equal as fp32
        (np.array([1, 1 + 1e-12]), False),
        (np.float32([np.nan, np.nan]), False),
        (np.float32([1, 1, 1, 2]), False),
    ],
)
def test_a_constant_is_one_to_the_bit(values, expected):
    assert is_constant(values, health(values), digest_of(values)) == expected


def test_a_hash_is_stored_once(step):
    with Raw(step) as raw:
        for (file,) in raw.rows("select distinct file from tensors"):
            keys = {h for (h,) in raw.rows("select hash from tensors where file = ?", file)}
            assert raw.file(file).keys() == keys
        both = raw.rows("select count(*), count(distinct hash) from tensors")[0]
    assert both[0] == both[1]


def test_tensors_that_are_not_finite_say_where(tmp_path):
    before = before_step(small(total_batch_tokens=0), None, 1)
    session = before.start.session
    session.memory.array(session.t.p.h[1].fcw)[3, 5] = np.nan
    folder = tmp_path / "bad"
    record_step(session, before.batches, 0, folder, Wanted(), before.start.tokenizer, before.origin)
    with Raw(folder) as raw:
        row = raw.version("h1.fcw", 0)
        assert (row["nans"], row["infs"], json.loads(row["bad"])) == (1, 0, [[3, 5]])
        first = raw.rows("select text from events join versions on event = k where nans > 0")[0]
        assert first[0].startswith("h1.fch = ")
        row = raw.last("h1.fch")
        assert row["nans"] == 16 and json.loads(row["bad"])[:2] == [[0, 0, 3], [0, 1, 3]]


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_level_stores_what_it_says(tmp_path, level):
    patterns = ("h1.*", "dwte") if level == 2 else ()
    folder = record(tmp_path / "x", small(), wanted=Wanted(level, patterns))
    with Raw(folder) as raw:
        stored = {h for (h,) in raw.rows("select hash from tensors")}
        rows = raw.rows("select * from versions where constant = 0")
        for row in rows:
            name = row["tensor"]
            named = level == 2 and (name.startswith("h1.") or name == "dwte")
            if row["kind"] == "input" or level == 3 or named:
                assert row["hash"] in stored, name
            assert (row["planes"] is None) == (row["histogram"] is None) == (level == 0), name
        others = {row["hash"] for row in rows if row["tensor"] == "h0.qkv"}
    assert (others <= stored) == (level == 3)


def test_what_was_not_stored_says_how_to_get_it(tmp_path):
    with Trace(record(tmp_path / "x", small(), wanted=Wanted(1))) as trace:
        (version,) = trace.versions("h0.qkv")[:1]
        with pytest.raises(NotStored, match=r"--level 2 --tensors 'h0\.qkv'"):
            trace.values(version)


def test_memory_is_as_before_afterwards():
    before = before_step(small(), None, 2)
    session = before.start.session
    session.gradients(before.batches, 1)
    kept = {name: flat.tobytes() for name, flat in session.flats.items()}
    session.update(1)
    want = session.flats["p"].tobytes()
    for name, flat in session.flats.items():
        flat[...] = np.frombuffer(kept[name], flat.dtype)

    class Nobody:
        versions = event = staticmethod(lambda *given: None)

    from backglass.debugger.record import Recording

    Recording(session, before.batches, 1, SILENT).execute(Nobody())
    assert {name: flat.tobytes() for name, flat in session.flats.items()} == kept
    session.update(1)
    assert session.flats["p"].tobytes() == want


# ------------------------------------------------------------ the state before the step


def test_the_state_before_is_read_from_the_checkpoint(copy):
    folder = record(copy / "trace" / "step-00000004", run=copy, step=4)
    saved = checkpoint.step_folder(copy, 3)
    model, moments = load_file(saved / "model.safetensors"), load_file(saved / "state.safetensors")
    with Raw(folder) as raw, Trace(folder) as trace:
        stored = {h for (h,) in raw.rows("select hash from tensors")}
        for name, want in (
            ("wpe", model["transformer.wpe.weight"]), ("h1.fcw/m", moments["m/h1.fcw"]),
            ("h0.qkvw", model["transformer.h.0.attn.c_attn.weight"].T),
        ):  # fmt: skip
            row = raw.version(name, 0)
            assert row["hash"] not in stored and not row["constant"]
            np.testing.assert_array_equal(trace.values(trace.version(row["id"])), want)


def test_a_checkpoint_that_is_gone_or_another_is_said(copy):
    folder = record(copy / "trace" / "step-00000004", run=copy, step=4)
    saved = checkpoint.step_folder(copy, 3)
    other = load_file(saved / "model.safetensors")
    damage(saved / "model.safetensors", other["transformer.wpe.weight"].tobytes())
    with Trace(folder) as trace:
        with pytest.raises(NotStored, match="not there any more, or another one"):
            trace.values(trace.versions("wpe")[0])
        assert trace.values(trace.versions("h0.qkvw")[0]).shape == (48, 16)
    shutil.rmtree(saved)
    with Trace(folder) as trace, pytest.raises(NotStored, match="step-00000003"):
        trace.values(trace.versions("h0.qkvw")[0])


def damage(path, content, bit=6):
    """Flip a bit of the last byte of `content`, wherever in the file it is: of a float32 the
    exponent's highest but one, of others something."""
    text = bytearray(path.read_bytes())
    at = text.index(content) + len(content) - 1
    text[at] ^= 1 << (bit - 1)
    path.write_bytes(text)


# ------------------------------------------------------------ the disk


def size_of(folder):
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.stat().st_blocks * 512
        except FileNotFoundError:  # renamed since
            pass
    return found


def test_the_cap_is_never_exceeded_and_what_is_left_out_is_counted(tmp_path):
    s = small(channels=64, seq_len=128, batch_size=8, total_batch_tokens=0)
    whole, cap, largest, done = size_of(record(tmp_path / "whole", s)), 16_000_000, [0], []

    def watch():
        while not done:
            largest[0] = max(largest[0], size_of(tmp_path / "part"))

    assert whole > 2 * cap
    watcher = threading.Thread(target=watch)
    watcher.start()
    folder = record(tmp_path / "part", s, wanted=Wanted(3, (), cap))
    done.append(True)
    watcher.join()
    assert cap / 3 < largest[0] <= cap and size_of(folder) <= cap
    with Raw(folder) as raw, Raw(tmp_path / "whole") as all_of_it:
        sql = "select count(*) from versions where constant = 0 and hash not in (select hash from "
        ((missing,),) = raw.rows(sql + "tensors)")
        sql = "select tensor, number, hash, event from versions order by id"
        assert list(map(tuple, raw.rows(sql))) == list(map(tuple, all_of_it.rows(sql)))
    assert json.loads((folder / "manifest.json").read_text())["left_out"] == missing > 0


def test_what_the_cap_left_out_says_so(tmp_path):
    s = small(channels=64, seq_len=128, batch_size=8, total_batch_tokens=0)
    with Trace(record(tmp_path / "x", s, wanted=Wanted(3, (), 16_000_000))) as trace:
        with pytest.raises(NotStored, match="left out when --max-disk was reached"):
            trace.values(trace.versions("h1.dfch")[0])


def test_a_cap_below_the_statistics_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"--max-disk 1\.0 MB is too little") as caught:
        record(tmp_path / "x", small(), wanted=Wanted(1, (), 1_000_000))
    assert caught.value.code == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "full"), MemoryError(), KeyboardInterrupt()])
def test_what_the_user_or_a_full_disk_stops_is_removed(tmp_path, monkeypatch, error):
    stop_at(monkeypatch, 20, error)
    with pytest.raises(type(error)):
        record(tmp_path / "x", small())
    assert not list(tmp_path.iterdir())


def test_what_a_kernel_stops_stays_readable(tmp_path, monkeypatch):
    stop_at(monkeypatch, 20, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        record(tmp_path / "x", small())
    with Trace(tmp_path / "x") as trace:
        assert trace.count == 20 and not trace.complete
        assert trace.values(trace.outs(19)[0]).shape and trace.source(trace.event(19))


def stop_at(monkeypatch, k, error):
    right = store.Writer.event

    def event(self, e, *rest):
        if e.index == k:
            raise error
        right(self, e, *rest)

    monkeypatch.setattr(store.Writer, "event", event)


def test_a_folder_that_is_there_is_never_touched(tmp_path):
    folder = record(tmp_path / "x", small(), wanted=Wanted(0))
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    with pytest.raises(FileExistsError):
        record(folder, small(), wanted=Wanted(0))
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before


def test_reading_leaves_the_folder_as_it_is(step):
    before = sorted((p, p.stat().st_mtime_ns) for p in step.rglob("*"))
    with Trace(step) as trace:
        assert len(list(trace.events())) == trace.count
        assert sorted((p, p.stat().st_mtime_ns) for p in step.rglob("*")) == before


def test_a_recording_can_be_read_while_it_is_made_and_is_whole_afterwards(tmp_path, monkeypatch):
    right, seen = store.Writer.event, []

    def event(self, e, *rest):
        right(self, e, *rest)
        if e.index == 30:
            seen.append(Trace(tmp_path / "x"))
        if seen:
            assert seen[0].event(e.index).text == str(e.call)

    monkeypatch.setattr(store.Writer, "event", event)
    record(tmp_path / "x", small())
    seen[0].close()
    with Trace(tmp_path / "x") as trace:
        assert trace.complete and trace.count == trace.manifest["events"]


KILLED = """
from pathlib import Path
from backglass.debugger.record import Wanted, record_step
from backglass.debugger.replay import before_step
from backglass.training.settings import Settings
before = before_step(Settings(**{settings}), None, 2)
record_step(before.start.session, before.batches, 1, Path({folder!r}), Wanted(3),
            before.start.tokenizer, before.origin)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A recording whose process was killed somewhere in the middle of it."""
    folder = tmp_path_factory.mktemp("killed") / "recording"
    settings = {**SMALL, "total_batch_tokens": 64 * 16, "dropout": 0.1}
    code = KILLED.format(settings=settings, folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.time() + 60
    while time.time() < deadline and process.poll() is None:
        if len(list(folder.glob("t/000*.safetensors"))) > 100:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return folder


def test_a_killed_recording_is_readable_to_its_last_event(killed):
    with Trace(killed) as trace:
        assert not trace.complete and 100 <= trace.count < trace.manifest["events"]
        events = list(trace.events())
        assert [e.k for e in events] == list(range(trace.count))
        for e in (events[0], events[-1]):
            for version in trace.outs(e.k):
                assert digest_of(trace.values(version)) == version.hash
            assert any(f"def {e.op}(" in line for line in trace.source(e))
        assert list(trace.damaged()) == []


def test_a_killed_recording_is_replayed_as_far_as_it_goes(killed):
    with Trace(killed) as trace:
        agreed, divergence = replay(trace, SILENT)
        made = sum(len(trace.outs(k)) for k in range(trace.count))
        given = len(list(trace.given()))
    assert divergence is None and agreed == made + given


# ------------------------------------------------------------ again


@pytest.mark.parametrize("number", [4, 5, 2])
def test_a_step_of_a_run_is_replayed_bit_for_bit(copy, number):
    """After a checkpoint, between two, and before the first; two micro-batches, dropout."""
    with Trace(record(copy / "trace" / "step-x", run=copy, step=number)) as trace:
        agreed, divergence = replay(trace, SILENT)
        assert divergence is None and agreed == trace.manifest["versions"]


def test_a_step_on_the_cpu_is_replayed_bit_for_bit(step):
    with Trace(step) as trace:
        assert replay(trace, SILENT) == (trace.manifest["versions"], None)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is Linux only")
def test_a_step_in_bf16_is_stored_as_its_bits_and_replayed(tmp_path):
    s = small(
        device="interpret", dtype="bf16", layers=1, total_batch_tokens=0, batch_size=1, steps=1
    )
    folder = record(tmp_path / "x", s)
    with Trace(folder) as trace, Raw(folder) as raw:
        assert replay(trace, SILENT) == (trace.manifest["versions"], None)
        row = raw.last("h0.qkv")
        ((file,),) = raw.rows("select file from tensors where hash = ?", row["hash"])
        bits = raw.file(file)[row["hash"]]
        assert row["dtype"] == "bf16" and bits.dtype == np.uint16
        found = trace.values(trace.versions("h0.qkv")[0])
        assert found.dtype == ml_dtypes.bfloat16 and found.tobytes() == bits.tobytes()
        master = raw.rows("select count(*) from versions where tensor like '%/master'")
        assert (
            master[0][0]
            == 2
            * raw.rows("select count(*) from versions where kind = 'param' and number = 0")[0][0]
        )


def test_the_recorded_step_is_the_step_that_the_run_made(copy):
    """The next checkpoint is what the recorded update made, to the bit: on the numpy device nothing
    is fused, and this run spells attention out."""
    shutil.rmtree(copy)
    s = small(save_every=3, attention="explicit", dropout=0.1)
    loop.train(s, copy, quiet=True)
    folder = record(copy / "trace" / "step-x", run=copy, step=6)
    model = load_file(checkpoint.step_folder(copy, 6) / "model.safetensors")
    moments = load_file(checkpoint.step_folder(copy, 6) / "state.safetensors")
    with Raw(folder) as raw:
        wpe, m = (raw.values(raw.last(name)) for name in ("wpe", "h1.qkvw/m"))
        np.testing.assert_array_equal(wpe, model["transformer.wpe.weight"])
        np.testing.assert_array_equal(m, moments["m/h1.qkvw"])


def test_a_step_on_the_cpu_has_the_bits_of_eager_execution(tmp_path):
    s = small(device="cpu", attention="explicit", seq_len=64, total_batch_tokens=0)
    session = before_step(s, None, 1).start.session
    session.execute_eagerly()
    session.gradients(before_step(s, None, 1).batches, 0)
    with Raw(record(tmp_path / "x", s)) as raw:
        for view in session.t.dp:
            (before, *_) = raw.rows(
                "select hash from versions where tensor = ? order by number desc limit 2", view.name
            )[1:]
            assert before["hash"] == digest_of(view.numpy()), view.name


def test_training_up_to_a_step_is_told_to_its_end():
    told = []
    before_step(small(), None, 4, lambda *progress: told.append(progress))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_settings_of_a_step_are_those_it_was_made_with(copy):
    s = small(dropout=0.1, save_every=3)
    loop.train(s.replace(steps=9, lr=0.5), copy, resume=True, quiet=True)
    assert [settings_of_run(copy, n).lr for n in (1, 3, 4, 6, 7, 9, 10)] == [2e-3] * 4 + [0.5] * 3


def test_a_recording_away_from_its_run_finds_it(copy, tmp_path, run):
    out = tmp_path / "elsewhere"
    assert run("trace", copy, "--step", 5, "--out", out)[0] == 0
    code, text = run("trace", out, "--replay")
    assert code == 0 and "replay bit-exact" in text
    shutil.rmtree(copy)
    code, text = run("trace", out, "--replay")
    assert code == 1 and "directory is not there any more" in text


@pytest.fixture
def changed(step, tmp_path):
    return shutil.copytree(step, tmp_path / "changed")


def test_a_flipped_byte_is_damage_of_that_tensor(changed, run):
    with Raw(changed) as raw:
        row = raw.last("h1.atty")
        damage_tensor(raw, row)
    with Trace(changed) as trace:
        assert [(v.tensor, v.number) for v in trace.damaged()] == [("h1.atty", row["number"])]
    code, text = run("trace", changed, "--replay")
    assert code == 1 and f"damaged: h1.atty (version {row['number']})" in text
    assert "replay bit-exact" in text


def damage_tensor(raw, row):
    ((file,),) = raw.rows("select file from tensors where hash = ?", row["hash"])
    damage(raw.folder / "t" / f"{file}.safetensors", raw.values(row).tobytes())


@pytest.mark.parametrize("content", [b"", b"\x80\x02]q\x00.", b"\xff" * 64])
def test_a_file_that_is_no_safetensors_is_damage_of_its_tensors(changed, content):
    with Raw(changed) as raw:
        row = raw.last("h1.atty")
        ((file,),) = raw.rows("select file from tensors where hash = ?", row["hash"])
    (changed / "t" / f"{file}.safetensors").write_bytes(content)
    with Trace(changed) as trace:
        assert {v.tensor for v in trace.damaged()} == {"h1.atty"}
        with pytest.raises(UserError, match="is damaged"):
            trace.values(trace.versions("h1.atty")[-1])


@pytest.mark.parametrize("tensor, where", [("h1.atty", "event"), ("wpe", "the state before")])
def test_another_hash_in_the_index_is_where_the_replay_diverges(changed, run, tensor, where):
    with Raw(changed) as raw:
        number = 1 if where == "event" else 0
        k = raw.version(tensor, number)["event"]
        raw.db.execute(
            "update versions set hash = 'x' where tensor = ? and number = ?", (tensor, number)
        )
        raw.db.commit()
    with Trace(changed) as trace:
        _, divergence = replay(trace, SILENT)
    assert (divergence.event, divergence.tensor) == (k, tensor)
    code, text = run("trace", changed, "--replay")
    assert code == 1 and f"diverged at {where}" in text and f"{tensor} has other bits" in text


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("manifest.json", b"{", "manifest.json is damaged"),
        ("manifest.json", b'{"format": 99}', "has format 99"),
        ("index.sqlite", b"no database", "index.sqlite is damaged"),
        ("index.sqlite", b"", "index.sqlite is damaged"),
        ("index.sqlite", None, "index.sqlite is missing"),
    ],
)
def test_a_damaged_recording_is_refused(changed, run, file, content, words):
    (changed / file).write_bytes(content) if content is not None else (changed / file).unlink()
    code, text = run("trace", changed)
    assert code == 1 and words in text and len(text.strip().splitlines()) == 1


def test_a_damaged_page_of_the_index_is_said(changed, run):
    text = bytearray((changed / "index.sqlite").read_bytes())
    text[8192:] = b"\xaa" * (len(text) - 8192)
    (changed / "index.sqlite").write_bytes(text)
    code, said = run("trace", changed)
    assert code == 1 and "index.sqlite is damaged" in said


# ------------------------------------------------------------ compare


def test_the_same_step_twice_has_no_divergence(step, tmp_path, run):
    again = record(tmp_path / "again", small(device="cpu"), step=3)
    with Raw(step) as raw:
        ((outs,),) = raw.rows("select count(*) from versions where event is not null")
    code, text = run("compare", step, again)
    assert code == 0 and f"no divergence, {outs} tensors" in text


def test_one_flipped_bit_of_a_weight_is_found_with_its_first_event(copy, tmp_path, run):
    other = shutil.copytree(copy, tmp_path / "other")
    path = checkpoint.step_folder(other, 3) / "model.safetensors"
    weight = load_file(path)["transformer.h.1.mlp.c_fc.weight"]
    damage(path, weight.tobytes())  # the last number of (in, out): ours is (out, in)
    for path in (copy, other):
        assert run("trace", path, "--step", 4, "--level", 3)[0] == 0
    code, text = run("compare", copy, other, "--json")
    (found,) = json.loads(text)
    assert code == 1 and found["step"] == 4
    assert [d["tensor"] for d in found["before"]] == ["h1.fcw"]
    assert found["before"][0]["at"] == [63, 15]
    assert found["text"].startswith("h1.fch = matmul(") and found["event"] is not None
    assert [d["tensor"] for d in found["differences"]] == ["h1.fch"]
    with Raw(copy / "trace/step-00000004") as a, Raw(other / "trace/step-00000004") as b:
        p, q = (raw.values(raw.version("h1.fch", 1)).astype(np.float64) for raw in (a, b))
        ours, theirs = ([r["hash"] for r in raw.rows(
            "select hash from versions where event < ? order by id", found["event"]
        )] for raw in (a, b))  # fmt: skip
    assert ours == theirs
    assert found["differences"][0]["error"] == np.linalg.norm(p - q) / np.linalg.norm(p)
    assert found["differences"][0]["largest"] == np.abs(p - q).max()
    code, text = run("compare", copy, other)
    assert code == 1 and "first divergence at event" in text and "h1.fcw: ‖a − b‖" in text


def test_without_values_the_norms_are_compared(copy, tmp_path, run):
    for lr, name in ((1e-3, "a"), (1e-2, "b")):
        record(tmp_path / name, small(lr=lr), step=1, wanted=Wanted(0))
    with Trace(tmp_path / "a") as a, Trace(tmp_path / "b") as b:
        found = compare(a, b)
    assert [d.tensor for d in found.before] == ["hyper"] and found.text.startswith("p, m, v, dp = ")
    wte = next(d for d in found.differences if d.tensor == "wte")
    assert wte.error is None and wte.norms[0] != wte.norms[1]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"layers": 1}, "only one of them has"),
        ({"batch_size": 1, "total_batch_tokens": 16}, "ids is [2, 8] i32 in one and [1, 8] i32"),
        ({"total_batch_tokens": 16}, "only one of them has"),
        ({"dropout": 0.1}, "only one of them has seed"),
    ],
)
def test_recordings_of_other_programs_are_not_compared(tmp_path, run, changes, words):
    for name, s in (("a", small()), ("b", small(**changes))):
        record(tmp_path / name, s, wanted=Wanted(0))
    code, text = run("compare", tmp_path / "a", tmp_path / "b")
    assert code == 2 and "not the same program" in text and words in text


def test_a_recording_that_was_cut_off_is_compared_as_far_as_it_goes(killed, tmp_path, run):
    s = Settings(**(SMALL | {"total_batch_tokens": 64 * 16, "dropout": 0.1}))
    whole = record(tmp_path / "whole", s, step=2, wanted=Wanted(1))
    with Trace(killed) as trace:
        count = trace.count
    code, text = run("compare", whole, killed)
    assert code == 0 and f"no divergence in the {count} events that both recordings have" in text


def test_differences_of_infinities_are_no_crash(tmp_path):
    folders = []
    for name, value in (("a", np.inf), ("b", np.nan)):
        before = before_step(small(total_batch_tokens=0), None, 1)
        session = before.start.session
        session.memory.array(session.t.p.wpe)[0, 0] = value
        folders.append(tmp_path / name)
        with np.errstate(all="ignore"):
            record_step(
                session, before.batches, 0, folders[-1], Wanted(3), before.start.tokenizer,
                before.origin,
            )  # fmt: skip
    with Trace(folders[0]) as a, Trace(folders[1]) as b:
        found = compare(a, b)
    assert found.before[0].tensor == "wpe" and found.event == 0


def test_two_runs_are_compared_at_the_steps_recorded_in_both(copy, tmp_path, run):
    other = shutil.copytree(copy, tmp_path / "other")
    code, text = run("compare", copy, other)
    assert code == 2 and "no recording of the same step (steps none and none)" in text
    for path, steps in ((copy, (1, 2, 4)), (other, (1, 4, 5))):
        for n in steps:
            record(path / "trace" / f"step-{n:08d}", run=path, step=n, wanted=Wanted(0))
    (copy / "trace" / "step-notes").mkdir()
    code, text = run("compare", copy, other)
    assert code == 0 and [line.split(":")[0] for line in text.splitlines()] == ["step 1", "step 4"]
    code, text = run("compare", copy / "trace/step-00000004", other)
    assert code == 0 and text.startswith("step 4: no divergence")


@pytest.mark.slow
def test_a_step_of_124m_is_recorded_whole_and_within_its_limits(tmp_path):
    """At most 60 s and 4 GB beyond the checkpoint; three tensors read back, one by the maths."""
    s = Settings(
        layers=12, heads=12, channels=768, vocab_size=50257, seq_len=64, batch_size=1,
        device="cpu", steps=1,
    )  # fmt: skip
    before = before_step(s, None, 1)
    start = time.perf_counter()
    record_step(
        before.start.session, before.batches, 0, tmp_path / "x", Wanted(3),
        before.start.tokenizer, before.origin,
    )  # fmt: skip
    assert time.perf_counter() - start < 60 and size_of(tmp_path / "x") < 4e9
    with Trace(tmp_path / "x") as trace, Raw(tmp_path / "x") as raw:
        assert trace.count == len(program_of(s, 50257)) == 348
        for name in ("wte", "h11.att", "dwte"):
            row = raw.last(name, below=345)
            np.testing.assert_array_equal(trace.values(trace.version(row["id"])), raw.values(row))
        att = raw.values(raw.last("h11.att"))
        assert np.abs(att.sum(-1, dtype=np.float64) - 1).max() < 1e-6
        assert not np.triu(att, 1).any()
        assert replay(trace, SILENT) == (trace.manifest["versions"], None)
