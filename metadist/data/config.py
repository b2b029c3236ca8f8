"""The settings of the data: where the images come from, how they are prepared, how the classes are split.

Plain frozen dataclasses: they hold values and check nothing. Types are checked where a job is read, meanings
where a value is used (`prepare`, `resolve_store`, `split_classes`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SplitConfig:
    """Which classes are for training, for validation and for the final test.

    Each split is a count (`64`), a share in (0, 1] of the classes that no list names (`0.6`), or a list of
    class names and patterns (`["images_background/*"]`).
    """

    #: Training classes: a whole number is that many classes, a number in (0, 1] with a decimal point is that
    #: share, a list names the classes or gives patterns for them (`*`, `?`, `[…]`; `*` also crosses `/`).
    #: Null for none, for a job that only evaluates.
    train: int | float | list[str | int] | None = 0.6
    #: Validation classes, as for `train`; null for none.
    valid: int | float | list[str | int] | None = 0.15
    #: Test classes, as for `train`; null for none.
    test: int | float | list[str | int] | None = 0.25
    #: Shuffles the classes before counts and shares are dealt; the same seed always deals the same classes.
    seed: int = 0


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes made to the images of a training task."""

    #: Mirror an image left to right, one time in two.
    flip: bool = False
    #: Pad by so many pixels on each side and cut the original size out at a random place; 0 for none.
    crop: int = 0
    #: Standard deviation of Gaussian noise that is added, in units of the pixel range 0..1; 0 for none.
    noise: float = 0.0
    #: The part of a task that is changed.
    sets: Literal["support", "query", "both"] = "support"


@dataclass(frozen=True)
class DataConfig:
    """The images of a job."""

    #: A store or its URI, a folder of class folders, a zip of one, `torchvision:NAME` or `sklearn:digits`.
    source: str = "sklearn:digits"
    #: Side in pixels to which images are resized (square); null keeps their size.
    size: int | None = None
    #: 1 for grey, 3 for colour; null keeps what the source has (3 as soon as one image has colour).
    channels: Literal[1, 3] | None = None
    #: Swap dark and light when preparing (pixel p becomes 255 - p).
    invert: bool = False
    #: Make new classes by turning images by 90°, 180° and 270°: of no class, the training classes, or all.
    rotations: Literal["none", "train", "all"] = "none"
    #: Which classes are for training, validation and test.
    split: SplitConfig = field(default_factory=SplitConfig)
    #: Shift and scale each channel's pixels to mean 0, standard deviation 1 over the training classes.
    standardize: bool = False
    #: Random changes made to the images of a training task.
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    #: Leave out images that cannot be decoded instead of stopping at the first.
    skip_bad: bool = False
    #: Folder of prepared stores; null for METADIST_CACHE, XDG_CACHE_HOME/metadist or ~/.cache/metadist.
    cache: str | None = None
