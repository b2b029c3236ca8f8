"""What a sweep varies: fields of the job by dotted path, each with values to draw from. No Ray."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from metadist.config import PLACEMENT, Job, TuneConfig, build_experiment, job_dict, parse_job
from metadist.errors import UserError, nearest

Kind = Literal["uniform", "loguniform", "integers", "logintegers", "choice", "grid"]
RANGES = ("uniform", "loguniform", "integers", "logintegers")
KINDS = (*RANGES, "choice", "grid")

#: what is swept when the job says nothing: the rates of the inner and of the outer loop, together
DEFAULT = {"learner.inner_lr": {"loguniform": [0.001, 1.0]}, "optimizer.lr": {"loguniform": [1e-5, 1e-1]}}

#: significant digits of a drawn number: what a table shows is what was run
DIGITS = 4

Values = dict[str, Any]


@dataclass(frozen=True)
class Dimension:
    """One field and the values it may take.

    Attributes:
        path: of the field in the job.
        values: lower and upper bound (both may be drawn), or the values to choose from.
    """

    path: str
    kind: Kind
    values: tuple[Any, ...]

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers between bounds."""
        return self.kind in ("integers", "logintegers")

    @property
    def log(self) -> bool:
        """Whether each power of ten is as likely as the next."""
        return self.kind in ("loguniform", "logintegers")

    @property
    def extremes(self) -> list[Any]:
        """Both bounds, of the type that is drawn, or every value."""
        drawn_as = float if self.kind in ("uniform", "loguniform") else lambda value: value
        return [drawn_as(value) for value in self.values]

    def draw(self, rng: np.random.Generator) -> Any:
        """One value."""
        if self.kind not in RANGES:
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "integers":
            return int(rng.integers(low, high + 1))
        if self.kind == "logintegers":
            # Every whole number stands for the interval around it.
            return min(high, max(low, round(math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5))))))
        if self.kind == "loguniform":
            return self.tidy(math.exp(rng.uniform(math.log(low), math.log(high))))
        return self.tidy(rng.uniform(low, high))

    def tidy(self, value: float) -> float:
        """A number between the bounds with few digits."""
        low, high = self.values
        return min(float(high), max(float(low), float(f"{value:.{DIGITS}g}")))


def read_space(job: Job) -> list[Dimension]:
    """The dimensions of the job's sweep.

    Raises:
        UserError: `tune.space` is not of the form that a space has.
    """
    if job.tune.space is not None and not job.tune.space:
        raise UserError("tune.space", {}, "at least one field to sweep", "Leave it out to sweep the learning rates.")
    content = job.tune.space
    if content is None:
        # Not every learner has an inner rate.
        content = {path: spec for path, spec in DEFAULT.items() if _found(job_dict(job), path) is not None}
    dimensions = [_dimension(path, kind, values) for path, kind, values in _entries(content, "", job_dict(job))]
    paths = [dimension.path for dimension in dimensions]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"tune.space.{path}", "twice", "each field once")
        _check_path(path)
    if job.tune.search == "optuna":
        for dimension in dimensions:
            if dimension.kind == "grid":
                raise UserError(f"tune.space.{dimension.path}", "grid", "choice", "A grid goes with search: random.")
    return dimensions


