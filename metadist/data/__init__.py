"""Images for few-shot tasks: sources, the class store, splits of classes, statistics.

`resolve_store(DataConfig(...))` gives a `ClassStore`, `split_classes` its classes for training, validation
and test. Importing this loads neither torch nor an image library.
"""

from metadist.data.cache import find_store, resolve_store
from metadist.data.config import AugmentConfig, DataConfig, SplitConfig
from metadist.data.fetch import fetched_store, keep_store, read_store
from metadist.data.info import describe
from metadist.data.locations import cache_folder
from metadist.data.prepare import prepare
from metadist.data.splits import check_examples, split_classes
from metadist.data.statistics import pixel_statistics
from metadist.data.store import ClassStore, is_store

__all__ = [
    "AugmentConfig",
    "ClassStore",
    "DataConfig",
    "SplitConfig",
    "cache_folder",
    "check_examples",
    "describe",
    "fetched_store",
    "find_store",
    "is_store",
    "keep_store",
    "pixel_statistics",
    "prepare",
    "read_store",
    "resolve_store",
    "split_classes",
]
