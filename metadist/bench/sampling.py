"""What sampling and gathering tasks costs: a chunk's meta-gradient from a store, and from tasks sampled before."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from metadist.bench.cases import IMAGE, JOB_CHUNK, Case, build_learner
from metadist.bench.timing import Rate, alternate, check_rounds, ratio
from metadist.data import ClassStore, DataConfig, SplitConfig
from metadist.data.prepare import prepare_source
from metadist.data.sources.base import Example, Source
from metadist.errors import UserError
from metadist.models import MlpConfig
from metadist.outer import choose_strategy, compute_meta_gradient, torch_generator
from metadist.tasks import ImageTasks, Task, generator
from metadist.training.machine import keep_freed_memory, set_threads

if TYPE_CHECKING:
    from PIL.Image import Image

CPU = torch.device("cpu")

#: classes and images per class of the store: half of Omniglot, larger than a CPU's caches
CLASSES, IMAGES = 800, 20

#: chunks that are sampled before, and gone through in turns
_PRESAMPLED = 8


class RandomImages(Source):
    """Grey images of random pixels."""

    kind = "random"

    def __init__(self, classes: int, images: int) -> None:
        self.text = self.label = f"random-{classes}x{images}"
        self._classes, self._images = classes, images

    def fingerprint(self) -> str:
        return self.text

    def class_names(self) -> tuple[str, ...]:
        return tuple(str(number) for number in range(self._classes))

    def count(self, name: str) -> int:
        return self._images

    def examples(self, name: str) -> Iterator[Example]:
        pixels = generator("random images", name).integers(0, 256, (self._images, *IMAGE[1:]), dtype=np.uint8)
        for number, image in enumerate(pixels):
            yield Example(f"{name}/{number}", lambda image=image: _picture(image))  # type: ignore[misc]


def _picture(pixels: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(pixels)


@dataclass(frozen=True)
class SamplingResult:
    """Tasks per second with tasks sampled and gathered for every chunk, and with tasks that are there already.

    Attributes:
        chunk: tasks per chunk.
        ratio: the first over the second.
    """

    case: str
    chunk: int
    sampled: Rate
    presampled: Rate
    ratio: float


def measure_sampling(case: Case, seconds: float, repeats: int) -> SamplingResult:
    """Measure one case on a store of random images in a temporary folder, with one thread.

    Raises:
        UserError: the case has no images, or `seconds` or `repeats` is out of range.
    """
    check_rounds(seconds, repeats)
    if isinstance(case.model, MlpConfig):
        raise UserError("--case", case.name, "a case with images", "Take A.")
    set_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="metadist-bench-") as folder:
        source = RandomImages(CLASSES, IMAGES)
        store = prepare_source(source, Path(folder) / "store", size=None, channels=1, invert=False, skip_bad=False)
        return _measure(case, store, seconds, repeats)


def _measure(case: Case, store: ClassStore, seconds: float, repeats: int) -> SamplingResult:
    # As the Omniglot jobs have it: quarter turns make new classes.
    every = SplitConfig(train=["*"], valid=None, test=None)
    distribution = ImageTasks(store, DataConfig(source=str(store.path), rotations="all", split=every))
    distribution.check("train", case.episode)
    learner = build_learner(case)
    meta = learner.init(torch_generator("bench initial", 0))
    strategy = choose_strategy(learner, CPU)[0]

    def sample(chunk: int) -> Task:
        addresses = range(chunk * JOB_CHUNK, (chunk + 1) * JOB_CHUNK)
        return distribution.batch("train", 0, addresses, case.episode, CPU)

    def compute(source: Iterator[Task]) -> Callable[[], object]:
        return lambda: compute_meta_gradient(learner, meta, next(source), strategy)

    ahead = itertools.cycle([sample(chunk) for chunk in range(_PRESAMPLED)])
    runs = {"sampled": compute(map(sample, itertools.count())), "presampled": compute(ahead)}
    rates = alternate(runs, JOB_CHUNK, seconds, repeats, CPU)
    return SamplingResult(
        case=case.name,
        chunk=JOB_CHUNK,
        sampled=Rate.of(rates["sampled"]),
        presampled=Rate.of(rates["presampled"]),
        ratio=ratio(rates["sampled"], rates["presampled"]),
    )
