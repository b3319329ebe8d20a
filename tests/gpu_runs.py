"""On a real GPU, otherwise idle:  python -m pytest tests/gpu_runs.py

Not collected by the test command, which needs no GPU and skips nothing for lack of one.  What only
the hardware can say: the driver's memory beside the plan, equal bits, CUDA's own errors.  Each run
is a process of its own: peak memory belongs to a process, and a fault ends it.
"""

import json
import os
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from backglass.bench.measured import watch
from backglass.device.interpret import SWITCHES

pytestmark = pytest.mark.gpu

STEPS = """
import hashlib, json, sys
import numpy as np
from backglass import device, presets
from backglass.training.session import Session, device_options

job = json.loads(sys.argv[1])
steps = job.pop("steps")
s = presets.get("gpt2-124m").replace(total_batch_tokens=0, **job)
session = Session(s.model_config(s.vocab_size), s, device.get(s.device, **device_options(s)))
session.init()
ids = np.random.default_rng(0).integers(0, 50257, (s.batch_size, s.seq_len + 1)).astype(np.int32)
losses = []
for step in range(steps):
    losses.append(session.gradients([(ids[:, :-1], ids[:, 1:])], step))
    session.update(step)
digest = hashlib.sha256(session.state()["p"].tobytes()).hexdigest()
print(json.dumps(dict(used=session.device.used_bytes(), digest=digest, losses=losses,
                      torch="torch" in sys.modules)))
"""

# The update of step 3 first does what `fault` says; the rest is `backglass train`.
FAULTY = """
import sys
from backglass import cli
from backglass.training.session import Session

def out_of_bounds():
    import cupy
    import numpy as np
    from backglass.device.gpu import Tensor
    from backglass.ops.gelu.gpu import gelu
    held.append(cupy.cuda.runtime.malloc(512))  # Triton refuses an address that is nobody's
    larger = Tensor(held[-1], np.dtype(np.float32), (1 << 30,))  # 4 GiB, by far more than the run
    gelu(larger, larger, (False,))

def full():
    import cupy
    for power in range(40, 8, -1):  # whatever is left, in ever smaller pieces
        try:
            while True:
                held.append(cupy.cuda.runtime.malloc(1 << power))
        except cupy.cuda.runtime.CUDARuntimeError:
            pass
    cupy.empty(1 << 30)

held, update, fault = [], Session.update, globals()[sys.argv[1]]

def doomed(session, step):
    if step == 3:
        fault()
    return update(session, step)

Session.update = doomed
sys.exit(cli.main(sys.argv[2:]))
"""

# All but so many bytes are somebody else's before the run begins.
LITTLE = """
import sys
import cupy
from backglass import cli
free, _ = cupy.cuda.runtime.memGetInfo()
held = cupy.cuda.runtime.malloc(free - int(sys.argv[1]))
sys.exit(cli.main(sys.argv[2:]))
"""


COMPILING = {k: v for k, v in os.environ.items() if k not in SWITCHES.values()}


def python(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**COMPILING, **env})


def steps(**job) -> dict:
    done = python("-c", STEPS, json.dumps({"device": "cuda", "batch_size": 4, "steps": 3, **job}))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def told(done: subprocess.CompletedProcess) -> str:
    """What a command that failed said; one paragraph and nothing else."""
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    "asked",
    [
        "--batch-size 4 --dtype bf16",
        "--batch-size 64 --dtype bf16",
        "--batch-size 64 --dtype bf16 --recompute fch_gelu,ln1,ln2",
        "--batch-size 64 --dtype bf16 "
        "--recompute ln1,qkv,atty,attproj,res2,ln2,fch,fch_gelu,fcproj",
        "--batch-size 32 --dtype tf32",
    ],
)
def test_the_driver_reports_what_plan_foretold(asked):
    words = ["plan", "gpt2-124m", "--seq-len", "1024", "--device", "cuda", *asked.split()]
    planned = json.loads(python("-m", "backglass", *words, "--json").stdout)["total_bytes"]
    names = [w.removeprefix("--").replace("-", "_") for w in asked.split()[::2]]
    job = dict(zip(names, asked.split()[1::2], strict=True))
    used = steps(**job | {"batch_size": int(job["batch_size"])})["used"]
    assert abs(planned - used) <= 0.03 * used, (planned / 2**30, used / 2**30)


