"""The summary of one run of a row: what the table needs of it, small enough to be committed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import metadist
from metadist.config import Job, parse_job
from metadist.errors import UserError
from metadist.paper.rows import Row
from metadist.reading import MOST_JSON, parse_json, read_bounded
from metadist.reading_yaml import MOST_YAML, parse_yaml
from metadist.training.comparison import TaskSet, parse_scores
from metadist.training.run_folder import RunFolder

#: significant digits of a task's loss
_DIGITS = 4


@dataclass(frozen=True)
class PretrainingSummary:
    """A pre-training, which runs may share.

    Attributes:
        identity_sha256: of everything that its result is a function of, the number of workers included.
        step: steps taken; `tested_step`: after which of them the parameters were taken.
        images: trained on, each as often as it was seen.
        train_seconds: spent in training steps.
    """

    identity_sha256: str
    params_sha256: str
    workers: int
    classes: int
    epoch: int
    step: int
    tested_step: int
    images: int
    train_seconds: float


@dataclass(frozen=True)
class RunSummary:
    """One run of a row.

    Attributes:
        job_sha256: of the row's job file, see `content_sha256`.
        identity_sha256: of everything that the result is a function of, seed and content of the data included.
        params_sha256: of the meta-parameters at the end.
        software, machine: versions, and what else the bits depend on.
        step: outer steps taken; `tested_step`, `tested_as`: which version was tested, and why that one.
        training_tasks: tasks trained on.
        train_seconds: spent in training steps.
        compute_seconds: processor time of the meta-gradients, of all workers together.
        episode: ways, shots and query of a training task.
        inner_steps: adaptation steps in training; `None` for learners that take none.
        figures: of the final evaluation: precision, recall and F1 for classification, and for sequences the accuracy at
            the first, the second, … sight of a class.
        tests: scores of single tasks, by the setting's `queries`.
        pretraining: of the pre-training that it started from, if any.
        beside: size, speed and score of the learner's parts, and size and speed of its own, by name.
        said: means over the tasks of what adapted learners say of themselves.
    """

    row: str
    seed: int
    job_sha256: str
    identity_sha256: str
    params_sha256: str
    software: dict[str, str]
    machine: dict[str, str]
    strategy: str
    workers: int
    step: int
    tested_step: int
    tested_as: str
    training_tasks: int
    train_seconds: float
    compute_seconds: float
    episode: dict[str, int]
    inner_steps: int | None
    figures: dict[str, float]
    tests: list[TaskSet]
    pretraining: PretrainingSummary | None = None
    beside: dict[str, dict[str, float | None]] = field(default_factory=dict)
    said: dict[str, float] = field(default_factory=dict)

    def test(self, query: int) -> TaskSet | None:
        """The scores at so many query examples per class."""
        return next((one for one in self.tests if one.protocol["query"] == query), None)

    def dump(self) -> str:
        """As JSON, a line for each key and each set of tasks."""
        content = asdict(self)
        tests = ",\n  ".join(json.dumps(_short(one).as_dict()) for one in self.tests)
        lines = [f'"{key}": {json.dumps(value)}' for key, value in content.items() if key != "tests"]
        return "{\n" + ",\n".join([*lines, f'"tests": [\n  {tests}\n]']) + "\n}\n"


def _short(one: TaskSet) -> TaskSet:
    """Losses with so many digits as a comparison needs; counts are whole numbers already."""
    if one.rows:
        return one
    scores, scratch = ([float(f"{v:.{_DIGITS}g}") for v in values] for values in (one.scores, one.from_scratch))
    return replace(one, scores=scores, from_scratch=scratch)


def summarize(
    row: Row,
    seed: int,
    folder: RunFolder,
    pretrained: RunFolder | None,
    figures: Mapping[str, Any],
    tests: list[TaskSet],
) -> RunSummary:
    """The summary of a finished run.

    Args:
        folder: the run's.
        pretrained: the pre-training's that it started from.
        figures: its final evaluation, or the one that the row is about.
    """
    job = _job(folder)
    about, summary = folder.read_json("run.json"), folder.read_json("summary.json")
    episode = job.tasks.training_episode()
    machine = dict(about["fingerprint"])
    software = {name: machine.pop(name) for name in ("python", "torch", "numpy")}
    return RunSummary(
        row=row.id,
        seed=seed,
        job_sha256=row.job_sha256(),
        identity_sha256=summary["identity_sha256"],
        params_sha256=summary["params_sha256"],
        software={"metadist": metadist.__version__} | software,
        machine=machine,
        strategy=summary["strategy"],
        workers=job.resources.most if job.runtime == "ray" else 1,
        step=summary["step"],
        tested_step=summary["tested_step"],
        tested_as=summary["tested_as"],
        training_tasks=summary["step"] * job.tasks.batch,
        train_seconds=summary["train_seconds"],
        compute_seconds=summary["compute_seconds"],
        episode={"ways": episode.ways, "shots": episode.shots, "query": episode.query},
        inner_steps=getattr(job.predictor, "inner_steps", None),
        figures={name: figures[name] for name in ("precision", "recall", "f1") if figures[name] is not None}
        | {f"sight {sight}": value for sight, value in enumerate(figures.get("by_sight") or [], 1)},
        tests=tests,
        pretraining=None if pretrained is None else _summarize_pretraining(pretrained),
        beside={name: cost | figures["beside"].get(name, {}) for name, cost in summary.get("costs", {}).items()},
        said=figures["figures"],
    )


def _summarize_pretraining(folder: RunFolder) -> PretrainingSummary:
    summary = folder.read_json("summary.json")
    known = {name: summary[name] for name in PretrainingSummary.__dataclass_fields__ if name in summary}
    return PretrainingSummary(**known, images=summary["step"] * _job(folder).pretrain.batch)


def _job(folder: RunFolder) -> Job:
    return parse_job(parse_yaml(folder.read("job.yaml", MOST_YAML), f"{folder.location}/job.yaml"))


def read_summary(path: Path) -> RunSummary:
    """A summary that was written before.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        content = parse_json(read_bounded(path, MOST_JSON))
        tests = parse_scores(content, str(path))
        if (before := content.get("pretraining")) is not None:
            content["pretraining"] = PretrainingSummary(**before)
        return RunSummary(**(content | {"tests": tests}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) else "something else"
        raise UserError(str(path), reason, "a summary as `metadist reproduce` writes it", "Remove it.") from error
