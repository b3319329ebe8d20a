"""Files from the Hugging Face hub and the web: progress, size and checksum, cache; without a
network an error with the manual steps.

BACKGLASS_CACHE       where files are kept (default ~/.cache/backglass)
HF_ENDPOINT           another hub
HF_TOKEN              for gated and private repositories; sent to the hub only
HF_HUB_CACHE, HF_HOME where huggingface_hub keeps its files; what is there is not fetched again
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from backglass.cache import cache_folder
from backglass.errors import UserError, wrong_use

NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class Missing(UserError):
    """The server has no such file."""


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def folder_of(repo: str) -> Path:
    """Where the files of a repository are kept: owner/name, or datasets/owner/name."""
    return cache_folder() / repo.replace("/", "--")


def snapshot_of(repo: str) -> Path | None:
    """The folder where huggingface_hub keeps the repository's main revision, if it does."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    kind = repo if repo.startswith("datasets/") else f"models/{repo}"
    kept = hub / kind.replace("/", "--")
    try:
        return kept / "snapshots" / (kept / "refs" / "main").read_text().strip()
    except OSError:
        return None


def kept(repo: str, name: str) -> Path | None:
    """A file of a repository that was fetched before, by us or by huggingface_hub."""
    paths = [folder / name for folder in (folder_of(repo), snapshot_of(repo)) if folder]
    return next((path for path in paths if path.exists()), None)


def fetch(repo: str, name: str, instead: str, revision: str = "main") -> Path:
    """The path of a file in the folder of its repository, downloaded once.

    Raises UserError, with the address and what to do by hand, if it cannot be had (Missing: the
    repository has no such file); `instead` says what local thing would do as well.
    """
    if (folder_of(repo) / name).exists():
        return folder_of(repo) / name
    url = f"{endpoint()}/{repo}/resolve/{revision}/{quote(name)}"
    return download(url, folder_of(repo) / name, instead)


def download(url: str, target: Path, instead: str, sha256: str = "") -> Path:
    """Download url to target, atomically, with a progress bar, checking size and checksum where
    they are known."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as part:
            pass
    except OSError as error:
        raise UserError(
            f"{url} cannot be kept: {target.parent} cannot be written ({error.strerror or error}). "
            "Free some space, mend the rights, or set BACKGLASS_CACHE to another folder."
        ) from None
    try:
        _receive(url, Path(part.name), target, instead, sha256)
        Path(part.name).replace(target)
    finally:
        Path(part.name).unlink(missing_ok=True)
    return target


def by_hand(target: Path, instead: str) -> str:
    return (
        f"Without a network: get the file on another machine and put it at {target}, or give "
        f"{instead}."
    )


def _receive(url: str, part: Path, target: Path, instead: str, sha256: str) -> None:
    """Fill part.  Raises UserError for everything that can go wrong on the way."""
    redirects = _Redirects()
    token = os.environ.get("HF_TOKEN", "").strip()
    try:
        request = urllib.request.Request(url)
        if token and url.startswith(endpoint() + "/"):
            request.add_header("Authorization", f"Bearer {token}")
        opener = urllib.request.build_opener(redirects)
        with opener.open(request, timeout=30) as response, part.open("wb") as file:
            told = {**dict(response.headers), **redirects.linked}
            told = {k.lower(): v for k, v in told.items()}
            expected = int(told.get("x-linked-size") or told.get("content-length") or 0)
            wanted, digest = _checksum(told, expected, sha256)
            size = _copy(response, file, digest, expected, target.name)
    except urllib.error.HTTPError as error:
        error.close()
        raise _refused(url, error, bool(token), by_hand(target, instead)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{url} could not be fetched ({getattr(error, 'reason', '') or error}). "
            f"{by_hand(target, instead)}"
        ) from None
    if (expected and size != expected) or (wanted and digest.hexdigest() != wanted):
        of = f" of {expected:,}" if expected else ""
        promised = (
            f"; its checksum is {digest.hexdigest()}, promised was {wanted}" if wanted else ""
        )
        raise UserError(
            f"{url} arrived damaged: {size:,}{of} bytes{promised}. Nothing was kept; run the "
            "command again."
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps what the hub says of a file while it sends us on to where the file lies, and does not
    show that place our token."""

    def __init__(self) -> None:
        self.linked: dict[str, str] = {}

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        self.linked.update((k, v) for k, v in headers.items() if k.lower().startswith("x-linked-"))
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request


def _checksum(told: dict[str, str], size: int, sha256: str) -> tuple[str, Any]:
    """(checksum that is promised or "", digest to feed).  The hub names a large file by its SHA-256
    and a small one by its Git hash, the SHA-1 of a header and the content."""
    tag = (told.get("x-linked-etag") or told.get("etag") or "").removeprefix("W/").strip('"')
    ours = "x-repo-commit" in told or "x-linked-etag" in told
    if sha256 or (ours and re.fullmatch("[0-9a-f]{64}", tag)):
        return sha256 or tag, hashlib.sha256()
    if ours and re.fullmatch("[0-9a-f]{40}", tag):
        return tag, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return "", hashlib.sha256()


def _refused(url: str, error: urllib.error.HTTPError, token: bool, otherwise: str) -> UserError:
    if error.code in (401, 403):
        how = "The HF_TOKEN that is set may not read it" if token else "No HF_TOKEN is set"
        return UserError(
            f"{url} may not be read (the server answered {error.code}): the repository is gated or "
            f"private, or its name is misspelt. {how}: accept the terms on the repository's page "
            "and set HF_TOKEN to an access token of your account."
        )
    if error.code == 404:
        return Missing(f"{url} does not exist (the server answered 404); check the name")
    return UserError(
        f"{url} could not be fetched (the server answered {error.code} {error.reason}). Run the "
        f"command again later. {otherwise}"
    )


def _copy(response: Any, file: BinaryIO, digest: Any, expected: int, name: str) -> int:
    """Bytes written to file, all of them fed to digest."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    size = 0
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(name, total=expected or None)
        while block := _read(response):
            file.write(block)
            digest.update(block)
            size += len(block)
            bar.update(task, completed=size)
    return size


def _read(response: Any) -> bytes:
    """The next block; what came before a connection broke off, as if it had ended there."""
    try:
        return response.read(1 << 20)
    except http.client.IncompleteRead as error:
        return error.partial


def repo_name(asked: str) -> str:
    """owner/name of hf:owner/name.  Raises UserError if it cannot be one."""
    name = asked.removeprefix("hf:")
    if not NAME.fullmatch(name) or ".." in name:
        raise wrong_use(f"{asked}: expected hf:owner/name, as on the repository's page")
    return name
