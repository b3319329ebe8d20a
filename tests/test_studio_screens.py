"""The screens beside the stepper: attention, and flow through the layers.  What is expected is
computed from the recording's files."""

import math
import urllib.request

import numpy as np
import pytest
from studio_browser import SMALL, TOKEN, Files, chromium, record, serving, tab

RUNS = 2  # micro-batches


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def full(browser, root):
    return Files(record(root / "a" / "trace" / "step-00000001"))


@pytest.fixture(scope="module")
def light(browser, root):
    return Files(record(root / "a" / "trace" / "step-00000002", step=2, level=1))


@pytest.fixture(scope="module")
def address(full, light, root):
    with serving(root) as found:
        yield found


@pytest.fixture
def studio(browser, address):
    with tab(browser, address) as found:
        found.open()
        yield found


def of_run(files, tensor, run):
    """The last version that micro-batch `run` made, as stored."""
    made = [v for v in files.named(tensor) if v["event"] is not None]
    made = [v for v in made if files.events[v["event"]]["run"] == run]
    return files.values(made[-1])


def number(studio, name):
    """Once it is there."""
    studio.until(f"document.querySelector('[data-testid={name}]')?.textContent.length > 1")
    return studio.text(name)


# ------------------------------------------------------------ attention


@pytest.mark.parametrize("run", range(RUNS))
def test_rows_of_attention_sum_to_one_and_nothing_lies_above_the_diagonal(full, run):
    for layer in range(SMALL.layers):
        att = of_run(full, f"h{layer}.att", run).astype(np.float64)
        assert np.abs(att.sum(-1) - 1).max() < 1e-6
        assert not np.triu(att, 1).any()


def test_the_cursor_shows_query_key_weight_and_gradient_of_the_files(studio, full):
    rng = np.random.default_rng(6)
    texts, ids = full.manifest["text"], of_run_inputs(full, "ids")
    for run, layer in ((0, 0), (0, 1), (1, 1)):
        k = next(e["k"] for e in full.events if e["run"] == run and e["op"] == "gelu")
        b, h, q = (int(rng.integers(n)) for n in (2, 2, 16))
        key = int(rng.integers(q + 1))
        studio.go(f"#/s/attention/r/{full.id}/e/{k}?l={layer}&ix={b},{h},{q},{key}")
        studio.page.wait_for_selector(f".attention[data-layer='{layer}'][data-head='{h}']")
        for name, tensor in (("weight", "att"), ("weight-gradient", "datt")):
            want = of_run(full, f"h{layer}.{tensor}", run)[b, h, q, key]
            assert np.float32(number(studio, name)) == want, (run, layer, name)
        for name, t in (("query", q), ("key", key)):
            token = visible(texts[str(ids[run][b, t])])
            studio.until(
                f"document.querySelector('[data-testid={name}]').textContent === {token!r}"
            )


def of_run_inputs(files, tensor):
    return [files.values(v) for v in files.named(tensor)]


def visible(token):
    return token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")


def test_the_pointer_shows_the_weight_below_it(studio, full):
    studio.go(f"#/s/attention/r/{full.id}/e/20?l=1&ix=1,1,0,0")
    canvas = studio.page.locator(".one-map canvas").first
    canvas.wait_for()
    box = canvas.bounding_box()
    left, top = 78, 28  # the rulers
    side = (box["width"] - left) / 16, (box["height"] - top) / 16
    cell = min(side[0], 104), min(side[1], 24)
    rest = box["width"] - left - 16 * cell[0], box["height"] - top - 16 * cell[1]
    x = box["x"] + left + rest[0] / 2 + 3.5 * cell[0]
    y = box["y"] + top + rest[1] / 2 + 11.5 * cell[1]
    studio.page.mouse.move(x, y)
    want = of_run(full, "h1.att", 0)[1, 1, 11, 3]
    studio.page.locator("[data-testid=weight]", has_text=str(want)).wait_for()
    assert np.float32(studio.text("weight")) == want


@pytest.mark.parametrize("name", ["att", "datt"])
def test_small_maps_of_all_heads_come_with_one_request(full, root, name):
    """Of 16 tokens every weight is a pixel: the shade of the number."""
    with serving(root) as address:
        where = f"{address}api/recordings/{full.id}/attention/{name}?run=1&batch=1"
        request = urllib.request.Request(where, headers={"X-Backglass-Token": TOKEN})
        body = urllib.request.urlopen(request).read()
    assert np.frombuffer(body[:16], "<u4").tolist() == [2, 2, 16, 16]
    want = np.stack([of_run(full, f"h{layer}.{name}", 1)[1] for layer in range(2)])
    every = [of_run(full, f"h{layer}.{name}", 1) for layer in range(2)]
    largest = max(np.abs(x).max() for x in every)
    assert np.frombuffer(body[16:20], "<f4") == largest
    shade = np.frombuffer(body[20:], np.int8).reshape(want.shape)
    root_ = np.sign(want) * np.sqrt(np.abs(want) / largest)
    assert np.abs(shade / 127 - root_).max() <= 0.5 / 127 + 1e-6


