"""Repositories of the Hugging Face hub, by hf:NAME: which of their files are a data set or a model.

hf:owner/name            a data set: its text, jsonl or parquet files or token shards, the first
                         of these kinds that there is
hf:owner/name/PATTERN    those below a folder, one file, or a glob (data/*.jsonl)

If some text files say train in their names, only they are read; as always, the last tenth is held
out.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from backglass.cache import cache_folder
from backglass.data import hub
from backglass.errors import UserError, wrong_use
from backglass.formats import hf

KINDS = (".txt", ".jsonl", ".parquet", ".bin")
WEIGHTS = "model.safetensors"
INSTEAD = "a local one with --data FILE"
A_FOLDER = "the path of a local folder with all its files"


def data_files(asked: str) -> list[Path]:
    """Local paths of the files that hf:NAME means, downloaded once.  Raises UserError."""
    owner, _, rest = asked.removeprefix("hf:").partition("/")
    name, _, pattern = rest.partition("/")
    repo = "datasets/" + hub.repo_name(f"hf:{owner}/{name}" if name else f"hf:{owner}")
    listing = _listing(repo)
    files = _chosen(asked, listing, pattern)
    if files[0]["name"].endswith(".parquet") and not importlib.util.find_spec("pyarrow"):
        raise wrong_use(
            f"{asked}: its files are parquet, and reading them needs pyarrow, which is not "
            "installed. Install it with: python -m pip install pyarrow"
        )
    if missing := [f for f in files if not hub.kept(repo, f["name"])]:
        _announce(asked, missing)
    return [
        hub.kept(repo, f["name"]) or hub.fetch(repo, f["name"], INSTEAD, listing["revision"])
        for f in files
    ]


def model_folder(asked: str) -> Path:
    """The local folder of hf:NAME, a model in safetensors, downloaded once.  Raises UserError."""
    repo = hub.repo_name(asked)
    folder, snapshot = hub.folder_of(repo), hub.snapshot_of(repo)
    for kept in (folder, snapshot):
        if kept and _is_complete(kept):
            return kept
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        try:
            hub.fetch(repo, name, A_FOLDER)
        except hub.Missing:
            if name == "config.json":
                raise
            if name == WEIGHTS:
                _fetch_sharded(repo, asked)
    return folder


def _fetch_sharded(repo: str, asked: str) -> None:
    try:
        index = hub.fetch(repo, WEIGHTS + ".index.json", A_FOLDER)
    except hub.Missing:
        raise UserError(
            f"{asked} has no {WEIGHTS}, in one file or several; models in other formats cannot be "
            "read. transformers can load it and save it as safetensors."
        ) from None
    for name in hf.shard_names(index):
        hub.fetch(repo, name, A_FOLDER)


def _is_complete(folder: Path) -> bool:
    """Whether a folder has a config and all its weights; the tokenizer was asked for before
    them."""
    index = folder / (WEIGHTS + ".index.json")
    if not (folder / "config.json").exists():
        return False
    if (folder / WEIGHTS).exists():
        return True
    return index.exists() and all((folder / name).exists() for name in hf.shard_names(index))


def _listing(repo: str) -> dict[str, Any]:
    """{"revision", "files": [{"name", "bytes"}]} of a data set; kept, so that the files and their
    revision stay the same.  Delete the folder to look for newer ones."""
    kept = hub.folder_of(repo) / ".listing.json"
    if not kept.exists():
        hub.download(f"{hub.endpoint()}/api/{repo}?blobs=true", kept, INSTEAD)
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        files = [{"name": f["rfilename"], "bytes": f.get("size") or 0} for f in found["siblings"]]
        if not all(_is_inside(f["name"]) for f in files):
            raise ValueError("a file's name leads out of the repository")
        return {"revision": str(found.get("sha") or "main"), "files": files}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        kept.unlink()
        raise UserError(
            f"{hub.endpoint()} did not answer with a list of files of {repo} ({error!r}). Is "
            "HF_ENDPOINT a Hugging Face hub?"
        ) from None


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _chosen(asked: str, listing: dict[str, Any], pattern: str) -> list[dict[str, Any]]:
    """The files to read: one kind, one folder, for training where the names say so."""
    below = [f for f in listing["files"] if _matches(f["name"], pattern)]
    one = [f for f in below if f["name"] == pattern]
    kinds = [[f for f in below if f["name"].endswith(kind)] for kind in KINDS]
    files = one or next((found for found in kinds if found), [])
    if not files:
        names = ", ".join(f["name"] for f in listing["files"][:8]) or "nothing"
        raise UserError(
            f"{asked}: there is no {', '.join(KINDS[:-1])} or {KINDS[-1]} file"
            f"{' that matches ' + pattern if pattern else ''}; the repository holds {names}. Name "
            "a file or a folder of it: hf:owner/name/PATTERN."
        )
    if not files[0]["name"].endswith(".bin"):  # shards for validation are used as such
        files = [f for f in files if "train" in _words(f["name"])] or files
    folders = sorted({str(PurePosixPath(f["name"]).parent) for f in files})
    if len(folders) > 1 and not set(pattern) & set("*?["):
        repo = "/".join(asked.split("/")[:2])
        raise wrong_use(
            f"{asked} holds several data sets, in the folders {', '.join(folders[:8])}"
            f"{', …' if len(folders) > 8 else ''}. Choose one: {repo}/{folders[0]}"
        )
    return sorted(files, key=lambda f: f["name"])


def _matches(name: str, pattern: str) -> bool:
    folder = pattern.rstrip("/") + "/"
    return not pattern or name.startswith(folder) or fnmatch.fnmatchcase(name, pattern)


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", name.lower())


def _announce(asked: str, files: list[dict[str, Any]]) -> None:
    """Say what will be downloaded.  Raises UserError if it does not fit on the disk."""
    total = sum(f["bytes"] for f in files)
    folder = cache_folder()
    free = shutil.disk_usage(folder).free
    size = f"{total / 1e6:,.1f} MB" if total else "of unknown size"
    print(f"{asked}: fetching {len(files)} files, {size}", file=sys.stderr)
    if total > free:
        raise UserError(
            f"{asked} is {total / 1e9:,.1f} GB and {folder} has {free / 1e9:,.1f} GB left. Name "
            "some of its files (hf:owner/name/PATTERN), or set BACKGLASS_CACHE to a larger disk."
        )
