"""Plots of training and of scores over patients, as SVG for the page.

Text and axes of an SVG take the colour of the text around it (`currentColor`), so that one plot serves a light and a
dark page. The colours of the data have at least three times the contrast of either background. The bytes depend on the
data alone: no dates, no random identifiers. Matplotlib is imported inside the functions, it takes a second to load.
"""

import contextlib
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.metrics.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES_COLOURS: Final = ("#2f81c7", "#d5641c", "#11936d", "#b0609a", "#8f7d00", "#7b6fd0")
"""Told apart with any common colour blindness, in the order of use; 3:1 or more on white and on near-black."""
INK: Final = "#010203"
"""Stands for the colour of text while matplotlib draws: a shade that nothing else uses."""
WIDTH_INCHES: Final = 7.2
SMOOTHING_WINDOWS: Final = 40
"""A smoothed curve shows about this many independent values, whatever the number of steps."""
SHOWN_STEPS: Final = 600
"""More points than this are thinned out: they would only make the file larger."""
MARKED_STEPS: Final = 20
"""Curves of no more points than this show each as a dot: a validation that ran once would else be invisible."""
BASELINE_LABELS_AT: Final = (0.995, 0.66, 0.33)
"""Right ends of the labels as fractions of the width: baselines often lie close together."""


@dataclass(frozen=True)
class Curve:
    """Values over the steps of a training.

    Args:
        steps: Ascending.
        values: One per step; NaN is not drawn.
    """

    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Group:
    """The scores of one method on the patients of a split.

    Args:
        values: Patient to score; NaN (not applicable) is not drawn.
        estimate: Mean over these patients with its interval.
    """

    values: Mapping[str, float]
    estimate: Estimate


@dataclass(frozen=True)
class Level:
    """The scores of one method at one size of its training set.

    Args:
        estimate: Mean over trainings and patients with its interval.
        trainings: Mean of each training.
    """

    estimate: Estimate
    trainings: Sequence[float]


