"""Pictures of a sweep: where in its space which result lies, and how the trials got there."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metadist.tracking.plots import _INK, _MUTED, _ORANGE, _figure, _save

_CELLS = 240  # Cells of the coloured ground along each axis.


@dataclass(frozen=True)
class SweepPoint:
    """One trial in the picture.

    Attributes:
        x, y: its values of the two fields.
        value: its result; `None` without one.
        broken: it diverged or failed.
        best: whether it is the best.
        given: whether it is a point to compare with.
    """

    x: float
    y: float
    value: float | None
    broken: bool = False
    best: bool = False
    given: bool = False


@dataclass(frozen=True)
class SweepAxis:
    """An axis: the field that it shows, and whether by powers of ten."""

    label: str
    log: bool


def sweep_map(
    points: Sequence[SweepPoint],
    axes: tuple[SweepAxis, SweepAxis],
    value: str,
    path: str | os.PathLike[str],
    better: str = "max",
    scale: float = 1.0,
) -> None:
    """Every trial at its place, with its result as colour and number; the ground has the nearest trial's colour.

    Args:
        points: the trials.
        axes: across and up.
        value: what the colour shows.
        path: the PNG to write.
        better: `max` or `min`; the better, the lighter.
        scale: factor for the numbers shown (100 for percent).
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    figure = _figure(7.4, 5.6)
    axis = figure.subplots()
    good = [p for p in points if p.value is not None and not p.broken]
    values = [p.value * scale for p in good if p.value is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    # Over more than two powers of ten a linear scale shows the worst trial only.
    steep = low > 0 and high > 100 * low
    norm = LogNorm(low, high) if steep else Normalize(low, high if high > low else low + 1e-9)
    colours = ScalarMappable(norm, "viridis" if better == "max" else "viridis_r")
    for name, which in zip("xy", axes, strict=True):
        getattr(axis, f"set_{name}label")(which.label)
        if which.log:
            getattr(axis, f"set_{name}scale")("log")
    limits = [_limits([getattr(p, n) for p in points], w.log) for n, w in zip("xy", axes, strict=True)]
    axis.set_xlim(*limits[0])
    axis.set_ylim(*limits[1])
    _ground(axis, points, axes, limits, colours, scale)
    for point in points:
        _point(axis, point, colours, scale)
    if values:
        bar = figure.colorbar(colours, ax=axis, pad=0.02)
        bar.set_label(value, color=_INK, fontsize=9)
    _legend(axis, points)
    _save(figure, path)


def _limits(values: Sequence[float], log: bool) -> tuple[float, float]:
    places = [math.log10(v) if log else v for v in values] or [0.0]
    low, high = min(places), max(places)
    room = 0.09 * (high - low) or 0.5
    low, high = low - room, high + room
    return (10**low, 10**high) if log else (low, high)


def _ground(
    axis: Any,
    points: Sequence[SweepPoint],
    axes: tuple[SweepAxis, SweepAxis],
    limits: Sequence[tuple[float, float]],
    colours: Any,
    scale: float,
) -> None:
    """Colour the plane by the nearest trial, grey around those that diverged."""
    if not points:
        return

    def place(values: Any, which: int) -> Any:
        """Where values lie between the limits, as a share."""
        low, high = limits[which]
        numbers = np.asarray(values, dtype=float)
        if axes[which].log:
            return (np.log(numbers) - math.log(low)) / (math.log(high) - math.log(low))
        return (numbers - low) / (high - low)

    edges = [
        np.geomspace(*limit, _CELLS + 1) if which.log else np.linspace(*limit, _CELLS + 1)
        for limit, which in zip(limits, axes, strict=True)
    ]
    middles = (np.arange(_CELLS) + 0.5) / _CELLS
    x, y = place([p.x for p in points], 0), place([p.y for p in points], 1)
    distance = (middles[None, :, None] - x) ** 2 + (middles[:, None, None] - y) ** 2
    nearest = distance.argmin(axis=2)
    table = np.array([_colour(p, colours, scale) for p in points])
    axis.pcolormesh(edges[0], edges[1], table[nearest], alpha=0.35, linewidth=0, rasterized=True)


def _colour(point: SweepPoint, colours: Any, scale: float) -> tuple[float, float, float]:
    if point.broken or point.value is None:
        return (0.75, 0.75, 0.75)
    red, green, blue, _ = colours.to_rgba(point.value * scale)
    return (red, green, blue)


def _point(axis: Any, point: SweepPoint, colours: Any, scale: float) -> None:
    if point.broken or point.value is None:
        text = "diverged" if point.broken else ""
        axis.plot(point.x, point.y, marker="x", markersize=8, markeredgewidth=2, color=_INK, linestyle="none")
    else:
        text = f"{point.value * scale:.1f}" if scale != 1.0 else f"{point.value:.3g}"
        stressed = point.best or point.given
        axis.plot(
            point.x,
            point.y,
            marker="s" if point.given else "o",
            markersize=12 if stressed else 9,
            markerfacecolor=_colour(point, colours, scale),
            markeredgecolor=_ORANGE if point.best else _INK,
            markeredgewidth=2.5 if point.best else 1,
            linestyle="none",
        )
    axis.annotate(
        text,
        (point.x, point.y),
        xytext=(0, 9),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=_INK,
        fontweight="bold" if point.best or point.given else "normal",
    )


def _legend(axis: Any, points: Sequence[SweepPoint]) -> None:
    plain: dict[str, Any] = {"linestyle": "none", "markersize": 8, "markerfacecolor": "white"}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "best": ("best", {"marker": "o", "markeredgecolor": _ORANGE, "markeredgewidth": 2.5}),
        "given": ("given to compare with", {"marker": "s", "markeredgecolor": _INK}),
    }
    for kind, (label, style) in kinds.items():
        if any(getattr(p, kind) for p in points):
            axis.plot([], [], label=label, **plain | style)
    if any(p.broken for p in points):
        axis.plot([], [], label="diverged or failed", marker="x", color=_INK, markeredgewidth=2, linestyle="none")
    if axis.get_legend_handles_labels()[1]:
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def sweep_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    best: str | None,
    value: str,
    path: str | os.PathLike[str],
    scale: float = 1.0,
) -> None:
    """The metric of every trial over its outer steps; the best in colour.

    Args:
        curves: by trial, points of (outer step, value).
        best: the trial to stress.
        value: what is shown.
        path: the PNG to write.
        scale: factor for the values.
    """
    figure = _figure(7.0, 3.8)
    axis = figure.subplots()
    for name, points in curves.items():
        chosen = name == best
        axis.plot(
            [step for step, _ in points],
            [number * scale for _, number in points],
            color=_ORANGE if chosen else _MUTED,
            linewidth=2.0 if chosen else 0.9,
            alpha=1.0 if chosen else 0.6,
            marker="o",
            markersize=3.5 if chosen else 2.5,
            label=f"{name}, the best" if chosen else None,
            zorder=3 if chosen else 2,
        )
    axis.set_xlabel("meta-iteration")
    axis.set_ylabel(value)
    if best in curves:
        axis.legend(loc="best", frameon=False)
    _save(figure, path)
