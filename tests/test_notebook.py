"""The studio in a notebook: the example's cells, and who may frame the page."""

import ast
import contextlib
import http.server
import json
import re
import sys
import threading
import types
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from studio_browser import chromium, record

import backglass as bg
from backglass import notebook
from backglass.errors import UserError

EXAMPLE = Path(__file__).parent.parent / "examples" / "studio.ipynb"


def run_cells(path, space):
    """Execute the code cells one after the other; what the last one's last expression is."""
    value = None
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            *lines, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(lines, []), "cell", "exec"), space)
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), space)
    return value


def test_the_example_notebook_ends_with_a_studio_of_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run_cells(EXAMPLE, {})
    with contextlib.closing(Closing(shown)):
        address, token = shown.url.split("#token=")
        request = urllib.request.Request(address + "api/runs", headers={"X-Backglass-Token": token})
        (run,) = json.load(urllib.request.urlopen(request))
        assert [r["step"] for r in run["recordings"]] == [6]
        assert token not in repr(shown) and shown.url in shown._repr_html_()


class Closing:
    def __init__(self, shown):
        self.close = shown.stop


@pytest.fixture
def folder(tmp_path):
    record(tmp_path / "a" / "trace" / "step-00000001", level=1)
    return tmp_path


def policy(shown):
    """Of the page, its frame-ancestors."""
    answer = urllib.request.urlopen(shown.url.partition("#")[0])
    return re.search(r"frame-ancestors ([^;]*)", answer.headers["content-security-policy"])[1]


def test_only_the_notebook_server_of_the_kernel_may_frame_the_page(folder, monkeypatch, tmp_path):
    paths = types.ModuleType("jupyter_core.paths")  # which a notebook's kernel has
    (tmp_path / "jpserver-4711.json").write_text(json.dumps({"port": 8890, "secure": False}))
    paths.jupyter_runtime_dir = lambda: str(tmp_path)
    monkeypatch.setitem(sys.modules, "jupyter_core", types.ModuleType("jupyter_core"))
    monkeypatch.setitem(sys.modules, "jupyter_core.paths", paths)
    monkeypatch.setenv("JPY_PARENT_PID", "4711")
    with contextlib.closing(Closing(shown := bg.studio(folder))):
        assert policy(shown) == "http://localhost:8890 http://127.0.0.1:8890 http://[::1]:8890"


def test_without_a_known_notebook_nobody_may_and_a_link_is_shown(folder, monkeypatch):
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    with contextlib.closing(Closing(shown := bg.studio(folder))):
        assert policy(shown) == "'none'"
        assert "<iframe" not in shown._repr_html_() and shown.url in shown._repr_html_()


@pytest.mark.parametrize("origin", [
    "*", "http://*", "localhost:8888", "http://a b", "http://a;script-src *", "http://a/path",
    "http://a\r\nx: y", "javascript:alert(1)", "'self'",
])  # fmt: skip
def test_what_is_no_origin_is_refused(folder, origin):
    with pytest.raises(UserError, match="is no origin"):
        bg.studio(folder, notebook=origin)


FRAME = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe", "Sec-Fetch-Mode": "navigate"}


@pytest.mark.parametrize(("path", "changes", "status"), [
    ("", {}, 200),
    ("", {"Sec-Fetch-Dest": "script"}, 403),
    ("", {"Sec-Fetch-Mode": "no-cors"}, 403),
    ("", {"Origin": "http://localhost:8888"}, 403),
    ("", {"Host": "evil.com"}, 403),
    ("api/runs", {}, 403),
    ("assets/x.js", {}, 403),
])  # fmt: skip
def test_a_frame_brings_the_page_and_nothing_else(folder, path, changes, status):
    with contextlib.closing(Closing(shown := bg.studio(folder, notebook="http://localhost:8888"))):
        address, token = shown.url.split("#token=")
        headers = {"X-Backglass-Token": token} | FRAME | changes
        request = urllib.request.Request(address + path, headers=headers)
        try:
            found = urllib.request.urlopen(request).status
        except urllib.error.HTTPError as error:
            found = error.code
        assert found == status


@contextlib.contextmanager
def page_with(body):
    """A page of another origin."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body().encode())

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://localhost:{served.server_port}"
        served.shutdown()


@pytest.mark.parametrize("named", [True, False])
def test_a_browser_shows_the_frame_in_the_named_notebook_only(folder, named):
    shown = []
    with chromium() as browser, page_with(lambda: shown[0]._repr_html_()) as origin:
        shown.append(bg.studio(folder, notebook=origin if named else "http://localhost:1"))
        with contextlib.closing(Closing(shown[0])), contextlib.closing(browser.new_page()) as page:
            page.goto(origin)
            card = page.frame_locator("iframe").locator(".card[data-shown='0']")
            if named:
                card.wait_for(timeout=10_000)
            else:
                page.wait_for_timeout(1500)
                assert card.count() == 0


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such run"):
        notebook.Inline(tmp_path / "nothing", None, 700)
