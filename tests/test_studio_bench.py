"""The gradient bench in a browser (acceptance checks 7, 8 and 11): every op's gradient is proved on
the recorded numbers, a wrong one turns red and nothing else does, and AdamW's formula with the
recorded numbers in it is what was recorded."""

import re

import numpy as np
import pytest
from studio_browser import Files, chromium, record, serving, tab

from backglass.ops import signature, table

MATHS, KERNEL, MODEL = 1e-6, 1e-4, 1e-4  # what check 7 asks for


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def full(browser, root):
    """The third step, so that AdamW's moments are not zero.  After the browser, so that nothing is
    recorded without one."""
    return Files(record(root / "a" / "trace" / "step-00000003", step=3))


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
        found.open()
        yield found


def first(files, phase=""):
    """{op: its first event}."""
    found = {}
    for e in files.events:
        if phase in ("", e["phase"]):
            found.setdefault(e["op"], e["k"])
    return found


def check(studio, files, k) -> bool:
    """Put event k on the bench, press g, and wait; whether the page says that it holds."""
    studio.go(f"#/r/{files.id}/e/{k}/bench")
    done(studio, k)
    studio.press("g")
    done(studio, k)
    words = studio.text("verdict")
    assert words in ("holds", "does not hold"), (k, words)
    return words == "holds"


def done(studio, k) -> None:
    studio.page.wait_for_selector(f".bench[data-shown='{k}'][aria-busy='false']", timeout=60_000)


def rows(studio, what) -> dict[str, dict]:
    """What a panel shows: {name: {"ok", "error", "bound", …}}."""
    found = {}
    for row in studio.page.locator(f"[data-check={what}] [data-row]").all():
        values = {
            x.get_attribute("data-value"): x.inner_text() for x in row.locator("output").all()
        }
        cell = row.locator("[data-cell]")
        found[row.get_attribute("data-row")] = values | {
            "ok": row.get_attribute("data-ok"),
            "error": float(row.locator("[data-error]").get_attribute("data-error")),
            "bound": float(row.locator("[data-bound]").get_attribute("data-bound")),
            "cell": [
                int(n) for n in cell.get_attribute("data-cell").split(",")
            ] if cell.count() else None,
        }  # fmt: skip
    return found


def values(files, k, name, role="in"):
    """The numbers of an event's operand, in float64, from the files."""
    version = next(
        o["version"] for o in files.operands
        if (o["event"], o["name"], o["role"]) == (k, name, role)
    )  # fmt: skip
    return files.values(files.versions[version]).astype(np.float64)


def floats(files, k, role) -> list[str]:
    """Names of the operands of an event that are no integers."""
    rows = [o for o in files.operands if (o["event"], o["role"]) == (k, role)]
    return [o["name"] for o in rows if files.versions[o["version"]]["dtype"] == "fp32"]


# ------------------------------------------------------------ check 7


@pytest.fixture(scope="module")
def everything(browser, address, full):
    """Every op checked once: {op: (its event, rows of the maths, rows of the kernel)}."""
    with tab(browser, address) as studio:
        studio.open()
        found = {}
        for op, k in first(full).items():
            assert check(studio, full, k), op
            found[op] = k, rows(studio, "maths"), rows(studio, "kernel")
        yield found


def test_the_maths_of_every_op_agrees_with_central_differences(everything, full):
    for op, (k, found, _) in everything.items():
        forward = op == signature(op).op
        names = [f"d{n}" for n in floats(full, k, "in")] if forward else floats(full, k, "out")
        optimizer = full.events[k]["phase"] == "update"
        assert list(found) == ([] if optimizer else names), op
        for name, row in found.items():
            assert row["ok"] == "true" and row["error"] <= row["bound"] < MATHS, (op, name)


def test_the_kernel_of_every_op_agrees_with_the_float64_maths(everything, full):
    for op, (k, _, found) in everything.items():
        outs = [o["name"] for o in full.operands if (o["event"], o["role"]) == (k, "out")]
        assert list(found) == list(dict.fromkeys(outs)), op
        for name, row in found.items():
            assert row["ok"] == "true" and row["error"] <= row["bound"] < KERNEL, (op, name)


def layernorm(x, w, b):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * w + b


def softmax(preatt):
    z = np.where(np.tril(np.ones(preatt.shape[-2:], bool)), preatt, -np.inf)
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


