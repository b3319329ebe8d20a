"""The studio's page in a browser: what it shows is what is in the recording's files, and what an
independent float64 model computes; all of it can be reached by keyboard."""

import dataclasses
import gzip
import inspect
import re
import shutil

import numpy as np
import pytest
from studio_browser import (
    SMALL,
    TOKEN,
    Files,
    chromium,
    in_float64,
    record,
    seen_at_every_zoom,
    serving,
    tab,
)

from backglass.debugger import server
from backglass.models import gpt2
from backglass.ops import signature, table
from backglass.program.step import record_micro, record_update
from backglass.program.validate import twins
from backglass.view import gradient_name

JS_BYTES = 100_000  # compressed, all that the page loads at first
STEP_MS = 100


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def full(browser, root):
    """A step with every tensor.  After the browser, so that nothing is recorded without one."""
    return Files(record(root / "a" / "trace" / "step-00000001"))


@pytest.fixture(scope="module")
def light(browser, root):
    """A step with statistics and pictures."""
    return Files(record(root / "a" / "trace" / "step-00000002", step=2, level=1))


@pytest.fixture(scope="module")
def address(full, light, root):
    with serving(root) as found:
        yield found


@pytest.fixture
def studio(browser, address):
    with tab(browser, address) as found:
        yield found


def program():
    """The lines of the recorded step, in order, and the twin of each."""
    c = dataclasses.replace(gpt2.Config(2, 2, 32, 256, 16), attention="explicit")
    micro = record_micro(gpt2, c, SMALL.batch_size, SMALL.seq_len)
    update = record_update(gpt2, c)
    partner = twins(micro)
    lines, other = [*micro, *micro, *update], []
    for start in (0, len(micro)):
        other += [None if p is None else start + p for p in partner]
    return lines, other + [None] * len(update)


# ------------------------------------------------------------ stepping


def test_stepping_forwards_visits_the_lines_of_the_program_in_order(studio, full):
    lines, _ = program()
    studio.open()
    studio.event(full, 3)
    studio.press("Home")
    seen = []
    for k in range(len(lines)):
        studio.arrived(k)
        seen.append(studio.text("call"))
        studio.press("ArrowRight")
    assert seen == [str(line) for line in lines]
    assert studio.position() == len(lines) - 1


def test_stepping_backwards_visits_the_same_lines_reversed(studio, full):
    lines, _ = program()
    studio.open()
    studio.event(full, 0)
    studio.press("End")
    seen = []
    for k in reversed(range(len(lines))):
        studio.arrived(k)
        seen.append(studio.text("call"))
        studio.press("h")
    assert seen == [str(line) for line in reversed(lines)]
    assert studio.position() == 0


def test_t_goes_from_every_differentiable_line_to_its_twin_and_back(studio, full):
    lines, other = program()
    pairs = {k: t for k, t in enumerate(other) if t is not None}
    assert {lines[k].phase for k in pairs} == {"forward", "backward"}
    assert len(pairs) == len(lines) - 3  # all but the update's
    studio.open()
    for k, twin in pairs.items():
        studio.event(full, k)
        studio.press("t")
        studio.arrived(twin)
        studio.press("t")
        studio.arrived(pairs[twin])
        assert lines[k].phase == "backward" or pairs[twin] == k


@pytest.mark.slow
def test_a_step_is_on_the_screen_within_100_ms(studio, full):
    studio.open()
    assert studio.step_to_paint(full) <= STEP_MS


# ------------------------------------------------------------ numbers


def test_cells_are_the_numbers_of_the_files_bit_for_bit(studio, full):
    rng = np.random.default_rng(3)
    stored = [o for o in full.operands if full.has(full.versions[o["version"]])]
    studio.open()
    for o in rng.choice(stored, 50, replace=False):
        version = full.versions[o["version"]]
        values = full.values(version)
        index = [int(rng.integers(n)) for n in values.shape]
        query = "?ix=" + ",".join(map(str, index))
        studio.tensor(full, o["event"], version["id"], query)
        assert studio.text("tensor") == version["tensor"]
        assert studio.text("version") == f"#{version['number']}"
        shown, want = studio.cell(), values[tuple(index)]
        assert studio.index() == index
        assert np.array(shown, values.dtype).tobytes() == want.tobytes(), (version, index)


