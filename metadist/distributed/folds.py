"""Cross-validation over classes: each class is a test class once, of a learner that was trained without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from metadist import config
from metadist.config import Job
from metadist.data import ClassStore
from metadist.data.splits import split_classes
from metadist.distributed.run import DataProgress, open_run
from metadist.errors import UserError


def fold_jobs(
    location: str, folds: int, seed: int, overrides: Sequence[str] = (), progress: DataProgress | None = None
) -> list[tuple[str, Job]]:
    """The jobs of a run's folds, each with the name of its run, which lies beside the run's folder.

    The classes of all splits are shuffled by `seed` and dealt to the folds. A fold's classes are the test classes of
    its job; of the others as many as before are for validation, and the rest for training.

    Args:
        overrides: `dotted.key=value` settings of the job.
        progress: told of images that are being prepared (done, of).

    Raises:
        UserError: the run's tasks have no classes to deal, or too few of them; or it started from another run, which
            may have seen any class.
    """
    folder, job, _ = open_run(location)
    content = config.job_dict(job)
    for override in overrides:
        config.set_value(content, override)
    job = config.parse_job(content)
    if job.start is not None:
        hint = "What it started from may have been trained on the test classes of a fold."
        raise UserError("--folds", folds, "a run that began from random weights (without init_from)", hint)
    store = config.open_data(job, progress)
    if store is None:
        raise UserError("--folds", folds, f"a job with image classes; this one's tasks are {job.tasks.kind}")
    splits = split_classes(store.classes, job.data.split)
    classes = sorted(number for numbers in splits.values() for number in numbers)
    if len(classes) < folds:
        raise UserError("--folds", folds, f"at most the {len(classes)} classes of the run's splits")
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(classes)
    storage, name = folder.location.rstrip("/").rpartition("/")[::2]
    suffix = f"of-{folds}" + (f"-seed-{seed}" if seed else "")
    jobs = []
    for fold in range(folds):
        test = {int(number) for number in order[fold::folds]}
        rest = [int(number) for number in order if int(number) not in test]
        valid = len(splits["valid"])
        if len(rest) <= valid:
            raise UserError("--folds", folds, f"more classes: {len(rest)} are left, of which {valid} for validation")
        split = replace(
            job.data.split,
            train=_names(store, rest[valid:]),
            valid=_names(store, rest[:valid]) or None,
            test=_names(store, sorted(test)),
        )
        run = f"{PurePosixPath(name).name}-fold-{fold + 1}-{suffix}"
        jobs.append((run, replace(job, storage=storage or ".", data=replace(job.data, split=split))))
    return jobs


def _names(store: ClassStore, numbers: Sequence[int]) -> list[str | int]:
    return [store.classes[number] for number in numbers]
