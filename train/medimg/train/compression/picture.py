"""The picture of a ladder: accuracy and AUC against measured latency."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medimg.runtime.files.writing import written_whole
from medimg.runtime.optional import require
from medimg.runtime.report import svg_of
from medimg.runtime.statistics.bootstrap import Estimate

if TYPE_CHECKING:
    from medimg.train.compression.result import CompressResult

COLOR, KEPT_COLOR, ORIGINAL_COLOR = "#4c78a8", "#d9480f", "#5b6470"
NARROWEST = 0.15
"""Share of the axis that the label of a tick takes."""


def draw(result: "CompressResult", path: Path) -> None:
    """Write the picture: points with 95 % intervals, the kept one in orange, the original in grey.

    Args:
        result: the ladder.
        path: an `.svg` file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "train").Figure(figsize=(9, 3.8), layout="constrained")
    first = result.points[0].gate
    for panel, name, original, found in zip(
        figure.subplots(1, 2),
        ("accuracy", "ROC AUC"),
        (first.accuracy_reference, first.roc_auc_reference),
        (
            [point.gate.accuracy for point in result.points],
            [point.gate.roc_auc for point in result.points],
        ),
        strict=True,
    ):
        _mark(panel, result.latency_ms, original, "original", ORIGINAL_COLOR)
        for point, estimate in zip(result.points, found, strict=True):
            kept = point.name == result.kept
            _mark(panel, point.latency_ms, estimate, point.name, KEPT_COLOR if kept else COLOR)
        panel.set_xscale("log")
        panel.set_xlabel("ms an image: median of single images, INT8")
        panel.set_ylabel(name)
        ticks = _apart([result.latency_ms, *(point.latency_ms for point in result.points)])
        panel.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(visible=True, color="#e6e9ee")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{first.images} images that chose nothing, 95 % intervals", fontsize=11)
    with written_whole(path) as temporary:
        temporary.write_text(svg_of(figure, text_stays=True), encoding="utf-8")


def _apart(values: Sequence[float]) -> list[float]:
    """Order values, without those whose labels would lie on others' on a logarithmic axis."""
    found = sorted(values)
    span = math.log(found[-1] / found[0])
    kept = found[:1]
    for value in found[1:]:
        if math.log(value / kept[-1]) > NARROWEST * span:
            kept.append(value)
    return kept


def _mark(panel: Any, latency_ms: float, estimate: Estimate, name: str, color: str) -> None:  # noqa: ANN401  matplotlib is untyped
    below, above = estimate.value - estimate.low, estimate.high - estimate.value
    panel.errorbar(
        [latency_ms], [estimate.value], [[max(below, 0)], [max(above, 0)]], fmt="o", color=color, capsize=3
    )
    # The slowest stands at the right edge.
    side, place = ("right", (-6, 5)) if name == "original" else ("left", (6, 5))
    panel.annotate(
        name, (latency_ms, estimate.value), place, textcoords="offset points", color=color, ha=side
    )
