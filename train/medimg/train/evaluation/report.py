"""An evaluation as one HTML page: figures with intervals, plots and, where asked for, the worst mistakes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.report import Block, Picture, Section, Table, page
from medimg.runtime.statistics.bootstrap import Estimate
from medimg.train.evaluation import plots
from medimg.train.evaluation.answers import Answers
from medimg.train.evaluation.heatmaps import MapImages
from medimg.train.evaluation.mistakes import draw, worst_mistakes
from medimg.train.evaluation.operating_points import PointScores
from medimg.train.evaluation.subgroups import SMALL_CLASS, SMALL_GROUP, Subgroup
from medimg.train.evaluation.summary import COLLAPSED, failed_line, has_collapsed, resampling_line
from medimg.train.tasks import Mistake
from medimg.train.terminal import SIMULATED

if TYPE_CHECKING:
    from medimg.train.evaluation.evaluate import ModelEvaluation

PATIENT_IMAGES = "This page holds images of patients: keep it as you keep those."
SIMULATED_IMAGES = "The images on this page are simulated; they show no patient."


def render(
    result: "ModelEvaluation", answers: Answers, spec: ModelSpec, pictures: Sequence[Block] = ()
) -> str:
    """Write the page; without pictures it holds no image and no path but the files' own names.

    Args:
        result: the figures.
        answers: what they come from.
        spec: the model's.
        pictures: what `mistake_blocks` gave.
    """
    sections = [
        Section("What was measured", (_facts(result, spec), resampling_line(result.resampling))),
        Section("Figures", (_overall(result),)),
        Section("Classes", tuple(_classes(result))),
        Section("Curves", plots.curves(answers, result.scores, result.operating_points)),
        Section("Calibration", (_calibration(result), plots.reliability(result.reliability))),
    ]
    if result.operating_points:
        sections.append(Section("Operating points", (_points(result.operating_points),)))
    if result.subgroups:
        sections.append(Section("Subgroups", tuple(_subgroups(result.subgroups))))
    if pictures:
        sections.append(Section("Worst mistakes", tuple(pictures)))
    return page(f"Evaluation of {Path(result.model).name}", list(_warnings(result, pictures)), sections)


def mistake_blocks(answers: Answers, rule: ImageRule, maps: MapImages | str) -> list[Block]:
    """Draw the mistakes that the model was surest of.

    Args:
        answers: what the model gave.
        rule: how images become the network's input.
        maps: what makes the heat maps, or why there are none.
    """
    found = worst_mistakes(answers)
    if not found:
        return ["There is none."]
    explained = (
        maps
        if isinstance(maps, str)
        else "Beside each image its class activation map: red speaks for what was decided, blue for what is "
        "true; the mean of the map is the difference of the two logits (Zhou et al. 2016)."
    )
    make = None if isinstance(maps, str) else maps
    pictures = (Picture(_caption(item, answers), draw(item, answers, rule, make)) for item in found)
    return [
        f"The {len(found)} wrong decisions that the model was surest of, worst first. {explained}",
        *pictures,
    ]


def _caption(mistake: Mistake, answers: Answers) -> str:
    chances = answers.probabilities[mistake.place]

    def named(place: int) -> str:
        return f"{answers.labels[place]} ({chances[place]:.2f})"

    name = answers.samples[mistake.place].name
    if mistake.true is None:
        return f"{name}: {named(mistake.decided or 0)} was decided and is not shown"
    if mistake.decided is None:
        return f"{name}: {named(mistake.true)} is shown and was missed"
    return f"{name}: {named(mistake.decided)} was decided, {named(mistake.true)} is true"


def _warnings(result: "ModelEvaluation", pictures: Sequence[Block]) -> Iterator[str]:
    if pictures:
        yield SIMULATED_IMAGES if result.simulated_data else PATIENT_IMAGES
    if result.simulated_data:
        yield SIMULATED
    if any(has_collapsed(scores) for scores in (result.scores, *(g.scores for g in result.subgroups))):
        yield COLLAPSED
    if result.failed:
        yield f"{failed_line(result.failed)}."
    if result.part == "val":
        yield "The part val chose among models, so these figures flatter."
    if small := [f"{group.column} {group.value}" for group in result.subgroups if group.small]:
        yield f"Groups too small for their figures to tell much: {', '.join(small)}."


def _facts(result: "ModelEvaluation", spec: ModelSpec) -> Table:
    allowed = spec.allowed
    rows = [
        ("model", Path(result.model).name),
        ("data", f"{Path(result.data).name}, {'all' if result.part == 'all' else f'part {result.part}'}"),
        ("images", str(result.scores.images)),
        ("run by", f"{result.backend}, {result.precision}"),
        ("temperature", f"{spec.temperature:.4g}"),
        ("intended use", spec.intended_use or "not said"),
        ("modality", ", ".join(allowed.modality) or "any"),
        ("body part", ", ".join(allowed.body_part) or "any"),
        ("photometric interpretation", ", ".join(allowed.photometric_interpretation) or "any"),
    ]
    return Table("The model and the images", ("", ""), tuple(rows))


def _overall(result: "ModelEvaluation") -> Table:
    scores = result.scores
    what = scores.positive or "mean of the classes, each against the others"
    rows = (
        ("accuracy", scores.accuracy, ""),
        ("balanced accuracy", scores.balanced_accuracy, "mean recall of the classes"),
        ("ROC AUC", scores.roc_auc, what),
        ("PR AUC", scores.pr_auc, what),
    )
    return Table(
        "With 95 % intervals", ("", "", "of"), tuple((name, str(value), what) for name, value, what in rows)
    )


def _classes(result: "ModelEvaluation") -> Iterator[Block]:
    found = tuple(
        (row.label, str(row.images), *_shorts(row.recall, row.specificity, row.precision))
        for row in result.scores.per_class
    )
    head = ("class", "images", "recall", "specificity", "precision")
    yield Table("Each class against the others, with 95 % intervals", head, found)
    areas = tuple((row.label, *_shorts(row.f1, row.roc_auc, row.pr_auc)) for row in result.scores.per_class)
    yield Table("Likewise", ("class", "F1", "ROC AUC", "PR AUC"), areas)
    if not result.evaluation.confusion:
        return
    labels = [row.label for row in result.evaluation.per_class]
    yield plots.confusion(labels, result.scores.confusion)
    cells = tuple(
        (label, *(_cell(count, share) for count, share in zip(counts, shares, strict=True)))
        for label, counts, shares in zip(
            labels, result.evaluation.confusion, result.scores.confusion, strict=True
        )
    )
    caption = "Confusion: images, and their share of the true class with its 95 % interval"
    yield Table(caption, ("true \\ predicted", *labels), cells)


def _calibration(result: "ModelEvaluation") -> Table:
    found = result.reliability
    rows = (
        ("expected calibration error", found.ece, "15 bins of equal width (Guo et al. 2017)"),
        ("adaptive calibration error", found.adaptive_ece, "15 bins of equal size (Nguyen, O'Connor 2015)"),
        ("Brier score", found.brier, "mean squared distance from the truth"),
        ("log loss", found.nll, "mean negative logarithm of the truth's probability"),
    )
    return Table("With 95 % intervals", ("", "", ""), tuple((n, str(value), what) for n, value, what in rows))


def _points(points: Sequence[PointScores]) -> Table:
    rows = tuple(
        (
            item.point.label,
            f"{item.point.threshold:.4f}",
            *_shorts(item.sensitivity, item.specificity, item.precision),
            item.point.chosen_for,
        )
        for item in points
    )
    head = ("class", "from", "sensitivity", "specificity", "precision", "chosen for")
    return Table("Thresholds on a class's probability, with 95 % intervals on these images", head, rows)


def _subgroups(groups: Sequence[Subgroup]) -> Iterator[Block]:
    for column in dict.fromkeys(group.column for group in groups):
        members = [group for group in groups if group.column == column]
        rows = tuple(
            (
                group.value,
                f"{group.images}{' (small)' if group.small else ''}",
                *_shorts(
                    group.scores.accuracy,
                    group.scores.balanced_accuracy,
                    group.scores.roc_auc,
                    group.scores.pr_auc,
                ),
            )
            for group in members
        )
        head = (column, "images", "accuracy", "balanced accuracy", "ROC AUC", "PR AUC")
        yield Table(f"By {column}, with 95 % intervals", head, rows)
        yield _rates_by_group(column, members)
    yield f"Small: fewer than {SMALL_GROUP} images, or fewer than {SMALL_CLASS} of a class."


def _rates_by_group(column: str, members: Sequence[Subgroup]) -> Table:
    rows = [
        (group.value, row.label, str(row.images), *_shorts(row.recall, row.specificity, row.precision))
        for group in members
        for row in group.scores.per_class
    ]
    rows += [
        (
            group.value,
            f"{item.point.label} from {item.point.threshold:.4f}",
            str(item.images),
            *_shorts(item.sensitivity, item.specificity, item.precision),
        )
        for group in members
        for item in group.operating_points
    ]
    head = (column, "class", "images", "sensitivity", "specificity", "precision")
    return Table(f"Classes and operating points by {column}", head, tuple(rows))


def _cell(count: int, share: Estimate) -> str:
    return f"{count}: {share.short}"


def _shorts(*estimates: Estimate) -> tuple[str, ...]:
    return tuple(estimate.short for estimate in estimates)