def test_arrows_choose_among_the_heads_and_the_link_keeps_the_choice(studio, full):
    asked = []
    studio.event(full, 0)
    studio.page.on("request", lambda r: "/attention/" in r.url and asked.append(r.url))
    studio.press("a")
    grid = studio.page.locator(".head-grid")
    grid.locator("button[aria-selected=true]").focus()
    assert grid.locator("button").count() == 4 and len(asked) == 1
    studio.press("ArrowRight", "ArrowDown")
    studio.page.wait_for_selector(".attention[data-layer='1'][data-head='1']")
    studio.until(
        "location.hash.includes('s/attention/') && location.hash.includes('l=1&ix=0,1,0,0')"
    )
    studio.page.reload()
    studio.page.wait_for_selector(".attention[data-layer='1'][data-head='1']")
    assert studio.page.evaluate("document.activeElement.tagName") == "BODY"
    studio.press("Escape")
    studio.arrived(0)


def test_without_stored_maps_the_screen_says_how_to_record_them(studio, light):
    studio.event(light, 0)
    studio.press("a")
    studio.page.get_by_text("The attention maps were not stored").wait_for()
    said = " ".join(studio.page.inner_text(".empty-state").split())
    assert "backglass trace a --step 2 --level 2 --tensors '*.att,*.datt'" in said


# ------------------------------------------------------------ flow


def norm(x):
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def part_of(name):
    layer, dot, _ = name.partition(".")
    return layer if dot else "head" if "lnf" in name else "embed"


def figures(files, run):
    """What the screen has to show, from the tensors alone."""
    before = {v["tensor"]: v for v in files.versions.values() if v["event"] is None}
    params = [n for n, v in before.items() if v["kind"] == "param"]
    update = next(e["k"] for e in files.events if e["op"] == "global_norm")
    adamw = next(e["k"] for e in files.events if e["op"] == "adamw")
    made = {}
    for o in files.operands:
        if o["event"] == adamw and o["role"] == "out":
            v = files.versions[o["version"]]
            made[v["tensor"]] = v
    sums = {}
    for name in params:
        layer, _, own = name.rpartition(".")
        grad = f"{layer}.d{own}" if layer else f"d{own}"
        last = [v for v in files.named(grad) if (v["event"] or 0) < update][-1]
        w = files.values(before[name])
        for key, x in (
            ("w", w), ("dw", files.values(last)), ("dp", files.values(made[name]) - w)
        ):  # fmt: skip
            at = part_of(name), key
            sums[at] = sums.get(at, 0.0) + norm(x) ** 2
    found, previous = {}, None
    for part in ("embed", "h0", "h1", "head"):
        w, dw, dp = (math.sqrt(sums[part, key]) for key in ("w", "dw", "dp"))
        row = {"w": w, "dw": dw, "update": dp / w}
        if part != "head":
            x, dx = ("embd", "dembd") if part == "embed" else (f"{part}.res3", f"{part}.dres3")
            row |= {"x": norm(of_run(files, x, run)), "dx": norm(of_run(files, dx, run))}
            if previous:
                row["growth"] = row["x"] / previous
            previous = row["x"]
        found[part] = row
    return found


@pytest.mark.parametrize("run", range(RUNS))
def test_flow_shows_the_norms_of_the_stored_tensors(studio, full, run):
    k = next(e["k"] for e in full.events if e["run"] == run and e["op"] == "gelu")
    studio.event(full, k)
    studio.press("f")
    for part, row in figures(full, run).items():
        for name, want in row.items():
            cell = studio.page.locator(f"[data-part={part}] [data-figure={name}]")
            assert float(cell.get_attribute("title")) == pytest.approx(want, rel=1e-5), (part, name)


def test_flow_works_with_statistics_alone(studio, light):
    studio.event(light, 0)
    studio.press("f")
    rows = studio.page.locator(".flow tbody tr")
    rows.first.wait_for()
    shown = {
        row["tensor"]: row["norm"] for row in light.versions.values() if row["tensor"] == "h1.res3"
    }
    cell = studio.page.locator("[data-part=h1] [data-figure=x]")
    last = [v for v in light.named("h1.res3") if light.events[v["event"]]["run"] == 0][-1]
    assert shown and float(cell.get_attribute("title")) == last["norm"]
    assert studio.page.locator("[data-part=h1] [data-figure=update]").inner_text() != "–"


def test_updates_in_the_manifest_are_what_adamw_changed(full):
    before = {v["tensor"]: v for v in full.versions.values() if v["event"] is None}
    for name, told in full.manifest["updates"].items():
        new = full.values(full.named(name)[-1]).astype(np.float64)
        want = norm(new - full.values(before[name]))
        assert told == pytest.approx(want, rel=1e-6), name
    assert len(full.manifest["updates"]) == 4 + 12 * SMALL.layers
