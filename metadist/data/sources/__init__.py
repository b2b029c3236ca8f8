"""Readers of images, one a file: folders, zips, data sets of torchvision, scikit-learn's digits."""

from __future__ import annotations

import os
from pathlib import Path

from metadist.data.sources.archive import ZipSource
from metadist.data.sources.base import Example, Source
from metadist.data.sources.digits import DigitsSource
from metadist.data.sources.folder import FolderSource
from metadist.data.sources.torchvision_sets import TorchvisionSource
from metadist.data.store import is_store
from metadist.errors import UserError, nearest

__all__ = ["Example", "Source", "is_uri", "open_source"]

_EXPECTED = "a folder of class folders, a zip of one, torchvision:NAME, sklearn:digits, or a store or its URI"


def is_uri(source: str) -> bool:
    """Whether `source` is a URI (`scheme://…`)."""
    scheme, mark, _ = source.partition("://")
    return bool(mark) and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum()


def open_source(source: str, download_root: Path) -> Source:
    """The reader for `source`, as text of `data.source`; nothing is listed or loaded yet.

    Args:
        source: a folder, a zip, `torchvision:NAME` or `sklearn:digits`. (A store is opened, not read by
        this.)
        download_root: where torchvision keeps its files.

    Raises:
        UserError: there is no such source, or it is a store or a URI.
    """
    prefix, mark, name = source.partition(":")
    path = Path(os.path.expanduser(source))
    if not source:
        raise UserError("data.source", source, _EXPECTED)
    if is_uri(source) or is_store(path):
        raise UserError("data.source", source, "images: a folder, a zip, torchvision:NAME or sklearn:digits",
                        "A store is used as it is: name it in data.source.")  # fmt: skip
    if os.path.isdir(path):
        return FolderSource(path)
    if os.path.isfile(path):
        return ZipSource(path)
    if mark and prefix == "torchvision":
        return TorchvisionSource(name, download_root)
    if source == DigitsSource.text:
        return DigitsSource()
    if mark and os.sep not in prefix:
        hint = nearest(source, [DigitsSource.text, f"torchvision:{name}"])
        raise UserError("data.source", source, _EXPECTED, hint)
    raise UserError("data.source", source, _EXPECTED, f"There is nothing at {os.path.abspath(path)}.")
