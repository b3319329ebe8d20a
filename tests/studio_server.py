"""For the tests of the studio: a recorded run, and its server in this process, asked over a real
socket so that every header is the test's own."""

import contextlib
import http.client
import json
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from safetensors.numpy import load_file, save_file

import backglass as bg
from backglass import cli
from backglass.debugger import server
from backglass.debugger.shelf import Shelf, id_of

TOKEN = "the-token-of-these-tests"
SHELL = "<!doctype html><title>the page</title>"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """port: where the server listens; guarded: the ASGI app it serves."""

    port: int
    address: str
    guarded: object

    def ask(
        self, path: str, method: str = "GET", body: bytes = b"", **changes: str | None
    ) -> Answer:
        """changes: headers, host="evil.com"; None leaves one out."""
        headers = {"host": f"127.0.0.1:{self.port}", "x-backglass-token": TOKEN}
        headers |= {"content-length": str(len(body))} if body else {}
        headers |= {k.replace("_", "-"): v for k, v in changes.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            found = connection.getresponse()
            answer = {k.lower(): v for k, v in found.getheaders()}
            return Answer(found.status, answer, found.read())


@contextlib.contextmanager
def serving(root: Path, folder: Path, read_only: bool = False):
    """A Client of a server of `root`; its page is made in `folder`."""
    static = folder / "static"
    (static / "assets").mkdir(parents=True, exist_ok=True)
    (static / "index.html").write_text(SHELL)
    (static / "assets" / "page-1a2b.js").write_text("export {}")
    with server.listen(0) as at:
        address, port = at.getsockname()
        guarded = server.app(server.Studio(Shelf(root), static, read_only), port, TOKEN)
        running = server.server_of(guarded)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [at]})
        thread.start()
        try:
            yield Client(port, address, guarded)
        finally:
            running.should_exit = True
            thread.join()


def record_run(folder: Path) -> Path:
    """A run of two steps: step 3 recorded with all tensors, from a checkpoint; step 1 with
    statistics, pictures and histograms."""
    run = folder / "runs" / "a"
    settings = bg.presets.tiny(
        steps=2, device="numpy", layers=2, channels=32, heads=2, seq_len=16, batch_size=2,
        val_batches=1,
    )  # fmt: skip
    bg.train(settings, run, quiet=True)
    assert cli.main(["trace", str(run), "--level", "3"]) == 0
    assert cli.main(["trace", str(run), "--step", "1"]) == 0
    return run


def full(run: Path) -> Path:
    return run / "trace" / "step-00000003"


def address(recording: Path, rest: str = "") -> str:
    return f"/api/recordings/{id_of(recording.resolve())}{quote(rest, safe='/?=&%')}"


def index(recording: Path) -> sqlite3.Connection:
    """The index of a recording, to read from or to do harm to; closes when the block ends."""
    return contextlib.closing(sqlite3.connect(recording / "index.sqlite", isolation_level=None))


def select(recording: Path, sql: str, *values) -> list[tuple]:
    with index(recording) as db:
        return db.execute(sql, values).fetchall()


def tensors(recording: Path) -> dict[str, np.ndarray]:
    """Every stored tensor by hash."""
    return {k: x for p in (recording / "t").glob("*.safetensors") for k, x in load_file(p).items()}


def plant(recording: Path, values: np.ndarray, dtype: str = "fp32", shape=None) -> int:
    """Put a tensor into a recording; the number of its version."""
    stored = values.view(np.uint16) if values.dtype.itemsize == 2 else values
    with index(recording) as db:
        (number,) = db.execute("select max(id) + 1 from versions").fetchone()
        save_file({f"planted{number}": stored}, recording / "t" / f"planted-{number}.safetensors")
        db.execute("insert into tensors values (?, ?)", (f"planted{number}", f"planted-{number}"))
        row = {
            "id": number, "tensor": f"planted{number}", "number": 0, "dtype": dtype, "kind": "act",
            "shape": json.dumps(shape or values.shape), "hash": f"planted{number}", "constant": 0,
            "bad": "[]", **dict.fromkeys(("min", "max", "mean", "std", "norm"), 0.0),
            **dict.fromkeys(("zeros", "nans", "infs"), 0),
        }  # fmt: skip
        marks = ", ".join("?" * len(row))
        sql = f"insert into versions ({', '.join(row)}) values ({marks})"
        db.execute(sql, tuple(row.values()))
    return number


def octets(answer: Answer) -> np.ndarray:
    """The planes of a tile."""
    assert answer.status == 200, answer.body
    planes, height, width = np.frombuffer(answer.body[:12], "<u4")
    return np.frombuffer(answer.body[12:], "<f4").reshape(planes, height, width)