def loss_curves(
    curves: Mapping[str, Curve],
    *,
    baselines: Mapping[str, float] | None = None,
    title: str = "",
    ylabel: str = "loss",
) -> bytes:
    """Draw losses over steps, each with its smoothed course, beside the losses of trivial predictors.

    Args:
        curves: Name to curve.
        baselines: Name of a trivial predictor to the loss that it has; a model that learns passes below all.
        title: Written above.
        ylabel: What is drawn.

    Returns:
        The file's bytes.
    """
    with plot_style():
        figure, axes = _figure(3.4, title)
        for (name, curve), colour in zip(curves.items(), _colours(len(curves)), strict=True):
            steps, values = np.asarray(curve.steps, dtype=float), np.asarray(curve.values, dtype=float)
            shown = slice(None, None, max(1, len(steps) // SHOWN_STEPS))
            axes.plot(steps[shown], values[shown], color=colour, alpha=0.25, linewidth=0.8)
            marker = "o" if len(steps) <= MARKED_STEPS else ""
            axes.plot(
                steps[shown],
                _smoothed(values)[shown],
                marker=marker,
                markersize=4,
                color=colour,
                linewidth=1.8,
                label=name,
            )
        for index, (name, value) in enumerate((baselines or {}).items()):
            axes.axhline(value, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.65)
            axes.annotate(
                f"{name} ({value:.3g})",
                (BASELINE_LABELS_AT[index % len(BASELINE_LABELS_AT)], value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=8,
                color=INK,
            )
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        axes.grid(axis="y", alpha=0.15)
        if len(curves) > 1:
            axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 1.16), ncols=min(len(curves), 5))
        return svg_of(figure)


def group_comparison(groups: Mapping[str, Group], *, ylabel: str = "Dice, mean of the structures") -> bytes:
    """Draw methods side by side: a dot per patient, lines between the dots of one patient, mean and interval.

    Args:
        groups: Name of the method ("from scratch", "pre-trained") to its scores.
        ylabel: What the scores are.

    Returns:
        The file's bytes.
    """
    with plot_style():
        figure, axes = _figure(3.6, width=max(3.2, 1.9 * len(groups)))
        members = list(groups.values())
        for position, (left, right) in enumerate(itertools.pairwise(members)):
            for patient in sorted(left.values.keys() & right.values.keys()):
                pair = (left.values[patient], right.values[patient])
                axes.plot((position, position + 1), pair, color=INK, alpha=0.15, linewidth=0.8, zorder=1)
        for position, (group, colour) in enumerate(zip(members, _colours(len(members)), strict=True)):
            values = [value for _, value in sorted(group.values.items())]
            axes.scatter([position] * len(values), values, s=16, color=colour, alpha=0.55, linewidths=0, zorder=2)
            _draw_estimate(axes, group.estimate, position + 0.16, colour, is_upright=True)
            axes.annotate(
                f"{group.estimate.mean:.3f}",
                (position + 0.16, group.estimate.mean),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=INK,
            )
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set_xlim(-0.4, len(groups) - 0.4)
        axes.set_ylabel(ylabel)
        axes.grid(axis="y", alpha=0.15)
        return svg_of(figure)


def structure_scores(
    scores: Mapping[str, Mapping[str, Group]],
    *,
    xlabel: str = "Dice",
    limits: tuple[float, float] | None = None,
    are_differences: bool = False,
) -> bytes:
    """Draw scores per structure: a dot per patient, the mean and its interval, one colour per method.

    Args:
        scores: Structure to method to scores.
        xlabel: What the scores are.
        limits: Ends of the axis; by default those of the data.
        are_differences: Mark 0.

    Returns:
        The file's bytes.
    """
    methods = list(dict.fromkeys(method for groups in scores.values() for method in groups))
    colours = dict(zip(methods, _colours(len(methods)), strict=True))
    row_height = 0.24 + 0.2 * len(methods)
    with plot_style():
        figure, axes = _figure(0.9 + row_height * len(scores))
        for row, groups in enumerate(scores.values()):
            for method, group in groups.items():
                y = row + (methods.index(method) - (len(methods) - 1) / 2) * 0.3
                values = [value for _, value in sorted(group.values.items())]
                axes.scatter(values, [y] * len(values), s=14, color=colours[method], alpha=0.45, linewidths=0, zorder=2)
                _draw_estimate(axes, group.estimate, y, colours[method], is_upright=False)
        if are_differences:
            axes.axvline(0, color=INK, linewidth=0.9, alpha=0.65, zorder=1)
        axes.set_yticks(range(len(scores)), list(scores))
        axes.set_ylim(len(scores) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x", alpha=0.15)
        if limits is not None:
            margin = 0.01 * (limits[1] - limits[0])
            axes.set_xlim(limits[0] - margin, limits[1] + margin)
        if len(methods) > 1:
            handles = [axes.plot([], [], "o", color=colours[method], label=method)[0] for method in methods]
            axes.legend(handles=handles, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(methods))
        return svg_of(figure)


def level_curves(
    panels: Mapping[str, Mapping[str, Mapping[int, Level]]],
    *,
    xlabel: str,
    ylabel: str,
) -> bytes:
    """Draw scores over the size of the training set, on a logarithmic axis: means with bands, a dot per training.

    Args:
        panels: Title to name of the method to size to scores; panels stand side by side and share their scale.
        xlabel: What the sizes count.
        ylabel: What the scores are.

    Returns:
        The file's bytes.
    """
    from matplotlib.figure import Figure

    with plot_style():
        width = WIDTH_INCHES * (1 + 0.45 * (len(panels) - 1))
        figure = Figure(figsize=(width, 3.8), layout="constrained")
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, curves) in zip(every, panels.items(), strict=True):
            _draw_levels(axes, curves)
            axes.set_title(title)
            axes.set_xlabel(xlabel)
        every[0].set_ylabel(ylabel)
        every[-1].legend(frameon=False, loc="lower right")
        return svg_of(figure)


def _draw_levels(axes: "Axes", curves: Mapping[str, Mapping[int, Level]]) -> None:
    """One line per method with its band, means with intervals, and a dot per training."""
    sizes = sorted({size for levels in curves.values() for size in levels})
    for index, ((name, levels), colour) in enumerate(zip(curves.items(), _colours(len(curves)), strict=True)):
        shift = 1 + 0.035 * (index - (len(curves) - 1) / 2)
        places = {size: size * shift for size in sorted(levels)}
        estimates = [levels[size].estimate for size in places]
        axes.plot(list(places.values()), [each.mean for each in estimates], color=colour, linewidth=1.4, label=name)
        low, high = [each.low for each in estimates], [each.high for each in estimates]
        axes.fill_between(list(places.values()), low, high, color=colour, alpha=0.1, linewidth=0)
        for size, place in places.items():
            trainings = levels[size].trainings
            beside = [place * 0.987] * len(trainings)
            axes.scatter(beside, trainings, s=16, color=colour, alpha=0.7, linewidths=0, zorder=2)
            _draw_estimate(axes, levels[size].estimate, place, colour, is_upright=True)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.15)


