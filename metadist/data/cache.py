"""From a job's data settings to an opened store, preparing or fetching it once per machine."""

from __future__ import annotations

import hashlib
import json
import re

from metadist.data.atomic import remove_partials
from metadist.data.config import DataConfig
from metadist.data.fetch import fetch_store, find_fetched
from metadist.data.locations import cache_folder, download_folder
from metadist.data.locks import file_lock
from metadist.data.manifest import VERSION
from metadist.data.prepare import Progress, check_options, prepare_source
from metadist.data.sources import Source, is_uri, open_source
from metadist.data.store import ClassStore, is_store
from metadist.errors import UserError


def resolve_store(config: DataConfig, progress: Progress | None = None) -> ClassStore:
    """The store of `data.source`.

    A store is opened where it lies, the store of a URI is fetched into the cache, and anything else is
    prepared into the cache. Each happens once per machine: processes that ask at the same time wait for one
    of them, and the next job finds it there, until the source's listing, sizes or times change.

    Args:
        config: the job's `data`.
        progress: called while images are prepared, with (images done, images in all).

    Raises:
        UserError: the source, an image, the options or the cache is not as it must be.
    """
    check_options(config.size, config.channels)
    if config.source and is_store(config.source):
        store = ClassStore.open(config.source)
        _check_agreement(store, config)
        return store
    cache = cache_folder(config.cache)
    if is_uri(config.source):
        store = fetch_store(config.source, cache)
        _check_agreement(store, config)
        return store
    with open_source(config.source, download_folder(cache)) as source:
        target = cache / store_name(source, config)
        # A store appears by a rename, whole: one that is there needs no lock.
        if is_store(target):
            return ClassStore.open(target)
        with file_lock(cache / f".{target.name}.lock", "data.cache"):
            if is_store(target):
                return ClassStore.open(target)
            remove_partials(target)
            return prepare_source(
                source,
                target,
                size=config.size,
                channels=config.channels,
                invert=config.invert,
                skip_bad=config.skip_bad,
                progress=progress,
            )


def find_store(config: DataConfig) -> ClassStore | None:
    """The store that `resolve_store` would return, if it is there: nothing is prepared, fetched or written.

    Raises:
        UserError: as `resolve_store`, as far as that can be told without preparing.
    """
    check_options(config.size, config.channels)
    if config.source and is_store(config.source):
        store: ClassStore | None = ClassStore.open(config.source)
    elif is_uri(config.source):
        store = find_fetched(config.source, cache_folder(config.cache))
    else:
        cache = cache_folder(config.cache)
        with open_source(config.source, download_folder(cache)) as source:
            target = cache / store_name(source, config)
        return ClassStore.open(target) if is_store(target) else None
    if store is not None:
        _check_agreement(store, config)
    return store


def store_name(source: Source, config: DataConfig) -> str:
    """Name of a prepared store: the source's name, for people, and a hash of all that shapes the store."""
    key = json.dumps(
        {
            "version": VERSION,
            "kind": source.kind,
            "fingerprint": source.fingerprint(),
            "size": config.size,
            "channels": config.channels,
            "invert": config.invert,
            "skip_bad": config.skip_bad,
        },
        sort_keys=True,
    )
    label = re.sub(r"[^A-Za-z0-9_-]+", "-", source.label)[:40]
    return f"{label}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _check_agreement(store: ClassStore, config: DataConfig) -> None:
    """Raise UserError if a setting asks for other images than the store has; none asks for nothing."""
    where = str(store.path)
    hint = "Leave the setting out, or prepare the store again with it."
    channels, height, width = store.shape
    if config.size is not None and (height, width) != (config.size, config.size):
        raise UserError("data.size", config.size, f"{width}×{height}, as in the store {where}", hint)
    if config.channels is not None and channels != config.channels:
        raise UserError("data.channels", config.channels, f"{channels}, as in the store {where}", hint)
    if config.invert and not store.manifest["options"].get("invert", False):
        raise UserError("data.invert", True, f"false, as in the store {where}", hint)
