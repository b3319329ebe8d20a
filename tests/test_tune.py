"""bench ops --tune: which candidates there are, that each computes what the choice does, what is
said of their times.  Nothing is timed on a clock here."""

import importlib.util
import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from backglass.bench import tune
from backglass.bench.tune import Tile, Trial
from backglass.device import get
from backglass.device.interpret import SWITCHES

# Not importorskip: an import decides whether this process compiles or interprets.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has wheels for Linux only"
)

WORTH_TUNING = {
    "attention", "d_attention", "layernorm", "add_layernorm", "d_layernorm_add", "linear_xent",
    "d_embed", "adamw", "matmul", "matmul_gelu", "d_matmul_x", "d_matmul_x_gelu", "d_matmul_w",
}  # fmt: skip
SMALL = dict(layers=1, heads=2, channels=32, vocab_size=61, max_seq_len=1024)


@pytest.fixture
def small(monkeypatch):
    """Trials are of a model that the interpreter runs in seconds."""
    config = tune.calls.__globals__["gpt2"].Config
    gpt2 = SimpleNamespace(**vars(tune.calls.__globals__["gpt2"]))
    gpt2.Config = lambda **more: config(**{**SMALL, **more, "layers": 1})
    monkeypatch.setitem(tune.calls.__globals__, "gpt2", gpt2)


def found(device, names, ms_of=lambda line: 1.0):
    every = tune.trials(device, names, 2, 70)
    tiles = list(tune.time_all(every, list(map(tune._tile, every)), device, ms_of))
    return every, tiles


def test_everything_worth_tuning_has_candidates_beside_a_choice():
    every = tune.trials(get("interpret"), [], 4, 1024)
    assert {t.call.op for t in every} >= WORTH_TUNING
    for op in WORTH_TUNING:
        of_op = [t for t in every if t.call.op == op]
        assert of_op[0].chosen and len({t.settings() for t in of_op}) >= 4, op


def test_no_candidate_is_the_choice_again():
    every = tune.trials(get("interpret"), [], 4, 1024)
    chosen = {(t.call.op, t.settings()) for t in every if t.chosen}
    assert not {(t.call.op, t.settings()) for t in every if not t.chosen} & chosen


def test_a_trial_changes_its_constants_and_puts_them_back():
    module = ModuleType("kernels")
    module.ROWS, module.TILES = 2, {"a": 1, "b": 2}
    t = Trial(None, module, (), {"ROWS": 8, "TILES": {"b": 3}})
    with pytest.raises(ZeroDivisionError), tune.changed(t):
        assert (module.ROWS, module.TILES) == (8, {"a": 1, "b": 3})
        raise ZeroDivisionError
    assert (module.ROWS, module.TILES) == (2, {"a": 1, "b": 2})


def test_a_trial_reaches_into_a_module_that_its_module_has_imported():
    module, inner = ModuleType("kernels"), ModuleType("inner")
    module.inner, inner.STAGES = inner, 2
    t = Trial(None, module, (), {"inner.STAGES": 3})
    with tune.changed(t):
        assert inner.STAGES == 3
    assert inner.STAGES == 2 and not hasattr(module, "STAGES")


def test_settings_read_as_one_would_write_them():
    t = Trial(None, None, (), {"F": {("bf16", False): (64, 8)}, "T": {2: 5}, "ROWS": 4})
    assert t.settings() == "F['bf16', False]=(64, 8), T[2]=5, ROWS=4"


@pytest.mark.parametrize("op", ["layernorm", "adamw", "attention"])
def test_candidates_compute_what_the_choice_does(small, op):
    every, tiles = found(get("interpret"), [op])
    assert len(tiles) > 5 and {t.call.signature.op for t in every} == {op}
    assert [t for t in tiles if t.note or t.ms != 1.0] == []


@pytest.mark.slow
@pytest.mark.parametrize("op", ["softmax_xent", "embed", "matmul"])
def test_the_other_candidates_compute_what_the_choice_does(small, op):
    rungs = {"matmul": "v5"} if op == "matmul" else {}
    _, tiles = found(get("interpret", rungs=rungs), [op])
    assert len(tiles) > 5 and [t for t in tiles if t.note or t.ms != 1.0] == []