def test_loss_and_gradients_shown_are_those_of_the_one_file_in_float64(studio, full):
    loss, grads = in_float64(full)
    last = len(full.events) - 4  # before the update, which zeroes the gradients
    studio.open()
    studio.event(full, 0)
    shown = float(re.search(r"loss ([\d.]+)", studio.page.locator(".facts").inner_text())[1])
    assert abs(shown - loss) < 1e-4 * loss
    for name, g in vars(grads).items():
        layered = name not in ("wte", "wpe", "lnfw", "lnfb")
        for tensor, want in [(f"h{l}.{name}", g[l]) for l in range(2)] if layered else [(name, g)]:
            made = [v for v in full.named(gradient_name(tensor)) if (v["event"] or 0) <= last]
            studio.tensor(full, last, made[-1]["id"])
            norm = studio.page.locator(".side [data-stat=norm]").get_attribute("title")
            assert abs(float(norm) - np.linalg.norm(want)) < 1e-4 * np.linalg.norm(want), tensor
            index = np.unravel_index(np.abs(want).argmax(), want.shape)
            studio.tensor(full, last, made[-1]["id"], "?ix=" + ",".join(map(str, index)))
            assert abs(float(studio.cell()) - want[index]) < 1e-4 * abs(want[index]), tensor


def test_the_difference_from_what_the_run_computed_itself_is_shown(studio, full):
    m = full.manifest
    studio.open()
    studio.event(full, 0)
    words = studio.page.locator(".badge.note").inner_text()
    shown = float(re.search(r"Δloss (\S+)", words)[1].replace("−", "-"))
    want = abs(m["loss"] - m["own"]["loss"]) / m["own"]["loss"]
    assert "flash attention" in words
    assert abs(shown - want) <= 0.5 * want  # one digit


def test_what_was_not_stored_says_how_to_record_it(studio, light):
    studio.open()
    k = next(e["k"] for e in light.events if e["op"] == "gelu")
    version = next(o["version"] for o in light.operands if (o["event"], o["role"]) == (k, "out"))
    studio.tensor(light, k, version)
    assert studio.text("cell-value") == "not stored"
    assert "backglass trace a --step 2 --level 3" in studio.page.locator(".not-stored").inner_text()


def into_layer_1(session, call, at, value):
    """After `call`, an element of what it made is `value`: a fault in the middle of the step."""
    bind = session.device.bind

    def faulty(calls, memory):
        (line,), (c,) = bind(calls, memory), calls

        def run():
            line()
            if str(c).startswith(call):
                x = memory.read(c.outs[0])
                x[at] = value
                memory.write(c.outs[0], x)

        return [run]

    session.device.bind = faulty


@pytest.fixture(scope="module")
def infinite(browser, tmp_path_factory):
    """A step in which one element of layer 1's input is infinite, and its run's folder."""
    root = tmp_path_factory.mktemp("infinite")

    def plant(session):
        into_layer_1(session, "h0.res3 = ", (1, 5, 7), np.inf)

    with np.errstate(all="ignore"):
        return root, Files(record(root / "a" / "trace" / "step-00000001", plant=plant))


@pytest.fixture
def studio_of_infinite(browser, infinite):
    with serving(infinite[0]) as address, tab(browser, address) as found:
        found.open()
        yield found


def not_finite(files, k):
    """Whether event k made something that is not finite, by the stored tensors."""
    made = (o["version"] for o in files.operands if (o["event"], o["role"]) == (k, "out"))
    return any(not np.isfinite(files.values(files.versions[v])).all() for v in made)


