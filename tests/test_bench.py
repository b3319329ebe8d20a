"""bench: what is measured, how rivals are found, started and read, and what is written down.

Nothing here measures: stand-ins print what the real programs print, and shapes are tiny."""

import json
import os
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import train_gpt2 as one
from backglass import presets
from backglass.bench import (
    by_op,
    generate,
    gpu,
    llmc,
    measured,
    ops,
    provenance,
    sdpa,
    start,
    table,
    train,
    worker,
)
from backglass.bench.measured import RATE, TIME, Measured
from backglass.device.reference import Reference
from backglass.errors import UserError
from backglass.models import gpt2
from backglass.program.cost import line_cost
from backglass.program.record import Program
from backglass.program.step import record_micro, record_update
from backglass.tools import lines
from backglass.training.settings import Settings

TINY = {
    "layers": 2, "heads": 3, "channels": 15, "vocab_size": 131, "max_seq_len": 24, "threads": 0,
    "device": "numpy",
}  # fmt: skip
RATES = Measured("backglass", "case", value=30.0, peak_bytes=3)
LLMC_LINES = """
print("train dataset num_batches: 64")
print("val loss 9.0")
print("step 0: train loss 11.000000 (took 9000.0 ms)")
print("step 1: train loss 10.900000 (took 500.0 ms)")
print("step 2: train loss 10.800000 (took 400.0 ms)")
print("step 3: train loss 10.700000 (took 800.0 ms)")
"""


@pytest.fixture
def stand_in(tmp_path):
    """A Python program under the name of llm.c's, in a folder of its own."""

    def stand_in(body: str) -> str:
        folder = tmp_path / "llm.c"
        folder.mkdir(exist_ok=True)
        program = folder / "train_gpt2"
        program.write_text(f"#!{sys.executable}\nimport os, sys, time\n{body}")
        program.chmod(0o755)
        return str(folder)

    return stand_in


class FakeCuda(Reference):
    """A GPU whose only effect is time: a line takes what `ms` says of its call, 1 if nothing."""

    name = "cuda"
    captures = True
    dtypes = ("fp32", "tf32", "bf16")
    stream = None

    def __init__(self, ms: dict[str, float] | None = None, rungs: dict[str, str] | None = None):
        super().__init__()
        self.ms, self.rungs, self.now_ms = ms or {}, rungs or {}, 0.0
        self.cupy = SimpleNamespace(
            cuda=SimpleNamespace(
                Event=lambda: FakeEvent(self), get_elapsed_time=lambda a, b: b.ms - a.ms
            ),
            get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
        )

    def fusable(self):
        return ["matmul_gelu"]

    def bind(self, calls, memory):
        return [lambda c=c: self.spend(self.ms.get(c.op, 1.0)) for c in calls]

    def capture(self, captured):
        return lambda: [line() for line in captured]

    def spend(self, ms: float) -> None:
        self.now_ms += ms


class FakeEvent:
    def __init__(self, device: FakeCuda):
        self.device = device

    def record(self, stream) -> None:
        self.ms = self.device.now_ms

    def synchronize(self) -> None:
        pass


@pytest.fixture
def cuda_results(monkeypatch):
    """The jobs of our workers, each answered with steps of 80 ms; PyTorch's take 100, autotuned
    90."""
    asked: list[dict] = []

    def ours(job):
        asked.append(job)
        by = {"by_op": BY_OP} if job.get("by_op") else {}
        return {"ms": [80.0] * job["steps"], "peak_bytes": 2**30} | by

    def rival(script, needs, job):
        ms = 90.0 if job.get("mode") == "max-autotune" else 100.0
        return {"ms": [ms] * job["steps"], "peak_bytes": 2**31}

    monkeypatch.setattr(measured, "ours", ours)
    monkeypatch.setattr(measured, "rival", rival)
    return asked


def job_on(device: str, B: int, T: int) -> dict:
    return train.training_job(presets.get("gpt2-124m").replace(device=device), B, T, 3, 0)


def python(body: str) -> list[str]:
    return [sys.executable, "-c", body]


# ------------------------------------------------------------------------------ what is measured
def test_rate_is_the_median_after_warm_up():
    m = measured.rate("x", "case", 100, [7e3, 9e9, 10, 40, 20], 1, warmup=2, prepare_ms=1e3)
    assert (m.value, m.best, m.count, m.first_s) == (100 / 0.020, 100 / 0.010, 3, 8)


def test_rate_of_fewer_steps_than_warm_up_is_the_last():
    m = measured.rate("x", "case", 100, [900, 50], 1, warmup=2)
    assert (m.value, m.count) == (100 / 0.050, 1)


@pytest.mark.parametrize(
    "unit, ours, theirs, ratio",
    [(RATE, 30, 20, 1.5), (TIME, 20, 30, 1.5), (TIME, 30, 20, 2 / 3)],
)
def test_ratio_is_above_one_when_ours_is_better(unit, ours, theirs, ratio):
    m, rival = (Measured("x", "case", value=v, unit=unit) for v in (ours, theirs))
    assert m.row(rival)["ratio"] == pytest.approx(ratio)


