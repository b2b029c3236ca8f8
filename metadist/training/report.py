"""The pictures and the page at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metadist.learners import Meta
from metadist.outer import Experiment
from metadist.tasks import Episode, Examples, Task, take
from metadist.tracking import MetricsFile, plots
from metadist.training.cost import OWN
from metadist.training.evaluation import Difference, Evaluation

CPU = torch.device("cpu")


def draw_plots(
    experiment: Experiment,
    meta: Meta,
    metrics: Path,
    tests: Mapping[str, Evaluation],
    episode: Episode,
    target: Path,
) -> list[Path]:
    """Draw a run's pictures into the folder `target`; returns their paths.

    Args:
        meta: the version that was tested.
        episode: size of an evaluation task.
    """
    curves = target / "training.png"
    plots.training_curves(MetricsFile.read(str(metrics)), curves)
    drawn = [curves]
    if tests:
        drawn.append(_by_step(next(iter(tests.values())), target / "accuracy-by-step.png"))
    sheet = target / "tasks.png"
    indices = range(4)
    if not experiment.distribution.classifies:
        plots.regression_sheet([_regression(experiment, meta, index, episode) for index in indices], sheet)
        drawn.append(sheet)
    elif len(experiment.distribution.input_shape) == 3 and experiment.episode.shots:
        batch = experiment.distribution.batch("train", experiment.seed, indices, experiment.episode, CPU)
        plots.task_sheet(_images(batch.support), _images(batch.query), sheet)
        drawn.append(sheet)
    return drawn


def _by_step(test: Evaluation, path: Path) -> Path:
    classifies = test.accuracy is not None
    measure, factor = ("accuracy", 100.0) if classifies else ("loss", 1.0)

    def curve(points: Sequence[Mapping[str, float]]) -> list[tuple[float, float, float]]:
        return [(p["step"], p[measure] * factor, p[f"{measure}_ci95"] * factor) for p in points]

    curves = {"meta-learned": curve(test.per_step)}
    if test.from_scratch_per_step:
        curves["random start"] = curve(test.from_scratch_per_step)
    plots.accuracy_by_step(curves, path, "query accuracy (%)" if classifies else "mean squared error")
    return path


def _images(part: Examples) -> np.ndarray:
    """Rows that go shot by shot, as [tasks, ways, shots, channels, height, width] in 0…1."""
    tasks, rows, *shape = part.x.shape
    images = part.x.reshape(tasks, rows // part.ways, part.ways, *shape).transpose(1, 2).numpy()
    low, high = images.min(), images.max()
    scaled: np.ndarray = (images - low) / max(high - low, 1e-6)
    return scaled


def _regression(experiment: Experiment, meta: Meta, index: int, episode: Episode) -> plots.RegressionTask:
    wide = Episode(episode.ways, episode.shots, 200)
    task: Task = take(experiment.distribution.batch("test", 0, [index], wide, CPU), 0)
    order = task.query.x[:, 0].argsort()
    x = task.query.x[order]
    learner = experiment.learner.with_frozen(meta.frozen)
    steps = list(learner.adaptation(meta.whole, task.support, learner.eval_steps))
    chosen = sorted({0, 1, len(steps) - 1} & set(range(len(steps))))
    return {
        "x_support": task.support.x[:, 0].numpy(),
        "y_support": task.support.y[:, 0].numpy(),
        "x": x[:, 0].numpy(),
        "y_true": task.query.y[order][:, 0].numpy(),
        "y_pred_by_step": {step: learner.predict(steps[step], x).detach()[:, 0].numpy() for step in chosen},
    }


def report_page(name: str, summary: Mapping[str, Any], tests: Mapping[str, Evaluation], drawn: list[Path]) -> str:
    """A short page in Markdown: what was tested, the figures, the pictures."""
    lines = [f"# {name}", ""]
    lines += [f"- {key}: {value}" for key, value in summary.items() if isinstance(value, str | int | float)]
    lines += [
        "",
        "| tasks | normalisation | steps | result | random start |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {test.name} | {test.norm} | {test.steps} | {in_words(test)} | {scratch_in_words(test)} |"
        for test in tests.values()
    ]
    for test in tests.values():
        lines += _parts(test, summary.get("costs", {}))
    lines += ["", *(f"![{path.stem}](plots/{path.name})" for path in drawn), ""]
    return "\n".join(lines)


def _parts(test: Evaluation, costs: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A learner beside its parts on the same tasks, if it has any: size, speed, score; and what it says of itself."""
    lines: list[str] = []
    if test.beside:
        heads = f"| {test.name} | parameters | ms a task | result | {OWN} less this, paired |"
        lines += ["", heads, "| --- | --- | --- | --- | --- |"]
        own = {"accuracy": test.accuracy, "ci95": test.ci95, "loss": test.loss}
        for name, score in {OWN: own, **test.beside}.items():
            cost = costs[name]
            result = _in_words(score["accuracy"], score["loss"], score["ci95"])
            apart = difference_from(score)
            lines.append(f"| {name} | {cost['parameters']:,} | {cost['milliseconds']:.2f} | {result} | {apart} |")
    if test.figures:
        lines += ["", f"Means over {test.name}: " + ", ".join(f"{n} {v:.3f}" for n, v in test.figures.items())]
    return lines


def in_words(test: Evaluation) -> str:
    """The main figure with its 95 % interval."""
    shown = _in_words(test.accuracy, test.loss, test.ci95)
    return shown + "".join(f"; sight {sight}: {100 * value:.2f} %" for sight, value in sights(test).items())


def sights(test: Evaluation) -> dict[int, float]:
    """Accuracy at the sights of a class that the paper of MANN shows, of tasks that come as sequences."""
    return {sight: value for sight, value in enumerate(test.by_sight or [], 1) if sight in (1, 2, 5, 10)}


def _in_words(accuracy: float | None, loss: float | None, ci95: float | None) -> str:
    if accuracy is None:
        return f"mean squared error {loss:.4f} ± {ci95:.4f}"
    return f"{100 * accuracy:.2f} ± {100 * (ci95 or 0.0):.2f} %"


def difference_in_words(found: Difference, accuracy: bool) -> str:
    """A paired difference of accuracies, in points, or of errors."""
    if not np.isfinite(found.mean):
        return "diverged"
    if accuracy:
        return f"{100 * found.mean:+.2f} ± {100 * found.ci95:.2f}"
    return f"{found.mean:+.4f} ± {found.ci95:.4f}"


def difference_from(part: Mapping[str, float | None]) -> str:
    """How far a learner is from what is beside it (`Evaluation.beside`), in words; nothing for the learner itself."""
    if (mean := part.get("difference")) is None or (ci95 := part.get("difference_ci95")) is None:
        return ""
    return difference_in_words(Difference(mean, ci95), part["accuracy"] is not None)


def scratch_in_words(test: Evaluation) -> str:
    """The same figure for a random start."""
    if test.from_scratch is None or test.from_scratch_ci95 is None:
        return ""
    if test.accuracy is None:
        return f"{test.from_scratch:.4f} ± {test.from_scratch_ci95:.4f}"
    return f"{100 * test.from_scratch:.2f} ± {100 * test.from_scratch_ci95:.2f} %"