@pytest.mark.parametrize("key", ["n", "Shift+N"])
@pytest.mark.parametrize("start", [0, 40, -1])
def test_n_jumps_to_the_forward_origin_first_from_anywhere(
    studio_of_infinite, infinite, key, start
):
    studio, files = studio_of_infinite, infinite[1]
    lines, _ = program()
    origin = next(k for k, line in enumerate(lines) if str(line).startswith("h0.res3 = "))
    assert [not_finite(files, k) for k in range(origin + 1)] == [False] * origin + [True]
    studio.event(files, start % len(lines))
    studio.press(key)
    studio.arrived(origin)
    studio.page.get_by_text("all that this event read is finite").wait_for()


def test_n_walks_through_every_event_that_is_not_finite_and_back(studio_of_infinite, infinite):
    studio, files = studio_of_infinite, infinite[1]
    want = [k for k in range(len(files.events)) if not_finite(files, k)]
    assert len(want) > 20
    studio.event(files, len(files.events) - 1)
    for k in want:
        studio.press("n")
        studio.arrived(k)
    studio.press("n")
    studio.page.get_by_text("no NaN or ∞ after this event").wait_for()
    for k in reversed(want[-6:-1]):
        studio.press("Shift+N")
        studio.arrived(k)


def test_the_inspector_lists_where_the_infinite_number_is(studio_of_infinite, infinite):
    studio = studio_of_infinite
    studio.event(infinite[1], 0)
    studio.press("n", "i")
    chips = studio.page.locator(".bad-cells .chip")
    chips.first.wait_for()
    assert chips.all_inner_texts() == ["1,5,7"]
    chips.click()
    assert studio.cell() == "inf" and studio.index() == [1, 5, 7]


def test_what_was_not_finite_before_the_step_is_named_at_the_origin(browser, tmp_path):
    def plant(session):
        b = session.memory.read(session.t.p.h[1].fcb)
        b[5] = np.nan
        session.memory.write(session.t.p.h[1].fcb, b)

    with np.errstate(all="ignore"):
        found = Files(record(tmp_path / "a" / "trace" / "step-00000001", plant=plant))
    lines, _ = program()
    origin = next(k for k, line in enumerate(lines) if str(line).startswith("h1.fch = "))
    with serving(tmp_path / "a") as address, tab(browser, address) as studio:
        studio.open()
        studio.event(found, 0)
        studio.press("n")
        studio.arrived(origin)
        studio.page.get_by_text("h1.fcb was not finite when it came here").wait_for()
        studio.press("i")
        chips = studio.page.locator(".bad-cells .chip")
        chips.first.wait_for()
        want = [[b, t, 5] for b in range(2) for t in range(16)]
        assert [list(map(int, x.split(","))) for x in chips.all_inner_texts()] == want
        chips.nth(20).click()
        assert studio.cell() == "nan" and studio.index() == want[20]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_seen_at_every_zoom(browser, tmp_path, value):
    def plant(session):
        w = session.memory.read(session.t.p.wpe)
        w[11, 29] = value
        session.memory.write(session.t.p.wpe, w)

    with np.errstate(all="ignore"):
        found = Files(record(tmp_path / "a" / "trace" / "step-00000001", plant=plant))
    with serving(tmp_path / "a") as address, tab(browser, address) as studio:
        studio.open()
        studio.tensor(found, 0, found.named("wpe")[0]["id"], "?ix=11,29")
        seen_at_every_zoom(studio)


@pytest.mark.parametrize("condition", ["absmax > 1e3", "any nan", "any inf"])
def test_a_condition_stops_where_the_stored_numbers_meet_it(
    studio_of_infinite, infinite, condition
):
    studio, files = studio_of_infinite, infinite[1]
    meets = {
        "absmax > 1e3": lambda x: (np.abs(x) > 1e3).any(),
        "any nan": lambda x: np.isnan(x).any(),
        "any inf": lambda x: np.isinf(x).any(),
    }[condition]
    made = [o for o in files.operands if o["role"] == "out"]
    want = sorted({o["event"] for o in made if meets(files.values(files.versions[o["version"]]))})
    studio.event(files, 0)
    studio.press("Shift+B")
    studio.type(condition)
    studio.press("Enter")
    for k in want[:3]:
        studio.press("c")
        studio.arrived(k)
    studio.page.get_by_text(f"stopped: {condition}").wait_for()