def _found(content: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(content, Mapping) or part not in content:
            return None
        content = content[part]
    return content


def _entries(content: Mapping[str, Any], above: str, job: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(path, kind, values) of every field; a path may be written with dots or as sections within sections."""
    for key, value in content.items():
        path = f"{above}{key}"
        if not isinstance(value, Mapping) or not value:
            raise UserError(f"tune.space.{path}", value, f"one of {', '.join(KINDS)} with its values", _example(path))
        if len(value) == 1 and next(iter(value)) in KINDS:
            kind = next(iter(value))
            yield path, kind, value[kind]
        elif isinstance(_found(job, path), Mapping):
            yield from _entries(value, f"{path}.", job)
        else:
            name = str(next(iter(value)))
            hint = nearest(name, KINDS) if len(value) == 1 else ""
            raise UserError(f"tune.space.{path}", dict(value), f"one of {', '.join(KINDS)}", hint or _example(path))


def _example(path: str) -> str:
    return f"For example {path}: {{loguniform: [0.001, 1.0]}}"


def _dimension(path: str, kind: str, values: Any) -> Dimension:
    place = f"tune.space.{path}.{kind}"
    if not isinstance(values, list):
        raise UserError(place, values, "a list of values" if kind not in RANGES else "a list of two bounds")
    if kind not in RANGES:
        if not values or any(values.count(value) > 1 for value in values):
            raise UserError(place, values, "at least one value, each once")
        return Dimension(path, kind, tuple(values))  # type: ignore[arg-type]
    numbers = len(values) == 2 and all(_is_number(value, kind) for value in values)
    if not numbers or not values[0] < values[1]:
        what = "whole numbers" if kind in ("integers", "logintegers") else "numbers"
        raise UserError(place, values, f"two {what}, the lower bound first", "Both bounds may be drawn.")
    if kind.startswith("log") and not values[0] > 0:
        raise UserError(place, values, "bounds above 0", "A logarithmic range has no zero.")
    return Dimension(path, kind, tuple(values))  # type: ignore[arg-type]


def _is_number(value: Any, kind: str) -> bool:
    if isinstance(value, float):
        return kind not in ("integers", "logintegers") and math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _check_path(path: str) -> None:
    section = path.partition(".")[0]
    if section in PLACEMENT:
        raise UserError(
            f"tune.space.{path}",
            path,
            "a field that changes what a run computes",
            f"{', '.join(PLACEMENT)} never do; a trial's own resources stand in tune.resources.",
        )


def trial_job(job: Job, values: Values) -> Job:
    """The job of a trial: the sweep's own with these values and the trial's resources, and without `tune`.

    Raises:
        UserError: a job cannot have such a value; names it by the job's field.
    """
    content = job_dict(job)
    content.pop("tune", None)
    content["resources"] |= job.tune.resources
    for path, value in values.items():
        _put(content, path, value)
    return parse_job(content)


def _put(content: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place = content
    for parent in parents:
        if isinstance(place, list) and parent.isdigit() and int(parent) < len(place):
            place = place[int(parent)]
        elif isinstance(place, dict) and isinstance(place.get(parent), dict | list):
            place = place[parent]
        else:
            names = place if isinstance(place, dict) else ()
            raise UserError(path, parent, "a section of the job", nearest(parent, map(str, names)))
    if not isinstance(place, dict):
        raise UserError(path, last, "a field of a section")
    place[last] = value


def draw_trials(job: Job, space: Sequence[Dimension]) -> list[Values]:
    """The values of every trial of a random search, the initial ones first.

    Trial *n* is a function of the seed, of *n* and of the space: more samples keep the earlier ones.
    """
    grid = [dimension for dimension in space if dimension.kind == "grid"]
    points = list(itertools.product(*(dimension.values for dimension in grid)))
    samples = job.tune.num_samples if len(grid) < len(space) else 1
    drawn = []
    for sample in range(samples):
        for number, point in enumerate(points):
            rng = np.random.default_rng([job.seed, sample, number])
            chosen = dict(zip((dimension.path for dimension in grid), point, strict=True))
            drawn.append({d.path: chosen[d.path] if d.path in chosen else d.draw(rng) for d in space})
    return [*initial_trials(job, space), *drawn]


def initial_trials(job: Job, space: Sequence[Dimension]) -> list[Values]:
    """The trials that `tune.initial` asks for; what it leaves out is as in the job."""
    paths = [dimension.path for dimension in space]
    trials = []
    for number, given in enumerate(job.tune.initial):
        for path in given:
            if path not in paths:
                hint = nearest(str(path), paths)
                raise UserError(f"tune.initial.{number}", path, f"fields of the space: {', '.join(paths)}", hint)
        trials.append({path: given[path] if path in given else _get(job, path) for path in paths})
    return trials


def _get(job: Job, path: str) -> Any:
    value: Any = job_dict(job)
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def check_space(job: Job, space: Sequence[Dimension]) -> None:
    """Hold every extreme of the space, and every initial trial, against the job and its data.

    Raises:
        UserError: names the dimension or the initial trial, and what the job says about it.
    """
    own = replace(job, tune=replace(job.tune, resources={}))
    build_experiment(trial_job(own, {}), "check")
    _try(job, {}, "tune.resources", job.tune.resources)
    for dimension in space:
        for value in dimension.extremes:
            _try(job, {dimension.path: value}, f"tune.space.{dimension.path}", value)
    for number, values in enumerate(initial_trials(job, space)):
        _try(job, values, f"tune.initial.{number}", values)


def _try(job: Job, values: Values, place: str, value: Any) -> None:
    try:
        build_experiment(trial_job(job, values), "check")
    except UserError as error:
        said = "" if error.field in values else f" ({error.field} would be {error.value!r})"
        raise UserError(place, value, f"{error.expected}{said}", error.hint) from error


def metric_of(config: TuneConfig, classifies: bool) -> tuple[str, str]:
    """Key of the metric that trials are judged by, and `max` or `min`.

    Raises:
        UserError: regression has no such figure.
    """
    metric = config.metric or ("accuracy" if classifies else "loss")
    if metric != "loss" and not classifies:
        raise UserError("tune.metric", metric, "loss: tasks of regression have no other figure")
    return f"valid/{metric}", config.mode or ("min" if metric == "loss" else "max")
