"""For the tests of the studio's page: recordings, the real server and page, and a browser.

What is expected is read from the recording's files with sqlite3 and safetensors, or computed; never
asked from the server.
"""

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import train_gpt2 as one
from backglass.debugger import server
from backglass.debugger.record import Wanted, note_own, record_step
from backglass.debugger.replay import before_step
from backglass.debugger.shelf import Shelf, id_of
from backglass.training.settings import Settings

TOKEN = "the-token-of-these-tests"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]  # fmt: skip
SMALL = Settings(
    layers=2, heads=2, channels=32, seq_len=16, batch_size=2, total_batch_tokens=64, steps=6,
    warmup_steps=2, val_every=0, val_batches=1, schedule_steps=6, device="numpy",
)  # fmt: skip


def record(
    folder: Path, step: int = 1, level: int = 3, plant=lambda session: None, **changes
) -> Path:
    """A step of two micro-batches, recorded; plant: what to do to the session before; changes: of
    the settings."""
    before = before_step(SMALL.replace(**changes), None, step)
    session = before.start.session
    plant(session)
    record_step(
        session, before.batches, before.step, folder, Wanted(level), before.start.tokenizer,
        before.origin,
    )  # fmt: skip
    loss = session.gradients(before.batches, before.step)
    note_own(folder, session, loss, session.update(before.step)[0])
    return folder


class Files:
    """A recording as it is on disk."""

    def __init__(self, folder: Path):
        self.folder, self.id = folder, id_of(folder.resolve())
        self.manifest = json.loads((folder / "manifest.json").read_text())
        with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as db:
            db.row_factory = sqlite3.Row
            self.events = [dict(r) for r in db.execute("select * from events order by k")]
            self.versions = {r["id"]: dict(r) for r in db.execute("select * from versions")}
            self.operands = [dict(r) for r in db.execute("select * from operands")]
        parts = [load_file(p) for p in sorted((folder / "t").glob("*.safetensors"))]
        self.tensors = {k: x for part in parts for k, x in part.items()}

    def values(self, version: dict) -> np.ndarray:
        shape = json.loads(version["shape"])
        if version["constant"]:
            return np.full(shape, version["min"], np.float32)
        found = self.tensors[version["hash"]]
        if version["dtype"] == "bf16":
            found = found.view(ml_dtypes.bfloat16)
        return found.reshape(shape)

    def has(self, version: dict) -> bool:
        return bool(version["constant"]) or version["hash"] in self.tensors

    def named(self, tensor: str) -> list[dict]:
        found = [v for v in self.versions.values() if v["tensor"] == tensor]
        return sorted(found, key=lambda v: v["number"])


@contextlib.contextmanager
def serving(root: Path, read_only: bool = False):
    """The address of a server of `root` with the committed page, without its token."""
    with server.listen(0) as at:
        port = at.getsockname()[1]
        studio = server.Studio(Shelf(root), server.STATIC, read_only)
        running = server.server_of(server.app(studio, port, TOKEN))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [at]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            running.should_exit = True
            thread.join()


@contextlib.contextmanager
def command(*words, env=None):
    """`backglass studio` as a process of its own: (process, the printed address)."""
    running = subprocess.Popen([*words, "--no-browser"], stdout=subprocess.PIPE, text=True, env=env)
    with running:
        try:
            yield running, running.stdout.readline().strip()
        finally:
            running.terminate()


