"""The one file: it runs as a newcomer runs it, proves its gradients, reads llm.c's files."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import train_gpt2 as one  # noqa: E402

SMALL = [
    "--layers",
    "1",
    "--channels",
    "32",
    "--heads",
    "2",
    "--seq-len",
    "16",
    "--batch-size",
    "4",
]


def run(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "train_gpt2.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_file_is_short_and_imports_only_numpy_and_the_standard_library():
    text = (ROOT / "train_gpt2.py").read_text()
    assert len(text.splitlines()) <= 800
    imports = {
        line.split()[1].partition(".")[0]
        for line in text.splitlines()
        if line.strip().startswith(("import ", "from "))
    }
    assert imports - set(sys.stdlib_module_names) == {"numpy"}


def test_check_proves_every_gradient_and_catches_the_planted_error():
    done = run("--check")
    assert done.returncode == 0
    assert "22 of 22 gradients proven, the planted error was caught" in done.stdout


@pytest.mark.parametrize("name", ["d_layernorm", "d_matmul", "d_attention", "d_gelu", "d_embed"])
def test_check_fails_when_a_backward_is_wrong(name, monkeypatch):
    right = getattr(one, name)

    def wrong(*args):
        grads = right(*args)
        return grads * 1.001 if isinstance(grads, np.ndarray) else (grads[0] * 1.001, *grads[1:])

    monkeypatch.setattr(one, name, wrong)
    assert one.check() == 1


def test_training_lowers_the_loss_and_samples(capsys):
    assert one.main([*SMALL, "--steps", "60", "--data", "python-docs"]) == 0
    out = capsys.readouterr().out
    losses = [
        float(line.split("loss ")[1].split()[0]) for line in out.splitlines() if "norm" in line
    ]
    assert losses[-1] < 0.75 * losses[0]
    assert "the model continues" in out


def test_model_file_survives_a_round_trip_with_pad_rows(tmp_path):
    c = SimpleNamespace(max_seq_len=9, vocab_size=101, layers=2, heads=3, channels=12)
    p = one.init(c, np.random.default_rng(0))
    path = tmp_path / "model.bin"
    one.save(path, c, p)
    c2, p2 = one.load(path)
    assert vars(c2) == vars(c)
    for name, w in vars(p).items():
        np.testing.assert_array_equal(getattr(p2, name), w)
    floats = 128 * 12 + sum(w.size for n, w in vars(p).items() if n != "wte")
    assert path.stat().st_size == 1024 + 4 * floats


def test_bfloat16_model_file_is_read(tmp_path):
    c = SimpleNamespace(max_seq_len=9, vocab_size=128, layers=1, heads=1, channels=4)
    p = one.init(c, np.random.default_rng(0))
    one.save(tmp_path / "fp32.bin", c, p)
    raw = (tmp_path / "fp32.bin").read_bytes()
    header = np.frombuffer(raw[:1024], np.int32).copy()
    header[1] = 5
    upper = (np.frombuffer(raw, np.uint32, offset=1024) >> 16).astype(np.uint16)
    (tmp_path / "bf16.bin").write_bytes(header.tobytes() + upper.tobytes())
    _, p2 = one.load(tmp_path / "bf16.bin")
    truncated = (np.ascontiguousarray(p.qkvw).view(np.uint32) >> 16 << 16).view(np.float32)
    np.testing.assert_array_equal(p2.qkvw, truncated)


def test_shard_of_llm_c_is_read(tmp_path):
    header = np.zeros(256, np.int32)
    header[:3] = 20240520, 1, 300
    ids = np.arange(300, dtype=np.uint16)
    (tmp_path / "shard.bin").write_bytes(header.tobytes() + ids.tobytes())
    np.testing.assert_array_equal(one.read_tokens(str(tmp_path / "shard.bin"), 300), ids)


@pytest.mark.parametrize(
    "args, code, words",
    [
        (["--heads", "3"], 2, "divided"),
        (["--steps", "-1"], 2, "negative"),
        (["--lr", "nan"], 2, "--lr"),
        (["--data", "no-such-file"], 1, "no-such-file"),
        (["--data", "{short}"], 1, "tokens"),
        (["--init", "{short}"], 1, "not a model of llm.c"),
        (["--init", "{cut}"], 1, "partial"),
    ],
)
def test_wrong_input_ends_with_one_clear_line(args, code, words, tmp_path):
    (tmp_path / "short").write_text("hello")
    c = SimpleNamespace(max_seq_len=9, vocab_size=101, layers=1, heads=1, channels=4)
    one.save(tmp_path / "cut", c, one.zeros(c))
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-8])
    done = run(*(a.format(short=tmp_path / "short", cut=tmp_path / "cut") for a in args))
    assert done.returncode == code
    assert words in done.stderr and "Traceback" not in done.stderr
