"""Files from the Hugging Face hub: progress, checksum, cache; without a network an error with the
manual steps.

BACKGLASS_CACHE: where files are kept (default ~/.cache/backglass).  HF_ENDPOINT: another hub, as
for huggingface_hub.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from backglass.cache import cache_folder
from backglass.errors import UserError


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def fetch(repo: str, name: str, instead: str, revision: str = "main") -> Path:
    """The local path of a file of a hub repository, downloaded once.

    Raises UserError, with the address and what to do by hand, if it cannot be had; `instead` is the
    option that takes a local file.
    """
    target = cache_folder() / repo.replace("/", "--") / name
    if target.exists():
        return target
    url = f"{endpoint()}/{repo}/resolve/{revision}/{name}"
    return download(url, target, instead)


def download(url: str, target: Path, instead: str, sha256: str = "") -> Path:
    """Download url to target, atomically, with a progress bar, checking size and checksum where
    they are known."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            expected = int(response.headers.get("Content-Length") or 0)
            etag = (response.headers.get("X-Linked-ETag") or "").strip('"')
            with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as part:
                digest, size = _copy(response, part, expected, target.name)
    except (urllib.error.URLError, OSError, TimeoutError) as error:
        raise UserError(
            f"{url} could not be fetched ({getattr(error, 'reason', error)}). Without a network: "
            f"get the "
            f"file on another machine and put it at {target}, or give a local one with {instead}."
        ) from None
    wanted = sha256 or (etag if len(etag) == 64 else "")
    if (expected and size != expected) or (wanted and digest != wanted):
        Path(part.name).unlink()
        raise UserError(
            f"{url} arrived damaged: {size} of {expected} bytes, checksum {digest[:16]}…, expected "
            f"{wanted[:16] or 'any'}…. Nothing was kept; run the command again."
        )
    Path(part.name).replace(target)
    return target


def _copy(response, part, expected: int, name: str) -> tuple[str, int]:
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    digest, size = hashlib.sha256(), 0
    show = sys.stderr.isatty()
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, disable=not show) as bar:
        task = bar.add_task(name, total=expected or None)
        while block := response.read(1 << 20):
            part.write(block)
            digest.update(block)
            size += len(block)
            bar.update(task, completed=size)
    return digest.hexdigest(), size
