"""What the package imports, how fast, and how much code a reader has to read."""

import ast
import subprocess
import sys

from conftest import ROOT

FORBIDDEN = {"torch", "tensorflow", "jax", "transformers"}


def test_no_file_of_the_package_imports_a_framework():
    files = list((ROOT / "backglass").rglob("*.py"))
    assert len(files) > 30
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {n.partition(".")[0] for n in names} & FORBIDDEN, file


def test_training_imports_no_framework():
    code = (
        "import sys, backglass as bg\n"
        "bg.train(bg.presets.tiny(steps=1, device='numpy', layers=1, seq_len=8, val_batches=1), "
        "quiet=True)\n"
        f"print([m for m in {sorted(FORBIDDEN)} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_importing_the_package_is_light():
    code = (
        "import time; t = time.perf_counter(); import backglass; d = time.perf_counter() - t\n"
        "import sys; print(d, 'numba' in sys.modules, 'rich' in sys.modules, 'tokenizers' in "
        "sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    seconds, *heavy = done.stdout.split()
    assert float(seconds) < 0.5 and heavy == ["False"] * 3


def test_numba_and_triton_are_imported_only_where_kernels_live():
    allowed = {"cpu", "gpu"}  # cpu.py, gpu.py, gpu_backward.py
    for file in (ROOT / "backglass").rglob("*.py"):
        inside = file.relative_to(ROOT / "backglass").parts
        if file.stem.partition("_")[0] in allowed or "ladder" in inside or inside[0] == "device":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not {a.name.partition(".")[0] for a in node.names} & {"numba", "triton"}, (
                    file
                )