def rate_curves(
    curves: Mapping[str, Sequence[float]],
    rates: Sequence[float],
    marked: Sequence[float],
    *,
    xlabel: str,
    ylabel: str,
) -> bytes:
    """Draw shares from 0 to 1 over a rate on a logarithmic axis.

    Args:
        curves: Name to heights.
        rates: Where these are, ascending.
        marked: Those of the rates that get a dot and a label.
        xlabel: What the rates count.
        ylabel: What the shares are.

    Returns:
        The bytes of an SVG.
    """
    with plot_style():
        figure, axes = _figure(3.2)
        places = [list(rates).index(rate) for rate in marked]
        for (name, heights), colour in zip(curves.items(), _colours(len(curves)), strict=True):
            axes.plot(rates, heights, color=colour, linewidth=1.4, label=name)
            axes.plot(marked, [heights[place] for place in places], "o", color=colour, markersize=4)
        axes.set_xscale("log")
        axes.set_xticks(marked, [f"{rate:g}" for rate in marked])
        axes.minorticks_off()
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(axis="both", alpha=0.15)
        if len(curves) > 1:
            axes.legend(frameon=False, loc="lower right")
        return svg_of(figure)


def seed_dots(panels: Mapping[str, Mapping[str, Sequence[float]]], *, xlabel: str) -> bytes:
    """Draw scores of several methods, a panel per measure: a dot per seed and a bar at their mean.

    Args:
        panels: Name of the measure to name of the method to a score per seed.
        xlabel: What the scores are.

    Returns:
        The file's bytes.
    """
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    longest = max(len(arms) for arms in panels.values())
    with plot_style():
        figure = Figure(figsize=(WIDTH_INCHES * 1.4, rows * (0.9 + 0.24 * longest)), layout="constrained")
        for index, (name, arms) in enumerate(panels.items()):
            axes = figure.add_subplot(rows, columns, index + 1)
            for place, (values, colour) in enumerate(zip(arms.values(), _colours(len(arms)), strict=True)):
                axes.scatter(values, [place] * len(values), s=18, color=colour, alpha=0.75, linewidths=0, zorder=2)
                mean = sum(values) / len(values)
                axes.plot((mean, mean), (place - 0.3, place + 0.3), color=colour, linewidth=1.6, zorder=3)
            axes.set_yticks(range(len(arms)), list(arms))
            axes.invert_yaxis()
            axes.set_title(name, fontsize=9)
            axes.grid(axis="x", alpha=0.15)
            if index >= len(panels) - columns:
                axes.set_xlabel(xlabel)
        return svg_of(figure)


def _draw_estimate(axes: "Axes", estimate: Estimate, place: float, colour: str, *, is_upright: bool) -> None:
    """A ringed dot for the mean and a bar for the interval, which may be unknown."""
    if math.isnan(estimate.mean):
        return
    ends, at = (estimate.low, estimate.high), (place, place)
    axes.plot(*((at, ends) if is_upright else (ends, at)), color=colour, linewidth=2.4, zorder=3)
    point = (place, estimate.mean) if is_upright else (estimate.mean, place)
    axes.plot(*point, "o", color=colour, markersize=7, markeredgecolor=INK, markeredgewidth=1, zorder=4)


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a centred window, cut off at the ends; NaN is left out."""
    half = len(values) // (2 * SMOOTHING_WINDOWS)
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    num = counts[high] - counts[low]
    return np.where(num > 0, (sums[high] - sums[low]) / np.maximum(num, 1), np.nan)


def _colours(number: int) -> list[str]:
    return [SERIES_COLOURS[index % len(SERIES_COLOURS)] for index in range(number)]


@contextlib.contextmanager
def plot_style() -> Iterator[None]:
    """Settings of matplotlib that hold inside a `with` block."""
    from matplotlib import rc_context

    with rc_context(
        {
            "font.family": "sans-serif",
            "font.size": 9.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlepad": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.titlecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": INK,
            "svg.fonttype": "none",
            "svg.hashsalt": "medssl",
        }
    ):
        yield


def _figure(height: float, title: str = "", *, width: float = WIDTH_INCHES) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def svg_of(figure: "Figure") -> bytes:
    """The bytes of a drawn figure, in the colour of the text around it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace(INK.encode(), b"currentColor")
