"""Stopping in the model: --debug under a scripted pdb, and kernels without the JIT."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

SMALL = [
    "--layers", "1", "--channels", "16", "--heads", "2", "--seq-len", "8", "--batch-size", "1",
    "--steps", "1",
]  # fmt: skip


def backglass(*args: str, script: str = "", **env: str) -> str:
    command = [sys.executable, "-m", "backglass", *args]
    done = subprocess.run(
        command, input=script, capture_output=True, text=True, env=os.environ | env, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(text: str) -> np.ndarray:
    """float32 again: nine digits name a float32 exactly."""
    return np.array(re.findall(r"-?\d+\.?\d*(?:e[-+]\d+)?", text), np.float32)


def test_scripted_pdb_walks_a_forward_and_a_backward_block_and_values_equal_the_maths():
    show = "p ' '.join(f'{float(v):.9g}' for v in %s.ravel())"
    script = "\n".join(
        [
            "import numpy as np",
            *(show % f"{name}.numpy()" for name in ("x", "p.ln1w", "p.ln1b")),
            "n",  # executes exactly one op
            *(show % f"a.{name}.numpy()" for name in ("ln1", "mean1", "rstd1")),
            "p a.ln1",
            "n",
            "c",  # on to the first line of the backward
            show % "da.res3.numpy()",
            "n",
            *(show % f"da.{name}.numpy()" for name in ("res2", "fcproj")),
            "c",
        ]
    )
    out = backglass("train", "tiny", "--debug", "--device", "numpy", *SMALL, script=script)
    assert "models/gpt2.py" in out and "-> ops.layernorm(a.ln1" in out and "-> ops.d_add(" in out
    shown = [numbers(m) for m in re.findall(r"\(Pdb\) '([^']*)'", out)]
    x, w, b, ln1, mean, rstd, dres3, dres2, dfcproj = shown
    from backglass.ops.layernorm.maths import layernorm

    want = layernorm(x.reshape(8, 16), w, b, eps=1e-5)
    np.testing.assert_array_equal(ln1.reshape(8, 16), want[0])
    np.testing.assert_array_equal(mean, want[1])
    np.testing.assert_array_equal(rstd, want[2])
    np.testing.assert_array_equal(dres2, dres3)
    np.testing.assert_array_equal(dfcproj, dres3)
    assert "<h0.ln1 (1, 8, 16) fp32  mean" in out


def test_pdb_on_the_command_stops_where_it_is_told():
    script = "b backglass/execute/run.py:22\nq\n"
    command = [sys.executable, "-m", "pdb", "-m", "backglass", "program", "tiny"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60)
    assert "Breakpoint 1" in done.stdout


@pytest.mark.parametrize("attention", ["flash", "explicit"])
def test_every_kernel_runs_as_plain_python_without_the_jit(tmp_path, attention):
    out = backglass(
        "train", "tiny", *SMALL, "--attention", attention, "--val-batches", "1", "--val-every", "0",
        "--out", str(tmp_path / "run"), NUMBA_DISABLE_JIT="1", PYTHONWARNINGS="ignore",
    )  # fmt: skip
    jitted = backglass(
        "train", "tiny", *SMALL, "--attention", attention, "--val-batches", "1", "--val-every", "0",
        "--device", "numpy", "--out", str(tmp_path / "numpy"),
    )  # fmt: skip

    def loss(text):
        return float(re.search(r"step +1/1   loss ([\d.]+)", text)[1])

    assert abs(loss(out) - loss(jitted)) < 1e-3