# ------------------------------------------------------------ replay


def test_verifying_an_intact_recording_says_bit_exact(studio, full):
    studio.open()
    studio.event(full, 0)
    badge = studio.page.get_by_test_id("replay")
    assert badge.locator(".label").inner_text() == "not verified"
    studio.press("v")
    badge.locator(".label", has_text="replay bit-exact").wait_for(timeout=60_000)


def test_one_corrupted_byte_is_named_by_the_badge(browser, full, tmp_path):
    copy = tmp_path / "a" / "trace" / "step-00000001"
    shutil.copytree(full.folder, copy)
    target = full.named("h1.fch_gelu")[0]
    file = copy / "t" / f"{target['event']:06d}.safetensors"
    octets = bytearray(file.read_bytes())
    octets[-1] ^= 0x40
    file.write_bytes(octets)
    with serving(tmp_path / "a") as address, tab(browser, address) as studio:
        studio.open()
        studio.event(Files(copy), 0)
        studio.page.get_by_role("button", name="verify").click()
        label = studio.page.get_by_test_id("replay").locator(".label", has_text="damaged")
        label.wait_for(timeout=60_000)
        assert label.inner_text() == "damaged: h1.fch_gelu"


def test_a_read_only_studio_says_why_it_does_not_verify(browser, full, root):
    with serving(root, read_only=True) as address, tab(browser, address) as studio:
        studio.open()
        studio.event(full, 0)
        studio.press("v")
        label = studio.page.get_by_test_id("replay").locator(".label", has_text="cannot verify")
        label.wait_for()
        assert "--read-only" in label.get_attribute("title")
        assert len(studio.complaints) == 1 and "403" in studio.complaints.pop()


# ------------------------------------------------------------ source


def functions(files):
    """{op: (its first event, the source of the function that ran)}."""
    found = {}
    for e in files.events:
        if e["op"] not in found:
            ran = getattr(table()[signature(e["op"]).op].maths, e["op"])
            found[e["op"]] = e["k"], "".join(inspect.getsourcelines(ran)[0]).rstrip("\n")
    return found


def lines_that_ran(studio) -> str:
    texts = studio.page.locator(".kernel .line.ran .text").all_text_contents()
    return "\n".join(texts).rstrip("\n")


def test_the_lines_that_ran_are_the_kernels_source_for_every_op(studio, full):
    studio.open()
    for op, (k, source) in functions(full).items():
        studio.event(full, k)
        studio.page.wait_for_selector(f".kernel[data-op='{op}']")
        assert lines_that_ran(studio) == source, op
        assert studio.page.get_by_text("file changed since").count() == 0


def test_the_line_that_called_the_op_is_shown_for_every_op(studio, full):
    studio.open()
    for op, (k, _) in functions(full).items():
        studio.event(full, k)
        file, number = full.events[k]["model"].split(":")
        line = (full.folder / "src" / file).read_text().splitlines()[int(number) - 1].strip()
        assert f"ops.{op}" in line
        caller = studio.page.get_by_test_id("caller").get_by_text(line, exact=True)
        caller.wait_for()


def test_a_file_edited_since_shows_the_old_lines_and_a_note(studio, full, tmp_path, monkeypatch):
    k, source = functions(full)["gelu"]
    today = tmp_path / full.events[k]["kernel"]
    today.parent.mkdir(parents=True)
    today.write_text("def gelu(x):\n    return (x,)\n")
    monkeypatch.setattr(server, "PACKAGE", tmp_path)
    studio.open()
    studio.event(full, k)
    studio.page.get_by_text("file changed since").wait_for()
    assert lines_that_ran(studio) == source


def test_a_step_of_the_derivation_lights_the_lines_that_implement_it(studio, full):
    k, source = functions(full)["d_layernorm"]
    studio.open()
    studio.event(full, k)
    studio.page.locator("[data-step='13']").hover()
    lit = studio.page.locator(".kernel .line.lit .text").all_text_contents()
    want = [line for line in source.splitlines() if re.search(r"# 13\b", line)]
    assert lit == want and len(want) == 3