def test_a_candidate_that_computes_something_else_is_not_timed(small, monkeypatch):
    from backglass.ops.adamw import gpu

    right = gpu.adamw

    def adamw(p, m, *more):
        right(p, m, *more)
        if gpu.BLOCK == 512:
            right(p, m, *more)

    adamw.__module__ = gpu.__name__
    monkeypatch.setattr(gpu, "adamw", adamw)
    _, tiles = found(get("interpret"), ["adamw"])
    wrong = [t for t in tiles if t.ms is None]
    assert [t.settings for t in wrong] == ["BLOCK=512, WARPS=4"] and "wrong: " in wrong[0].note


def test_a_candidate_that_writes_nothing_is_not_taken_for_the_choice(small, monkeypatch):
    from backglass.ops.layernorm import gpu

    right = gpu.layernorm

    def layernorm(*operands):
        if gpu.ROWS != 4:
            right(*operands)

    layernorm.__module__ = gpu.__name__
    monkeypatch.setattr(gpu, "layernorm", layernorm)
    _, tiles = found(get("interpret"), ["layernorm"])
    silent = [t for t in tiles if t.op == "layernorm" and "ROWS=4" in t.settings]
    assert silent and all(t.note.startswith("wrong: ") for t in silent)


def test_a_candidate_that_does_not_fit_is_skipped_with_the_reason(small):
    from triton.runtime.errors import OutOfResources

    def ms_of(line):
        from backglass.ops.adamw import gpu

        if gpu.BLOCK == 4096:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return 1.0

    _, tiles = found(get("interpret"), ["adamw"], ms_of)
    (skipped,) = [t for t in tiles if t.ms is None]
    assert "BLOCK=4096" in skipped.settings and "300000" in skipped.note


def verdict(**ms) -> str:
    """Of the choice and candidates a, b at two shapes each."""
    call = SimpleNamespace(op="gelu")
    trial = Trial(call, None, ("gelu", "d_gelu"), {})
    tiles = [
        Tile("gelu", shape, "ops/gelu/gpu.py", name, name == "chosen", ms=times[shape == "N=2"])
        for shape in ("N=1", "N=2")
        for name, times in ms.items()
    ]
    (said,) = tune.verdicts([trial] * len(tiles), tiles)
    return said


def test_a_verdict_names_what_to_edit_where_all_shapes_together_gain():
    said = verdict(chosen=(1.0, 9.0), a=(1.2, 8.0), b=(0.1, 9.8))
    assert said == (
        "ops/gelu/gpu.py, gelu, d_gelu: a saves 8.0% of 10.000 ms: edit it there, not chosen"
    )


def test_a_verdict_lets_the_choice_stand_within_three_percent():
    said = verdict(chosen=(1.0, 9.0), a=(1.0, 8.8))
    assert said.endswith("the choice stands; nothing saves more than 2.0%")


def test_a_verdict_passes_over_what_failed_at_one_shape():
    assert "the choice stands" in verdict(chosen=(1.0, 9.0), a=(0.1, None))


@pytest.mark.parametrize(
    "args, words",
    [
        ("ops --tune --device cpu", "on a GPU, in bf16"),
        ("ops --tune --dtype tf32", "on a GPU, in bf16"),
        ("ops --tune --aot gelu", "candidates have"),
        ("train --tune", "takes no --tune"),
    ],
)
def test_wrong_use_of_tune_is_told(run, args, words):
    code, text = run("bench", *args.split())
    assert code == 2 and words in text


def test_tune_with_aot_compiles_every_candidate():
    env = {k: v for k, v in os.environ.items() if k not in SWITCHES.values()}
    words = "-m backglass bench ops adamw --tune --aot --json".split()
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, check=True)
    rows = json.loads(done.stdout)
    assert [r["chosen"] for r in rows] == [True] + [False] * 5
    assert all(0 < r["registers"] <= 255 and r["ms"] is None and not r["note"] for r in rows)


def test_a_tile_too_large_for_shared_memory_is_found_when_it_is_compiled():
    compiled = SimpleNamespace(shared_bytes=300 << 10, registers=9, spill_bytes=0)
    device = SimpleNamespace(
        arch=90, compiled=[compiled], memory=lambda: None, bind=lambda calls, memory: [lambda: None]
    )
    (t, *_) = tune.trials(get("interpret"), ["adamw"], 4, 64)
    tile = tune.compile_one(t, device)
    assert tile.note == "needs 300 KiB of shared memory, there are 227" and tile.registers == 9


def test_samples_come_from_every_column():
    x = np.arange(3 * tune.SAMPLES + 4096, dtype=np.float32).reshape(-1, 512)
    columns = tune._sample(x).astype(np.int64) % 512
    assert len(np.unique(columns)) == 512