def test_rows_pair_each_of_ours_with_each_rival_that_was_measured():
    rivals = [
        Measured("torch.eager", "case", value=20.0),
        Measured("torch.compile", "case", missing="not installed: pip install torch"),
        Measured("llm.c", "case", value=10.0),
    ]
    found = measured.rows([RATES, Measured("train_gpt2.py", "c", missing="no")], rivals)
    pairs = [(r["implementation"], r.get("rival")) for r in found]
    assert pairs == [
        ("backglass", "torch.eager"), ("backglass", "llm.c"), ("torch.eager", None),
        ("llm.c", None),
    ]  # fmt: skip


def test_rows_without_rivals_keep_ours():
    assert measured.rows([RATES], []) == [RATES.row()]


# ------------------------------------------------------------------------------ processes
def test_a_failing_worker_of_ours_is_a_problem(monkeypatch):
    failing = python("import sys; sys.exit('no such kernel')")
    monkeypatch.setattr(measured, "python", lambda module: failing)
    with pytest.raises(UserError, match="no such kernel") as error:
        measured.ours({"kind": "train", "threads": 0})
    assert error.value.code == 1


def test_a_failing_rival_is_told_with_its_last_line():
    body = "import sys; print('hello'); print('why\\nbecause', file=sys.stderr); sys.exit(3)"
    found = measured.in_process(python(body), {"threads": 0})
    assert found == {"error": "failed with exit code 3: because"}


def test_a_rival_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(measured.importlib.util, "find_spec", lambda name: None)
    found = measured.rival("transformers_gpt2.py", ("torch", "transformers"), {})
    assert found == {"error": "not installed: pip install torch transformers"}


def test_rivals_need_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "RIVALS", tmp_path)
    assert "checkout" in measured.rival("torch_gpt2.py", (), {})["error"]


