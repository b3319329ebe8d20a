"""Who may ask the studio's server, recordings that mean harm, and the command that starts it."""

import ast
import asyncio
import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file
from studio_server import (
    SHELL,
    TOKEN,
    address,
    full,
    index,
    plant,
    record_run,
    select,
    serving,
    tensors,
)

from backglass.debugger import server

PAGE = ("/", "/assets/page-1a2b.js")
POSTED = {"/verify": 200, "/what-if": 400, "/delete": 403}  # without a body; of what is no what-if
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return full(record_run(tmp_path_factory.mktemp("studio")))


@pytest.fixture(scope="module")
def client(recording, tmp_path_factory):
    with serving(recording, tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture
def copied(recording, tmp_path):
    """A copy of the recording in its run, to do harm to, and a Client of it."""
    shutil.copytree(recording.parent.parent, tmp_path / "a")
    copy = full(tmp_path / "a")
    with serving(copy, tmp_path) as found:
        yield copy, found


def routes(client, recording):
    """(method, an address) of every route that the app has."""
    (number,) = select(recording, "select id from versions where tensor = 'h0.qkv'")[0]
    query = "?level=0&i=0&j=0&row=0&column=0&height=1&width=1&number=1&run=0&batch=0"
    values = {
        "{r}": address(recording).rpartition("/")[2], "{k}": "3", "{v}": str(number),
        "{name}": "page-1a2b.js", "{name:path}": "models/gpt2.py", "{op}": "matmul",
        "{map}": "att", "{tensor:path}": "h0.qkv", "{other}": address(recording).rpartition("/")[2],
    }  # fmt: skip
    found = []
    for route in client.guarded.app.routes:
        path = route.path
        for mark, value in values.items():
            path = path.replace(mark, value)
        assert "{" not in path
        found += [(method, path + query) for method in sorted(route.methods)]
    assert len(found) > 20
    return found


# ------------------------------------------------------------------ who may ask

WRONG = [
    {"host": "evil.com"}, {"host": None}, {"host": "127.0.0.1"}, {"host": "127.0.0.1:1"},
    {"host": "evil.com:{port}"}, {"host": "127.0.0.1.evil.com:{port}"},
    {"origin": "http://evil.com"}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"},
    {"origin": "https://127.0.0.1:{port}"}, {"origin": "http://evil.com:{port}"},
    {"host": "evil.com:{port}", "origin": "http://evil.com:{port}"},
    {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"},
]  # fmt: skip
NO_TOKEN = [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper()]


@pytest.mark.parametrize("headers", WRONG, ids=str)
def test_every_route_refuses_what_comes_from_elsewhere(client, recording, headers):
    headers = {k: v and v.format(port=client.port) for k, v in headers.items()}
    for method, path in routes(client, recording):
        answer = client.ask(path, method, **headers)
        assert 400 <= answer.status < 500, (method, path)
        assert SHELL.encode() not in answer.body and "allow" not in str(answer.headers).lower()


@pytest.mark.parametrize("token", NO_TOKEN)
def test_every_route_but_the_page_needs_the_token(client, recording, token):
    for method, path in routes(client, recording):
        status = client.ask(path, method, x_backglass_token=token).status
        assert status == (200 if path.partition("?")[0] in PAGE else 401), (method, path)


def test_every_route_answers_our_own_page(client, recording):
    own = f"http://127.0.0.1:{client.port}"
    for method, path in routes(client, recording):
        answer = client.ask(path, method, origin=own, sec_fetch_site="same-origin")
        wanted = next((s for end, s in POSTED.items() if end in path), 200)
        assert answer.status == wanted, (method, path, answer.body)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_each_name_of_this_machine_is_admitted(client, host):
    assert client.ask("/api/runs", host=f"{host}:{client.port}").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_no_other_method_is_answered(client, recording, method):
    answered = routes(client, recording)
    for path in {path for _, path in answered}:
        if (method, path) not in answered:
            assert client.ask(path, method).status == 405, path


@pytest.mark.parametrize("path", ["/", "/api/runs", "/nothing", "/api/recordings/x", "/assets/x"])
@pytest.mark.parametrize(
    "headers", [{}, {"host": "evil.com"}, {"x_backglass_token": None}], ids=str
)
def test_every_answer_has_the_headers_that_shut_others_out(client, path, headers):
    found = client.ask(path, **headers).headers
    csp = dict(part.strip().split(" ", 1) for part in found["content-security-policy"].split(";"))
    assert csp["default-src"] == csp["frame-ancestors"] == csp["base-uri"] == "'none'"
    assert csp["script-src"] == csp["connect-src"] == "'self'"
    assert found["x-content-type-options"] == "nosniff"
    assert found["referrer-policy"] == "no-referrer"
    assert found["cross-origin-opener-policy"] == "same-origin"
    assert found["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in found and not any(k.startswith("access-control") for k in found)


def test_a_large_body_is_refused(client, recording):
    path = address(recording, "/verify")
    assert client.ask(path, "POST", content_length="65537").status == 413
    assert client.ask(path, "POST", content_length="9" * 12).status in (400, 413)


def test_a_websocket_is_refused(client):
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    asyncio.run(client.guarded({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_read_only_refuses_what_computes_and_nothing_else(recording, tmp_path):
    with serving(recording, tmp_path, read_only=True) as client:
        for method, path in routes(client, recording):
            assert client.ask(path, method).status == (403 if method == "POST" else 200), path


@pytest.mark.parametrize(
    "job",
    ["/verify", "/bench/model", *(f"/events/3/bench/{w}" for w in ("maths", "kernel", "steps"))],
)
def test_a_second_job_at_once_is_refused(client, recording, job):
    path = address(recording, job)
    lock = client.guarded.app.state.studio.busy
    assert lock.acquire(timeout=20)
    assert client.ask(path, "POST").status == 409
    lock.release()
    assert client.ask(path, "POST").status == 200


# ------------------------------------------------------------------ ids are no paths

UP = ["..", "../..", "..%2f..%2fetc", "%2e%2e", "....//", "/etc/passwd", "a%00b", "-1", "1e3", "１",
      "9" * 30, "9" * 5000]  # fmt: skip


@pytest.mark.parametrize("value", UP, ids=lambda v: v[:12])
def test_ids_that_are_paths_or_no_numbers_find_nothing(client, recording, value):
    for path in (
        f"/api/recordings/{value}", f"/api/recordings/{value}/events/1",
        address(recording) + f"/events/{value}", address(recording) + f"/versions/{value}",
        address(recording) + f"/events/{value}/bench",
        address(recording) + f"/source/{value}", address(recording) + f"/maths/{value}",
        f"/assets/{value}",
    ):  # fmt: skip
        answer = client.ask(path.replace("１", "%EF%BC%91"))
        assert 400 <= answer.status < 500, path
        assert b"root:" not in answer.body


def test_links_inside_the_folder_are_not_followed(recording, tmp_path):
    shelf = tmp_path / "runs"
    shutil.copytree(recording.parent.parent, shelf / "a")
    (shelf / "b").symlink_to(recording.parent.parent)
    (shelf / "c").mkdir()
    (shelf / "c" / "trace").symlink_to(recording.parent)
    (shelf / "a" / "trace" / "step-00000009").symlink_to(recording)
    with serving(shelf, tmp_path) as client:
        (run,) = client.ask("/api/runs").json
        assert run["name"] == "a" and [r["step"] for r in run["recordings"]] == [1, 3]


# ------------------------------------------------------------------ recordings that mean harm


def sql(text, *values):
    return lambda recording: select(recording, text, *values)


def manifest(**changes):
    def change(recording):
        path = recording / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def link(name):
    def replace(recording):
        path = recording / name
        path.rename(recording.parent / "elsewhere")
        path.symlink_to(recording.parent / "elsewhere")

    return replace


def shard(write):
    """Every file of tensors written anew."""

    def change(recording):
        for path in (recording / "t").glob("*.safetensors"):
            path.write_bytes(write(path.read_bytes()))

    return change


def header(change):
    """A safetensors file with another header."""

    def write(old):
        length = int.from_bytes(old[:8], "little")
        text = change(old[8 : 8 + length].decode()).encode()
        return len(text).to_bytes(8, "little") + text + old[8 + length :]

    return shard(write)


def link_beside(recording):
    """SQLite would write to what lies at this name."""
    path = recording / "index.sqlite-shm"
    path.unlink(missing_ok=True)
    path.symlink_to(recording / "manifest.json")


def secret(recording):
    """Tensors that the index says lie outside the recording."""
    save_file(tensors(recording), recording.parent / "secret.safetensors")
    select(recording, "update tensors set file = '../../secret'")


def view(recording):
    with index(recording) as db:
        db.execute("drop table tensors")
        db.execute(
            "create view tensors as with recursive n(i) as "
            "(select 1 union all select i + 1 from n) select i as hash, i as file from n"
        )


def computed(recording):
    with index(recording) as db:
        db.execute("drop table operands")
        columns = "event integer, role text, position integer, version integer, adds integer"
        db.execute(
            f"create table operands ({columns}, "
            "name text generated always as (hex(zeroblob(1000000000))) virtual)"
        )


HUGE = "[1000000, 1000000, 1000000]"
HARM = {
    "10^18 numbers": sql("update versions set shape = ?", HUGE),
    "10^12 dims": sql("update versions set shape = ?", str([10**12] * 12)),
    "many dims": sql("update versions set shape = ?", str([1] * 10_000)),
    "dims below 0": sql("update versions set shape = '[-1, -32]'"),
    "dims that are text": sql("update versions set shape = '[\"a\"]'"),
    "nested dims": sql("update versions set shape = ?", "[" * 100_000),
    "no dims": sql("update versions set shape = null"),
    "a huge text": sql("update versions set shape = zeroblob(2000000) where id % 37 = 0"),
    "an unknown dtype": sql("update versions set dtype = 'object'"),
    "statistics that are text": sql("update versions set min = '<img src=x onerror=alert(1)>'"),
    "no hash": sql("update versions set hash = null"),
    "a hash that is a header": sql("update versions set hash = 'x' || char(13, 10) || 'a: b'"),
    "a hash that is no ASCII": sql("update versions set hash = 'ж'"),
    "bad that is no list": sql("update versions set bad = '7'"),
    "operands that are nowhere": sql("update operands set version = 10000000"),
    "operands that are text": sql("update operands set version = 'x', adds = 'x'"),
    "events that are text": sql("update events set ms = 'x'"),
    "long texts": sql("update events set text = hex(zeroblob(10000)) where k = 3"),
    "pictures of another size": sql("update versions set down = 100000, across = 100000"),
    "pictures that are text": sql("update versions set planes = 'x', histogram = 'x'"),
    "files elsewhere": secret,
    "files that are blobs": sql("update tensors set file = x'00'"),
    "an endless view": view,
    "a computed column": computed,
    "a trigger": sql("create trigger t after insert on events begin select 1; end"),
    "no table": sql("drop table operands"),
    "no database": lambda recording: (recording / "index.sqlite").write_bytes(b"\x80\x04" * 999),
    "an empty database": lambda recording: (recording / "index.sqlite").write_bytes(b""),
    "a link to the index": link("index.sqlite"),
    "a link beside the index": link_beside,
    "a link to the tensors": link("t"),
    "a link to the manifest": link("manifest.json"),
    "a link to the sources": link("src"),
    "a pickle": shard(lambda old: pickle.dumps({"h0.qkv": [1, 2, 3]})),
    "an empty file": shard(lambda old: b""),
    "half a file": shard(lambda old: old[: len(old) // 2]),
    "an endless header": shard(lambda old: b"\xff" * 8 + old[8:]),
    "a header of 10^12 dims": header(lambda t: re.sub(r"\[[\d,]+\]", f"[{10**12}]", t)),
    "offsets outside": header(lambda t: re.sub(r"offsets\":\[\d+,\d+", 'offsets":[0,99999999', t)),
    "offsets below 0": header(lambda t: re.sub(r"offsets\":\[\d+", 'offsets":[-9', t)),
    "a nested header": header(lambda t: '{"x":' * 50_000),
    "a header that is a list": header(lambda t: "[]"),
    "another format": manifest(format=99),
    "steps that are text": manifest(step="<img src=x onerror=alert(1)>"),
    "no settings": manifest(settings=None),
    "sources that are a list": manifest(sources=["models/gpt2.py"]),
    "sources elsewhere": manifest(sources={"../../../../etc/passwd": "0", "models/gpt2.py": "0"}),
    "a nested manifest": manifest(loss=json.loads("[" * 900 + "]" * 900)),
    "a large manifest": manifest(loss="x" * (9 << 20)),
    "a manifest that is a list": lambda recording: (recording / "manifest.json").write_text("[]"),
    "a manifest cut off": lambda recording: (recording / "manifest.json").write_text('{"form'),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_recording_that_means_harm_gets_an_error_in_words(copied, client, recording, harm):
    copy, harmed = copied
    numbers = [n for (n,) in select(recording, "select id from versions order by id")][::37]
    HARM[harm](copy)
    refused = []
    for rest in parts(numbers):
        answer = harmed.ask(address(copy, rest))
        assert answer.status == 200 or 400 <= answer.status < 500, (rest, answer.body)
        assert len(answer.body) < 2 << 20 and b"root:" not in answer.body
        if answer.status != 200:
            assert 10 < len(answer.json["error"]) < 1000 and "Traceback" not in answer.json["error"]
            refused.append(rest)
    assert any(client.ask(address(recording, rest)).status == 200 for rest in refused)
    assert harmed.ask("/api/runs").status == 200


def parts(numbers):
    """Of a recording's address, all that reads something of it."""
    yield ""
    yield from (f"/events/{k}{rest}" for k in (0, 3, 60) for rest in ("", "/bench"))
    yield "/bench/update?row=0&column=0"
    yield from (f"/source/{name}" for name in ("models/gpt2.py", "../../../../etc/passwd"))
    yield "/maths/matmul"
    yield from ("/flow?run=0", "/attention/att?run=0&batch=0", "/attention/datt?run=1&batch=1")
    tiles = (f"/tile?level={level}&i=0&j=0" for level in (0, 3, 9))
    rests = ["", "/picture", "/histogram", *tiles, "/cells?row=0&column=0&height=2&width=2"]
    yield from (f"/versions/{number}{rest}" for number in numbers for rest in rests)


def test_a_shape_that_is_not_the_stored_tensors_is_refused(copied):
    recording, client = copied
    (number,) = select(recording, "select id from versions where tensor = 'h0.ln1'")[0]
    for shape in ("[2, 16, 31]", "[2, 16, 33]", "[1]"):  # other tensors lie beside it in the file
        select(recording, "update versions set shape = ? where id = ?", shape, number)
        path = f"/versions/{number}/cells?row=0&column=0&height=1&width=1"
        answer = client.ask(address(recording, path))
        assert answer.status == 422 and "the index promises" in answer.json["error"]


@pytest.mark.parametrize("named", ["../../../x/checkpoints/step-2", "/etc", "../../checkpoints/.."])
def test_a_checkpoint_elsewhere_is_not_opened(recording, tmp_path, named):
    run = tmp_path / "a"
    shutil.copytree(recording.parent.parent, run)
    (tmp_path / "x").symlink_to(run)
    before = json.loads((full(run) / "manifest.json").read_text())["before"]
    sql = "select id from versions where tensor = 'wte' and event is null"
    (number,) = select(full(run), sql)[0]
    path = address(full(run), f"/versions/{number}/cells?row=0&column=0&height=1&width=1")
    with serving(run, tmp_path) as client:
        assert client.ask(path).status == 200
        manifest(before=before | {"checkpoint": named})(full(run))
        assert client.ask(path).status == 404


@pytest.mark.parametrize("harm", ["a pickle", "files elsewhere", "10^18 numbers", "no settings"])
@pytest.mark.parametrize(
    "what", ["/events/3/bench/maths", "/events/3/bench/kernel", "/bench/model"]
)
def test_checking_a_recording_that_means_harm_ends(copied, harm, what):
    recording, client = copied
    HARM[harm](recording)
    answer = client.ask(address(recording, what), "POST")
    last = json.loads(answer.body.splitlines()[-1])
    assert "error" in last or last["rows"]


def test_an_operand_that_is_named_many_times_takes_no_memory(copied):
    recording, client = copied
    (k,) = select(recording, "select k from events where op = 'global_norm'")[0]
    with index(recording) as db:
        db.execute("update versions set constant = 1, shape = '[60000000]' where tensor = 'dwpe'")
        (v,) = db.execute("select max(id) from versions where tensor = 'dwpe'").fetchone()
        row = (k, "in", 0, "dp", v, 0)
        db.execute("begin")
        db.executemany("insert into operands values (?, ?, ?, ?, ?, ?)", [row] * 4000)
        db.execute("commit")
    answer = client.ask(address(recording, f"/events/{k}/bench/kernel"), "POST")
    assert "are computed with at once" in json.loads(answer.body.splitlines()[-1])["error"]


@pytest.mark.parametrize("harm", ["a pickle", "files elsewhere", "10^18 numbers", "no settings"])
def test_verifying_a_recording_that_means_harm_ends(copied, harm):
    recording, client = copied
    HARM[harm](recording)
    answer = client.ask(address(recording, "/verify"), "POST")
    last = json.loads(answer.body.splitlines()[-1])
    assert "error" in last or last["damaged"]


@LINUX
def test_a_tensor_that_claims_to_be_huge_takes_no_memory(copied):
    recording, client = copied
    number = plant(recording, np.zeros(8, np.float32))
    (path,) = (recording / "t").glob("planted-*")
    rows = 1 << 20
    entry = {"dtype": "F32", "shape": [rows, rows], "data_offsets": [0, rows**2 * 4]}
    head = json.dumps({f"planted{number}": entry}).encode()
    with path.open("wb") as f:  # 4 TiB that take no place on disk
        f.write(len(head).to_bytes(8, "little") + head)
        try:
            f.truncate(8 + len(head) + rows**2 * 4)
        except OSError:
            pytest.skip("no files of this size here")
    select(recording, "update versions set shape = ? where id = ?", f"[{rows}, {rows}]", number)
    before = resident_bytes()
    for level in range(13):
        answer = client.ask(address(recording, f"/versions/{number}/tile?level={level}&i=0&j=0"))
        assert answer.status == (200 if level < 3 else 413)
    assert resident_bytes() - before < 200 << 20


@LINUX
def test_a_constant_tensor_that_claims_to_be_huge_takes_no_memory(copied):
    recording, client = copied
    sql = "select id from versions where tensor = 'h0.dfcw' and number = 0 and constant = 1"
    (number,) = select(recording, sql)[0]
    select(recording, "update versions set shape = ? where id = ?", HUGE, number)
    before = resident_bytes()
    for level in range(33):
        answer = client.ask(address(recording, f"/versions/{number}/tile?level={level}&i=0&j=0"))
        assert answer.status == 200
    assert resident_bytes() - before < 100 << 20


def test_a_source_that_lies_elsewhere_is_not_read(copied):
    recording, client = copied
    secret = recording.parent / "secret.py"
    secret.write_text("secret = 1\n")
    sha = hashlib.sha256(secret.read_bytes()).hexdigest()
    names = ["../../secret.py", str(secret), "models/../../../secret.py"]
    manifest(sources=dict.fromkeys(names, sha))(recording)
    for name in names:
        answer = client.ask(address(recording, "/source/" + name))
        assert answer.status == 404 and b"secret = 1" not in answer.body


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_looking_changes_nothing_in_a_recording(copied):
    recording, client = copied

    def state():
        return {p: p.stat().st_mtime_ns for p in recording.rglob("*")}

    asked, before = routes(client, recording), state()
    for method, path in asked:
        assert client.ask(path, method).status < 500
    assert state() == before and len(asked) > 20


def test_a_recording_in_a_folder_with_an_odd_name_is_opened(recording, tmp_path):
    copy = tmp_path / "a#1?mode=rw&%2e%2e" / "step-00000003"
    shutil.copytree(recording, copy)
    with serving(copy, tmp_path) as client:
        assert len(client.ask(address(copy)).json["events"]) == 68


def test_names_that_are_markup_are_sent_as_data(recording, tmp_path):
    name = '<img src=x onerror="alert(1)">'
    shutil.copytree(recording.parent.parent, tmp_path / "runs" / name)
    copy = tmp_path / "runs" / name / "trace" / recording.name
    select(copy, "update versions set tensor = ? where tensor = 'h0.qkv'", name)
    with serving(tmp_path / "runs", tmp_path) as client:
        answer = client.ask("/api/runs")
        assert answer.json[0]["name"] == name
        (number,) = select(copy, "select id from versions where tensor = ?", name)[0]
        version = client.ask(address(copy, f"/versions/{number}"))
        assert version.json["tensor"] == name
        for found in (answer, version):
            assert found.headers["content-type"] == "application/json"
            assert found.headers["x-content-type-options"] == "nosniff"


FORBIDDEN = {"eval", "exec", "compile", "__import__", "literal_eval"}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "importlib", "ctypes"}


@pytest.mark.parametrize(
    "text", ["import pickle", "from marshal import loads", "eval('1')", "builtins.exec(x)",
             "np.load(f, allow_pickle=True)"],
)  # fmt: skip
def test_the_search_for_dangerous_calls_finds_one(text):
    assert dangerous(text)


def test_nothing_in_the_debugger_unpickles_or_evaluates():
    files = [*(ROOT / "backglass" / "debugger").rglob("*.py")]
    files.append(ROOT / "backglass" / "commands" / "studio.py")
    assert len(files) > 10
    assert [(f.name, why) for f in files for why in dangerous(f.read_text(encoding="utf-8"))] == []


def dangerous(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [n for n in names if n.partition(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            of = ast.unparse(getattr(node.func, "value", ast.Name("")))
            regex = called == "compile" and of == "re"
            if (called in FORBIDDEN and not regex) or (called == "load" and of in ("np", "numpy")):
                found.append(ast.unparse(node))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    return found


# ------------------------------------------------------------------ the command


def start(path, static, *args):
    """`backglass studio` as a process whose page lies in `static`, and the address it printed."""
    static.mkdir(exist_ok=True)
    (static / "index.html").write_text(SHELL)
    code = (
        "import sys\nfrom pathlib import Path\nfrom backglass import cli\n"
        "from backglass.debugger import server\n"
        f"server.STATIC = Path({str(static)!r})\nsys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "studio", str(path), "--no-browser", *args]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline()


@LINUX
def test_the_command_prints_one_address_listens_on_loopback_and_ends_with_ctrl_c(
    recording, tmp_path
):
    process, line = start(recording, tmp_path / "static")
    try:
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#token=([\w-]{43})\n", line)
        assert match, line
        port, token = int(match[1]), match[2]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/runs", headers={"X-Backglass-Token": token}
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)[0]["recordings"][0]["step"] == 3
        rows = [r.split() for r in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = [r[1] for r in rows if r[3] == "0A" and r[1].endswith(f":{port:04X}")]
        assert listening == [f"0100007F:{port:04X}"]
        tcp6 = Path("/proc/net/tcp6").read_text() if Path("/proc/net/tcp6").exists() else ""
        assert f":{port:04X} 0" not in tcp6
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_two_servers_have_two_tokens(recording, tmp_path):
    tokens = set()
    for _ in range(2):
        process, line = start(recording, tmp_path / "static")
        tokens.add(line.partition("token=")[2])
        process.terminate()
        process.communicate(timeout=20)
    assert len(tokens) == 2 and "" not in tokens


def test_an_answer_under_way_does_not_keep_the_server_from_ending(recording, tmp_path):
    process, line = start(recording, tmp_path / "static")
    base, _, token = line.strip().partition("/#token=")
    path = base + address(recording, "/verify")
    request = urllib.request.Request(path, method="POST", headers={"X-Backglass-Token": token})
    with contextlib.suppress(urllib.error.URLError, OSError):
        with urllib.request.urlopen(request) as answer:
            answer.readline()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
    assert process.wait(timeout=20) == 0


def test_a_path_that_is_not_there_is_wrong_use(run):
    code, text = run("studio", "nosuch")
    assert code == 2 and "there is no such run" in text


def test_a_folder_without_a_run_names_the_commands_that_make_one(run, tmp_path):
    code, text = run("studio", tmp_path)
    assert code == 2 and "`backglass trace tiny` records a step" in text


def test_a_recording_that_is_damaged_is_told_at_once(run, recording, tmp_path):
    copy = tmp_path / "step-00000003"
    shutil.copytree(recording, copy)
    (copy / "index.sqlite").unlink()
    code, text = run("studio", copy)
    assert code == 1 and "index.sqlite is missing" in text


def test_a_page_that_is_not_built_says_how(run, recording, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "STATIC", tmp_path)
    code, text = run("studio", recording)
    assert code == 2 and "npm run build" in text


def test_a_port_that_is_taken_is_wrong_use(run, recording, tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text(SHELL)
    monkeypatch.setattr(server, "STATIC", tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = run("studio", recording, "--port", port, "--no-browser")
    assert code == 2 and f"--port {port} cannot be used" in text


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_wrong_use(run, recording, port):
    code, text = run("studio", recording, "--port", port)
    assert code == 2 and "--port" in text


def test_help_and_the_package_import_no_server():
    code = (
        "import sys, contextlib, io\nimport backglass\nfrom backglass import cli\n"
        "for args in (['--help'], ['studio', '--help']):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        cli.main(args)\n"
        "print([m for m in ('starlette', 'uvicorn', 'numba', 'sqlite3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
