"""Results as lines for a terminal."""

import math
import shlex
from typing import TYPE_CHECKING

from medimg.runtime.files.text import printable
from medimg.runtime.statistics.metrics import Evaluation
from medimg.train.data.summary import duplicate_lines, unreadable_lines
from medimg.train.terminal import SIMULATED, table

if TYPE_CHECKING:
    from medimg.train.data.check import DataReport
    from medimg.train.fitting.fit import FitResult
    from medimg.train.fitting.journal import Phase
    from medimg.train.simulation.simulate import SimulatedSet


def fit_lines(result: "FitResult", data: str) -> list[str]:
    """Summarise a training, and say what to type next."""
    held_out = "the part val" if result.validation_from == "val" else "held out of the training part"
    lines = [
        f"{result.options.arch} trained on {result.train_images} images of {len(result.labels)} classes in "
        f"{result.seconds:.0f} s ({result.precision_policy}); "
        f"{result.validation_images} images for validation, {held_out}",
        "",
        *(_phase_line(phase) for phase in result.phases),
        "",
        "The saved float32 model on the validation images:",
        *_figures(result.validation),
    ]
    if notes := [*unreadable_lines(result.unreadable), *duplicate_lines(result.duplicates)]:
        lines += ["", *notes]
    if result.simulated_data:
        lines += ["", SIMULATED]
    model, images = shlex.quote(result.output), shlex.quote(data)
    unlisted = " --allow-unlisted" if result.options.allow_unlisted else ""
    copies = [f"       medimg-train check {images}{unlisted}    # does the training part hold test images?"]
    return [
        *lines,
        "",
        f"saved: {result.output}",
        f"next:  medimg-train evaluate {model} {images}",
        *(copies if result.test_images else []),
        f"       medimg-train calibrate {model} {images}{_as_divided(result)}",
        f"       medimg-export {model} --precision fp32 --precision int8 --calibration {images}",
    ]


def _as_divided(result: "FitResult") -> str:
    """Give the options by which another verb finds the same validation images."""
    options = result.options
    said = [] if options.group_by is None else ["--group-by", options.group_by]
    if result.validation_from == "split":
        said += ["--seed", str(options.seed), "--validation-fraction", f"{options.validation_fraction:g}"]
    return "".join(f" {shlex.quote(word)}" for word in said)


def data_lines(report: "DataReport") -> list[str]:
    """Show what a data set holds, and what is wrong with it."""
    rows = [("part", "images", "unreadable", "patients", *map(printable, report.labels))]
    for part in report.parts:
        counts = (part.images, len(part.unreadable), part.patients or "-", *part.per_class)
        rows.append((part.name, *map(str, counts)))
    unreadable = tuple(message for part in report.parts for message in part.unreadable)
    notes = [line for found in report.duplicates for line in duplicate_lines(found)]
    lines = [*table(rows), "", *unreadable_lines(unreadable), *notes]
    return lines if len(lines) > len(rows) + 1 else [*lines, "no unreadable image, and no picture twice"]


def simulation_lines(result: "SimulatedSet") -> list[str]:
    """Say what was written, and what to type next."""
    folder = shlex.quote(result.folder)
    return [
        f"{result.folder}: simulated ultrasound images of {result.size_px}x{result.size_px} pixels, "
        f"{result.train} for training and {result.test} for testing in each of the classes "
        f"{', '.join(result.labels)}",
        f"next:  medimg-train fit {folder} --output model.h5",
    ]


def _phase_line(phase: "Phase") -> str:
    if not phase.best_epoch:
        tried = len(phase.epochs)
        return f"{phase.name}: {tried} epochs, none better than the start, in {phase.seconds:.0f} s"
    best = phase.epochs[phase.best_epoch - 1]
    return (
        f"{phase.name}: best of {len(phase.epochs)} epochs was {phase.best_epoch}, with validation accuracy "
        f"{best.val_accuracy:.3f} and loss {best.val_loss:.3f}, in {phase.seconds:.0f} s"
    )


def _figures(evaluation: Evaluation) -> list[str]:
    """Lay out accuracy, the classes' figures and the confusion matrix."""
    classes = [
        (printable(row.label), str(row.images), *map(_share, (row.recall, row.precision, row.f1)))
        for row in evaluation.per_class
    ]
    labels = [row[0] for row in classes]
    shown = table([("class", "images", "recall", "precision", "F1"), *classes])
    if not evaluation.confusion:
        right = f"{evaluation.accuracy:.3f} of {evaluation.images} images right in every class"
        return [right, "", *shown]
    counts = [(label, *map(str, row)) for label, row in zip(labels, evaluation.confusion, strict=True)]
    return [
        f"accuracy {evaluation.accuracy:.3f} on {evaluation.images} images",
        "",
        *shown,
        "",
        "true \\ predicted",
        *table([("", *labels), *counts]),
    ]


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