@contextlib.contextmanager
def chromium():
    """A browser.  Where there is none, skips; fails if BROWSER_REQUIRED is set, as CI does."""
    found = {"playwright": find_spec("playwright"), "Chromium": CHROMIUM}
    if missing := [name for name, where in found.items() if where is None]:
        why = f"needs {' and '.join(missing)}"
        (pytest.fail if os.environ.get("BROWSER_REQUIRED") else pytest.skip)(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Studio:
    """The page in a tab, by what a person sees of it; what it asked for and complained about."""

    page: object
    address: str
    asked: list[str]
    complaints: list[str]

    def open(self, link: str = "#/") -> None:
        """In a tab that has the token."""
        self.page.goto(f"{self.address}#token={TOKEN}")
        self.until("!location.hash.includes('token')")
        if link != "#/":
            self.go(link)

    def go(self, link: str) -> None:
        self.page.evaluate("link => { location.hash = link }", link)

    def event(self, files: Files, k: int) -> None:
        self.go(f"#/r/{files.id}/e/{k}")
        self.page.wait_for_selector(f".card[data-shown='{k}']")

    def tensor(self, files: Files, k: int, version: int, query: str = "") -> None:
        self.go(f"#/r/{files.id}/e/{k}/t/{version}{query}")
        self.page.wait_for_selector(f".inspector[data-version='{version}']")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def type(self, text: str) -> None:
        """Into the field that the last key has opened."""
        self.page.locator("input:focus").wait_for()
        self.page.keyboard.type(text)

    def text(self, name: str) -> str:
        return self.page.get_by_test_id(name).inner_text()

    def position(self) -> int:
        return int(self.text("position").split("/")[0])

    def arrived(self, k: int) -> None:
        """Wait until the numbers of event k are there."""
        self.page.wait_for_selector(f".card[data-shown='{k}']")
        assert self.position() == k

    def step_to_paint(self, files: Files) -> float:
        """Milliseconds within which 95 of 100 steps are on the screen.  Of three walks the fastest:
        whatever else runs on the machine can only make one slower."""
        walks = []
        for _ in range(3):
            self.event(files, 0)
            self.page.evaluate("performance.clearMeasures('step to paint')")
            for k in range(1, len(files.events)):
                self.press("l")
                self.arrived(k)
            self.page.wait_for_timeout(100)
            name = "performance.getEntriesByName('step to paint')"
            spent = self.page.evaluate(name + ".map(e => e.duration)")
            assert len(spent) > len(files.events) // 2
            walks.append(np.percentile(spent, 95))
        return min(walks)

    def cell(self) -> str:
        """The number under the cursor, once it is there."""
        number = self.page.get_by_test_id("cell-value")
        self.until("document.querySelector('[data-testid=cell-value]').textContent !== '…'")
        return number.inner_text()

    def until(self, condition: str) -> None:
        """Wait for a JavaScript condition.  Playwright's own way evaluates it in the page, and its
        security policy forbids that."""
        end = time.monotonic() + 10
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, condition
            self.page.wait_for_timeout(20)

    def index(self) -> list[int]:
        """Where the cursor is: "t 3 “x”  c 7" is [3, 7]."""
        words = self.page.locator("[data-testid=cell-index] > span").all_inner_texts()
        return [int(re.match(r"[a-z]*\s*(\d+)", word)[1]) for word in words]


@contextlib.contextmanager
def tab(browser, address: str, **options):
    """A Studio in a context of its own.  Ends with: nothing was complained about, and nobody but
    the server was asked."""
    with contextlib.closing(browser.new_context(**options)) as context:
        page = context.new_page()
        page.set_default_timeout(10_000)
        studio = Studio(page, address, [], [])
        page.on("request", lambda r: studio.asked.append(r.url))
        page.on(
            "console", lambda m: m.type in ("error", "warning") and studio.complaints.append(m.text)
        )
        page.on("pageerror", lambda e: studio.complaints.append(str(e)))
        yield studio
        assert studio.complaints == [], studio.complaints
        assert studio.asked and all(u.startswith((address, "blob:")) for u in studio.asked)


def in_float64(files: Files, edit=lambda name, k, values: None):
    """(loss, gradients) of train_gpt2.py on the recorded parameters and tokens; edit: changes
    values of a parameter, or of ids of micro-batch k, in place."""
    oc = SimpleNamespace(layers=2, heads=2, channels=32, vocab_size=256, max_seq_len=16)
    p, dp, grads = (one.zeros(oc, np.float64) for _ in range(3))
    for name, w in vars(p).items():
        layered = name not in ("wte", "wpe", "lnfw", "lnfb")
        names = [f"h{l}.{name}" for l in range(2)] if layered else [name]
        parts = [files.values(files.named(n)[0]).copy() for n in names]
        for n, part in zip(names, parts, strict=True):
            edit(n, 0, part)
        w[...] = np.stack(parts) if layered else parts[0][: w.shape[0]]
    total = 0.0
    for k in range(2):
        ids, targets = (files.values(files.named(name)[k]).copy() for name in ("ids", "targets"))
        edit("ids", k, ids)
        total += one.loss_and_grads(oc, p, dp, ids, targets) / 2
        for name, g in vars(grads).items():
            g += getattr(dp, name) / 2
    return total, grads


def pixels_not_finite(studio) -> int:
    """Of the heatmap, in the colour that no finite number has."""
    return studio.page.evaluate(
        """() => { const c = document.querySelector('.heatmap canvas');
        const copy = new OffscreenCanvas(c.width, c.height).getContext('2d');
        copy.drawImage(c, 0, 0);
        const d = copy.getImageData(0, 0, c.width, c.height).data; let n = 0;
        for (let i = 0; i < d.length; i += 4)
          n += d[i] === 214 && d[i + 1] === 0 && d[i + 2] === 132;
        return n; }"""
    )


def seen_at_every_zoom(studio) -> int:
    """From the whole tensor to the exact numbers, by keyboard at the cursor; how many steps."""
    studio.page.get_by_test_id("heatmap").focus()
    zooms, before = 0, None
    while (link := studio.page.evaluate("location.hash")) != before:
        studio.page.wait_for_timeout(400)  # until the tiles are there and the address has followed
        assert pixels_not_finite(studio) > 0, link
        studio.press("+")
        studio.page.wait_for_timeout(300)
        zooms, before = zooms + 1, link
    return zooms