def test_two_runs_give_the_same_bits_with_a_graph_and_without_and_no_torch():
    first, second, plain = steps(steps=50), steps(steps=50), steps(steps=50, graph=False)
    assert first["digest"] == second["digest"] == plain["digest"]
    assert not first["torch"] and first["losses"][-1] < first["losses"][0]


def test_a_run_that_does_not_fit_is_refused_with_what_does(tmp_path):
    words = "train tiny --device cuda --batch-size 4096 --out".split()
    said = told(python("-c", LITTLE, str(4 << 30), *words, str(tmp_path / "a")))
    assert "needs" in said and "What fits: --batch-size" in said


@pytest.mark.parametrize(
    "fault, words", [("out_of_bounds", "The GPU failed"), ("full", "The GPU's memory ran out")]
)
def test_a_fault_while_training_names_the_last_checkpoint(tmp_path, fault, words):
    run = "train tiny --device cuda --steps 6 --save-every 2 --val-batches 1 --out".split()
    said = told(python("-c", FAULTY, fault, *run, str(tmp_path / "a")))
    assert words in said and "The last checkpoint is step 2; go on from there with" in said


def test_a_hidden_gpu_is_explained(tmp_path):
    words = "train tiny --device cuda --out".split()
    done = python("-m", "backglass", *words, str(tmp_path / "a"), CUDA_VISIBLE_DEVICES="")
    assert "CUDA_VISIBLE_DEVICES is ''" in told(done)


def test_every_kernel_computes_what_the_maths_says():
    done = python("-m", "backglass", "check", "--device", "cuda", "--json")
    rows = json.loads(done.stdout)["rows"]
    assert rows and not [r for r in rows if not r["ok"]] and done.returncode == 0


# ---------------------------------------------------------------- from start to the first step

# The folders in which Triton, we (cuBLASLt's chosen algorithms), Numba, the driver and CuPy keep
# what they have compiled or measured.
CACHES = (
    "TRITON_CACHE_DIR", "BACKGLASS_CACHE", "NUMBA_CACHE_DIR", "CUDA_CACHE_PATH", "CUPY_CACHE_DIR",
)  # fmt: skip


def seconds_to_the_first_step(caches: Path, out: Path, words: list[str]) -> float:
    """From the start of `backglass train` to the line of its first step."""
    env = COMPILING | {name: str(caches / name) for name in CACHES}
    command = [sys.executable, "-m", "backglass", "train", *words, "--steps", "1", "--out", out]
    seen = watch(list(map(str, command)), lambda line: line.split()[:2] == ["step", "1/1"], env)
    assert seen.reached, seen.lines[-1:]
    return seen.seconds


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """(seconds with empty caches, the median of three with what that left)."""
    folder = tmp_path_factory.mktemp("starts")
    words = "gpt2-124m --device cuda --tokenizer bytes --batch-size 4 --total-batch-tokens 4096"
    cold, *warm = (
        seconds_to_the_first_step(folder / "caches", folder / str(k), words.split())
        for k in range(4)
    )
    assert any((folder / "caches" / "TRITON_CACHE_DIR").iterdir())
    return cold, statistics.median(warm)


def test_a_cold_start_takes_a_minute_at_most(starts):
    assert starts[0] <= 60


def test_a_warm_start_takes_five_seconds_at_most(starts):
    assert starts[1] <= 5


# ---------------------------------------------------------------- the same curve everywhere


@pytest.fixture(scope="module")
def val_loss(tmp_path_factory):
    """The validation loss after 200 steps of tiny, of a device and dtype; each trains once."""

    @cache
    def val_loss(device: str, dtype: str) -> float:
        out = tmp_path_factory.mktemp("curves") / "run"
        words = f"train tiny --steps 200 --device {device} --dtype {dtype} --out {out}".split()
        done = python("-m", "backglass", *words)
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        first, *_, last = [e for e in events if e["event"] == "val"]
        assert last["step"] == 200 and last["loss"] < 0.6 * first["loss"]  # it has learned
        return last["loss"]

    return val_loss


def test_the_gpu_learns_what_the_cpu_learns(val_loss):
    assert val_loss("cuda", "fp32") == pytest.approx(val_loss("cpu", "fp32"), rel=0.005)


def test_bf16_learns_what_fp32_learns(val_loss):
    assert val_loss("cuda", "bf16") == pytest.approx(val_loss("cuda", "fp32"), rel=0.01)