@pytest.mark.parametrize("threads, expected", [(3, "3"), (0, "None")])
def test_threads_reach_every_process(threads, expected, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    body = "import os; print('\"' + str(os.environ.get('OMP_NUM_THREADS')) + '\"')"
    assert measured.in_process(python(body), {"threads": threads}) == expected


def test_watch_ends_a_process_at_the_line_it_waits_for():
    body = "import os, time; print(os.getpid()); print('now', flush=True); time.sleep(600)"
    seen = measured.watch(python(body), lambda line: line == "now\n", dict(os.environ))
    assert seen.reached and seen.lines[1:] == ["now"] and 0 < seen.seconds < 60
    assert seen.peak_bytes > 2**20
    with pytest.raises(ProcessLookupError):
        os.kill(int(seen.lines[0]), 0)


def test_watch_of_a_process_that_ends_too_early_says_so():
    seen = measured.watch(python("print('over')"), lambda line: False, dict(os.environ))
    assert not seen.reached and seen.lines == ["over"]


def test_watch_gives_a_terminal_to_a_program_that_would_hold_its_lines_back():
    body = "import time; print('now'); time.sleep(600)"  # not flushed, as in C
    command, env = python(body), dict(os.environ)
    assert measured.watch(command, lambda line: True, env, terminal=True).lines == ["now"]


# ------------------------------------------------------------------------------ workers
@pytest.mark.parametrize("kind", ["train", "one file"])
def test_training_workers_time_every_step_and_learn_their_batch(kind):
    job = TINY | {"batch_size": 2, "seq_len": 7, "file": str(lines.ROOT / "train_gpt2.py")}
    once, thrice = (worker.KINDS[kind](job | {"steps": n}) for n in (1, 3))
    assert (len(once["ms"]), len(thrice["ms"])) == (1, 3) and thrice["peak_bytes"] > 0
    assert 0 < thrice["loss"] < once["loss"]


def test_generate_worker_counts_prompts_and_new_tokens_apart():
    job = TINY | {
        "path": "", "batch_size": 3, "prompt_tokens": 5, "max_tokens": 4, "repeats": 2,
    }  # fmt: skip
    found = worker.generate(job)
    assert (len(found["prefill_ms"]), len(found["ms"]), len(found["tokens"])) == (2, 2 * 4, 1 + 4)


def test_worker_runs_in_a_process_of_its_own():
    job = TINY | {"kind": "train", "batch_size": 1, "seq_len": 4, "steps": 1}
    assert len(measured.ours(job)["ms"]) == 1


# ------------------------------------------------------------------------------ bench train
def test_train_compares_three_of_ours_and_tells_what_is_missing(monkeypatch):
    asked = []
    result = {"ms": [9.0, 9.0, 2.0], "peak_bytes": 5}
    monkeypatch.setattr(measured, "ours", lambda job: asked.append(job) or result)
    monkeypatch.setattr(measured.importlib.util, "find_spec", lambda name: None)
    job = job_on("cpu", 4, 64)
    ours, rivals = train.compare(job, "gpt2-124m", True, None, lambda m: None)
    shape = "gpt2-124m-cpu-fp32-b4-t64"
    assert [(m.name, m.case) for m in ours] == [
        ("backglass", f"train-{shape}"), ("backglass, BLAS", f"train-{shape}"),
        ("train_gpt2.py", f"train_gpt2.py-{shape}"),
    ]  # fmt: skip
    assert [(a["kind"], a.get("by_op")) for a in asked] == [
        ("train", True), ("train", False), ("one file", None),
    ]  # fmt: skip
    assert ours[0].value == 4 * 64 / 0.002
    assert [m.missing for m in rivals] == ["not installed: pip install torch"] * 2 + [llmc.MISSING]


def test_train_at_another_shape_does_not_mention_llm_c(monkeypatch):
    monkeypatch.setattr(measured, "ours", lambda job: {"ms": [1.0], "peak_bytes": 5})
    monkeypatch.setattr(measured.importlib.util, "find_spec", lambda name: None)
    job = job_on("cpu", 1, 64)
    rivals = train.compare(job, "gpt2-124m", True, None, lambda m: None)[1]
    assert [m.name for m in rivals] == ["torch.eager", "torch.compile"]


def test_a_step_longer_than_the_presets_context_gets_a_longer_model():
    assert train.training_job(presets.get("tiny"), 1, 512, 1, 0)["max_seq_len"] == 512


@pytest.mark.parametrize(
    "device, B, autotune, expected",
    [
        ("cpu", 4, False, [""]),
        ("cuda", 64, False, [""]),
        ("cuda", 64, True, ["", "max-autotune"]),
        ("cuda", 8, True, ["", "max-autotune", "reduce-overhead"]),
    ],
)
def test_train_asks_torch_compile_for_its_modes(device, B, autotune, expected):
    assert train.modes(job_on(device, B, 8) | {"max_autotune": autotune}) == expected


def test_train_on_cuda_compares_three_of_ours_and_every_mode_of_pytorch(cuda_results, run):
    code, text = run("bench", "train", "--device", "cuda", "--rivals", "--max-autotune")
    shown = [line[:30].strip() for line in text.splitlines() if "best" in line]
    assert code == 0 and shown == [
        "backglass, fastest", "backglass", "backglass, cuBLASLt", "torch.eager", "torch.compile",
        "torch.compile, max-autotune",
    ]  # fmt: skip
    asked = [(j["dtype"], j.get("matmul"), j["by_op"]) for j in cuda_results]
    assert asked == [("bf16", None, True), ("bf16", "own", False), ("bf16", "cublaslt", False)]
    shape = {(j["device"], j["batch_size"], j["seq_len"]) for j in cuda_results}
    assert shape == {("cuda", 64, 1024)}


# ------------------------------------------------------------------------------ time by op
def small_step() -> Program:
    c = gpt2.Config(layers=2, heads=3, channels=15, vocab_size=131, max_seq_len=24)
    micro, update = record_micro(gpt2, c, 2, 7), record_update(gpt2, c)
    return Program((*micro, *update))


def test_by_op_has_every_line_of_the_step_that_trains(monkeypatch):
    monkeypatch.setattr(worker, "ceilings", lambda job: ops.Ceilings(1e9, 1e9))
    job = TINY | {"batch_size": 2, "seq_len": 7, "steps": 1, "by_op": True}
    found = worker.train(job)["by_op"]
    expected: dict[str, int] = {}
    for c in small_step():
        expected[c.op] = expected.get(c.op, 0) + 1
    assert {o["op"]: o["calls"] for o in found["ops"]} == expected
    ms = [o["ms"] for o in found["ops"]]
    assert ms == sorted(ms, reverse=True) and ms[-1] > 0


def test_by_op_is_not_measured_unless_asked_for():
    job = TINY | {"batch_size": 2, "seq_len": 7, "steps": 1}
    assert "by_op" not in worker.train(job)


def test_by_op_sums_lines_and_their_ceilings_by_call():
    step = small_step()
    ms = [float(i) for i in range(len(step))]
    found = by_op.summary(step, ms, ops.Ceilings(1e9, 2e9))
    gelus = [i for i, c in enumerate(step) if c.op == "gelu"]
    (gelu,) = (o for o in found["ops"] if o["op"] == "gelu")
    assert len(gelus) == 2 and gelu["ms"] == sum(gelus)
    k = line_cost(step[gelus[0]], 1e9, 2e9)
    assert gelu["ceiling_ms"] == pytest.approx(2e3 * max(k.flops / 1e9, k.nbytes / 2e9))
    assert sum(o["ms"] for o in found["ops"]) == sum(ms)


def test_by_op_on_the_gpu_takes_the_median_of_events_without_the_first_step():
    device = FakeCuda()
    step = Program(tuple(small_step())[:2])
    turns = [iter([900.0, 1, 2, 3, 8, 9]), iter([900.0, 50, 60, 40, 70, 80])]  # ms, step by step
    device.bind = lambda calls, memory: [lambda t=t: device.spend(next(t)) for t in turns]
    plans = {"micro": SimpleNamespace(placed=lambda: step), "update": SimpleNamespace(placed=tuple)}
    session = SimpleNamespace(device=device, memory=None, plans=plans)
    found, ms = by_op.line_times(session)
    assert list(found) == list(step) and ms == [3, 60]


BY_OP = {
    "ceilings": [2e12, 1e12],
    "ops": [
        {"op": "matmul", "calls": 3, "ms": 60.0, "flops": 3e9, "bytes": 1e9, "ceiling_ms": 45.0},
        {"op": "gelu", "calls": 2, "ms": 20.0, "flops": 1e9, "bytes": 2e9, "ceiling_ms": 5.0},
    ],
}


def test_by_op_table_has_shares_a_sum_and_what_is_left_over():
    m = Measured("backglass", "train-x", value=1.0, step_ms=100.0, by_op=BY_OP)
    text = list(by_op.table(m, "cpu"))
    rows = [line.split() for line in text[3:6]]
    assert rows == [
        ["matmul", "3", "60.000", "60.0%", "75%"], ["gelu", "2", "20.000", "20.0%", "25%"],
        ["sum", "5", "80.000", "80.0%", "62%"],
    ]  # fmt: skip
    assert "100.000   left over: 20.000 ms (20.0%), tokens in" in text[6]
    assert "2.00 TFLOP/s, 1.000 TB/s" in text[7]


def test_by_op_table_of_lines_that_take_longer_than_the_step_says_so():
    m = Measured("backglass", "train-x", value=1.0, step_ms=64.0, by_op=BY_OP)
    text = "\n".join(by_op.table(m, "cuda"))
    assert "left over: -16.000 ms (-25.0%), one by one its lines take longer" in text
    assert "a CUDA event after every line" in text


def test_by_op_rows_go_into_the_results_file(cuda_results, run, tmp_path):
    out = tmp_path / "r.json"
    code, _ = run("bench", "train", "--device", "cuda", "--batch-size", "2", "--out", out)
    rows = json.loads(out.read_text())["rows"]
    (row,) = (r for r in rows if r["case"] == "op-matmul-gpt2-124m-cuda-bf16-b2-t1024")
    assert code == 0 and row["implementation"] == "backglass, fastest"
    assert (row["value"], row["unit"], row["calls"], row["share"]) == (60.0, "ms", 3, 0.75)
    assert row["share_of_step"] == pytest.approx(60 / 80)


# ------------------------------------------------------------------------------ llm.c
def test_llmc_files_are_read_by_the_independent_reader(tmp_path):
    c, layout, parameters = worker.random_weights(TINY)
    llmc.write_files(tmp_path, c, layout, parameters)
    theirs, p = one.load(tmp_path / "gpt2_124M.bin")
    assert (theirs.layers, theirs.channels, theirs.vocab_size) == (2, 15, 131)
    assert np.std(p.wte) == pytest.approx(0.02, rel=0.1)
    for split in ("train", "val"):
        shard = tmp_path / "dev" / "data" / "tinyshakespeare" / f"tiny_shakespeare_{split}.bin"
        tokens = one.read_tokens(shard, c.vocab_size)
        assert len(tokens) // (llmc.B * llmc.T) == llmc.BATCHES


def test_llmc_tokenizer_has_a_token_for_every_id(tmp_path):
    llmc.write_tokenizer(tmp_path / "t.bin", 50257)
    data = (tmp_path / "t.bin").read_bytes()
    assert np.frombuffer(data[:16], np.uint32).tolist() == [20240328, 2, 50257, 50256]
    assert data[1024:] == b"\1." * 50257


def test_llmc_steps_are_parsed_and_the_first_is_dropped(stand_in):
    job = TINY | {"steps": 4}
    m = llmc.measure(stand_in(LLMC_LINES), job, "case")
    assert (m.missing, m.value, m.best, m.count) == ("", 256 / 0.5, 256 / 0.4, 3)
    assert m.first_s == 9.0 and m.peak_bytes > 2**20


def test_llmc_is_stopped_after_the_steps_that_were_asked_for(stand_in):
    start = time.perf_counter()
    m = llmc.measure(stand_in(LLMC_LINES + "time.sleep(600)\n"), TINY | {"steps": 3}, "case")
    assert m.count == 2 and time.perf_counter() - start < 300


def test_llmc_finds_its_files_and_threads(stand_in):
    body = """
assert os.environ["OMP_NUM_THREADS"] == "2"
sizes = [os.path.getsize(f) for f in ("gpt2_124M.bin", "gpt2_tokenizer.bin")]
assert sizes[0] > 1024 and sizes[1] == 1024 + 2 * 131, sizes
"""
    m = llmc.measure(stand_in(body + LLMC_LINES), TINY | {"steps": 2, "threads": 2}, "case")
    assert m.missing == "" and m.value == 256 / 0.5


def test_llmc_that_fails_is_told_with_its_last_line(stand_in):
    m = llmc.measure(stand_in("sys.exit('Bad version in model file')"), TINY | {"steps": 2}, "case")
    assert m.missing.endswith("it said: Bad version in model file")


def test_llmc_built_for_another_shape_is_not_measured(stand_in):
    larger = LLMC_LINES.replace("num_batches: 64", "num_batches: 16")
    m = llmc.measure(stand_in(larger), TINY | {"steps": 2}, "case")
    assert "another B or T" in m.missing and not m.value


def test_llmc_code_lines_leave_out_comments_and_count_headers(tmp_path):
    (tmp_path / "llmc").mkdir()
    source = '#include <math.h>\n#include "llmc/u.h"\n/* a\n b */\n\nint x; // why\n  //\nint y;\n'
    (tmp_path / "train_gpt2.c").write_text(source)
    (tmp_path / "llmc" / "u.h").write_text('#include "v.h"\nint u;\n')
    (tmp_path / "llmc" / "v.h").write_text('#include "u.h"\nint v;\n')
    assert llmc.code_lines(str(tmp_path)) == 4 + 2 + 2


# ------------------------------------------------------------------------------ from start
def test_the_last_step_of_a_real_run_is_recognised(run, tmp_path):
    shape = "--layers 1 --channels 16 --heads 2 --seq-len 8 --batch-size 2 --val-batches 1"
    out = str(tmp_path / "a")
    code, text = run(
        "train", "tiny", "--device", "numpy", "--steps", "2", "--out", out, *shape.split()
    )
    assert code == 0
    assert [start.is_step(line, 2) for line in text.splitlines()].count(True) == 1
    assert not any(start.is_step(line, 3) for line in text.splitlines())


def test_from_start_compiles_once_and_then_finds_the_cache(monkeypatch, tmp_path):
    body = (
        f"import os, sys; open({str(tmp_path / 'log')!r}, 'a').write("
        "os.environ['BACKGLASS_CACHE'] + ' ' + str('NUMBA_CACHE_DIR' in os.environ) + ' ' + "
        "sys.argv[-1] + chr(10)); print('step     2/2   loss 1.0')"
    )
    monkeypatch.setattr(measured, "python", lambda module: python(body))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "elsewhere")
    (warm, cold), rivals = start.compare(
        Settings(steps=2, batch_size=3, seq_len=5), 0, False, lambda m: None
    )
    started = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    caches, numba_caches, outs = zip(*started, strict=True)
    assert len(set(caches)) == 1 and len(set(outs)) == 1 + start.RUNS == warm.count + cold.count
    assert set(numba_caches) == {"False"}
    assert warm.case == "train-tiny-cpu-fp32-b3-t5-start-to-step-2" and warm.unit == TIME
    assert (cold.case, rivals) == (warm.case + "-cold", [])


