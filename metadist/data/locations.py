"""Where prepared stores and downloads are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(chosen: str | None = None) -> Path:
    """Folder of prepared stores, absolute; it need not exist.

    The first that is set of `chosen` (data.cache), METADIST_CACHE, XDG_CACHE_HOME/metadist; else
    ~/.cache/metadist.
    """
    folder = chosen or os.environ.get("METADIST_CACHE")
    if not folder:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "metadist")
    return Path(os.path.abspath(os.path.expanduser(folder)))


def download_folder(cache: Path) -> Path:
    """Folder in which torchvision keeps its files, under the cache."""
    return cache / "torchvision"
