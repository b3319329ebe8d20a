"""lines: how much code there is to read, by reading path.

A line counts if it holds code: comments, docstrings and blank lines are free, a statement over
three lines counts three.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
ROOT = PACKAGE.parent
FREE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip

# path -> (what it is, budget in code lines or 0, globs).  A file belongs to the first path that
# names it; what nothing names is the rest.
PATHS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "one file": ("all of GPT-2 in NumPy, importing nothing of ours", 800, ("../train_gpt2.py",)),
    "generation": (
        "a trained model continues a text: the ops that only it needs, the cache, sampling",
        0,
        ("ops/attention_cached/*.py", "ops/embed_at/*.py", "infer/*.py"),
    ),
    "llama": (
        "what LLaMA needs beside GPT-2's: its model, and its ops with all their kernels",
        0,
        (
            "models/llama.py", "ops/rmsnorm/*.py", "ops/swiglu/*.py", "ops/rope/*.py",
            "ops/gqa/*.py", "ops/qk_norm/*.py", "ops/rope_at/*.py", "ops/gqa_cached/*.py",
        ),
    ),
    "maths": (
        "GPT-2, the maths of its ops, and what records, executes and trains them",
        1000,
        (
            "models/gpt2.py", "ops/*/maths.py", "spec.py", "view.py", "layout.py",
            "program/record.py", "execute/eager.py", "training/loop.py",
        ),
    ),
    "cpu": (
        "the Numba kernels and the machinery under them",
        2000,
        (
            "ops/*/cpu.py", "device/cpu.py", "device/host.py", "device/simd*.py",
            "device/vector_ir.py", "device/rows.py", "device/compile.py", "device/__init__.py",
            "execute/run.py", "execute/memory.py",
        ),
    ),
    "gpu": (
        "the Triton kernels and the machinery under them",
        3500,
        (
            "ops/*/gpu*.py", "device/gpu.py", "device/hopper.py", "device/tiles.py",
            "device/cuda*.py", "device/triton*.py", "device/cublaslt.py", "device/aot.py",
            "device/comm.py", "device/interpret.py", "execute/capture.py",
        ),
    ),
    "rungs": ("the slower versions of a kernel, one idea each", 0, ("ops/*/ladder/*.py",)),
    "training": (
        "a session's memory and programs, settings, data, checkpoints",
        0,
        ("training/*.py", "data/*.py", "program/step.py"),
    ),
    "passes": (
        "programs transformed, measured and compared; what a fused op is equal to",
        0,
        ("program/*.py", "execute/*.py", "ops/*/fused.py"),
    ),
    "debugger": ("a step recorded, replayed, compared and shown", 0, ("debugger/*.py",)),
    "checks": ("gradient, kernel and model checks, planted bugs", 0, ("checks/*.py",)),
    "command line": (
        "commands and what they are made of, benchmarks",
        0,
        ("cli.py", "presets.py", "commands/*.py", "tools/*.py", "bench/**/*.py"),
    ),
    "rest": ("file formats, whatever no other path names", 0, ("**/*.py",)),
}  # fmt: skip


def count(path: Path | str) -> int:
    """Code lines of one Python file.  Raises SyntaxError if it is not Python."""
    return len(code_lines(Path(path).read_text(encoding="utf-8")))


def functions(path: Path | str) -> list[tuple[str, int]]:
    """(name, code lines) of every function and method of one Python file."""
    text = Path(path).read_text(encoding="utf-8")
    code = code_lines(text)
    return [
        (node.name, sum(node.lineno <= n <= (node.end_lineno or 0) for n in code))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def code_lines(text: str) -> set[int]:
    """The numbers of the lines that hold code."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in FREE:
            code.update(range(token.start[0], token.end[0] + 1))
    return code - docstring_lines(text)


def docstring_lines(text: str) -> set[int]:
    """The lines that docstrings cover."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if ast.get_docstring(node, clean=False) is not None:
                first = node.body[0]
                found.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


def reading_paths() -> dict[str, list[Path]]:
    """The files of every reading path; each file is in exactly one.  An installed package has no
    `one file`."""
    taken: set[Path] = set()
    found: dict[str, list[Path]] = {}
    for name, (_, _, globs) in PATHS.items():
        files = sorted({p for pattern in globs for p in _matches(pattern)} - taken)
        taken.update(files)
        found[name] = files
    return found


def _matches(pattern: str) -> list[Path]:
    if pattern.startswith("../"):
        beside = ROOT / pattern.removeprefix("../")
        return [beside] if beside.is_file() else []
    return [p for p in PACKAGE.glob(pattern) if p.is_file()]


def rows() -> list[dict]:
    """{"path", "what", "lines", "budget", "ok", "files": {name: lines}} for every path that has
    files."""
    found = []
    for name, files in reading_paths().items():
        what, budget, _ = PATHS[name]
        if not files:
            continue
        counts = {str(f.relative_to(ROOT)): count(f) for f in files}
        total = sum(counts.values())
        found.append({
            "path": name, "what": what, "lines": total, "budget": budget,
            "ok": not budget or total <= budget, "files": counts,
        })  # fmt: skip
    return found
