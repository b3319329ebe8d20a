"""What the studio's server answers, held against what these tests read from the recording's files
themselves.  Who may ask, and recordings that mean harm: test_studio_safety.py."""

import ast
import inspect
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import load_file
from studio_server import (
    SHELL,
    address,
    full,
    index,
    octets,
    plant,
    record_run,
    select,
    serving,
    tensors,
)

from backglass.debugger import server
from backglass.debugger.formulas import described
from backglass.debugger.highlight import highlight
from backglass.debugger.matrix import Cache
from backglass.debugger.problem import Problem
from backglass.debugger.pyramid import top
from backglass.ops import table

DTYPES = {"fp32": np.dtype(np.float32), "i32": np.dtype(np.int32)}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return record_run(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def client(run_folder, tmp_path_factory):
    """Of the folder of runs: a, recorded, and b, which has no recording."""
    other = run_folder.parent / "b"
    other.mkdir()
    shutil.copy(run_folder / "run.json", other)
    with serving(run_folder.parent, tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture(scope="module")
def recording(run_folder):
    return full(run_folder)


@pytest.fixture
def copied(recording, tmp_path):
    """A copy of the recording and a Client of it."""
    copy = tmp_path / "step-00000003"
    shutil.copytree(recording, copy)
    with serving(copy, tmp_path) as found:
        yield copy, found


def manifest_of(recording):
    return json.loads((recording / "manifest.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------ lists and rows


def test_runs_are_those_on_disk_with_and_without_recordings(client, run_folder):
    a, b = client.ask("/api/runs").json
    assert (a["name"], a["preset"], b["name"], b["recordings"]) == ("a", "tiny", "b", [])
    wanted = ("step", "level", "events", "complete", "device", "dtype")
    on_disk = [manifest_of(p) for p in sorted((run_folder / "trace").iterdir())]
    assert [[r[k] for k in wanted] for r in a["recordings"]] == [
        [m[k] for k in wanted] for m in on_disk
    ]


def test_overview_has_the_manifest_without_settings_and_text(client, recording):
    found, on_disk = client.ask(address(recording)).json, manifest_of(recording)
    assert found["text"] == on_disk.pop("text") and on_disk.pop("settings")
    assert found["manifest"] == on_disk


def test_overview_has_a_row_for_every_event_in_order(client, recording):
    columns = ("k run phase op layer text model kernel first_line last_line ms twin").split()
    rows = client.ask(address(recording)).json["events"]
    assert [tuple(row[c] for c in columns) for row in rows] == select(
        recording, f"select {', '.join(columns)} from events order by k"
    )
    assert [(row["k"], row["first"]) for row in rows] == select(
        recording, "select event, version from operands where role = 'out' and position = 0 "
        "order by event",
    )  # fmt: skip
    assert not any(row["bad"] for row in rows)


def test_an_event_is_bad_when_one_of_its_outputs_is_not_finite(copied):
    recording, client = copied
    (number,) = select(
        recording, "select version from operands where event = 1 and role = 'out' and position = 2"
    )[0]
    select(recording, "update versions set infs = 1, bad = '[[0, 3]]' where id = ?", number)
    rows = client.ask(address(recording)).json["events"]
    assert [row["k"] for row in rows if row["bad"]] == [1]
    assert client.ask(address(recording, "/events/1")).json["bad"] is True


@pytest.mark.parametrize("role, key", [("in", "ins"), ("out", "outs")])
def test_an_events_operands_are_those_of_the_index(client, recording, role, key):
    for (k,) in select(recording, "select k from events"):
        found = client.ask(address(recording, f"/events/{k}")).json[key]
        assert [(o["name"], int(o["adds"]), o["version"]["id"]) for o in found] == select(
            recording, "select name, adds, version from operands where event = ? and role = ? "
            "order by position", k, role,
        )  # fmt: skip


def test_an_event_has_the_attrs_of_its_line_and_of_its_spec(client, recording):
    found = {}
    for k, op in select(recording, "select k, op from events"):
        found[op] = client.ask(address(recording, f"/events/{k}")).json["attrs"]
    assert found["layernorm"] == {"eps": 1e-5} and found["matmul"] == {}
    assert found["softmax_xent"] == {"vocab_size": 256}
    assert found["adamw"].keys() == {"decay_size"} and found["adamw"]["decay_size"] > 0


@pytest.mark.parametrize(
    "tensor, dims",
    [
        ("h1.qkv", "B T 3 NH HS"), ("h0.dqkv", "B T 3 NH HS"), ("h0.att", "B NH T T"),
        ("wte/m", "Vp C"), ("h1.dfcw", "F C"), ("h0.qkvb/v", "3*C"), ("dloss", "B T"),
        ("dlogits", "B T Vp"), ("ids", "B T"), ("norm", "1"),
    ],
)  # fmt: skip
def test_a_tensors_axes_have_the_names_that_the_model_declares(client, recording, tensor, dims):
    (number,) = select(recording, "select min(id) from versions where tensor = ?", tensor)[0]
    assert client.ask(address(recording, f"/versions/{number}")).json["dims"] == dims.split()


def test_a_version_is_its_row_of_the_index(client, recording):
    statistics = "min max mean std norm zeros nans infs".split()
    plain = "id tensor number event dtype kind hash".split()
    sql = f"select {', '.join((*plain, *statistics))}, shape, constant, planes from versions"
    for *row, shape, constant, planes in select(recording, sql):
        v = client.ask(address(recording, f"/versions/{row[0]}")).json
        assert [*(v[k] for k in plain), *(v["statistics"][k] for k in statistics)] == row
        assert v["shape"] == json.loads(shape) and v["constant"] == bool(constant)
        assert v["pictured"] == (planes is not None) and v["stored"] is True and v["bad"] == []
        assert v["made_by"] == v["event"]


def test_a_version_has_its_neighbours_and_those_that_use_it(client, recording):
    sql = "select id, number, tensor from versions where tensor in ('h0.dres2', 'wte', 'h1.dfcw')"
    rows = select(recording, sql)
    ids = {(tensor, number): i for i, number, tensor in rows}
    assert max(number for _, number in ids) >= 2
    for (tensor, number), i in ids.items():
        v = client.ask(address(recording, f"/versions/{i}")).json
        assert v["previous"] == ids.get((tensor, number - 1))
        assert v["next"] == ids.get((tensor, number + 1))
        assert v["used_by"] == [k for (k,) in select(
            recording, "select distinct event from operands where version = ? and role = 'in' "
            "order by event", i)]  # fmt: skip


# ------------------------------------------------------------------ numbers


def test_cells_are_the_stored_numbers_bit_for_bit(client, recording):
    stored, rng = tensors(recording), np.random.default_rng(1)
    rows = select(recording, "select id, hash, shape, dtype from versions where constant = 0")
    rows = [row for row in rows if row[1] in stored]
    assert len(rows) > 100 and {row[3] for row in rows} == {"fp32", "i32"}
    for i in rng.choice(len(rows), 50, replace=False):
        number, digest, shape, dtype = rows[i]
        matrix = stored[digest].reshape(-1, json.loads(shape)[-1])
        r, c = (int(rng.integers(n)) for n in matrix.shape)
        path = f"/versions/{number}/cells?row={r}&column={c}&height=3&width=2"
        found = np.array(client.ask(address(recording, path)).json["values"]).astype(DTYPES[dtype])
        assert np.array_equal(found, matrix[r : r + 3, c : c + 2])


@pytest.mark.parametrize("tensor", ["h1.qkvw", "wte", "h0.ln1b", "lnfw", "h1.fcw/m", "wpe/v"])
def test_cells_before_the_step_are_those_of_the_checkpoint(client, recording, tensor):
    name, _, group = tensor.partition("/")
    checkpoint = recording / manifest_of(recording)["before"]["checkpoint"]
    if group:
        wanted = load_file(checkpoint / "state.safetensors")[f"{group}/{name}"]
    else:
        hf = {"h1.qkvw": "h.1.attn.c_attn.weight", "wte": "wte.weight", "lnfw": "ln_f.weight",
              "h0.ln1b": "h.0.ln_1.bias"}[tensor]  # fmt: skip
        wanted = load_file(checkpoint / "model.safetensors")[f"transformer.{hf}"]
        wanted = wanted.T if tensor == "h1.qkvw" else wanted
    sql = "select id from versions where tensor = ? and event is null"
    (number,) = select(recording, sql, tensor)[0]
    path = f"/versions/{number}/cells?row=0&column=0&height=9&width=9"
    found = np.array(client.ask(address(recording, path)).json["values"]).astype(np.float32)
    assert np.array_equal(found, np.atleast_2d(wanted)[:9, :9])


def test_cells_of_a_checkpoint_that_is_another_by_now_are_refused(run_folder, tmp_path):
    run = tmp_path / "a"
    shutil.copytree(run_folder, run)
    file = next((run / "checkpoints").glob("step-*2/model.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    sql = "select id, tensor from versions where event is null and kind = 'param' and constant = 0"
    with serving(run, tmp_path) as client:
        path = "/versions/{}/cells?row=0&column=0&height=1&width=1"
        answers = {
            tensor: client.ask(address(full(run), path.format(number)))
            for number, tensor in select(full(run), sql)
        }
    refused = {tensor: a.json["error"] for tensor, a in answers.items() if a.status != 200}
    assert len(refused) == 1 and len(answers) > 10
    assert "is not what it was when the step was recorded" in next(iter(refused.values()))


def test_cells_of_a_constant_tensor_are_that_number(client, recording):
    sql = "select id, min from versions where number = 0 and constant = 1 and tensor = 'h0.dfcw'"
    ((number, value),) = select(recording, sql)
    found = client.ask(
        address(recording, f"/versions/{number}/cells?row=1&column=2&height=1&width=2")
    )
    assert found.json["values"] == [[str(value)] * 2]


def test_cells_that_are_not_finite_have_names(copied):
    recording, client = copied
    number = plant(recording, np.array([[np.nan, np.inf], [-np.inf, -0.0]], np.float32))
    path = f"/versions/{number}/cells?row=0&column=0&height=2&width=2"
    found = client.ask(address(recording, path)).json["values"]
    assert found == [["nan", "inf"], ["-inf", "-0.0"]]


def test_cells_of_bf16_are_exact(copied):
    recording, client = copied
    values = np.random.default_rng(2).standard_normal((5, 7)).astype(ml_dtypes.bfloat16)
    number = plant(recording, values, "bf16")
    path = f"/versions/{number}/cells?row=0&column=0&height=5&width=7"
    found = np.array(client.ask(address(recording, path)).json["values"]).astype(np.float32)
    assert np.array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize(
    "query, status",
    [
        ("row=0&column=0&height=64&width=65", 400), ("row=0&column=0&height=0&width=1", 400),
        ("row=0&column=0&height=1", 400), ("row=-1&column=0&height=1&width=1", 400),
        ("row=0&column=32&height=1&width=1", 404), ("row=32&column=0&height=1&width=1", 404),
    ],
)  # fmt: skip
def test_cells_outside_or_too_many_are_refused(client, recording, query, status):
    (number,) = select(recording, "select id from versions where tensor = 'h0.ln1'")[0]
    answer = client.ask(address(recording, f"/versions/{number}/cells?{query}"))
    assert answer.status == status and answer.json["error"]


def test_numbers_that_were_not_stored_say_how_to_record_them(client, run_folder):
    light = run_folder / "trace" / "step-00000001"
    (number,) = select(light, "select id from versions where tensor = 'h0.qkv'")[0]
    path = address(light, f"/versions/{number}/cells?row=0&column=0&height=1&width=1")
    answer = client.ask(path)
    assert answer.status == 404 and "--step 1 --level 3" in answer.json["error"]
    assert client.ask(address(light, f"/versions/{number}")).json["stored"] is False


# ------------------------------------------------------------------ tiles and pictures


def pixels(x, level):
    """min, max, mean and how many are not finite of each 2^level × 2^level block, one by one."""
    side = 1 << level
    found = np.empty((4, -(-x.shape[0] // side), -(-x.shape[1] // side)), np.float32)
    for i, j in np.ndindex(found.shape[1:]):
        block = x[i * side : (i + 1) * side, j * side : (j + 1) * side]
        good = block[np.isfinite(block)]
        low, high, mean = (np.inf, -np.inf, 0.0) if not good.size else (
            good.min(), good.max(), good.mean(dtype=np.float64)
        )  # fmt: skip
        found[:, i, j] = low, high, mean, block.size - good.size
    return found


def test_tiles_of_level_0_are_the_numbers(copied):
    recording, client = copied
    x = np.random.default_rng(3).standard_normal((523, 301), dtype=np.float32)
    number = plant(recording, x)
    rows = []
    for i in range(5):
        path = f"/versions/{number}/tile?level=0&i={i}&j={{}}"
        row = [octets(client.ask(address(recording, path.format(j)))) for j in range(3)]
        rows.append(np.concatenate(row, 2))
    assert np.array_equal(np.concatenate(rows, 1)[0], x)


@pytest.mark.parametrize("shape", [(1823, 781), (3, 5, 3001), (2999,), (2500, 1)])
def test_tiles_above_level_0_are_blocks_of_the_numbers(copied, shape):
    recording, client = copied
    x = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    x[..., 0].flat[:4] = np.nan, np.inf, -np.inf, 7
    number, matrix = plant(recording, x), x.reshape(-1, shape[-1])
    for level in range(1, top(*matrix.shape) + 1):
        wanted = pixels(matrix, level)
        for i in range(-(-wanted.shape[1] // 128)):
            for j in range(-(-wanted.shape[2] // 128)):
                path = f"/versions/{number}/tile?level={level}&i={i}&j={j}"
                found = octets(client.ask(address(recording, path)))
                part = wanted[:, i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128]
                assert np.array_equal(found[[0, 1, 3]], part[[0, 1, 3]])
                gap = np.abs(found[2] - part[2])
                assert (gap <= np.spacing(np.abs(part[2]))).all()  # sums in another order


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("plane", ["min", "max", "mean"])
def test_shades_are_the_numbers_of_the_plane_within_half_a_shade(copied, level, plane):
    recording, client = copied
    x = np.random.default_rng(5).standard_normal((300, 200), dtype=np.float32)
    x[40, 50:53] = np.nan, np.inf, -np.inf
    largest = np.abs(x[np.isfinite(x)]).max()
    number = plant(recording, x)
    with index(recording) as db:
        db.execute("update versions set min = ? where id = ?", (float(-largest), number))
    path = f"/versions/{number}/tile?level={level}&i=0&j=0&plane={plane}"
    body = client.ask(address(recording, path)).body
    planes = pixels(x, level)[:, :128, :128]
    wanted, bad = planes[("min", "max", "mean").index(plane)], planes[3] > 0
    assert np.frombuffer(body[:12], "<u4").tolist() == [0, *wanted.shape]
    assert np.frombuffer(body[12:16], "<f4") == largest
    shade = np.frombuffer(body[16:], np.int8).reshape(wanted.shape).astype(np.float64)
    assert ((shade == -128) == bad).all() and bad.any()
    root = np.sign(wanted) * np.sqrt(np.abs(wanted) / largest)
    assert np.abs(shade / 127 - root)[~bad].max() <= 0.5 / 127 + 1e-6


def test_shades_of_no_known_plane_are_refused(client, recording):
    (number,) = select(recording, "select id from versions where tensor = 'h0.ln1'")[0]
    answer = client.ask(address(recording, f"/versions/{number}/tile?level=0&i=0&j=0&plane=std"))
    assert answer.status == 400 and "min, max, mean" in answer.json["error"]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_one_odd_number_among_many_lights_a_pixel_at_the_highest_level(copied, odd):
    recording, client = copied
    x = np.ones((3000, 2000), np.float32)
    x[1234, 567] = odd
    number = plant(recording, x)
    level = top(*x.shape)
    found = octets(client.ask(address(recording, f"/versions/{number}/tile?level={level}&i=0&j=0")))
    lit = np.argwhere(found[3])
    assert lit.tolist() == [[1234 >> level, 567 >> level]] and found[3].max() == 1
    assert (found[:3] == 1).all()


def test_tiles_of_a_constant_tensor_need_no_file(client, recording):
    sql = "select id, min, shape from versions where number = 0 and tensor = 'dwte'"
    ((number, value, shape),) = select(recording, sql)
    found = octets(client.ask(address(recording, f"/versions/{number}/tile?level=0&i=0&j=0")))
    assert np.array_equal(found[0], np.full(json.loads(shape), value, np.float32)[:128, :128])


@pytest.mark.parametrize("query", ["level=9&i=0&j=0", "level=0&i=1&j=0", "level=0&i=0&j=7"])
def test_tiles_that_are_not_there_are_refused(client, recording, query):
    (number,) = select(recording, "select id from versions where tensor = 'h0.ln1'")[0]
    assert client.ask(address(recording, f"/versions/{number}/tile?{query}")).status == 404


def test_a_tile_that_the_client_has_is_not_sent_again(client, recording):
    ((number, digest),) = select(recording, "select id, hash from versions where tensor = 'h0.ln1'")
    path = address(recording, f"/versions/{number}/tile?level=0&i=0&j=0")
    first = client.ask(path)
    again = client.ask(path, if_none_match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"") and digest in first.headers["etag"]
    assert "immutable" not in first.headers["cache-control"]
    assert "immutable" in client.ask(f"{path}&hash={digest}").headers["cache-control"]
    assert "immutable" not in client.ask(f"{path}&hash=other").headers["cache-control"]


def test_pictures_are_those_of_the_index(client, recording):
    sql = "select id, down, across, planes from versions where planes is not null"
    for number, down, across, planes in select(recording, sql)[::7]:
        answer = client.ask(address(recording, f"/versions/{number}/picture"))
        assert np.frombuffer(answer.body[:8], "<u4").tolist() == [down, across]
        wanted = np.frombuffer(planes, ml_dtypes.bfloat16).astype(np.float32)
        assert np.array_equal(np.frombuffer(answer.body[8:], "<f4"), wanted)


def test_histograms_count_the_numbers_by_powers_of_two(client, recording):
    sql = "select id, hash, zeros from versions where tensor = 'h0.qkv'"
    ((number, digest, zeros),) = select(recording, sql)
    found = client.ask(address(recording, f"/versions/{number}/histogram")).json
    x = tensors(recording)[digest].ravel()
    at = np.floor(np.log2(np.abs(x[x != 0]))).astype(int) - found["lowest_exponent"]
    at = np.clip(at, 0, 31)
    wanted = np.bincount(np.where(x[x != 0] < 0, 31 - at, 32 + at), minlength=64)
    assert found["bins"] == wanted.tolist()
    assert [found[k] for k in ("size", "counted", "zeros", "nans", "infs")] == [
        x.size, x.size, zeros, 0, 0,
    ]  # fmt: skip


def test_a_constant_tensor_has_no_picture_and_says_so(client, recording):
    (number,) = select(recording, "select id from versions where tensor = 'h0.dfcw'")[0]
    answer = client.ask(address(recording, f"/versions/{number}/picture"))
    assert answer.status == 404 and "every number of it is 0.0" in answer.json["error"]


def test_the_cache_never_holds_more_than_it_may():
    cache, most = Cache(100), 0
    for i in [*range(40), 39]:
        assert cache.get(i, 30, lambda i=i: i) == i
        most = max(most, cache.bytes)
    assert most == 90 == sum(size for _, size in cache.kept.values())
    with pytest.raises(Problem):
        cache.get("large", 51, lambda: pytest.fail("it was built"))


# ------------------------------------------------------------------ source, maths, verifying


def test_source_is_the_recorded_text_after_the_file_on_disk_has_changed(
    client, recording, tmp_path, monkeypatch
):
    names = manifest_of(recording)["sources"]
    assert "models/gpt2.py" in names and "ops/layernorm/maths.py" in names
    copy = tmp_path / "backglass"
    shutil.copytree(server.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.nb?"))
    monkeypatch.setattr(server, "PACKAGE", copy)
    with (copy / "models" / "gpt2.py").open("a") as f:
        f.write("# changed\n")
    for name in names:
        found = client.ask(address(recording, f"/source/{name}")).json
        text = "".join("".join(piece for _, piece in line) + "\n" for line in found["lines"])
        assert text == (recording / "src" / name).read_text(encoding="utf-8")
        assert found["changed"] is (name == "models/gpt2.py")


def test_source_that_is_not_what_was_recorded_is_refused(copied):
    recording, client = copied
    with (recording / "src" / "models" / "gpt2.py").open("a") as f:
        f.write("# forged\n")
    answer = client.ask(address(recording, "/source/models/gpt2.py"))
    assert answer.status == 422 and "SHA-256" in answer.json["error"]


def test_highlighting_loses_no_character_of_any_of_our_files():
    for path in (ROOT / "backglass").rglob("*.py"):
        if not path.stat().st_size:
            continue
        text = path.read_text(encoding="utf-8")
        lines = ["".join(piece for _, piece in line) for line in highlight(text)]
        assert lines == text.split("\n")[: text.count("\n") + (not text.endswith("\n"))], path


def test_highlighting_names_what_it_sees():
    found = highlight('def f(x):  # why\n    return """a\nb""" + 1.5\n')
    assert found == [
        [("keyword", "def"), ("text", " "), ("definition", "f"), ("operator", "("), ("text", "x"),
         ("operator", ")"), ("operator", ":"), ("text", "  "), ("comment", "# why")],
        [("text", "    "), ("keyword", "return"), ("text", " "), ("string", '"""a')],
        [("string", 'b"""'), ("text", " "), ("operator", "+"), ("text", " "), ("number", "1.5")],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["def (", '"""open', 'f"{{a}} {x!r:>{w}}{{"', "\x00", "if x:\n  y\n z", ""]
)
def test_highlighting_gives_what_is_no_python_as_it_is(text):
    assert ["".join(p for _, p in line) for line in highlight(text)] == text.split("\n")[
        : text.count("\n") + bool(text)
    ]


def test_maths_of_every_recorded_op_are_those_of_its_docstring(client, recording):
    for op in {op for (op,) in select(recording, "select op from events")}:
        found = client.ask(address(recording, f"/maths/{op}")).json
        home = next(o for o in table().values() if op in o.signatures)
        doc = " ".join(inspect.cleandoc(home.maths.__doc__).split())
        tree = ast.parse(inspect.getsource(home.maths))
        assert doc.startswith(found["sentence"]) and found["sentence"].endswith(".")
        assert found["forward"] and all(
            " ".join(v.split()) in doc for v in found["forward"].split("\n")
        )
        assert found["source"] and found["source"] in doc and found["saved"] in doc
        assert all(step in doc for step in found["derivation"])
        assert bool(found["backward"]) == bool(home.spec.backward)
        steps = [line for line in home.maths.__doc__.splitlines() if line[:6].strip().isdecimal()]
        assert len(found["derivation"]) == len(steps)
        assert ast.dump(ast.parse(found["numpy"])) == ast.dump(
            ast.Module([n for n in tree.body if isinstance(n, ast.FunctionDef)], [])
        )


def test_maths_have_the_formula_without_its_heading(client, recording):
    found = client.ask(address(recording, "/maths/d_matmul_w")).json
    assert found["backward"].splitlines() == [
        "in two calls because they are two matrix products, wanted at different times", "",
        "d_matmul_x:   dx = dy·w", "d_matmul_w:   dw = dyᵀ·x      db = Σ_n dy",
    ]  # fmt: skip
    assert found["derivation"][2] == "1 and 2 are a matrix product over o: dx = dy·w"


def test_maths_of_a_docstring_without_headings_are_its_sentence_and_formula():
    found = described("A sentence.\n\n    y = x\n\nSource: here.")
    assert (found["sentence"], found["forward"], found["source"]) == (
        "A sentence.",
        "y = x",
        "here.",
    )


def verified(client, recording):
    answer = client.ask(address(recording, "/verify"), "POST")
    assert answer.status == 200 and answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.body.splitlines()]


def test_verifying_does_the_step_again_and_every_tensor_agrees(client, recording):
    *progress, last = verified(client, recording)
    events, versions = (
        select(recording, f"select count(*) from {t}")[0][0] for t in ("events", "versions")
    )
    assert [row["done"] for row in progress] == list(range(1, events + 1))
    assert last == {"agreed": versions, "diverged": None, "damaged": []}


def test_verifying_names_the_tensor_of_which_a_byte_has_changed(run_folder, tmp_path):
    run = tmp_path / "a"
    shutil.copytree(run_folder, run)
    k, tensor = select(full(run), "select event, tensor from versions where tensor = 'h1.fch'")[0]
    file = full(run) / "t" / f"{k:06d}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    with serving(run, tmp_path) as client:
        last = verified(client, full(run))[-1]
    assert [v["tensor"] for v in last["damaged"]] == [tensor] and last["diverged"] is None


def test_verifying_names_the_event_at_which_the_replay_diverges(run_folder, tmp_path):
    run = tmp_path / "a"
    shutil.copytree(run_folder, run)
    ((k, text),) = select(full(run), "select k, text from events where text like 'h1.fch = %'")
    select(full(run), "update versions set hash = 'other' where tensor = 'h1.fch'")
    with serving(run, tmp_path) as client:
        last = verified(client, full(run))[-1]
    assert last["diverged"] == {"event": k, "text": text, "tensor": "h1.fch"}


def test_a_recording_that_was_cut_off_is_shown_up_to_there(copied):
    recording, client = copied
    manifest = manifest_of(recording)
    for key in ("loss", "grad_norm", "own", "stored_bytes"):
        del manifest[key]
    path = recording / "manifest.json"
    path.write_text(json.dumps(manifest | {"complete": False}))
    select(recording, "delete from events where k > 5")
    select(recording, "delete from operands where event > 5")
    (run,) = client.ask("/api/runs").json
    assert [(r["events"], r["complete"]) for r in run["recordings"]] == [(6, False)]
    assert len(client.ask(address(recording)).json["events"]) == 6
    answer = client.ask(address(recording, "/events/6"))
    assert answer.status == 404 and "events 0 to 5" in answer.json["error"]


def test_a_recording_that_is_being_made_is_read_as_far_as_it_is(copied):
    recording, client = copied
    path = recording / "manifest.json"
    path.write_text(json.dumps(manifest_of(recording) | {"complete": False}))
    with index(recording) as db:  # stays open: what is written lies in the log beside the index
        db.execute("pragma journal_mode = wal")
        for k in (67, 66, 65):
            db.execute("delete from events where k = ?", (k,))
            assert len(client.ask(address(recording)).json["events"]) == k


def test_a_recording_that_was_made_again_is_read_again(copied):
    recording, client = copied
    assert client.ask(address(recording)).json["manifest"]["step"] == 3
    path = recording / "manifest.json"
    path.write_text(json.dumps(manifest_of(recording) | {"step": 4, "loss": float("nan")}))
    found = client.ask(address(recording)).json["manifest"]
    assert (found["step"], found["loss"]) == (4, "nan")


def test_the_page_and_its_files_are_served_without_a_token(client):
    page = client.ask("/", x_backglass_token=None)
    assert (page.status, page.body.decode()) == (200, SHELL)
    script = client.ask("/assets/page-1a2b.js", x_backglass_token=None)
    assert (script.status, script.headers["content-type"]) == (
        200,
        "text/javascript; charset=utf-8",
    )
    assert client.ask("/assets/other.js", x_backglass_token=None).status == 404