INDEPENDENT = [  # op, what is moved, f of the operands, the name of g in the backward line
    ("layernorm", "x", layernorm, "dy"),
    ("matmul", "w", lambda x, w, b: x @ w.T + b, "dy"),
    ("causal_softmax", "preatt", softmax, "datt"),
]


@pytest.mark.parametrize("op, of, f, above", INDEPENDENT, ids=lambda x: x if str(x) == x else "")
def test_differences_taken_here_reproduce_the_number_that_is_displayed(
    everything, full, op, of, f, above
):
    k, found, _ = everything[op]
    shown = found[f"d{of}"]
    given = {name: values(full, k, name) for name in floats(full, k, "in")}
    g = values(full, full.events[k]["twin"], above).reshape(f(**given).shape)
    mine, size = np.zeros_like(given[of]), np.median(np.abs(given[of]))

    def phi(index, by):
        moved = given[of].copy()
        moved[index] += by
        return f(**(given | {of: moved}))

    for index in np.ndindex(mine.shape):
        h = 1e-3 * size
        mine[index] = np.sum(g * (phi(index, h) - phi(index, -h))) / (2 * h)
    norm, at = np.linalg.norm(mine), tuple(shown["cell"])
    assert norm > 0
    assert abs(float(shown["by differences"]) - mine[at]) < MATHS * norm
    assert abs(float(shown["by hand"]) - mine[at]) < MATHS * norm


def test_the_whole_model_agrees_along_random_directions(studio, full):
    assert check(studio, full, 0)
    studio.page.get_by_test_id("check-model").click()
    studio.page.wait_for_selector("[data-check=model] [data-row]", timeout=60_000)
    found = rows(studio, "model")
    kinds = {v["tensor"].rpartition(".")[2] for v in full.versions.values() if v["kind"] == "param"}
    assert found.keys() == {"all", *kinds}
    for name, row in found.items():
        assert row["ok"] == "true" and row["error"] < MODEL, name
    words = studio.page.locator("[data-check=model]").inner_text()
    assert abs(float(re.search(r"Loss ([\d.]+)", words)[1]) - full.manifest["loss"]) < 1e-3


# ------------------------------------------------------------ check 8


def without_a_mean(dy, x, w, mean, rstd):
    n = (x - mean[:, None]) * rstd[:, None]
    dn = dy * w
    return rstd[:, None] * (dn - n * (dn * n).mean(-1, keepdims=True)), (dy * n).sum(0), dy.sum(0)


def scaled(call, factor, which=0):
    def change(maths):
        right = getattr(maths, call)

        def wrong(*given, **attrs):
            made = list(right(*given, **attrs))
            made[which] = made[which] * factor
            return tuple(made)

        return wrong

    return call, lambda maths: change(maths)


def last_token_wins(dx, ids, *, V, P):
    dwte, dwpe = np.zeros((V, dx.shape[2])), np.zeros((P, dx.shape[2]))
    dwte[ids] = dx
    dwpe[: dx.shape[1]] = dx.sum(0)
    return dwte, dwpe


def without_onehot(dloss, logits, lse, targets, *, vocab_size):
    p = np.exp(logits - lse[:, None])
    p[:, vocab_size:] = 0
    return (p * np.where(targets < 0, 0, dloss)[:, None],)


def swapped(maths):
    right = maths.d_scores

    def wrong(dpreatt, qkv):
        (dqkv,) = right(dpreatt, qkv)
        return (dqkv[:, :, [1, 0, 2]],)

    return wrong


MUTANTS = {  # (op, what is wrong): (the call, the wrong function of the maths module)
    ("layernorm", "a mean term dropped"): ("d_layernorm", lambda maths: without_a_mean),
    ("layernorm", "dw 0.1 % too large"): scaled("d_layernorm", 1.001, 1),
    ("matmul", "dx transposed in sign"): scaled("d_matmul_x", -1.0),
    ("matmul", "dw 0.1 % too large"): scaled("d_matmul_w", 1.001),
    ("matmul", "db of nothing"): scaled("d_matmul_w", 0.0, 1),
    ("scores", "dq and dk swapped"): ("d_scores", swapped),
    ("scores", "the sign flipped"): scaled("d_scores", -1.0),
    ("causal_softmax", "the sum dropped"): (
        "d_causal_softmax", lambda maths: lambda datt, att: (att * datt,)
    ),
    ("mix", "datt 0.1 % too small"): scaled("d_mix", 0.999),
    ("gelu", "as if it were x·Φ′"): ("d_gelu", lambda maths: lambda dy, x: (dy * (x > 0),)),
    ("add", "db twice"): scaled("d_add", 2.0, 1),
    ("softmax_xent", "no one-hot"): ("d_softmax_xent", lambda maths: without_onehot),
    ("embed", "the last token wins"): ("d_embed", lambda maths: last_token_wins),
}  # fmt: skip


