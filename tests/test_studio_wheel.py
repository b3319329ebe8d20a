"""The studio as a wheel brings it: installed without Node, the page comes whole, from this machine
alone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from studio_browser import chromium, command, tab

ROOT = Path(__file__).parent.parent
STATIC = "backglass/debugger/static"
TRACE = ["trace", "tiny", "--device", "numpy", "--batch-size", "1", "--seq-len", "8"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT]
    subprocess.run(build, check=True, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_a_wheel_contains_the_page_as_it_is_committed(wheel):
    listed = ["git", "-C", ROOT, "ls-files", STATIC]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines()
    assert f"{STATIC}/index.html" in names
    with zipfile.ZipFile(wheel) as inside:
        assert {n for n in inside.namelist() if n.startswith(STATIC)} == set(names)
        for name in names:
            assert inside.read(name) == (ROOT / name).read_bytes(), name


@pytest.mark.slow
def test_the_studio_of_a_wheel_opens_without_node_and_asks_nobody_else(wheel, tmp_path):
    """`tab` sees to it that every request goes to the printed address, and that the console is
    empty."""
    with chromium() as browser:
        bin = tmp_path / "venv" / "bin"
        subprocess.run([sys.executable, "-m", "venv", bin.parent], check=True)
        env = {"HOME": str(tmp_path), "PATH": f"{bin}"}
        pip = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k in ("HOME", "PATH")}
        subprocess.run(
            [bin / "python", "-m", "pip", "install", "--quiet", wheel], check=True, env=pip
        )
        trace = [bin / "backglass", *TRACE, "--level", "3", "--out", tmp_path / "rec"]
        subprocess.run(trace, check=True, env=env, cwd=tmp_path)
        own = bin / "backglass", "studio", tmp_path / "rec"
        with command(*own, env=env) as (_, url), tab(browser, url.partition("#")[0]) as studio:
            studio.page.goto(url)
            studio.page.wait_for_selector(".card[data-shown='0']")
            assert studio.text("op") == "embed"
