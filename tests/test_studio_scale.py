"""The studio on a step of GPT-2 124M: how fast, and how much it moves and keeps."""

import json
import math
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from studio_browser import TOKEN, Files, chromium, command, seen_at_every_zoom, tab

from backglass.debugger.pyramid import top
from backglass.debugger.record import Wanted, record_step
from backglass.debugger.replay import before_step
from backglass.training.settings import Settings

pytestmark = pytest.mark.slow

GPT2 = Settings(
    layers=12, heads=12, channels=768, vocab_size=50257, seq_len=64, batch_size=1, device="cpu",
    steps=1,
)  # fmt: skip
STEP_MS, MOVED_BYTES, HEAP_BYTES = 100, 2_000_000, 300_000_000
CAP = 32 << 20  # of the server's cache, below
WORK = 96 << 20  # what the server may need besides: a band of numbers and its planes
PLACE = 40_000, 333  # of the one number that is not finite
SERVER = """
import sys
from pathlib import Path
from backglass.debugger import server
from backglass.debugger.matrix import Cache
from backglass.debugger.shelf import Shelf
with server.listen(0) as at:
    print(at.getsockname()[1], flush=True)
    studio = server.Studio(Shelf(Path(sys.argv[1])), server.STATIC, cache=Cache(int(sys.argv[2])))
    server.server_of(server.app(studio, at.getsockname()[1], sys.argv[3])).run(sockets=[at])
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def made(browser, tmp_path_factory):
    """root: a folder with two recordings: full: everything; sick: one NaN in wte."""
    root = tmp_path_factory.mktemp("runs")
    before = before_step(GPT2, None, 1)
    session = before.start.session
    folders = [root / name / "trace" / "step-00000001" for name in ("full", "sick")]
    wanted = [Wanted(3), Wanted(2, ("wte",))]
    for folder, what in zip(folders, wanted, strict=True):
        with np.errstate(all="ignore"):
            record_step(
                session, before.batches, 0, folder, what, before.start.tokenizer, before.origin
            )
        w = session.memory.read(session.t.p.wte)
        w[PLACE] = np.nan
        session.memory.write(session.t.p.wte, w)
    full, sick = map(Files, folders)
    return SimpleNamespace(root=root, full=full, sick=sick)


@pytest.fixture
def studio(browser, made):
    """Served by a process of its own, as a user has it."""
    words = [sys.executable, "-m", "backglass", "studio", made.root]
    with command(*words) as (_, url), tab(browser, url.partition("#")[0]) as found:
        found.page.goto(url)
        found.until("!location.hash.includes('token')")
        yield found


def test_every_step_of_124m_is_on_the_screen_within_100_ms(studio, made):
    assert studio.step_to_paint(made.full) <= STEP_MS
    assert heap(studio) < HEAP_BYTES


def heap(studio) -> int:
    """Bytes of JavaScript's heap, and of buffers outside it."""
    devtools = studio.page.context.new_cdp_session(studio.page)
    used = devtools.send("Runtime.getHeapUsage")
    print("heap", {k: f"{v / 1e6:.1f} MB" for k, v in used.items()})
    return int(used["usedSize"] + used.get("backingStorageSize", 0))


def test_entering_and_crossing_wte_moves_less_than_2_mb(studio, made):
    moved = []
    studio.page.on("requestfinished", lambda r: moved.append(r.sizes()["responseBodySize"]))
    (wte,) = [v for v in made.full.named("wte") if v["event"] is None]
    studio.tensor(made.full, 0, wte["id"], f"?ix={PLACE[0]},{PLACE[1]}")
    studio.page.wait_for_timeout(1000)
    before = sum(moved)
    studio.page.get_by_test_id("heatmap").focus()
    for key in (*["+"] * 16, *["PageDown"] * 4, *["PageUp"] * 4, *["-"] * 16):
        studio.press(key)
        studio.page.wait_for_timeout(250)
    box = studio.page.get_by_test_id("heatmap").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    studio.press(*["+"] * 6)
    for _ in range(4):
        studio.page.mouse.move(x, y)
        studio.page.mouse.down()
        studio.page.mouse.move(x, y - 120, steps=6)
        studio.page.mouse.up()
        studio.page.wait_for_timeout(250)
    print(f"wte opened with {before / 1e6:.2f} MB, {sum(moved) / 1e6:.2f} MB in all")
    assert sum(moved) < MOVED_BYTES
    assert heap(studio) < HEAP_BYTES


def test_one_nan_among_the_38_million_numbers_of_wte_is_seen_at_every_zoom(studio, made):
    (wte,) = [v for v in made.sick.named("wte") if v["event"] is None]
    assert wte["nans"] == 1 and json.loads(wte["bad"]) == [list(PLACE)]
    studio.tensor(made.sick, 0, wte["id"], f"?ix={PLACE[0]},{PLACE[1]}")
    assert seen_at_every_zoom(studio) > 10


def test_the_server_keeps_no_more_than_its_cache(made):
    words = [sys.executable, "-c", SERVER, made.root, str(CAP), TOKEN]
    shapes = {n: json.loads(v["shape"]) for n, v in made.full.versions.items()}
    large = {
        n: top(math.prod(shape[:-1]), shape[-1]) for n, shape in shapes.items()
        if math.prod(shape) > 500_000 and made.full.versions[n]["hash"] in made.full.tensors
    }  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = f"http://127.0.0.1:{int(server.stdout.readline())}/api/recordings/"
            sizes = []
            for number, level in large.items():
                where = f"{address}{made.full.id}/versions/{number}/tile?level={level}&i=0&j=0"
                request = urllib.request.Request(where, headers={"X-Backglass-Token": TOKEN})
                urllib.request.urlopen(request).read()
                sizes.append(memory_of(server.pid))
        finally:
            server.terminate()
    grown = max(sizes) - sizes[0]
    print(f"{len(large)} tensors: grown by {grown >> 20} MiB, cache {CAP >> 20} MiB")
    assert len(large) > 150 and grown <= CAP + WORK


def memory_of(pid: int) -> int:
    """Bytes that a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
