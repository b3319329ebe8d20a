"""Where compiled kernels and downloads are kept: BACKGLASS_CACHE, by default ~/.cache/backglass."""

import os
from pathlib import Path


def cache_folder() -> Path:
    return Path(os.environ.get("BACKGLASS_CACHE", Path.home() / ".cache" / "backglass"))