def test_from_start_of_a_run_that_ends_early_is_a_problem(monkeypatch):
    monkeypatch.setattr(measured, "python", lambda module: python("print('no data')"))
    with pytest.raises(UserError, match="before step 2; it said: no data"):
        start.compare(Settings(steps=2), 0, False, lambda m: None)


def test_from_start_of_the_rival_lasts_until_its_result(monkeypatch):
    monkeypatch.setattr(measured, "rival_command", lambda *a: (python("print('{}')"), ""))
    m = start.pytorch(Settings(steps=2), 0, "case")
    assert (m.count, m.unit) == (start.RUNS, TIME) and 0 < m.value < 60


# ------------------------------------------------------------------------------ bench generate
def test_generate_rates_count_all_sequences(monkeypatch):
    result = {"prefill_ms": [10.0, 10.0, 40.0], "ms": [2.0, 2.0, 4.0], "peak_bytes": 5}
    monkeypatch.setattr(measured, "ours", lambda job: result)
    job = generate.job_for("tiny", 32, 16, 0)
    found = generate.compare(job, "tiny", (8,), False, lambda m: None)
    ((prefill,), none), ((decode,), _) = found
    assert prefill.value == 8 * 32 / 0.010 and decode.value == 8 / 0.002 and none == []
    assert prefill.case == "prefill-tiny-cpu-fp32-b8-p32"
    assert decode.case == "generate-tiny-cpu-fp32-b8-p32-n16"


