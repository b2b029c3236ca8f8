"""Pictures of a run: training curves, accuracy by inner step, sample tasks, sinusoid fits.

Pure functions of plain data that write a PNG. They use matplotlib's objects and never its global state,
so they work in any thread and without a display. Importing this module does not import matplotlib.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_DPI = 150
# Okabe and Ito's palette: told apart with any colour vision, and in print.
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
_CYCLE = (_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY)
_INK, _MUTED = "#222222", "#666666"
_GAP = 0.82  # Grey level between the images of a sheet.

_MOST_TASKS, _MOST_ROWS = 4, 5


class RegressionTask(TypedDict):
    """One sinusoid for `regression_sheet`; every array is one-dimensional."""

    #: Inputs of the support points.
    x_support: Array
    #: Targets of the support points.
    y_support: Array
    #: Inputs of the curve, ascending.
    x: Array
    #: The true curve over `x`.
    y_true: Array
    #: Predictions over `x`, by number of inner steps.
    y_pred_by_step: Mapping[int, Array]


def training_curves(history: Sequence[tuple[int, Mapping[str, float]]], path: str | os.PathLike[str]) -> None:
    """Loss, and accuracy where there is one, over the training's iterations.

    Args:
        history: (iteration, values), with any of the keys `train/loss`, `train/accuracy`, `valid/loss`,
            `valid/accuracy` and `valid/ci95` (half the width of the 95% interval of the validation's
            accuracy, or of its loss where there is no accuracy).
        path: the PNG to write.
    """
    series = {key: _series(history, key) for key in _KEYS}
    by_accuracy = any(len(series[key][0]) for key in ("train/accuracy", "valid/accuracy"))
    rows = 2 if by_accuracy else 1
    figure = _figure(7.0, 2.7 * rows + 0.4)
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    panels = [("loss", "loss")] + ([("accuracy", "accuracy (%)")] if by_accuracy else [])
    for axis, (what, label) in zip(axes, panels, strict=True):
        scale = 100.0 if what == "accuracy" else 1.0
        _training_line(axis, *series[f"train/{what}"], scale)
        interval = _by_step(history, "valid/ci95") if what == panels[-1][0] else {}
        _validation_line(axis, *series[f"valid/{what}"], scale, interval)
        axis.set_ylabel(label)
        if what == "loss":
            _choose_scale(axis, [series["train/loss"][1], series["valid/loss"][1]])
        if axis.get_legend_handles_labels()[1]:
            axis.legend(loc="best", frameon=False)
    axes[-1].set_xlabel("meta-iteration")
    _whole_numbers(axes[-1])
    figure.align_ylabels(list(axes))
    _save(figure, path)


_KEYS = ("train/loss", "train/accuracy", "valid/loss", "valid/accuracy")


def accuracy_by_step(
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    path: str | os.PathLike[str],
    ylabel: str = "query accuracy (%)",
    xlabel: str = "inner steps",
) -> None:
    """How a learner gets better with each inner step, or worse with something else, one curve for each of several runs.

    Args:
        curves: by label, points of (number of inner steps, mean, half width of its 95% interval), the
            latter two in the unit that `ylabel` names.
        path: the PNG to write.
        ylabel: what is shown.
        xlabel: what it depends on.
    """
    figure = _figure(5.2, 3.6)
    axis = figure.subplots()
    longest = 1.0
    for number, (label, points) in enumerate(curves.items()):
        colour = _CYCLE[number % len(_CYCLE)]
        values = np.asarray(points, dtype=float).reshape(-1, 3)
        steps, mean, half = values[:, 0], values[:, 1], np.nan_to_num(values[:, 2])
        longest = max(longest, *steps)
        axis.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)
        axis.plot(steps, mean, color=colour, marker="o", markersize=4, label=label)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_xlim(-0.03 * longest, 1.03 * longest)
    _whole_numbers(axis)
    if curves:
        axis.legend(loc="best", frameon=False)
    _save(figure, path)


def task_sheet(support: Array, query: Array, path: str | os.PathLike[str]) -> None:
    """A sheet of sample tasks: one below the other, the support set left and the query set right.

    Args:
        support: [tasks, ways, shots, C, H, W] in 0…1, C being 1 or 3.
        query: [tasks, ways, queries, C, H, W] likewise.
        path: the PNG to write. At most four tasks and five images a class are shown.
    """
    support = support[:_MOST_TASKS, :, :_MOST_ROWS]
    # A one-shot task is told by two queries a class; many would leave a void beside the support set.
    query = query[:_MOST_TASKS, :, : max(2, support.shape[2])]
    tasks, ways = support.shape[:2]
    heights = max(support.shape[2], query.shape[2])
    # A square of 0.6 inch for each image, less where many classes would make the sheet too wide.
    cell = min(0.6, 7.0 / ways)
    figure = _figure(2 * ways * cell + 1.0, tasks * (heights * cell + 0.3) + 0.4)
    grid = figure.subplots(tasks, 2, squeeze=False)
    for row in range(tasks):
        for column, images in enumerate((support[row], query[row])):
            axis = grid[row, column]
            _image_block(axis, images)
            if row == 0:
                axis.set_title(("support", "query")[column], pad=16, color=_INK)
        grid[row, 0].set_ylabel(f"task {row + 1}", color=_INK)
    _save(figure, path)


def regression_sheet(tasks: Sequence[RegressionTask], path: str | os.PathLike[str]) -> None:
    """Sinusoid tasks: the true curve, the support points, and the fit before, after one and after all steps.

    Args:
        tasks: at most four are shown.
        path: the PNG to write.
    """
    shown = list(tasks)[:_MOST_TASKS]
    columns = 1 if len(shown) == 1 else 2
    rows = max(1, math.ceil(len(shown) / columns))
    figure = _figure(5.4 if columns == 1 else 7.2, (3.0 if columns == 1 else 2.5) * rows + 0.5)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for number, axis in enumerate(grid.flat):
        if number >= len(shown):
            axis.set_visible(False)
            continue
        _fit(axis, shown[number])
        axis.set_title(f"task {number + 1}", loc="left", color=_INK, fontsize=9)
        if number % columns == 0:
            axis.set_ylabel("y")
        if number + columns >= len(shown):
            axis.set_xlabel("x")
            axis.tick_params(labelbottom=True)
    if shown:
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=len(labels),
            frameon=False,
            handlelength=1.6,
            columnspacing=1.6,
        )
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    for axis in figure.axes:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_color(_MUTED)
        axis.tick_params(colors=_MUTED, labelcolor=_INK, labelsize=8)
        axis.xaxis.label.set(color=_INK, fontsize=9)
        axis.yaxis.label.set(color=_INK, fontsize=9)
        axis.title.set_fontsize(9)
        legend = axis.get_legend()
        for text in legend.get_texts() if legend is not None else ():
            text.set(fontsize=8, color=_INK)
    for legend in figure.legends:
        for text in legend.get_texts():
            text.set(fontsize=8, color=_INK)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=_DPI)


def _series(history: Sequence[tuple[int, Mapping[str, float]]], key: str) -> tuple[Array, Array]:
    points = sorted(_by_step(history, key).items())
    return np.array([p[0] for p in points], dtype=float), np.array([p[1] for p in points], dtype=float)


def _by_step(history: Sequence[tuple[int, Mapping[str, float]]], key: str) -> dict[int, float]:
    # Of a step that a resumed run has written again, the later value counts.
    return {step: float(v[key]) for step, v in history if key in v and math.isfinite(v[key])}


def _training_line(axis: Any, steps: Array, values: Array, scale: float) -> None:
    if not len(steps):
        return
    window = max(1, len(values) // 40)
    if window > 1:
        axis.plot(steps, values * scale, color=_BLUE, alpha=0.22, linewidth=0.7)
    label = f"training, mean of {window}" if window > 1 else "training"
    axis.plot(steps, _smooth(values, window) * scale, color=_BLUE, linewidth=1.5, label=label)


def _validation_line(axis: Any, steps: Array, values: Array, scale: float, interval: Mapping[int, float]) -> None:
    if not len(steps):
        return
    half = np.array([interval.get(int(step), 0.0) for step in steps])
    label = "validation"
    if half.any():
        label += ", 95% interval"
        low, high = (values - half) * scale, (values + half) * scale
        axis.fill_between(steps, low, high, color=_ORANGE, alpha=0.2, linewidth=0)
    few = len(steps) <= 40
    axis.plot(
        steps,
        values * scale,
        color=_ORANGE,
        linewidth=1.5,
        marker="o" if few else None,
        markersize=3.5,
        label=label,
    )


def _smooth(values: Array, window: int) -> Array:
    """Centred moving mean; at the ends over what there is."""
    if window <= 1:
        return values
    kernel = np.ones(window)
    smooth: Array = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return smooth


def _choose_scale(axis: Any, series: Sequence[Array]) -> None:
    values = np.concatenate(series)
    # Over more than two powers of ten a linear axis shows the first iterations only.
    if len(values) and values.min() > 0 and values.max() / values.min() > 100:
        axis.set_yscale("log")


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _image_block(axis: Any, images: Array) -> None:
    """Draw [ways, n, C, H, W] as a grid with one column for each class."""
    ways, count, channels, height, width = images.shape
    gap_y, gap_x = max(1, height // 28), max(1, width // 28)
    pitch_y, pitch_x = height + gap_y, width + gap_x
    # The grey between the images tells where one ends: many have the paper's white as background.
    sheet = np.full((count * pitch_y + gap_y, ways * pitch_x + gap_x, 3), _GAP)
    for way in range(ways):
        for number in range(count):
            image = np.clip(np.nan_to_num(images[way, number]), 0.0, 1.0)
            colour = np.repeat(image, 3, axis=0) if channels == 1 else image[:3]
            top, left = number * pitch_y + gap_y, way * pitch_x + gap_x
            sheet[top : top + height, left : left + width] = colour.transpose(1, 2, 0)
    axis.imshow(sheet, interpolation="antialiased", aspect="equal")
    axis.set_anchor("N")
    axis.set_yticks([])
    centres = [way * pitch_x + gap_x + (width - 1) / 2 for way in range(ways)]
    axis.set_xticks(centres, [str(way + 1) for way in range(ways)])
    axis.xaxis.tick_top()
    axis.tick_params(length=0, pad=2)
    for side in axis.spines.values():
        side.set_visible(False)


def _fit(axis: Any, task: RegressionTask) -> None:
    predictions = task["y_pred_by_step"]
    axis.plot(task["x"], task["y_true"], color=_INK, linewidth=1.2, linestyle=(0, (1, 1)), label="true")
    last = max(predictions, default=0)
    styles = {0: (_SKY, 1.2), 1: (_GREEN, 1.4), last: (_ORANGE, 1.8)}
    for step, (colour, width) in styles.items():
        if step in predictions:
            label = "before" if step == 0 else f"{step} step" + ("s" if step > 1 else "")
            axis.plot(task["x"], predictions[step], color=colour, linewidth=width, label=label)
    axis.plot(
        task["x_support"],
        task["y_support"],
        linestyle="none",
        marker="o",
        markersize=5,
        markerfacecolor=_INK,
        markeredgecolor="white",
        zorder=5,
        label="support",
    )
