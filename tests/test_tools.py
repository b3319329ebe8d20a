"""explain, doctor, inspect, lines, list and plot as a user meets them, and inspect on hostile
files."""

import json
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from backglass import cli, ops
from backglass.formats import llmc
from backglass.models import gpt2
from backglass.tools import curves, example, explain, llama2c, recognise, runlog
from backglass.tools import lines as lines_tool

TINY = [
    "train", "tiny", "--device", "numpy", "--layers", "1", "--channels", "16", "--heads", "2",
    "--seq-len", "8", "--batch-size", "2", "--steps", "2", "--val-batches", "1",
]  # fmt: skip
CALLS = [call for op in ops.table().values() for call in op.signatures]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run directory; tests must not change it."""
    out = tmp_path_factory.mktemp("runs") / "a"
    assert cli.main([*TINY, "--out", str(out)]) == 0
    return out


def test_help_of_the_tools_has_no_heavy_imports():
    names = ("explain", "doctor", "inspect", "lines", "list", "plot")
    tools = {name: cli.COMMANDS[name] for name in names}
    code = (
        "import sys; from backglass import cli\n"
        f"cli.COMMANDS = {tools!r}\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('numpy', 'numba', 'matplotlib', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout[-300:] + done.stderr


# explain


@pytest.mark.parametrize("call", CALLS)
def test_explain_shows_a_page_for_every_call(run, call):
    code, text = run("explain", call)
    assert code == 0 and "Example" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("op", [o for o in ops.table().values() if o.spec.backward])
def test_explain_proves_every_cell_of_every_input(op):
    proofs = example.example(op, op.name).proofs
    assert proofs and all(p.error < 1e-9 for p in proofs)


def test_explain_proof_shows_a_wrong_backward(monkeypatch):
    op = ops.table()["add"]
    monkeypatch.setattr(op.maths, "d_add", lambda dy: (dy.copy(), 1.001 * dy))
    right, wrong = example.example(op, "add").proofs
    assert right.error < 1e-9 and wrong.error > 1e-5


@pytest.mark.parametrize("op", [o for o in ops.table().values() if o.spec.backward])
def test_explain_knows_every_step_a_backward_line_names(op):
    steps = explain.derivation(op.maths.__doc__)
    marked = [
        int(n)
        for line in explain.source_text(op).splitlines()
        if (m := explain.STEP_MARK.search(line))
        for n in m[1].split(", ")
    ]
    assert steps and sorted(steps) == list(range(1, len(steps) + 1))
    assert not marked, "a step mark that the derivation does not have stays in the line"


def test_explain_puts_the_formula_beside_the_line(run):
    _, text = run("explain", "layernorm")
    assert "1      db = dy.sum(0)" in text and "1: db = Σ_rows dy" in text
    assert "13, second term: dx =" in text


def test_explain_names_the_op_of_a_backward_call(run):
    assert run("explain", "d_matmul_w")[1].startswith("matmul\n")


def test_explain_json_holds_the_example(run):
    code, text = run("explain", "gelu", "--json")
    found = json.loads(text)
    assert code == 0 and found["derivation"]["1"] and found["proofs"][0]["error"] < 1e-9


def test_explain_model_pairs_each_line_with_its_backward(run):
    code, text = run("explain", "tiny")
    rows = [row.split() for row in text.splitlines()]
    at = next(i for i, row in enumerate(rows) if row[1:2] == ["ops.gelu(a.fch_gelu,"])
    assert code == 0 and rows[at + 1][1] == "ops.d_gelu(da.fch,"
    found = json.loads(run("explain", "gpt2", "--json")[1])
    total = sum(x["share_forward"] + x["share_backward"] for x in found["block"]) * 12
    total += sum(x["share_forward"] + x["share_backward"] for x in found["outside"])
    assert total == pytest.approx(1)


def test_explain_unknown_name_says_what_there_is(run):
    code, text = run("explain", "nosuchop")
    assert code == 2 and "layernorm" in text and "gpt2" in text


# doctor, list, lines


def test_doctor_has_a_line_for_everything(run):
    code, text = run("doctor", "--json")
    rows = json.loads(text)["rows"]
    assert code == (1 if any(r["ok"] is False for r in rows) else 0)
    assert {"cores", "numba", "gpu", "triton", "kernel cache"} <= {r["name"] for r in rows}
    assert all(r["why"] for r in rows if r["ok"] is False)
    assert not [r for r in rows if "itself failed" in r["found"]]


def test_doctor_survives_a_check_that_crashes(run, monkeypatch):
    from backglass.tools import doctor

    def broken(name):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(doctor, "CHECKS", {"broken": broken})
    code, text = run("doctor")
    assert code == 1 and "no such thing" in text


def test_list_has_every_kind(run):
    found = json.loads(run("list", "--json")[1])
    assert {p["name"]: p["parameters"] for p in found["presets"]}["gpt2-124m"] == 124439808
    assert {o["name"] for o in found["ops"]} == set(ops.table())
    assert all(found[k] for k in ("models", "devices", "data", "tokenizers"))
    assert "v1_naive" in next(o for o in found["ops"] if o["name"] == "layernorm")["rungs"]


def test_list_unknown_kind_is_wrong_use(run):
    assert run("list", "cheese")[0] == 2


@pytest.mark.parametrize(
    "code, expected",
    [
        ('"""Doc\n\nstring."""\n\nimport os  # why\n\n# comment\nx = """a\nb"""\n', 3),
        ("def f():\n    '''Doc.'''\n    return (\n        1\n    )\n", 4),
        ("async def f():\n    'Doc.'\n\nclass A:\n    'Doc.'\n    x = 'not a docstring'\n", 3),
        ("", 0),
    ],
)
def test_lines_counts_code_and_nothing_else(tmp_path, code, expected):
    path = tmp_path / "x.py"
    path.write_text(code)
    assert lines_tool.count(path) == expected


def test_lines_has_every_file_of_the_package_once():
    files = [f for group in lines_tool.reading_paths().values() for f in group]
    assert len(files) == len(set(files))
    assert set(lines_tool.PACKAGE.rglob("*.py")) <= set(files)


def test_every_reading_path_is_within_its_budget(run):
    code, text = run("lines", "--json")
    rows = json.loads(text)["rows"]
    assert {"one file", "maths", "cpu", "gpu"} <= {r["path"] for r in rows if r["budget"]}
    assert [r["path"] for r in rows if not r["ok"]] == [] and code == 0


def test_lines_reports_a_path_over_its_budget(run, tmp_path, monkeypatch):
    (tmp_path / "three.py").write_text("a = 1\n# free\nb = 2\nc = 3\n")
    (tmp_path / "two.py").write_text("a = 1\nb = 2\n")
    paths = {"long": ("", 2, ("three.py",)), "short": ("", 2, ("two.py",))}
    monkeypatch.setattr(lines_tool, "PACKAGE", tmp_path)
    monkeypatch.setattr(lines_tool, "ROOT", tmp_path)
    monkeypatch.setattr(lines_tool, "PATHS", paths)
    code, text = run("lines")
    over = [row.split()[0] for row in text.splitlines() if "OVER by 1" in row]
    assert code == 1 and over == ["long"]


FILE_LINES, FUNCTION_LINES = 300, 45  # what is read in one sitting, and on one screen


def test_files_and_functions_are_short_enough_to_read():
    package = lines_tool.PACKAGE
    longer = [p for p in package.rglob("*.py") if lines_tool.count(p) > FILE_LINES]
    longer += [
        f"{path}:{name}"
        for path in package.rglob("*.py")
        for name, lines in lines_tool.functions(path)
        if lines > FUNCTION_LINES
    ]
    assert not longer


def test_lines_of_a_function_are_its_code_without_docstring_and_comments(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        'def f():\n    """Free."""\n    # free\n    return (1,\n        2)\n\n\nx = 1\n'
    )
    assert lines_tool.functions(path) == [("f", 3)]


# inspect: one small file of every format


def header(*numbers: int) -> bytes:
    return np.array([*numbers, *[0] * (256 - len(numbers))], np.int32).tobytes()


def safetensors(**shapes: tuple[int, ...]) -> bytes:
    at, entries = 0, {}
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def llama_model(version: int) -> bytes:
    sizes = [8, 16, 2, 2, 1, 32, 4]
    norms, matrices = llama2c.counts(sizes, True)
    if version == 0:
        return struct.pack("<7i", *sizes) + bytes(4 * (norms + sum(matrices) + 4 * 4))
    head = struct.pack("<I8iBi", llama2c.MAGIC, version, *sizes, 1, 8).ljust(256, b"\0")
    widths = 4 * sum(matrices) if version == 1 else sum(m + m // 2 for m in matrices)
    return head + bytes(4 * norms + widths)


L, C, V, VP, P, NH = 2, 8, 100, 128, 16, 2
COUNT = llmc.count_parameters(gpt2.Config(L, NH, C, V, P))
TOKENS = np.arange(500, dtype=np.uint16).tobytes()
LOG = b"".join(
    json.dumps(e).encode() + b"\n"
    for e in [
        {"event": "val", "step": 0, "loss": 5.5},
        {"event": "step", "step": 1, "loss": 5.0, "grad_norm": 1.5, "lr": 1e-3, "ms": 2.0},
        {"event": "step", "step": 2, "loss": 4.5, "grad_norm": 1.0, "lr": 2e-3, "ms": 2.0},
        {"event": "val", "step": 2, "loss": 4.6},
    ]
)
TOKENIZER = json.dumps(
    {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}
).encode()
FILES = {
    "model.bin": ("llm.c model", header(20240326, 3, P, V, L, NH, C, VP) + bytes(4 * COUNT)),
    "bf16.bin": ("llm.c model", header(20240326, 5, P, V, L, NH, C, VP) + bytes(2 * COUNT)),
    "shard.bin": ("llm.c token shard", header(20240520, 1, 500) + TOKENS),
    "llama3.bin": ("llm.c token shard (LLaMA 3)", header(20240801, 7, 250) + TOKENS),
    "debug.bin": ("llm.c debug state", header(20240327, 2, 1, 4) + bytes(8 * 4 + 4 + 400)),
    "state.bin": ("llm.c optimizer state", header(20240527, 1, 1, 0, 1, 0) + bytes(12 * 50)),
    "tok.bin": ("llm.c tokenizer", header(20240328, 2, 3, 2) + b"\x01a\x02bc\x01d"),
    "eval.bin": ("llm.c HellaSwag file", header(20240522, 1, 2, 100) + bytes(200)),
    "v0.bin": ("llama2.c model, v0", llama_model(0)),
    "v1.bin": ("llama2.c model, v1", llama_model(1)),
    "v2.bin": ("llama2.c model, v2", llama_model(2)),
    "tokenizer.bin": (
        "llama2.c tokenizer",
        struct.pack("<I", 3)
        + b"".join(struct.pack("<fI", 0.5, 2) + b"\xff\xfe" for _ in "x" * 300),
    ),
    "train.bin": ("nanoGPT token shard, by guess", TOKENS),
    "w.safetensors": ("safetensors file", safetensors(a=(3, 4), b=(5,))),
    "tokenizer.json": ("tokenizer.json", TOKENIZER),
    "log.jsonl": ("log of a run", LOG),
    "book.txt": ("UTF-8 text", "Déjà vu.\n".encode() * 50),
    "gguf.bin": ("GGUF model", b"GGUF" + bytes(100)),
}
# Files whose header says how long they must be.
MEASURED = [n for n in FILES if n not in ("train.bin", "book.txt", "gguf.bin", "debug.bin",
                                          "eval.bin", "log.jsonl")]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_inspect_names_every_format(run, tmp_path, name):
    kind, content = FILES[name]
    (tmp_path / name).write_bytes(content)
    code, text = run("inspect", name, "--json")
    found = json.loads(text)
    assert (found["kind"], found["problems"], code) == (kind, [], 0)


@pytest.mark.parametrize("name", MEASURED)
def test_inspect_names_damage_in_a_truncated_file(run, tmp_path, name):
    _, content = FILES[name]
    (tmp_path / name).write_bytes(content[:-3])
    code, text = run("inspect", name)
    assert code == 1 and "PROBLEM" in text


@pytest.mark.parametrize("name", FILES)
def test_inspect_survives_every_cut_and_flipped_byte(tmp_path, name):
    _, content = FILES[name]
    rng, path = np.random.default_rng(len(content)), tmp_path / name
    for cut in sorted({*range(0, 40), *rng.integers(0, len(content), 20)}):
        path.write_bytes(content[:cut])
        recognise.recognise(path).text()
    for _ in range(60):
        data = bytearray(content)
        for at in rng.integers(0, min(len(data), 64), 3):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        json.dumps(recognise.recognise(path).row(), default=str)


@pytest.mark.parametrize("magic", [*llmc.KINDS, llama2c.MAGIC])
@pytest.mark.parametrize("low, high", [(-3, 10), (-(2**31), 2**31)])
def test_inspect_survives_hostile_headers(tmp_path, magic, low, high):
    rng, path = np.random.default_rng(magic % 1000), tmp_path / "x.bin"
    for _ in range(40):
        numbers = rng.integers(low, high, 255).astype(np.int32)
        path.write_bytes(struct.pack("<I", magic) + numbers.tobytes() + bytes(100))
        recognise.recognise(path).text()


@pytest.mark.parametrize("suffix", [".bin", ".json", ".jsonl", ".safetensors", ".txt", ""])
def test_inspect_survives_random_bytes(tmp_path, suffix):
    rng, path = np.random.default_rng(7), tmp_path / f"x{suffix}"
    for size in (1, 2, 7, 8, 9, 28, 300, 1024, 5000):
        for _ in range(5):
            path.write_bytes(rng.bytes(size))
            found = recognise.recognise(path)
            assert size < 300 or not found.sound


@pytest.mark.parametrize(
    "entry",
    [
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 99]}}',
        '{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [true, 2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [1e99], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": 7, "shape": [2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        '{"a": []}',
        "[1, 2]",
        "[" * 100_000,
        "1" * 9000,
    ],
)
def test_inspect_names_a_wrong_safetensors_header(run, tmp_path, entry):
    (tmp_path / "x.safetensors").write_bytes(
        struct.pack("<Q", len(entry)) + entry.encode() + bytes(8)
    )
    code, text = run("inspect", "x.safetensors")
    assert code == 1 and "PROBLEM" in text


def test_inspect_a_header_that_promises_everything_costs_nothing(tmp_path):
    path = tmp_path / "x.bin"
    with path.open("wb") as f:
        f.write(header(20240520, 1, 2**31 - 1))
        f.truncate(64 << 20)  # a sparse file
    tracemalloc.start()
    found = recognise.recognise(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "cut off" in found.problems[0] and peak < 32 << 20


@pytest.mark.parametrize("name, width", [("model.bin", 4), ("bf16.bin", 2)])
def test_inspect_finds_pad_rows_that_are_not_zero(tmp_path, name, width):
    data = bytearray(FILES[name][1])
    data[1024 + width * V * C] = 1
    (tmp_path / "m.bin").write_bytes(data)
    assert "pad rows" in recognise.recognise(tmp_path / "m.bin").problems[0]


@pytest.mark.parametrize("shuffled", [0, 1])
@pytest.mark.parametrize("extra", [0, 4])
def test_inspect_holds_a_state_against_its_model(tmp_path, shuffled, extra):
    (tmp_path / "model_00000010.bin").write_bytes(FILES["model.bin"][1])
    tail = struct.pack("<QiQ2i", 1, 0, 2, 0, 1) + bytes(2520) if shuffled else b""
    state = header(20240527, 1, 1, 0, 1, shuffled) + bytes(12 * (COUNT + extra)) + tail
    (tmp_path / "state_00000010_00000.bin").write_bytes(state)
    found = recognise.recognise(tmp_path / "state_00000010_00000.bin")
    assert bool(found.problems) == bool(extra) and not found.notes


def test_inspect_a_run_verifies_everything_in_it(run, trained):
    code, text = run("inspect", trained, "--json")
    found = json.loads(text)
    kinds = [p["kind"] for p in found["parts"]]
    assert code == 0 and found["kind"] == "run directory"
    assert "log of a run" in kinds and "checkpoint" in kinds


@pytest.mark.parametrize(
    "file, damage, words",
    [
        ("model.safetensors", lambda b: b[:-40], "cut off"),
        ("state.safetensors", lambda b: b[:100], "cut off"),
        ("config.json", lambda b: b.replace(b'"n_layer": 1', b'"n_layer": 2'), "lacks 12"),
        ("config.json", lambda b: b.replace(b'"n_embd": 16', b'"n_embd": []'), "config.json"),
        ("config.json", lambda b: b.replace(b'"n_layer": 1', b'"n_layer": 999999999'), "layers"),
        ("meta.json", lambda b: b"{", "meta.json is damaged"),
        ("tokenizer.json", lambda b: b"[]", "not a tokenizer"),
    ],
)
def test_inspect_names_damage_in_a_checkpoint(run, trained, tmp_path, file, damage, words):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained / "checkpoints" / "step-00000002", copy)
    (copy / file).write_bytes(damage((copy / file).read_bytes()))
    code, text = run("inspect", copy)
    assert code == 1 and words in text


def test_inspect_names_a_model_it_does_not_read(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma"}')
    (tmp_path / "model.safetensors").write_bytes(FILES["w.safetensors"][1])
    code, text = run("inspect", tmp_path)
    assert code == 0 and "gemma" in text


def test_inspect_terminal_codes_in_names_are_not_printed(run, tmp_path):
    text = '{"\\u001b[31mred": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    (tmp_path / "x.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text.encode() + bytes(8)
    )
    assert "\x1b" not in run("inspect", "x.safetensors")[1]


@pytest.mark.parametrize("path", ["nothing-here", "/dev/null"])
def test_inspect_what_is_no_file_is_wrong_use(run, path):
    assert run("inspect", path)[0] == 2


# plot


def test_plot_draws_a_run_and_a_run_in_progress(run, trained, tmp_path):
    (tmp_path / "_b$1$^").mkdir()
    (tmp_path / "_b$1$^" / "log.jsonl").write_bytes(LOG + b'{"event": "st')
    code, text = run("plot", trained, "_b$1$^", "--out", "x.png", "--smooth", "0.5")
    assert code == 0 and "_b$1$^: 2 steps, still writing" in text
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_plot_json_has_the_figures(run, tmp_path):
    (tmp_path / "log.jsonl").write_bytes(LOG)
    rows = json.loads(run("plot", ".", "--json")[1])["rows"]
    assert rows[0]["loss_first"] == 5.0 and rows[0]["val_best_step"] == 2


@pytest.mark.parametrize(
    "args, content, code, words",
    [
        (["."], None, 2, "log.jsonl"),
        (["nowhere"], None, 2, "does not exist"),
        ([], None, 2, ""),
        (["."], b"", 1, "no step"),
        (["."], b"\x00\xff garbage\n" + LOG, 1, "line 1"),
        (["."], LOG + b'{"event": "step", "step": 3, "loss": "low"}\n', 1, "line 5"),
        (["."], LOG + LOG, 1, "comes after"),
        ([".", "--out", "x.doc"], LOG, 2, ".png"),
        ([".", "--smooth", "1"], LOG, 2, "--smooth"),
        ([".", "--out", "no/such/folder/x.png"], LOG, 1, "cannot be written"),
    ],
)
def test_plot_names_what_is_wrong(run, tmp_path, args, content, code, words):
    if content is not None:
        (tmp_path / "log.jsonl").write_bytes(content)
    found, text = run("plot", *args)
    assert found == code and words in text


def test_smoothing_keeps_a_constant_and_passes_over_nan():
    assert curves.smooth([2.0, float("nan"), 2.0], 0.9)[::2] == pytest.approx([2, 2])


def test_runlog_a_line_without_end_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(LOG + b"x" * (3 << 20) + b"\n" + b'{"event": "val", "step": 9, "loss": 4}\n')
    log = runlog.read(path)
    assert len(log.problems) == 1 and log.val["step"][-1] == 9