def test_generate_knows_a_model_on_disk(tmp_path, run):
    shape = "--layers 1 --channels 16 --heads 2 --seq-len 8 --batch-size 2 --val-batches 1"
    out = str(tmp_path / "a")
    run("train", "tiny", "--device", "numpy", "--steps", "1", "--out", out, *shape.split())
    job = generate.job_for(out, 4, 4, 0) | {"batch_size": 1, "device": "numpy"}
    assert (job["layers"], job["channels"], job["max_seq_len"]) == (1, 16, 8)
    assert generate.cases_of(out, job)[1] == "generate-a-cpu-fp32-b1-p4-n4"
    assert len(worker.generate(job)["tokens"]) == 5


# ------------------------------------------------------------------------------ bench table
def test_table_shows_what_is_missing_and_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(
        measured, "rival_command", lambda *a: ([], "not installed: pip install torch")
    )
    monkeypatch.setattr(measured, "ours", lambda job: {"ms": [job["seq_len"]], "peak_bytes": 2**30})
    job = job_on("cpu", 4, 64)
    ours, rivals = table.columns(job, False, None, lambda text: None)
    table.print_table(job, ours, rivals, None)
    text = capsys.readouterr().out
    assert "| torch.compile | not installed: pip install torch, then --rivals | | |" in text
    assert f"| llm.c | {llmc.MISSING} | | |" in text
    assert "| backglass, naive rungs (one step at B=1, T=64) | 1,000.0 | 1.00 GiB |" in text


def test_table_rows_compare_only_what_had_the_same_shape():
    ours = [Measured(table.RAW["cpu"], "short", value=2.0)]
    ours += [Measured(n, "c", value=2.0) for n in train.VARIANTS["cpu"]]
    found = table.rows(job_on("cpu", 4, 64), ours, [Measured("llm.c", "c", value=1.0)], None)
    ratios = {r["implementation"]: r.get("ratio") for r in found}
    assert ratios == {
        "backglass": 2, "backglass, BLAS": 2, "llm.c": None, "backglass, naive rungs": None,
    }  # fmt: skip


