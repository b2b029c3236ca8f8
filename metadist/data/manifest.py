"""The manifest of a class store: what `manifest.json` must say, and the hash of a store's content."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, TypeGuard

from metadist.errors import UserError
from metadist.reading import parse_json

FORMAT = "metadist-class-store"
VERSION = 1
DTYPE = "uint8"
MANIFEST_NAME = "manifest.json"
PIXELS_NAME = "pixels.arrow"

_REMAKE = "Delete that store and prepare or fetch it again."


def content_sha256(classes: Sequence[str], offsets: Sequence[int], shape: Sequence[int], pixels_sha256: str) -> str:
    """Hex SHA-256 of a store's content: the names, offsets and shape, and the SHA-256 of the pixels' bytes.

    The pixels enter by their own hash, so that they can be hashed while they are written, before it is known
    which classes and rows remain.
    """
    head = {
        "classes": list(classes),
        "offsets": [int(offset) for offset in offsets],
        "shape": [int(side) for side in shape],
        "dtype": DTYPE,
        "pixels_sha256": pixels_sha256,
    }
    return hashlib.sha256(json.dumps(head, separators=(",", ":")).encode()).hexdigest()


def build_manifest(
    *,
    classes: Sequence[str],
    offsets: Sequence[int],
    shape: Sequence[int],
    pixels_sha256: str,
    source: str,
    options: dict[str, Any],
    skipped: int,
) -> dict[str, Any]:
    """The manifest of a store with this content. `source` is text for people; `skipped` counts bad images."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": source,
        "options": options,
        "skipped": skipped,
        "dtype": DTYPE,
        "shape": list(shape),
        "sha256": content_sha256(classes, offsets, shape, pixels_sha256),
        "classes": list(classes),
        "offsets": list(offsets),
    }


def parse_manifest(text: bytes, where: str) -> dict[str, Any]:
    """Read and check a manifest.

    Args:
        text: the bytes of `manifest.json`.
        where: the file's path or URI, for messages.

    Raises:
        UserError: not JSON, another format, a newer version, or fields that contradict each other.
    """
    try:
        manifest = parse_json(text)
    except ValueError as error:
        raise UserError(where, _excerpt(text), f"JSON ({error})", _REMAKE) from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or found != FORMAT:
        raise UserError(where, found, f"the format {FORMAT!r}", "This folder was not made by `metadist data prepare`.")
    version = manifest.get("version")
    if not _whole(version) or version < 1:
        raise UserError(where, version, "a version of the format, a whole number of at least 1", _REMAKE)
    if version > VERSION:
        raise UserError(
            where,
            version,
            f"a store of version {VERSION} or older",
            "A newer metadist made it: upgrade this one, or prepare the store again.",
        )
    _check_fields(manifest, where)
    return manifest


def _check_fields(manifest: dict[str, Any], where: str) -> None:
    if manifest.get("dtype") != DTYPE:
        raise UserError(where, manifest.get("dtype"), f"the dtype {DTYPE!r}", _REMAKE)
    shape = manifest.get("shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(_whole(side) and side > 0 for side in shape):
        raise UserError(where, shape, "a shape [channels, height, width] of whole numbers", _REMAKE)
    classes = manifest.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(where, _short(classes), "classes: a list of names, at least one", _REMAKE)
    if len(set(classes)) != len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise UserError(where, twice, "classes with different names", _REMAKE)
    offsets = manifest.get("offsets")
    if not isinstance(offsets, list) or not all(_whole(offset) for offset in offsets):
        raise UserError(where, _short(offsets), "offsets: a list of whole numbers", _REMAKE)
    if len(offsets) != len(classes) + 1:
        expected = f"{len(classes) + 1} offsets for {len(classes)} classes"
        raise UserError(where, f"{len(offsets)} offsets", expected, _REMAKE)
    if offsets[0] != 0 or any(b <= a for a, b in itertools.pairwise(offsets)):
        raise UserError(where, _short(offsets), "offsets that start at 0 and increase", _REMAKE)
    # The hash becomes part of a path in the cache, so nothing but hex digits may pass.
    sha256 = manifest.get("sha256")
    if not isinstance(sha256, str) or re.fullmatch(r"[0-9a-f]{64}", sha256) is None:
        raise UserError(where, sha256, "sha256: 64 hexadecimal digits", _REMAKE)
    for name, kind in (("options", dict), ("source", str), ("skipped", int)):
        if not isinstance(manifest.get(name), kind):
            raise UserError(where, manifest.get(name), f"{name}: a JSON {kind.__name__}", _REMAKE)


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _short(value: object) -> object:
    """The beginning of a long list: a message must not print ten thousand offsets."""
    return [*value[:5], "…"] if isinstance(value, list) and len(value) > 5 else value


def _excerpt(text: bytes) -> str:
    return text[:40].decode(errors="replace") + ("…" if len(text) > 40 else "")