@pytest.mark.parametrize("op, wrong", MUTANTS, ids=lambda x: str(x))
def test_a_wrong_backward_turns_its_op_red_and_no_other(studio, full, monkeypatch, op, wrong):
    maths, (call, change) = table()[op].maths, MUTANTS[op, wrong]
    monkeypatch.setattr(maths, call, change(maths))
    verdicts = {name: check(studio, full, k) for name, k in first(full, "forward").items()}
    assert [name for name, holds in verdicts.items() if not holds] == [op]
    assert len(verdicts) == 9


# ------------------------------------------------------------ check 11


def adamw_in_float32(x: dict, clip: float) -> np.float32:
    """p after the update, from what the page displays."""
    f = np.float32
    p, dp, m, v, lr, b1, b2, eps, wd = (f(x[k]) for k in "p dp m v lr β₁ β₂ ε λ".split())
    t = int(x["t"])
    g = dp * f(clip)
    m = b1 * m + (f(1) - b1) * g
    v = b2 * v + (f(1) - b2) * g * g
    m_hat = m * f(1 / (1 - float(x["β₁"]) ** t))
    v_hat = v * f(1 / (1 - float(x["β₂"]) ** t))
    return p - lr * (m_hat / (np.sqrt(v_hat) + eps) + wd * p)


@pytest.mark.parametrize(
    "tensor, cell, decays",
    [
        ("wte", (72, 10), True), ("wte", (0, 0), True), ("h1.fcw", (100, 31), True),
        ("h0.qkvb", (95,), False), ("lnfw", (3,), False), ("wpe", (15, 0), True),
    ],
)  # fmt: skip
def test_adamw_of_a_cell_is_what_its_displayed_numbers_give(studio, full, tensor, cell, decays):
    k = first(full)["adamw"]
    studio.go(f"#/r/{full.id}/e/{k}/bench?o={tensor}&ix={','.join(map(str, cell))}")
    panel = studio.page.locator("[data-check=update]")
    panel.locator(f"[data-testid=update-of][data-cell='{','.join(map(str, cell))}']").wait_for()
    x = {
        e.get_attribute("data-symbol"): e.inner_text() for e in panel.locator("[data-symbol]").all()
    }
    assert int(x["t"]) == full.manifest["step"] == 3
    before = {"p": tensor, "m": f"{tensor}/m", "v": f"{tensor}/v"}
    for symbol, name in before.items():
        assert np.float32(x[symbol]) == full.values(full.named(name)[0])[cell], symbol
    clip = panel.locator("[data-line=clip] output").inner_text()
    norm = full.values(full.named("norm")[-1])[0]
    assert np.float32(clip) == np.float32(1.0) / max(norm, np.float32(1.0))
    assert f"min(1, 1.0/{norm!s})" in panel.locator("[data-line=clip]").inner_text()
    if not decays:
        x["λ"] = "0"
    mine = adamw_in_float32(x, clip)
    shown = np.float32(panel.locator("[data-result=p] [data-value=recorded]").inner_text())
    assert shown == full.values(full.named(tensor)[1])[cell]
    assert abs(mine - shown) <= np.spacing(abs(shown)), (mine, shown)
    assert panel.locator("[data-result=p] [data-value=ulps]").inner_text() in ("0 ulp", "1 ulp")


def test_the_recorded_gradient_is_what_adamw_shows_as_dp(studio, full):
    k, cell = first(full)["adamw"], (5, 7)
    studio.go(f"#/r/{full.id}/e/{k}/bench?o=h0.qkvw&ix=5,7")
    shown = studio.page.locator("[data-symbol=dp]")
    shown.wait_for()
    made = [v for v in full.named("h0.dqkvw") if (v["event"] or 0) < k]
    assert np.float32(shown.inner_text()) == full.values(made[-1])[cell]


# ------------------------------------------------------------ the screen