def test_table_counts_a_rung_in_the_place_of_its_kernel():
    paths, folder = lines.rows(), lines.PACKAGE / "ops" / "matmul"
    saved = table.our_lines(paths, "cpu", "") - table.our_lines(paths, "cpu", "matmul=v1")
    assert saved == lines.count(folder / "cpu.py") - lines.count(folder / "ladder" / "v1_naive.py")


def test_table_counts_the_kernels_that_a_rung_imports():
    paths, folder = lines.rows(), lines.PACKAGE / "ops" / "matmul" / "ladder"
    own = table.our_lines(paths, "cuda", "matmul=own")
    more = table.our_lines(paths, "cuda", "matmul=fastest") - own
    assert more == lines.count(folder / "fastest.py") + lines.count(folder / "cublaslt.py")


def test_table_on_cuda_measures_the_rungs_in_shared_memory_at_the_same_shape(
    cuda_results, run, tmp_path
):
    out = tmp_path / "r.json"
    code, text = run("bench", "table", "--device", "cuda", "--rivals", "--max-autotune",
                     "--out", out)  # fmt: skip
    assert code == 0 and cuda_results[0]["rung"].startswith("matmul=v2,layernorm=v2")
    shown = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if " GiB | " in line]
    assert shown == [
        "torch.compile, max-autotune", "backglass, v2 rungs", "backglass, fastest", "backglass",
        "backglass, cuBLASLt",
    ]  # fmt: skip
    ratios = {r["implementation"]: r.get("ratio") for r in json.loads(out.read_text())["rows"]}
    assert ratios == pytest.approx(
        dict.fromkeys(shown[1:], 90 / 80) | {"torch.compile, max-autotune": None}
    )


@pytest.mark.parametrize("what", ["train", "table"])
def test_another_gpu_is_measured_as_the_first_would_be(cuda_results, run, tmp_path, what):
    asked = []
    for device in ("cuda", "cuda:1"):
        out = tmp_path / "r.json"
        code, _ = run("bench", what, "--device", device, "--rivals", "--out", out)
        jobs = [{**job, "device": "there"} for job in cuda_results if job["device"] == device]
        asked.append((code, jobs, json.loads(out.read_text())["rows"]))
        assert len(jobs) == len(cuda_results) >= 3
        cuda_results.clear()
    assert asked[0] == asked[1]


def test_table_on_cuda_keeps_published_figures_apart(cuda_results, run, tmp_path):
    out = tmp_path / "r.json"
    _, text = run("bench", "table", "--device", "cuda", "--rivals", "--out", out)
    measured_part, published = text.split("Published elsewhere, on other machines, not measured")
    assert "llm.c" not in measured_part and "llm.c" not in out.read_text()
    assert "llm.c: 468,000 tokens/s" in published and "8 H100 SXM" in published


@pytest.mark.parametrize(
    "device, shown, which", [("cuda", None, "0"), ("cuda:1", None, "1"), ("cuda:1", "3,5", "5")]
)
def test_provenance_names_the_gpu_that_was_measured(monkeypatch, device, shown, which):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)

    def nvidia_smi(command, **more):
        return SimpleNamespace(stdout=f"GPU {command[command.index('-i') + 1]}, 580.1\n")

    monkeypatch.setattr(provenance.subprocess, "run", nvidia_smi)
    assert provenance.gpu_name(device) == f"GPU {which}, driver 580.1"


# ------------------------------------------------------------------------------ bench ops
def test_ops_have_a_row_for_each_call_of_an_op(monkeypatch):
    monkeypatch.setattr(ops, "ceilings", lambda threads: ops.Ceilings(1e11, 1e10))
    rows = list(ops.bench_ops(["gelu"], B=1, T=8, threads=None, rungs={}, seconds=0))
    assert [(r.op, r.shape) for r in rows] == [("gelu", "N=24576"), ("d_gelu", "N=24576")]
    r = rows[0]
    assert r.ceiling == "bytes/s" and r.share == pytest.approx(r.gbps / 10)


def ratio_row(op: str, ratio: float, rival: str, dtype: str = "bf16") -> ops.Row:
    return ops.Row(op, "fastest", "", dtype, 1.0, 1.0, 1.0, "FLOP/s", 1.0, rival, ratio)


def test_ops_means_are_geometric_and_keep_epilogues_and_dtypes_apart():
    rows = [
        ratio_row("matmul", 0.5, "cublaslt"), ratio_row("d_matmul_w", 8.0, "cublaslt"),
        ratio_row("matmul_gelu", 3.0, "cublaslt + gelu"), ratio_row("matmul", 7.0, "blas", "fp32"),
        ratio_row("attention", 9.0, "torch sdpa, cudnn"),
    ]  # fmt: skip
    assert ops.means(rows) == [
        "bare matmuls, bf16: 2.00x cublaslt, the geometric mean of 2 rows of matmul, d_matmul_w",
        "matmuls with an epilogue, bf16: 3.00x cublaslt and the passes they save, the geometric "
        "mean of 1 row of matmul_gelu",
        "bare matmuls, fp32: 7.00x blas, the geometric mean of 1 row of matmul",
    ]