# ------------------------------------------------------------ token, links, keyboard


def test_the_token_leaves_the_address_and_goes_with_every_call(studio, full):
    sent = []
    studio.page.on("request", lambda r: "/api/" in r.url and sent.append(r.headers))
    studio.open()
    studio.event(full, 2)
    assert TOKEN not in studio.page.url
    assert studio.page.evaluate("sessionStorage.getItem('backglass-token')") == TOKEN
    assert len(sent) > 3 and all(h["x-backglass-token"] == TOKEN for h in sent)


def test_a_tab_without_the_token_asks_for_it_and_then_opens_its_link(studio, full):
    studio.page.goto(f"{studio.address}#/r/{full.id}/e/7")
    studio.page.get_by_label("Token").fill(f"{studio.address}#token={TOKEN}")
    studio.press("Enter")
    studio.arrived(7)
    assert studio.complaints and all("401" in c for c in studio.complaints)
    studio.complaints.clear()


def test_a_reload_restores_event_tensor_slice_cursor_plane_and_zoom(studio, full):
    version = next(o["version"] for o in full.operands if o["event"] == 4 and o["role"] == "out")
    studio.open()
    studio.tensor(full, 4, version)
    studio.page.locator(".slice select").first.select_option("1")
    studio.page.get_by_role("radio", name="max").click()
    studio.page.get_by_test_id("heatmap").focus()
    studio.press("ArrowDown", "ArrowDown", "ArrowRight", "+", "+")
    studio.until("location.hash.includes('z=') && location.hash.includes('p=max')")
    studio.page.wait_for_timeout(300)
    before = studio.page.url, studio.index(), studio.cell()
    studio.page.reload()
    studio.page.wait_for_selector(f".inspector[data-version='{version}']")
    assert (studio.page.url, studio.index(), studio.cell()) == before
    assert studio.page.get_by_role("radio", name="max").get_attribute("aria-checked") == "true"
    assert studio.index() == [1, 0, 2, 1]


def test_breakpoints_stop_forwards_and_backwards_by_keyboard(studio, full):
    lines, _ = program()
    ops = [line.op for line in lines]
    studio.open()
    studio.event(full, 6)
    studio.press("b", "Home", "c")
    studio.arrived(6)
    studio.press("Shift+B")
    studio.type("op = d_gelu and norm >")
    studio.press("Enter")
    assert "number" in studio.page.locator(".condition .problem").inner_text()
    studio.type(" 0")
    studio.press("Enter", "c")
    first = ops.index("d_gelu")
    studio.arrived(first)
    studio.press("c")
    studio.arrived(ops.index("d_gelu", first + 1))
    studio.press("Shift+C", "Shift+C")
    studio.arrived(6)


def test_search_opens_a_tensor_and_escape_leads_back_by_keyboard(studio, full):
    studio.open()
    studio.event(full, 0)
    studio.press("/")
    studio.type("h1.qkv")
    studio.press("Enter")
    studio.page.locator("[data-testid=tensor]", has_text="h1.qkv").wait_for()
    studio.press("Escape")
    k = next(e["k"] for e in full.events if e["text"].startswith("h1.qkv = "))
    studio.arrived(k)


def test_brackets_go_through_the_versions_of_a_tensor(studio, full):
    versions = full.named("dwte")
    studio.open()
    studio.tensor(full, 0, versions[1]["id"])
    for version in versions[2:]:
        studio.press("]")
        studio.page.wait_for_selector(f".inspector[data-version='{version['id']}']")
    studio.press("[")
    studio.page.wait_for_selector(f".inspector[data-version='{versions[-2]['id']}']")


