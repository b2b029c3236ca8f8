"""Judging a version on a fixed, named set of tasks.

Scores come back per task and are reduced in the order of the tasks in float64, so that a decision taken on
them does not depend on who computed what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from metadist.outer import Strategy
from metadist.tasks import Episode
from metadist.tasks.base import Split
from metadist.training.dispatch import Dispatcher
from metadist.training.judged import JudgedTasks
from metadist.training.seams import Ref
from metadist.training.work import EvaluationWork, Report, TaskScores, Work


@dataclass(frozen=True)
class EvaluationPlan:
    """A fixed set of tasks, and how to adapt to them.

    Attributes:
        split: split that the tasks are drawn from.
        seed: seed of their addresses; the tasks are numbers 0 to `tasks` − 1.
        tasks: number of tasks.
        episode: their size.
        steps: adaptation steps.
        chunk: tasks per piece of work.
        norm: the model's normalisation, stated with every result because it changes what accuracy means.
    """

    split: Split
    seed: int
    tasks: int
    episode: Episode
    steps: int
    chunk: int
    norm: str

    @property
    def name(self) -> str:
        """Names the set: equal names are equal tasks of equal data."""
        e = self.episode
        return f"{self.split}-{self.tasks}x{e.ways}w{e.shots}s{e.query}q-seed{self.seed}"

    def works(
        self, strategy: Strategy, scratch: bool, last_only: bool = False, part: str | None = None
    ) -> list[EvaluationWork]:
        """The pieces of work (see `EvaluationWork`)."""
        return [
            EvaluationWork(
                split=self.split,
                seed=self.seed,
                first=first,
                count=min(self.chunk, self.tasks - first),
                episode=self.episode,
                steps=self.steps,
                scratch=scratch,
                strategy=strategy,
                last_only=last_only,
                part=part,
            )
            for first in range(0, self.tasks, self.chunk)
        ]


@dataclass(frozen=True)
class Evaluation:
    """What a set of tasks says about a version.

    Attributes:
        name: of the set of tasks.
        accuracy: mean over tasks of the share of query rows classified correctly after the last step;
            `None` for regression.
        ci95: half the width of the 95 % interval of that mean over tasks (Student's t); for regression, of
            the mean loss.
        loss: mean query loss; mean squared error for regression.
        per_step: accuracy, loss and their intervals after 0, 1, … adaptation steps (see `judged_steps`).
        from_scratch: the same as `accuracy` (`loss` for regression) for a random start on the same tasks.
        precision, recall, f1: macro averages over ways, of all query rows together.
        confusion: query rows by true way (row) and predicted way (column).
        by_sight: of tasks without a support set, the accuracy when a class is seen for the first, the second, … time.
        per_task: correct query rows of each task after the last step; for regression, its loss.
        from_scratch_per_task: the same for the random start.
        beside: of what is beside the learner (`Learner.beside`), judged on the same tasks, by name: accuracy, ci95 and
            loss; and the learner's accuracy (loss for regression) less the part's, paired task by task, as
            difference and difference_ci95.
        figures: means over the tasks of what adapted learners say of themselves (`Learner.figures`).
    """

    name: str
    tasks: int
    ways: int
    shots: int
    query: int
    steps: int
    norm: str
    accuracy: float | None
    ci95: float
    loss: float
    per_step: list[dict[str, float]]
    from_scratch: float | None = None
    from_scratch_ci95: float | None = None
    from_scratch_per_step: list[dict[str, float]] | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    confusion: list[list[int]] | None = None
    by_sight: list[float] | None = None
    per_task: list[float] = field(default_factory=list)
    from_scratch_per_task: list[float] | None = None
    beside: dict[str, dict[str, float | None]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Higher is better: accuracy, or the loss with its sign turned; no number is the worst."""
        score = self.accuracy if self.accuracy is not None else -self.loss
        return -math.inf if math.isnan(score) else score

    def as_dict(self) -> dict[str, Any]:
        """As plain data, without the scores of single tasks (see `metadist.training.comparison`)."""
        return {key: value for key, value in asdict(self).items() if not key.endswith("per_task")}


def evaluate(
    dispatcher: Dispatcher,
    plan: EvaluationPlan,
    strategy: Strategy,
    version: Ref,
    with_scratch: bool = False,
    with_classes: bool = False,
    last_only: bool = False,
    beside: Iterable[str] = (),
    progress: Callable[[float], None] = lambda share: None,
    judged: JudgedTasks | None = None,
) -> Evaluation:
    """Judge a published version on the plan's tasks, spread over the workers.

    Args:
        with_scratch: also judge a random start on the same tasks.
        with_classes: also report precision, recall, F1 and confusion.
        last_only: judge after the last step only, which is cheaper.
        beside: names of what is beside the learner and also judged on the same tasks.
        progress: told which share of the tasks is judged, those of a random start included.
        judged: where scores are kept; those that are there are not judged again.
    """
    rounds = 1 + with_scratch
    works = plan.works(strategy, False, last_only)
    scores = _scores(dispatcher, works, version, judged, lambda share: progress(share / rounds))
    classifies = bool(scores.predictions.size)
    curve = _curve(scores, classifies)
    last = curve[-1]
    extra: dict[str, Any] = {}
    if with_scratch:
        works = plan.works(strategy, True, last_only)
        scratch_scores = _scores(dispatcher, works, version, judged, lambda share: progress((1 + share) / rounds))
        scratch = _curve(scratch_scores, classifies)
        measure = "accuracy" if classifies else "loss"
        extra = {
            "from_scratch": scratch[-1][measure],
            "from_scratch_ci95": scratch[-1][f"{measure}_ci95"],
            "from_scratch_per_step": scratch,
            "from_scratch_per_task": _last(scratch_scores, classifies),
        }
    if with_classes and classifies:
        extra |= _classes(scores, plan.episode.ways)
    if classifies and not plan.episode.shots:
        extra["by_sight"] = _by_sight(scores, plan.episode.query)
    return Evaluation(
        name=plan.name,
        tasks=plan.tasks,
        ways=plan.episode.ways,
        shots=plan.episode.shots,
        query=plan.episode.query,
        steps=plan.steps,
        norm=plan.norm,
        accuracy=last["accuracy"] if classifies else None,
        ci95=last["accuracy_ci95"] if classifies else last["loss_ci95"],
        loss=last["loss"],
        per_step=curve,
        per_task=_last(scores, classifies),
        beside={
            part: _beside(scores, _scores(dispatcher, plan.works(strategy, False, True, part), version, judged))
            for part in beside
        },
        figures={name: float(np.mean(values)) for name, values in scores.figures.items()},
        **extra,
    )


def _beside(learner: TaskScores, part: TaskScores) -> dict[str, float | None]:
    """What is beside a learner, both judged after their last step."""
    classifies = bool(part.predictions.size)
    (last,) = _curve(part, classifies)
    rows = part.labels.shape[1] if classifies else 1
    apart = paired(*(np.divide(_last(scores, classifies), rows) for scores in (learner, part)))
    return {
        "accuracy": last.get("accuracy"),
        "ci95": last["accuracy_ci95" if classifies else "loss_ci95"],
        "loss": last["loss"],
        "difference": apart.mean,
        "difference_ci95": apart.ci95,
    }


def _scores(
    dispatcher: Dispatcher,
    works: Sequence[EvaluationWork],
    version: Ref,
    judged: JudgedTasks | None,
    progress: Callable[[float], None] = lambda share: None,
) -> TaskScores:
    known: dict[Work, TaskScores] = {work: found for work in works if judged and (found := judged.find(work))}
    left = [work for work in works if work not in known]

    def done(work: Work, report: Report) -> None:
        assert isinstance(work, EvaluationWork)
        assert isinstance(report, TaskScores)
        known[work] = report
        progress(len(known) / len(works))
        if judged:
            judged.keep(work, report)

    dispatcher.run_all(left, version, done)
    parts = [known[work] for work in works]
    return TaskScores(
        parts[0].steps,
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("losses", "correct", "predictions", "labels")
        ),
        figures={name: np.concatenate([part.figures[name] for part in parts]) for name in parts[0].figures},
    )