@pytest.fixture
def fake_gpu(monkeypatch):
    """bench ops on a GPU on which cuBLASLt takes 3 ms for a product, ours 2, all else 1."""

    def get(name, rungs=None):
        ms = 3.0 if (rungs or {}).get("matmul") == "cublaslt" else 2.0
        return FakeCuda({"matmul": ms, "matmul_gelu": 2.0}, rungs)

    monkeypatch.setattr(gpu, "get", get)
    monkeypatch.setattr(gpu, "ceilings", lambda device, dtype: ops.Ceilings(1e15, 1e12))


def test_gpu_ops_compare_a_product_with_cublaslt_and_an_epilogue_with_the_pass_too(fake_gpu):
    rows = list(gpu.gpu_ops(["matmul", "matmul_gelu"], 1, 8, "cuda", "bf16", {}, {}))
    found = {(r.op, r.rival, r.ratio) for r in rows if r.op in ("matmul", "matmul_gelu")}
    assert found == {("matmul", "cublaslt", 1.5), ("matmul_gelu", "cublaslt + gelu", (3 + 1) / 2)}


def test_gpu_ops_without_a_dtype_take_every_one_that_the_gpu_has(fake_gpu):
    rows = list(
        gpu.gpu_ops(["attention"], 1, 8, "cuda", "", {}, {"attention": ("torch sdpa", 4.0)})
    )
    found = [(r.op, r.dtype, r.ratio) for r in rows]
    assert found == [
        ("attention", "bf16", 4.0), ("d_attention", "bf16", None),
        ("attention", "tf32", None), ("d_attention", "tf32", None),
        ("attention", "fp32", None), ("d_attention", "fp32", None),
    ]  # fmt: skip


def test_gpu_ops_do_not_compare_cublaslt_with_itself(fake_gpu):
    rows = gpu.gpu_ops(["matmul"], 1, 8, "cuda", "tf32", {}, {})
    assert {(r.rung, r.rival, r.ratio) for r in rows} == {("cublaslt", "", None)}


def test_ops_on_cuda_print_one_table_per_dtype_and_the_means(fake_gpu, monkeypatch, run):
    monkeypatch.setattr(sdpa.measured, "rival", lambda *a: {"forward_ms": 3.0, "backward_ms": 0.5})
    args = "ops matmul attention --device cuda --rivals --batch-size 1 --seq-len 8"
    code, text = run("bench", *args.split())
    assert code == 0 and [text.count(f"call in {d} ") for d in ("bf16", "tf32", "fp32")] == [1] * 3
    assert "TFLOP/s" in text and "3.00x torch sdpa, flash" in text
    assert "0.50x torch sdpa, flash" in text and "bare matmuls, bf16: 1." in text


def test_ops_on_another_gpu_open_that_one_and_start_the_rival_there(monkeypatch, fake_gpu, run):
    opened, jobs, get = [], [], gpu.get
    monkeypatch.setattr(gpu, "get", lambda name, **more: opened.append(name) or get(name, **more))
    rival = {"forward_ms": 3.0, "backward_ms": 0.5}
    monkeypatch.setattr(
        sdpa.measured, "rival", lambda script, needs, job: jobs.append(job) or rival
    )
    args = "ops attention --device cuda:1 --rivals --batch-size 1 --seq-len 8"
    code, text = run("bench", *args.split())
    assert code == 0 and set(opened) == {j["device"] for j in jobs} == {"cuda:1"}
    assert "TFLOP/s" in text


@pytest.mark.parametrize("args", ["matmul --rivals", "--rivals --dtype tf32 attention"])
def test_ops_start_no_rival_that_no_row_needs(fake_gpu, monkeypatch, run, args):
    monkeypatch.setattr(sdpa, "measure", lambda *a: pytest.fail("PyTorch was started"))
    shape = ("--device", "cuda", "--batch-size", "1", "--seq-len", "8")
    assert run("bench", "ops", *args.split(), *shape)[0] == 0


def test_sdpa_compares_with_the_faster_backend_of_each_direction(monkeypatch):
    results = {
        "flash": {"forward_ms": 2.0, "backward_ms": 5.0},
        "cudnn": {"forward_ms": 1.0, "backward_ms": 6.0},
    }
    monkeypatch.setattr(measured, "rival", lambda script, needs, job: results[job["backend"]])
    told: list[str] = []
    assert sdpa.measure(64, 1024, "cuda", told.append) == {
        "attention": ("torch sdpa, cudnn", 1.0), "d_attention": ("torch sdpa, flash", 5.0),
    }  # fmt: skip
    assert told == [
        "torch sdpa, flash              attention 2.000 ms, d_attention 5.000 ms",
        "torch sdpa, cudnn              attention 1.000 ms, d_attention 6.000 ms",
    ]


def test_sdpa_goes_on_without_a_backend_that_fails(monkeypatch):
    def rival(script, needs, job):
        failed = {"error": "failed with exit code 1: RuntimeError: no kernel"}
        return failed if job["backend"] == "cudnn" else {"forward_ms": 2.0, "backward_ms": 5.0}

    monkeypatch.setattr(measured, "rival", rival)
    told: list[str] = []
    assert sdpa.measure(64, 1024, "cuda", told.append)["attention"] == ("torch sdpa, flash", 2.0)
    assert (
        told[1] == "torch sdpa, cudnn              failed with exit code 1: RuntimeError: no kernel"
    )