def test_the_heatmap_announces_the_cell_and_has_a_table(studio, full):
    version = full.named("h0.fch")[0]
    values = full.values(version)
    studio.open()
    studio.tensor(full, version["event"], version["id"])
    studio.page.get_by_test_id("heatmap").focus()
    studio.press("ArrowDown", "ArrowRight", "ArrowRight")
    spoken = studio.page.locator("#cell-now", has_text=f"f 2: {values[0, 1, 2]!s}")
    spoken.wait_for(state="attached")
    assert spoken.get_attribute("aria-rowindex") == "2"
    studio.page.get_by_role("button", name="table").click()
    now = studio.page.locator("td.now")
    now.wait_for()
    assert np.float32(now.inner_text()) == values[0, 1, 2]


def test_letters_can_be_switched_off(studio, full):
    studio.open()
    studio.event(full, 3)
    studio.press("?")
    studio.page.get_by_label("single-letter keys").uncheck()
    studio.press("Escape", "l")
    assert studio.position() == 3
    studio.press("ArrowRight")
    studio.arrived(4)


def test_exporting_a_moment_makes_a_file_that_asks_for_nothing(studio, full, browser, tmp_path):
    studio.open()
    studio.event(full, 1)
    with studio.page.expect_download() as download:
        studio.press("x")
    file = tmp_path / "moment.html"
    download.value.save_as(file)
    out = next(o for o in full.operands if (o["event"], o["role"]) == (1, "out"))
    asked = []
    page = browser.new_page()
    page.on("request", lambda r: asked.append(r.url))
    page.goto(file.as_uri())
    assert repr(full.versions[out["version"]]["norm"]) in page.inner_text("body")
    assert [u for u in asked if not u.startswith("data:")] == [file.as_uri()]
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_moves_while_stepping(browser, address, full, scheme):
    places = (
        "['.transport', '.spine', '.title', '.strip', '.zone.out', '.maths', '.code'].map(s => {"
    )
    places += " const r = document.querySelector(s).getBoundingClientRect();"
    places += " return [r.x, r.y, r.width, r.height] })"
    options = {"viewport": {"width": 1280, "height": 720}, "color_scheme": scheme}
    with tab(browser, address, **options) as studio:
        studio.open()
        studio.event(full, 0)
        first = studio.page.evaluate(places)
        for k in range(1, len(full.events), 7):
            studio.event(full, k)
            assert studio.page.evaluate(places) == first, k


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (2560, 1440), (3840, 2160)])
def test_nothing_an_operand_says_covers_another_part(browser, address, full, size):
    """Names, shapes and numbers of every operand in sight: boxes of one line, and their words, lie
    side by side.  On a screen of 4K letters are as large as on one half as wide."""
    overlaps = """() => [...document.querySelectorAll('.who, .six')].flatMap(line => {
        const boxes = [...line.children].map(c => {
            const words = document.createRange(); words.selectNodeContents(c);
            const clipped = getComputedStyle(c).overflow !== 'visible';
            const a = c.getBoundingClientRect(), b = words.getBoundingClientRect();
            return [a.left, clipped ? a.right : Math.max(a.right, b.right), a.top, a.bottom]; });
        return boxes.flatMap((p, i) => boxes.slice(i + 1).filter(q =>
            p[0] < q[1] - 0.5 && q[0] < p[1] - 0.5 && p[2] < q[3] - 3 && q[2] < p[3] - 3)
            .map(() => line.innerText)) })"""
    ks = [next(e["k"] for e in full.events if e["op"] == op) for op in ("d_scores", "adamw")]
    with tab(browser, address, viewport={"width": size[0], "height": size[1]}) as studio:
        studio.open()
        for k in ks:
            studio.event(full, k)
            assert studio.page.evaluate(overlaps) == [], k
        letters = studio.page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
        assert size[0] / letters < 190


def test_an_empty_folder_says_what_to_do(browser, tmp_path):
    with serving(tmp_path) as address, tab(browser, address) as studio:
        studio.open()
        studio.page.get_by_text("No recorded steps yet").wait_for()
        assert "backglass trace" in studio.page.inner_text("main")


def test_the_script_fits_the_budget():
    parts = list((server.STATIC / "assets").glob("*.js"))
    assert parts and sum(len(gzip.compress(p.read_bytes(), 9)) for p in parts) <= JS_BYTES
