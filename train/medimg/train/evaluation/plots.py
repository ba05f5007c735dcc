"""An evaluation's figures, drawn: curves, reliability, confusion."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from medimg.runtime.files.text import printable
from medimg.runtime.optional import require
from medimg.runtime.report import Figure, svg_of
from medimg.runtime.statistics.bootstrap import Estimate
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.operating_points import PointScores
from medimg.train.evaluation.reliability import BINS, Reliability
from medimg.train.evaluation.scores import Scores

MOST_CURVES = 10
MOST_CELLS = 12
"""Classes a side up to which the cells of a confusion matrix hold numbers."""
BLUE, GREY, RED = "#4b6b9b", "#b8c1cc", "#c46a4a"

Axes: TypeAlias = Any
"""Matplotlib ships no types that this project checks."""


def curves(answers: Answers, scores: Scores, points: Sequence[PointScores]) -> tuple[Figure, Figure]:
    """Draw the ROC curves, with the operating points on them, and precision over recall.

    One class of two, or each class against the others; of many classes those with the smallest areas.
    """
    peer = require("sklearn.metrics", "train")
    chosen = _chosen(answers, scores)

    def roc(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        for place in chosen:
            false, found, _ = peer.roc_curve(answers.shown[:, place], answers.probabilities[:, place])
            axes.plot(false, found, label=_legend(answers.labels[place], scores.per_class[place].roc_auc))
        for item in points:
            axes.plot(1 - item.specificity.value, item.sensitivity.value, "o", color=RED, markersize=6)
        _finish(axes, "1 - specificity", "sensitivity", legend="lower right")

    def precision_recall(axes: Axes) -> None:
        for place in chosen:
            shown, found = answers.shown[:, place], answers.probabilities[:, place]
            precision, recall, _ = peer.precision_recall_curve(shown, found)
            label = _legend(answers.labels[place], scores.per_class[place].pr_auc)
            axes.plot(recall, precision, drawstyle="steps-post", label=label)
        _finish(axes, "recall", "precision", legend="lower left")

    fewest = f", the {MOST_CURVES} classes of smallest area" if len(answers.labels) > MOST_CURVES else ""
    dots = "; dots are the operating points" if points else ""
    return (
        _figure(f"ROC{fewest}{dots}", roc),
        _figure(f"Precision over recall{fewest}", precision_recall),
    )


def reliability(found: Reliability) -> Figure:
    """Draw accuracy over confidence with its intervals, and how many decisions each bin holds."""
    bins = [item for item in found.bins if item.images]
    accuracy = np.array([item.accuracy.value for item in bins])
    low = np.array([item.accuracy.low for item in bins])
    high = np.array([item.accuracy.high for item in bins])
    counts = np.array([item.images for item in bins])

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        middles = [(item.low + item.high) / 2 for item in bins]
        axes.bar(
            middles, counts / counts.sum(), 0.9 / BINS, color=GREY, alpha=0.5, label="share of decisions"
        )
        errors = np.nan_to_num([accuracy - low, high - accuracy]).clip(min=0)
        confidence = [item.confidence for item in bins]
        axes.errorbar(confidence, accuracy, errors, fmt="o-", color=BLUE, label="accuracy", capsize=3)
        _finish(axes, "confidence", "accuracy", legend="upper left")

    return _figure("Reliability: accuracy over confidence in 15 bins, with 95 % intervals", draw)


def confusion(labels: Sequence[str], shares: Sequence[Sequence[Estimate]]) -> Figure:
    """Draw the confusion matrix as shares of each true class."""
    values = np.array([[cell.value for cell in row] for row in shares])
    names = [_plain(label) for label in labels]

    def draw(axes: Axes) -> None:
        axes.imshow(np.nan_to_num(values), cmap="Blues", vmin=0, vmax=1)
        if len(names) <= MOST_CELLS:
            for (row, column), value in np.ndenumerate(values):
                color = "white" if value > 0.6 else "black"
                text = "" if np.isnan(value) else f"{value:.2f}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    return _figure("Confusion: share of each true class", draw)


def _chosen(answers: Answers, scores: Scores) -> list[int]:
    """Choose the classes whose curves are drawn; a class that is shown by no image or by all has none."""
    shown = answers.shown.sum(axis=0)
    if scores.positive:
        places = [answers.labels.index(scores.positive)]
    else:
        areas = [row.roc_auc.value for row in scores.per_class]
        places = sorted(range(len(areas)), key=lambda place: areas[place])[:MOST_CURVES]
    return sorted(place for place in places if 0 < shown[place] < len(answers.shown))


def _figure(caption: str, draw: Callable[[Axes], None]) -> Figure:
    figure = require("matplotlib.figure", "train").Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    return Figure(caption, svg_of(figure))


def _finish(axes: Axes, across: str, up: str, legend: str) -> None:
    axes.set(xlabel=across, ylabel=up, xlim=(-0.01, 1.01), ylim=(-0.01, 1.03), aspect="equal")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc=legend)


def _legend(label: str, area: Estimate) -> str:
    return f"{_plain(label)} {area.short}"


def _plain(label: str) -> str:
    """Make a class's name fit for a figure; a dollar sign would start a formula."""
    shown = printable(label).replace("$", r"\$")
    shown = shown if len(shown) <= 32 else f"{shown[:31]}…"
    # Matplotlib leaves out of a legend what begins with a line.
    return f" {shown}" if shown.startswith("_") else shown
