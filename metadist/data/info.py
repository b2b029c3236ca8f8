"""A store in a few numbers, for people."""

from __future__ import annotations

import numpy as np

from metadist.data.manifest import MANIFEST_NAME, PIXELS_NAME
from metadist.data.store import ClassStore


def describe(store: ClassStore) -> dict[str, object]:
    """What `metadist data info` shows: plain values only, so that it prints as JSON.

    `classes` is their number; `examples` has total, min, median and max per class; `shape` is
    [channels, height, width] in pixels; `bytes` is the size of both files.
    """
    counts = store.counts()
    return {
        "path": str(store.path),
        "source": store.manifest["source"],
        "options": store.manifest["options"],
        "classes": len(store.classes),
        "examples": {
            "total": int(counts.sum()),
            "min": int(counts.min()),
            "median": float(np.median(counts)),
            "max": int(counts.max()),
        },
        "skipped": store.manifest["skipped"],
        "shape": list(store.shape),
        "dtype": store.manifest["dtype"],
        "sha256": store.sha256,
        "bytes": sum((store.path / name).stat().st_size for name in (MANIFEST_NAME, PIXELS_NAME)),
    }
