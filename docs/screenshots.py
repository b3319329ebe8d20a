"""The README's two pictures of the studio, from a real run:

    backglass train tiny --out runs/tiny
    backglass trace runs/tiny --level 3
    python docs/screenshots.py runs/tiny

Needs Playwright for Python and a Chromium:  python -m pip install playwright
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
SIZE = {"width": 1440, "height": 810}


def main() -> None:
    """Writes studio-step.png and studio-attention.png beside this file."""
    command = [sys.executable, "-m", "backglass", "studio", sys.argv[1], "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = next(m[0] for line in server.stdout if (m := re.search(r"http://\S+", line)))
        with sync_playwright() as p:
            found = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = p.chromium.launch(executable_path=found)
            page = browser.new_page(viewport=SIZE, color_scheme="light", device_scale_factor=1)
            page.goto(url)
            page.wait_for_selector("header")
            take(page, "studio-step", event="d_layernorm")
            page.click("header >> text=attention")
            take(page, "studio-attention")
            browser.close()
    finally:
        server.terminate()


def take(page: Page, name: str, event: str = "") -> None:
    """A picture of what is there, or of the first event of that op."""
    if event:
        page.keyboard.press("/")
        page.keyboard.type(event)
        page.wait_for_timeout(500)
        page.keyboard.press("Enter")
    page.wait_for_timeout(2000)  # thumbnails arrive one by one
    page.screenshot(path=HERE / f"{name}.png")


main()