def _last(scores: TaskScores, classifies: bool) -> list[float]:
    """Correct query rows of each task after the last step, or its loss."""
    values: list[float] = (scores.correct if classifies else scores.losses)[:, -1].tolist()
    return values


def _curve(scores: TaskScores, classifies: bool) -> list[dict[str, float]]:
    curve = []
    for column, step in enumerate(scores.steps):
        loss, loss_ci95 = mean_and_ci95(scores.losses[:, column])
        point = {"step": float(step), "loss": loss, "loss_ci95": loss_ci95}
        if classifies:
            rows = scores.labels.shape[1]
            accuracy, accuracy_ci95 = mean_and_ci95(scores.correct[:, column] / rows)
            point |= {"accuracy": accuracy, "accuracy_ci95": accuracy_ci95}
        curve.append(point)
    return curve


@dataclass(frozen=True)
class Difference:
    """The mean over tasks of a paired difference, with half the width of its 95 % interval (Student's t)."""

    mean: float
    ci95: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return abs(self.mean) > self.ci95


def paired(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """The mean of `ours` − `theirs` over tasks; both [tasks], in the same order."""
    return Difference(*mean_and_ci95(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)))


def mean_and_ci95(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; 0 for fewer than two values."""
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, 0.0
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return mean, float(half)


def _by_sight(scores: TaskScores, sights: int) -> list[float]:
    same = scores.labels[:, :, None] == scores.labels[:, None, :]  # [tasks, rows, rows]
    before = np.tril(same, -1).sum(-1)
    correct = scores.predictions == scores.labels
    return [float(correct[before == sight].mean()) for sight in range(sights)]


def _classes(scores: TaskScores, ways: int) -> dict[str, Any]:
    from sklearn import metrics

    labels, predictions = scores.labels.ravel(), scores.predictions.ravel()
    every = list(range(ways))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predictions, labels=every, average="macro", zero_division=0
    )
    confusion: Sequence[Sequence[int]] = metrics.confusion_matrix(labels, predictions, labels=every).tolist()
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "confusion": confusion}
