"""What a user of --device cuda meets when it goes wrong: refused in time, told in one paragraph,
never a traceback.  On a pretend GPU (fake_gpu.py): all but CuPy and the launches is our code."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_gpu import GIB, CUDADriverError, CUDARuntimeError, FakeGpu, OutOfMemoryError, Stream

from backglass import presets
from backglass.bench import worker
from backglass.device import cublaslt, cuda, cuda_faults, get
from backglass.errors import UserError
from backglass.training.fit import machine_of
from backglass.training.session import Session, device_options
from backglass.training.settings import Settings

# Not importorskip: an import decides whether this process compiles or interprets.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has wheels for Linux only"
)

SMALL = (
    "--layers 1 --heads 2 --channels 16 --seq-len 8 --batch-size 2 --val-batches 1 --device cuda"
).split()


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def gpu(monkeypatch):
    get("interpret")  # what this process does with triton, once and for all
    found = FakeGpu()
    found.install(monkeypatch)
    return found


@pytest.fixture
def without(monkeypatch):
    """Makes packages look as if they were not installed."""

    def hide(*packages: str) -> None:
        real = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, package=None: None if name in packages else real(name, package),
        )

    return hide


def train(run, *more: str) -> tuple[int, str]:
    return run("train", "tiny", *SMALL, "--steps", "6", "--out", "runs/a", *more)


# ---------------------------------------------------------------- it does not fit


def big(**changes) -> Settings:
    return presets.tiny(device="cuda", dtype="bf16", batch_size=4096, **changes)


def open_session(s: Settings) -> Session:
    return Session(s.model_config(256), s, get(s.device, **device_options(s)))


def refusal(s: Settings) -> str:
    with pytest.raises(UserError) as refused:
        open_session(s)
    return str(refused.value)


def test_a_run_that_does_not_fit_is_refused_before_anything_is_allocated(run, gpu):
    gpu.free = 4 * GIB
    code, text = train(run, "--batch-size", "1048576", "--seq-len", "128")
    assert code == 1 and gpu.allocated == 0
    assert re.search(r"needs [\d.]+ GiB of memory: .*cuda has 4\.00 GiB free\. What fits: --", text)


def test_the_batch_size_a_refusal_names_fits_and_one_more_does_not(gpu):
    gpu.free = 4 * GIB
    B = int(re.search(r"--batch-size (\d+), or", refusal(big()))[1])
    open_session(big().replace(batch_size=B))
    assert "needs" in refusal(big().replace(batch_size=B + 1))


def test_the_recomputation_a_refusal_names_fits(gpu):
    gpu.free = 5 * GIB
    fields = re.search(r"--recompute ([\w,]+) \(", refusal(big()))[1]
    open_session(big(recompute=fields))


def test_the_batch_size_a_refusal_names_divides_the_tokens_of_a_step(gpu):
    gpu.free = 4 * GIB
    s = big(total_batch_tokens=4096 * 128)
    B = int(re.search(r"--batch-size (\d+), or", refusal(s))[1])
    assert s.replace(batch_size=B).micro_batches * B == 4096


def test_a_refusal_says_so_if_nothing_fits(gpu):
    gpu.free = GIB // 2
    assert "Nothing of this model fits" in refusal(big(channels=2048, heads=16))


def test_a_refusal_counts_unfused_programs_unfused(gpu):
    gpu.free = 4 * GIB
    fused, plain = (
        int(re.search(r"--batch-size (\d+), or", refusal(big(fuse=fuse)))[1])
        for fuse in (True, False)
    )
    assert plain < fused


def test_what_cuda_will_still_take_is_counted_until_it_is_taken(gpu):
    device, s = get("cuda"), big()
    gpu.free, gpu.total = 10 * GIB, 10 * GIB
    assert machine_of(s, device).context == int(0.53 * GIB)
    gpu.total += int(0.5 * GIB)
    assert machine_of(s, device).context == int(0.53 * GIB) - int(0.5 * GIB)
    gpu.total += 5 * GIB
    assert machine_of(s, device).context == 0


# ---------------------------------------------------------------- there is no GPU to use

COMMANDS = {
    "train": ["train", "tiny", "--device", "cuda", "--steps", "1", "--out", "runs/b"],
    "check": ["check", "gelu", "--device", "cuda"],
    "generate": ["generate", "runs/a", "--device", "cuda", "--max-tokens", "2"],
}


@pytest.fixture
def trained(run, gpu):
    assert train(run)[0] == 0
    return Path("runs/a")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    run, trained, without, command
):
    without("cupy", "triton")
    code, text = run(*COMMANDS[command])
    assert code == 1 and "cupy and triton, which are not installed: python -m pip install" in text


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "status, driver, words",
    [
        (35, 0, ["there is no NVIDIA driver", "--device cpu"]),
        (35, 12040, ["the driver knows CUDA 12.4, this CuPy wants 13.0", "580", "cupy-cuda12x",
                     "nvidia-cublas-cu12", "gpu12"]),
        (100, 13000, ["cudaErrorNoDevice", "`nvidia-smi`", "--device cpu"]),
        (999, 13000, ["cudaErrorUnknown", "`backglass doctor`"]),
    ],
    ids=["no driver", "old driver", "no device", "unknown"],
)  # fmt: skip
def test_no_usable_gpu_is_explained(run, gpu, trained, command, status, driver, words):
    gpu.absent, gpu.driver = CUDARuntimeError(status), driver
    code, text = run(*COMMANDS[command])
    assert code == 1 and [w for w in words if w not in text] == []
    assert text.strip().count("\n") == 0


def test_a_hidden_gpu_is_explained_by_the_variable_that_hides_it(gpu, monkeypatch):
    gpu.absent = CUDARuntimeError(100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES is ''"):
        get("cuda")


def test_a_cupy_that_cannot_be_imported_is_explained(gpu, without, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # its import fails, though it can be found
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    with pytest.raises(UserError, match=r"CuPy is installed and cannot be imported.*doctor"):
        get("cuda")


@pytest.mark.parametrize("name, count", [("cuda:1", 1), ("cuda:2", 2), ("cuda:x", 2)])
def test_a_gpu_that_is_not_there_is_wrong_use(run, gpu, name, count):
    gpu.count = count
    code, text = run("check", "gelu", "--device", name)
    assert code == 2 and f"--device {name}: there is {'only ' * (count == 1)}cuda:0" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_another_gpu_is_the_one_that_is_used(run, gpu, trained, command):
    gpu.count, gpu.used = 2, []
    words = [w if w != "cuda" else "cuda:1" for w in COMMANDS[command]]
    code, text = run(*words)
    assert set(gpu.used) == {1}, text
    # the pretend GPU computes nothing, which a check finds out
    assert code == (1 if command == "check" else 0)


def test_another_gpu_without_bf16_is_asked_for_its_own_dtypes(run, gpu):
    gpu.count, gpu.capability = 2, "75"
    assert Settings(device="cuda:1").dtype == "fp32"
    code, text = train(run, "--device", "cuda:1", "--dtype", "bf16")
    assert code == 2 and "cuda:1 has fp32" in text


@pytest.mark.parametrize(
    "error",
    [
        ImportError("cannot import name 'CudaLauncher'"),
        AssertionError("libcuda.so cannot found!"),
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
        subprocess.CalledProcessError(1, ["gcc", "main.c"]),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_triton_that_cannot_launch_is_explained(run, gpu, error):
    def activate():
        raise error

    sys.modules["backglass.device.triton_driver"].activate = activate
    code, text = run("check", "gelu", "--device", "cuda")
    assert code == 1 and "Triton cannot launch" in text and "gcc python3-dev" in text


def test_a_gpu_that_refuses_the_first_launch_is_not_blamed_on_triton(run, gpu):
    def activate():
        raise CUDARuntimeError(46)

    sys.modules["backglass.device.triton_driver"].activate = activate
    code, text = run("check", "gelu", "--device", "cuda")
    assert code == 1 and "The GPU failed: cudaErrorDevicesUnavailable" in text


# ---------------------------------------------------------------- cuBLASLt


@pytest.fixture
def no_cublaslt(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda", None)
    cublaslt.library.cache_clear()


def test_a_missing_cublaslt_is_named_with_both_packages_and_the_way_around(no_cublaslt):
    with pytest.raises(UserError, match=r"nvidia-cublas .*nvidia-cublas-cu12.*--matmul own"):
        cublaslt.library()


@pytest.fixture
def trial(gpu, monkeypatch, tmp_path):
    """What cublaslt._chosen takes, of a product that is added to an output of 4 MiB; candidate 2 is
    the fastest."""
    cupy, now = sys.modules["cupy"], [0.0]
    monkeypatch.setenv("BACKGLASS_CACHE", str(tmp_path))
    monkeypatch.setattr(cublaslt, "library", lambda: SimpleNamespace(cublasLtGetVersion=lambda: 1))
    monkeypatch.setattr(cublaslt, "_call", lambda p, algorithm, *more: now.append(algorithm))
    cupy.cuda.Event = lambda: SimpleNamespace(
        record=lambda stream: now.append(0), synchronize=lambda: None
    )
    cupy.cuda.get_elapsed_time = lambda a, b: now[-2]
    out = cuda.Tensor(0, cuda.DTYPES["fp32"], (1024, 1024))
    p = SimpleNamespace(candidates=[9.0, 8.0, 1.0])
    return ("key",), p, out, None, None, None, True


def test_cublaslt_remembers_what_was_fastest_and_gives_the_trials_memory_back(gpu, trial):
    freed = []
    sys.modules["cupy"].get_default_memory_pool = lambda: SimpleNamespace(
        free_all_blocks=lambda: freed.append(gpu.allocated)
    )
    assert cublaslt._chosen(*trial) == 2 and freed == [4 << 20]
    assert cublaslt._chosen(*trial) == 2 and gpu.allocated == 4 << 20  # no second trial


def test_cublaslt_takes_the_first_algorithm_where_a_trial_has_no_room_and_forgets_it(gpu, trial):
    gpu.free = 1 << 20
    assert cublaslt._chosen(*trial) == 0
    gpu.free = 8 << 20
    assert cublaslt._chosen(*trial) == 2


def test_a_sample_takes_no_memory_that_the_plan_has_not_counted(run, gpu, monkeypatch):
    from backglass.infer import generate

    taken, sample = [], generate.sample_text

    def sample_text(*args, **named):
        before = gpu.allocated
        text = sample(*args, **named)
        taken.append(gpu.allocated - before)
        return text

    monkeypatch.setattr(generate, "sample_text", sample_text)
    assert train(run, "--batch-size", "64")[0] == 0
    assert taken and taken[0] < 4096  # token ids and positions


def test_own_kernels_train_without_cublaslt(run, gpu, no_cublaslt):
    code, text = train(run, "--matmul", "own")
    assert code == 0 and "tokens/s\n" in text and "of peak" not in text


# ---------------------------------------------------------------- it fails on the way

FAULTS = {
    "memory": (OutOfMemoryError(2048, 10**9), "memory ran out: Out of memory allocating 2,048"),
    "cuda memory": (CUDARuntimeError(2), "memory ran out: cudaErrorMemoryAllocation"),
    "launch": (CUDARuntimeError(719), "failed: cudaErrorLaunchFailure"),
    "lost": (CUDARuntimeError(214), "failed: cudaErrorECCUncorrectable"),
    "driver": (CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS"), "failed: CUDA_ERROR_ILLEGAL_ADDRESS"),
    "triton": (RuntimeError("Triton Error [CUDA]: device not ready"), "failed: Triton Error"),
    "triton memory": (RuntimeError("Triton Error [CUDA]: out of memory"), "memory ran out"),
    "library": (cuda_faults.LibraryError("cuBLASLt failed with status 14"), "failed: cuBLASLt"),
}


def fail_at_step(gpu, monkeypatch, step: int, error: Exception) -> None:
    """The update after so many is the last thing that this GPU is asked for."""
    update = Session.update

    def doomed(session, n):
        if n == step:
            gpu.fail(0, error)
        return update(session, n)

    monkeypatch.setattr(Session, "update", doomed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_while_training_names_the_last_checkpoint_and_how_to_resume(
    run, gpu, monkeypatch, fault
):
    error, words = FAULTS[fault]
    fail_at_step(gpu, monkeypatch, 5, error)
    code, text = train(run, "--save-every", "2")
    assert code == 1 and words in text
    assert "The last checkpoint is step 4; go on from there with: backglass train tiny" in text


def test_a_run_that_a_fault_ended_resumes_with_the_command_it_names(run, gpu, monkeypatch):
    fail_at_step(gpu, monkeypatch, 5, CUDARuntimeError(719))
    command = train(run, "--save-every", "2")[1].rpartition("with: backglass ")[2].split()
    FakeGpu().install(monkeypatch)
    code, _ = run(*command)
    steps = [json.loads(line) for line in Path("runs/a/log.jsonl").read_text().splitlines()]
    assert code == 0 and [e["step"] for e in steps if e["event"] == "step"] == [1, 2, 3, 4, 5, 6]


def test_a_fault_before_the_first_checkpoint_says_that_nothing_was_saved(run, gpu, monkeypatch):
    fail_at_step(gpu, monkeypatch, 1, CUDARuntimeError(719))
    code, text = train(run)
    assert code == 1 and "Nothing was saved yet; --save-every N" in text


@pytest.mark.parametrize("command", ["check", "generate"])
@pytest.mark.parametrize("fault", ["memory", "launch", "triton"])
def test_a_fault_in_another_command_is_told(run, gpu, trained, command, fault):
    error, words = FAULTS[fault]
    gpu.fail(0, error)
    code, text = run(*COMMANDS[command])
    assert code == 1 and words in text


def test_a_fault_in_a_benchmark_is_told_by_its_worker(gpu, monkeypatch, capsys):
    sizes = dict(layers=1, heads=2, channels=16, vocab_size=256, max_seq_len=8, seq_len=8)
    job = sizes | dict(kind="train", batch_size=2, steps=3, threads=0, device="cuda", dtype="bf16")
    monkeypatch.setattr(sys, "argv", ["worker", json.dumps(job)])
    gpu.fail(5, CUDARuntimeError(719))
    assert worker.main() == 1
    assert capsys.readouterr().err.startswith("The GPU failed: cudaErrorLaunchFailure")


@pytest.mark.parametrize(
    "error", [RuntimeError("anything"), MemoryError(), ValueError("out of memory")]
)
def test_an_error_that_is_not_the_gpus_passes_unchanged(gpu, error):
    with pytest.raises(type(error)) as caught, cuda_faults.gpu_errors():
        raise error
    assert caught.value is error


def test_a_kernel_too_large_for_the_gpu_is_explained(gpu):
    from triton.runtime.errors import OutOfResources

    said = cuda_faults.explain(OutOfResources(98304, 65536, "shared memory"))
    assert "98304" in said and "backglass doctor" in said


def test_after_a_fault_destructors_that_fail_are_not_heard_and_others_are(gpu, monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda u: heard.append(u.exc_value))
    with pytest.raises(UserError), cuda_faults.gpu_errors():
        raise CUDARuntimeError(719)
    other = ValueError()
    for error in (CUDARuntimeError(719), other):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert heard == [other]


def test_a_fault_in_a_capture_is_told_and_not_what_ending_it_says(gpu, monkeypatch):
    def end(stream):
        raise CUDARuntimeError(700)

    def line():
        raise CUDARuntimeError(719)

    device = get("cuda")
    monkeypatch.setattr(Stream, "end_capture", end)
    with pytest.raises(CUDARuntimeError, match="cudaErrorLaunchFailure"):
        device.capture([line])


# ---------------------------------------------------------------- a GPU without bf16


@pytest.mark.parametrize(
    "capability, dtype", [("75", "fp32"), ("80", "bf16"), ("90", "bf16"), ("120", "bf16")]
)
def test_auto_is_the_best_dtype_that_the_gpu_has(gpu, capability, dtype):
    gpu.capability = capability
    assert Settings(device="cuda").dtype == dtype


def test_auto_is_bf16_where_no_gpu_answers(without):
    without("cupy")
    assert Settings(device="cuda").dtype == "bf16"


def test_a_gpu_without_bf16_trains_in_fp32(run, gpu):
    gpu.capability = "75"
    code, text = train(run)
    assert code == 0 and "on cuda (fp32)" in text


def test_bf16_on_a_gpu_without_it_is_wrong_use(run, gpu):
    gpu.capability = "75"
    code, text = train(run, "--dtype", "bf16")
    assert code == 2 and "Ampere" in text and "--dtype fp32" in text


def test_fresh_activations_are_nan_in_both_formats(gpu):
    from backglass.view import View

    memory = cuda.CudaMemory()
    for dtype in ("fp32", "bf16"):
        values = memory.read(View(dtype, (3,), dtype, "act")).astype("float32")
        assert (values != values).all()


# ---------------------------------------------------------------- bench ops --tune


def test_tune_times_on_the_gpu_that_was_asked_for_and_says_what_to_edit(run, gpu, monkeypatch):
    from backglass.bench import tune

    gpu.count, gpu.used = 2, []

    def compile_all(names, B, T, rungs, arch):
        assert arch == 90
        return list(map(tune._tile, tune.trials(get("cuda:1"), names, B, T)))

    def time_all(every, tiles, device, ms_of):
        ms = {"BLOCK=512, WARPS=4": 0.5}
        return (replace(t, ms=ms.get(t.settings, 1.0)) for t in tiles)

    monkeypatch.setattr(tune, "compile_all", compile_all)
    monkeypatch.setattr(tune, "time_all", time_all)
    code, text = run("bench", "ops", "adamw", "--tune", "--device", "cuda:1")
    assert code == 0 and set(gpu.used) == {1}
    assert (
        "the fastest: BLOCK=512, WARPS=4" in text and "ops/adamw/gpu.py, adamw: BLOCK=512" in text
    )
    assert "saves 50.0% of 1.000 ms: edit it there, not BLOCK=1024, WARPS=8" in text


def test_tune_on_a_gpu_without_bf16_is_wrong_use(run, gpu):
    gpu.capability = "75"
    code, text = run("bench", "ops", "adamw", "--tune")
    assert code == 2 and "is for bf16; cuda has fp32" in text
