"""A compression as lines of a terminal."""

import shlex
from typing import TYPE_CHECKING

from medimg.runtime.files.text import printable
from medimg.train.evaluation.summary import resampling_line
from medimg.train.terminal import SIMULATED, table

if TYPE_CHECKING:
    from medimg.train.compression.result import CompressResult, Point

SCATTERED = 0.05
"""Timings that scatter by less need no words."""


def compress_lines(result: "CompressResult") -> list[str]:
    """Show the ladder, say which point was kept, and what to type next."""
    gates = [point.gate for point in result.points]
    wider = ", or that of patients" if gates[0].resampling.unit == "patients" else ""
    images = f"{result.train_images} training and {result.validation_images} validation images"
    return [
        f"{printable(result.model)} made smaller on {images} in {result.seconds:.0f} s",
        "",
        *_speeds(result),
        "",
        f"In INT8 on {gates[0].images} images that chose nothing, beside the original in float32:",
        *_figures(result),
        "",
        f"The loss of accuracy has Tango's interval for pairs{wider}; the other figures have",
        resampling_line(gates[0].resampling),
        *(
            f"{name}: not tried: the point before did not pass, or narrowing does not come so far"
            for name in result.not_tried
        ),
        *(f"{point.name}: {printable(note)}" for point in result.points for note in point.notes),
        *_scattered(result),
        *(["", SIMULATED] if result.simulated_data else []),
        "",
        *_kept(result),
    ]


def _speeds(result: "CompressResult") -> list[str]:
    rows = [
        (point.name, _macs(point.macs), _ms(point.latency_ms), f"{result.latency_ms / point.latency_ms:.2f}")
        for point in result.points
    ]
    head = ("", "multiply-accumulates", "ms an image, INT8", "times as fast")
    return table([head, ("original", _macs(result.macs), _ms(result.latency_ms), ""), *rows])


def _scattered(result: "CompressResult") -> list[str]:
    model = result.latency_model
    if model is None or model.scatter < SCATTERED:
        return []
    return [
        f"The machine was not quiet: timings of one network scattered by {model.scatter:.0%}, so",
        "widths follow multiply-accumulates more than time.",
    ]


def _figures(result: "CompressResult") -> list[str]:
    first = result.points[0].gate
    accuracy, area = (f"{found.value:.3f}" for found in (first.accuracy_reference, first.roc_auc_reference))
    head = ("", "accuracy", "loss, 95 %", "ROC AUC", "loss, 95 %", "verdict")
    return table([head, ("original", accuracy, "", area, "", ""), *map(_row, result.points)])


def _row(point: "Point") -> tuple[str, ...]:
    gate, area = point.gate, point.gate.roc_auc_drop
    low, high = gate.accuracy_drop_ci95
    return (
        point.name,
        f"{gate.accuracy.value:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{gate.roc_auc.value:.3f}",
        f"{area.low:.3f} to {area.high:.3f}",
        gate.verdict,
    )


def _ms(latency_ms: float) -> str:
    return f"{latency_ms:.3g}"


def _kept(result: "CompressResult") -> list[str]:
    if result.output is None:
        return ["no point passed: nothing was written"]
    model, data = shlex.quote(result.output), shlex.quote(result.data)
    return [
        f"saved: {result.output}, the point {result.kept}",
        f"next:  medimg-train evaluate {model} {data}",
        f"       medimg-export {model} --precision int8 --calibration {data} --validation {data}",
    ]


def _macs(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e8 else f"{count / 1e6:.2f} M"
