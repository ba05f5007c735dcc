"""An evaluation as lines of a terminal, at most 80 columns where the names of files allow."""

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from medimg.runtime.files.text import printable
from medimg.train.evaluation.subgroups import SMALL_CLASS, SMALL_GROUP
from medimg.train.terminal import SIMULATED, table

if TYPE_CHECKING:
    from medimg.runtime.statistics.bootstrap import Estimate, Resampling
    from medimg.train.evaluation.calibrate import CalibrationResult
    from medimg.train.evaluation.evaluate import ModelEvaluation
    from medimg.train.evaluation.operating_points import PointScores
    from medimg.train.evaluation.scores import Scores
    from medimg.train.evaluation.subgroups import Subgroup

WIDTH = 80
LABEL_WIDTH = 14
INTERVALS = "95 % intervals by the bootstrap over"


def evaluation_lines(result: "ModelEvaluation") -> list[str]:
    """Show a model's figures."""
    part = "all images" if result.part == "all" else f"the part {result.part}"
    return [
        f"{result.model} on {part} of {result.data} ({result.backend}, {result.precision}):",
        *_overall(result),
        "",
        *_classes(result.scores),
        *_confusion(result),
        *_points(result.operating_points),
        *_subgroups(result.subgroups),
        "",
        resampling_line(result.resampling),
        *_notes(result),
    ]


def calibration_lines(result: "CalibrationResult") -> list[str]:
    """Show what was written into a model's spec, and say what to type next."""
    output, data = shlex.quote(result.output), shlex.quote(result.data)
    before, after = result.before, result.after
    return [
        f"temperature {result.temperature:.3f}, for {result.images} images: {result.chosen_on}",
        "",
        *table(
            [
                ("", "temperature 1", f"temperature {result.temperature:.3f}"),
                ("calibration error", before.ece.short, after.ece.short),
                ("log loss", before.nll.short, after.nll.short),
                ("Brier score", before.brier.short, after.brier.short),
            ]
        ),
        *_points(result.operating_points),
        "",
        resampling_line(result.resampling),
        *(
            f"dropped: the threshold of {printable(point.label)}, chosen at another temperature"
            for point in result.dropped_points
        ),
        *(["", SIMULATED] if result.simulated_data else []),
        "",
        f"saved: {result.output}",
        f"next:  medimg-train evaluate {output} {data}",
        f"       medimg-export {output} --force",
    ]


def resampling_line(plan: "Resampling") -> str:
    """Say what the intervals are."""
    return f"{INTERVALS} {plan.units} {plan.unit} ({plan.draws} draws, seed {plan.seed})."


def _overall(result: "ModelEvaluation") -> list[str]:
    scores, reliability = result.scores, result.reliability
    what = f"of {short_label(scores.positive)}" if scores.positive else "mean of the classes"
    rows = (
        ("accuracy", scores.accuracy, f"on {scores.images} images"),
        ("balanced accuracy", scores.balanced_accuracy, ""),
        ("ROC AUC", scores.roc_auc, what),
        ("PR AUC", scores.pr_auc, ""),
        ("calibration error", reliability.ece, "expected, in 15 bins"),
        ("Brier score", reliability.brier, ""),
    )
    return [f"{name:<18} {estimate!s:<25}{note}".rstrip() for name, estimate, note in rows]


def _classes(scores: "Scores") -> list[str]:
    first = [
        (short_label(row.label), str(row.images), *_shorts(row.recall, row.specificity, row.precision))
        for row in scores.per_class
    ]
    second = [(short_label(row.label), *_shorts(row.f1, row.roc_auc, row.pr_auc)) for row in scores.per_class]
    return [
        *table([("class", "images", "recall", "specificity", "precision"), *first]),
        "",
        *table([("class", "F1", "ROC AUC", "PR AUC"), *second]),
    ]


def _confusion(result: "ModelEvaluation") -> list[str]:
    if not result.evaluation.confusion:
        return []
    labels = [short_label(row.label) for row in result.evaluation.per_class]
    rows = [list(map(str, row)) for row in result.evaluation.confusion]
    lines = table([("", *labels), *((label, *row) for label, row in zip(labels, rows, strict=True))])
    if len(lines[0]) > WIDTH:
        numbers = [str(place) for place in range(1, len(labels) + 1)]
        named = [f"{number} {label}" for number, label in zip(numbers, labels, strict=True)]
        lines = table([("", *numbers), *((name, *row) for name, row in zip(named, rows, strict=True))])
    if len(lines[0]) > WIDTH:
        return ["", f"The confusion of {len(labels)} classes is in --json and --report."]
    return ["", "true \\ predicted", *lines]


def _points(points: "Sequence[PointScores]") -> list[str]:
    if not points:
        return []
    rows = [
        (
            short_label(found.point.label),
            f"{found.point.threshold:.4f}",
            *_shorts(found.sensitivity, found.specificity, found.precision),
        )
        for found in points
    ]
    return ["", *table([("decided from", "", "sensitivity", "specificity", "precision"), *rows])]


def _subgroups(groups: "Sequence[Subgroup]") -> Iterator[str]:
    for column in dict.fromkeys(group.column for group in groups):
        rows = [
            (
                short_label(group.value),
                f"{group.images}{'*' if group.small else ' '}",
                *_shorts(group.scores.accuracy, group.scores.balanced_accuracy, group.scores.roc_auc),
            )
            for group in groups
            if group.column == column
        ]
        yield ""
        yield from table([(short_label(column), "images", "accuracy", "balanced accuracy", "ROC AUC"), *rows])
    if any(group.small for group in groups):
        yield f"* fewer than {SMALL_GROUP} images, or than {SMALL_CLASS} of a class: too few to tell much."


def _notes(result: "ModelEvaluation") -> Iterator[str]:
    if any(has_collapsed(scores) for scores in (result.scores, *(g.scores for g in result.subgroups))):
        yield COLLAPSED
    if result.simulated_data:
        yield ""
        yield SIMULATED
    if result.failed:
        yield ""
        yield f"{failed_line(result.failed)}:"
        yield from (f"  {printable(name)}" for name in result.failed[:_MOST_FAILED])
        if len(result.failed) > _MOST_FAILED:
            yield f"  and {len(result.failed) - _MOST_FAILED} more: --json lists all"


def failed_line(failed: Sequence[str]) -> str:
    """Say how many images the figures lack."""
    return f"failed: {len(failed)} image(s), in no figure: the model gives no number for them (NaN)"


_MOST_FAILED = 20
COLLAPSED = "Where all of n images are right, no draw differs: up to 3/n may still be wrong."


def has_collapsed(scores: "Scores") -> bool:
    """Whether a share is 0 or 1 with an interval of no width, which promises too much.

    Source: J. Hanley, A. Lippman-Hand, If nothing goes wrong, is everything all right?, JAMA 249 (1983).
    """
    shares = (rate for row in scores.per_class for rate in (row.recall, row.specificity, row.precision))
    return any(rate.low == rate.high for rate in (scores.accuracy, *shares))


def short_label(label: str) -> str:
    """Cut a class's name to what a column takes."""
    shown = printable(label)
    return shown if len(shown) <= LABEL_WIDTH else f"{shown[: LABEL_WIDTH - 1]}…"


def _shorts(*estimates: "Estimate") -> tuple[str, ...]:
    return tuple(estimate.short for estimate in estimates)
