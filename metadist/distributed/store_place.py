"""Where the nodes of a cluster find the job's class store.

It lies on the driver's node. Every other node gets a copy into its own cache, once, through the object store;
the content's sha256 is its name there. Nodes are told apart by Ray's node id and never by what paths they see.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from metadist.config import Job, open_data
from metadist.data import cache_folder, fetched_store, keep_store, read_store

#: bytes of one object: small enough for any object store, large enough to cost no time
PART_BYTES = 64 * 2**20
#: seconds within which one of them must arrive
SEND_SECONDS = 300.0


@dataclass(frozen=True)
class Parcel:
    """A store on its way to another node.

    Attributes:
        manifest: content of its manifest.
        parts: refs of pieces of its pixel file, in order; they belong to the driver.
    """

    manifest: bytes
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class StorePlace:
    """The store of one job, as seen from any node.

    Attributes:
        node: id of the node where it lies, the driver's.
        path: its folder there.
        sha256: of its content.
        cache: the job's `data.cache`.
    """

    node: str
    path: str
    sha256: str
    cache: str | None

    def _found(self) -> Path | None:
        if ray.get_runtime_context().get_node_id() == self.node:
            return Path(self.path)
        return fetched_store(self.sha256, cache_folder(self.cache))

    def is_here(self) -> bool:
        """Whether this process's node has the store."""
        return self._found() is not None

    def here(self) -> Path:
        """The store's folder on this process's node."""
        found = self._found()
        if found is None:
            raise FileNotFoundError(f"the store {self.sha256} was taken away from this node's cache")
        return found

    def pack(self) -> Parcel:
        """On the driver: the store as objects that any node can read."""
        manifest, pixels = read_store(Path(self.path), PART_BYTES)
        return Parcel(manifest, tuple(ray.put(part) for part in pixels))

    def unpack(self, parcel: Parcel) -> None:
        """On any node: put the store into the cache, unless the node has it."""
        if self.is_here():
            return
        pixels = (ray.get(part, timeout=SEND_SECONDS) for part in parcel.parts)
        keep_store(parcel.manifest, pixels, cache_folder(self.cache), f"node {self.node}")


def store_place(job: Job) -> StorePlace | None:
    """Where the job's store is, seen from the driver that opened it; `None` for tasks that need no data."""
    store = open_data(job)
    if store is None:
        return None
    return StorePlace(ray.get_runtime_context().get_node_id(), str(store.path), store.sha256, job.data.cache)