# ------------------------------------------------------------------------------ the command
@pytest.mark.parametrize(
    "args, words",
    [
        ("juggle", "ops, train, generate, table"),
        ("train nosuch", "gpt2-124m"),
        ("train tiny gpt2-124m", "one name"),
        ("train --rung matmul=v1", "takes no --rung"),
        ("train --max-tokens 3", "takes no --max-tokens"),
        ("table tiny", "takes no names"),
        ("ops --rivals", "add --device cuda"),
        ("ops --device cuda --dtype fp8", "bf16, tf32, fp32"),
        ("ops nosuch --device cuda", "matmul"),
        ("train --device cuda:x", "cuda:N"),
        ("train --device numpy", "cuda:1 for the second GPU"),
        ("train --max-autotune", "add --rivals"),
        ("train tiny --from-start --device cuda", "on the CPU"),
        ("generate --max-autotune", "takes no --max-autotune"),
        ("generate --device cuda", "takes no --device"),
        ("ops nosuch", "matmul"),
        ("ops dropout", "training step"),
        ("ops matmul --rung matmul", "OP=V"),
        ("ops matmul --rung matmul=v99", "v1"),
        ("generate nosuch", "neither a preset"),
        ("generate tiny --prompt-tokens 100 --max-tokens 29", "context of 128"),
        ("train --steps 0", "at least 1"),
        ("train --threads -1", "at least 1"),
        ("train gpt2-124m --from-start", "choose tiny"),
        ("train --llmc nowhere", "git clone"),
        ("train --llmc .", "make -C . train_gpt2"),
        ("table --out nowhere/x.json", "no folder nowhere"),
        ("table --out .", "a folder"),
    ],
)
def test_wrong_use_is_told_before_anything_is_measured(run, monkeypatch, tmp_path, args, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measured, "ours", lambda job: pytest.fail("something was measured"))
    code, text = run("bench", *args.split())
    assert code == 2 and words in text


@pytest.mark.parametrize("args", ["train --seq-len 128", "train tiny --from-start"])
def test_llmc_at_another_shape_is_wrong_use(run, stand_in, args):
    code, text = run("bench", *args.split(), "--llmc", stand_in(LLMC_LINES))
    assert code == 2 and "4 x 64" in text


def test_results_file_says_how_it_was_made(run, monkeypatch, tmp_path):
    result = {"prefill_ms": [10.0], "ms": [2.0], "peak_bytes": 5}
    monkeypatch.setattr(measured, "ours", lambda job: result)
    out = tmp_path / "r.json"
    code, text = run("bench", "generate", "tiny", "--json", "--out", out)
    found = json.loads(out.read_text())
    assert code == 0 and json.loads(text) == found["rows"]
    assert set(found) == {"machine", "versions", "commit", "command", "date", "rows"}
    assert [r["case"] for r in found["rows"]] == [
        "prefill-tiny-cpu-fp32-b1-p64", "generate-tiny-cpu-fp32-b1-p64-n64",
        "prefill-tiny-cpu-fp32-b8-p64", "generate-tiny-cpu-fp32-b8-p64-n64",
    ]  # fmt: skip
    assert found["rows"][1]["value"] == 500 and found["rows"][1]["unit"] == "tokens/s"


# ------------------------------------------------------------------------------ the rivals
@pytest.mark.oracle
def test_pytorch_rival_trains_on_the_same_protocol():
    pytest.importorskip("torch")
    job = TINY | {"device": "cpu", "batch_size": 2, "seq_len": 7, "compile": False}
    needs = ("torch",)
    once, thrice = (measured.rival("torch_gpt2.py", needs, job | {"steps": n}) for n in (1, 3))
    assert "error" not in once, once
    assert (len(once["ms"]), len(thrice["ms"])) == (1, 3) and thrice["peak_bytes"] > 0
    assert 0 < thrice["loss"] < once["loss"]


@pytest.mark.oracle
def test_attention_rival_times_both_directions_and_tells_what_it_lacks():
    pytest.importorskip("torch")
    job = {
        "batch_size": 1, "heads": 2, "seq_len": 40, "head_size": 16, "device": "cpu", "threads": 1,
    }  # fmt: skip
    flash, cudnn = (
        measured.rival("torch_sdpa.py", ("torch",), job | {"backend": b}) for b in sdpa.BACKENDS
    )
    assert flash["forward_ms"] > 0 and flash["backward_ms"] > 0
    assert "RuntimeError" in cudnn["error"]


@pytest.mark.oracle
def test_transformers_rival_generates_the_same_tokens(tmp_path, run):
    pytest.importorskip("transformers")
    shape = "--layers 2 --channels 48 --heads 3 --seq-len 24 --batch-size 2 --val-batches 1"
    out = str(tmp_path / "a")
    run("train", "tiny", "--device", "numpy", "--steps", "3", "--out", out, *shape.split())
    job = generate.job_for(out, 9, 12, 0) | {"batch_size": 3}
    theirs = measured.rival("transformers_gpt2.py", ("torch", "transformers"), job)
    assert theirs["tokens"] == worker.generate(job | {"device": "numpy"})["tokens"]
    assert (len(theirs["prefill_ms"]), len(theirs["ms"])) == (3, 3 * 12)