def test_the_worst_cell_leads_to_the_inspector_at_that_cell_and_back(studio, full):
    k = first(full)["d_mix"]
    check(studio, full, k)
    cell = rows(studio, "maths")["datt"]["cell"]
    made = next(
        o for o in full.operands if (o["event"], o["name"], o["role"]) == (k, "datt", "out")
    )
    studio.page.locator("[data-check=maths] [data-row=datt] [data-cell]").click()
    studio.page.wait_for_selector(f".inspector[data-version='{made['version']}']")
    value = full.values(full.versions[made["version"]])[tuple(cell)]
    assert studio.index() == cell and np.float32(studio.cell()) == value
    studio.press("Escape")
    done(studio, k)
    assert rows(studio, "maths")["datt"]["ok"] == "true"
    studio.press("Escape")
    studio.arrived(k)


def index_in(fields) -> list[int]:
    return [int(field.input_value()) for field in fields.locator("input").all()]


def test_the_curve_is_of_the_worst_cell_and_follows_the_chosen_one(studio, full):
    k = first(full)["layernorm"]
    check(studio, full, k)
    found = rows(studio, "maths")
    worst = max(found.values(), key=lambda row: row["error"])
    shown = studio.page.locator("[data-steps='by hand']")
    assert float(shown.get_attribute("data-value")) == float(worst["by hand"])
    points = studio.page.get_by_test_id("step-points").locator("tbody tr")
    assert points.count() == 23
    fields = studio.page.get_by_test_id("cell-fields")
    fields.locator("select").select_option("x")
    assert index_in(fields) == found["dx"]["cell"]
    fields.locator("input").nth(2).fill("9")
    studio.press("Enter")
    studio.until("location.hash.includes('o=x') && /ix=\\d+,\\d+,9$/.test(location.hash)")
    done(studio, k)
    drawn = studio.page.locator("canvas[aria-label*='larger steps truncate']")
    drawn.wait_for()


def test_a_link_to_the_bench_restores_event_operand_and_cell(studio, full):
    k = first(full)["d_gelu"]
    studio.go(f"#/r/{full.id}/e/{k}/bench?o=x&ix=1,2,3")
    done(studio, k)
    studio.page.reload()
    done(studio, k)
    assert index_in(studio.page.get_by_test_id("cell-fields")) == [1, 2, 3]
    assert studio.page.url.endswith(f"/e/{k}/bench?o=x&ix=1,2,3")
    assert studio.text("verdict") == "not checked"


def test_stepping_stays_on_the_bench_and_coming_back_finds_the_results(studio, full):
    k = first(full)["matmul"]
    check(studio, full, k)
    before = rows(studio, "maths")
    studio.press("l")
    done(studio, k + 1)
    assert studio.text("verdict") == "not checked"
    studio.press("h")
    done(studio, k)
    assert rows(studio, "maths") == before and studio.text("verdict") == "holds"


def test_a_recording_of_statistics_is_checked_by_replay_and_says_so(studio, light):
    k = first(light)["d_layernorm"]
    assert check(studio, light, k)
    assert "does the step again" in studio.page.locator(".checks").inner_text()
    assert all(row["ok"] == "true" for row in rows(studio, "maths").values())


def test_a_read_only_studio_says_why_it_does_not_check(browser, full, root):
    with serving(root, read_only=True) as address, tab(browser, address) as studio:
        studio.open()
        studio.event(full, 1)
        studio.press("g")
        trouble = studio.page.locator("[data-check=maths] .trouble")
        trouble.wait_for()
        assert "--read-only" in trouble.inner_text()
        assert len(studio.complaints) == 1 and "403" in studio.complaints.pop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_on_the_bench_moves_when_results_come(browser, address, full, scheme):
    places = (
        "[...document.querySelectorAll('.panel > h2, .result .spec, .maths, .transport, .curve')]"
    )
    places += ".map(s => { const r = s.getBoundingClientRect(); return [r.x, r.y, r.width] })"
    k = first(full)["layernorm"]
    options = {"viewport": {"width": 1280, "height": 720}, "color_scheme": scheme}
    with tab(browser, address, **options) as studio:
        studio.open()
        studio.go(f"#/r/{full.id}/e/{k}/bench")
        done(studio, k)
        studio.page.wait_for_selector(".maths .sentence")
        before = studio.page.evaluate(places)
        studio.press("g")
        studio.page.wait_for_selector("[data-testid=step-points]", state="attached")
        done(studio, k)
        assert len(before) > 8 and studio.page.evaluate(places) == before
