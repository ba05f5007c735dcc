"""Proof that an artefact gives the Keras model's answers, from image file to probabilities."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medimg.export.errors import SourceError
from medimg.export.head_choice import check_answers
from medimg.export.sources.base import Source
from medimg.export.synthetic import names_of, synthetic_images
from medimg.runtime.backends import choose_backend
from medimg.runtime.data import DataSet, load_batches
from medimg.runtime.model.containers import Artefact
from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import ModelSpec, Precision, Verification
from medimg.runtime.statistics import metrics
from medimg.runtime.tasks import PROBABILITIES, Probabilities, task_named, task_of_head

FP32_LIMIT = 1e-5
"""Largest difference of a probability between Keras and a float32 artefact."""
ROUNDING_FACTOR, ROUNDING_CEILING = 4.0, 1e-4
"""A network that multiplies rounding may differ by more: by so many times what Keras itself rounds off, up to
the ceiling. Both sides round, and folded batch normalisation rounds in another order."""
AGREEMENT_FLOOR = {"fp32": 1.0, "fp16": 0.99, "int8": 0.95}
"""Least top-1 agreement where no labels tell what a difference costs."""
BATCH_LIMIT: dict[Precision, float] = {"fp16": 5e-3, "int8": 0.05}
"""Largest change of a probability that comes from sharing a batch; in float32 it is that from Keras."""
DIFFERENCE_EDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Lower edges of the bins in which a report counts images by their difference from Keras."""
BATCH = 8
ONE_ANSWER = 0.05
"""Images between which no probability moves by so much have got the same answer."""

Batches = Callable[[], Iterator[NDArray[Any]]]


@dataclass(frozen=True)
class Trial:
    """What artefacts are compared on."""

    images_from: Literal["synthetic", "calibration", "validation"]
    batches: Batches
    """Gives the same batches, as an artefact's input takes them, each time it is called."""
    reference: Probabilities
    """`(images, classes)`: what Keras answers."""
    truth: NDArray[np.int64] | None
    """`(images,)` true classes, where the images are labelled and chose nothing."""
    patients: tuple[str | None, ...]
    """Whose image each of those is, as far as that is known."""
    names: tuple[str, ...] = ()
    """What the images are called in messages."""

    @property
    def answered(self) -> NDArray[np.bool_]:
        """For which images Keras gives numbers, `(images,)`."""
        return np.asarray(np.isfinite(self.reference).all(axis=1))

    @property
    def is_constant(self) -> bool:
        """Whether Keras gives every image the same answer, so that a comparison proves nothing."""
        known = self.reference[self.answered]
        return bool(len(set(known.argmax(axis=1).tolist())) == 1 and np.ptp(known, axis=0).max() < ONE_ANSWER)

    def unanswered(self) -> tuple[str, ...]:
        """Name the images for which Keras gives no number."""
        return tuple(self.names[place] for place in np.flatnonzero(~self.answered))


def make_trial(
    source: Source, spec: ModelSpec, images: DataSet | None, *, validation: bool, threads: int
) -> Trial:
    """Run Keras on the images, or on synthetic arrays if there are none.

    Args:
        source: the Keras model in float32.
        spec: the artefact's spec.
        images: what to compare on; its labels, if any, are indices of `spec.labels`.
        validation: whether the images chose nothing, so that their labels may judge.
        threads: processor threads for decoding.
    """
    if images is None or spec.intensity.rule == "unspecified":
        batches, kind = _synthetic_batches(spec), "synthetic"
    else:
        chosen = images
        batches, kind = (lambda: load_batches(chosen.samples, spec.image, BATCH, threads)), "calibration"
    reference = np.concatenate([_reference(source, spec, batch) for batch in batches()])
    if not np.isfinite(reference).all(axis=1).any():
        named = (
            f"{images.samples[0].name}: the model gives no number for it" if images else source.origin.path
        )
        raise SourceError(f"{named}: Keras gives no number for any of {len(reference)} trial images")
    check_answers(spec, reference, str(source.origin.path))
    judges = kind != "synthetic" and validation and task_named(spec.task).exclusive
    labelled = images if judges and images is not None and images.labels else None
    return Trial(
        "validation" if validation and kind != "synthetic" else kind,  # type: ignore[arg-type]  # one of the three
        batches,
        reference,
        labelled.truth if labelled else None,
        tuple(sample.patient for sample in labelled.samples) if labelled else (),
        names_of(len(reference))
        if images is None or kind == "synthetic"
        else tuple(s.name for s in images.samples),
    )


def own_rounding(exact: Source, spec: ModelSpec, trial: Trial) -> float:
    """Tell how far Keras is in float32 from its own answers in float64.

    Args:
        exact: the Keras model, computing in float64.
        spec: the artefact's spec.
        trial: the images and Keras's answers in float32.
    """
    answers = np.concatenate([_reference(exact, spec, batch) for batch in trial.batches()])
    return float(np.nanmax(np.abs(answers - trial.reference), initial=0))


@dataclass(frozen=True)
class ClassRecall:
    """One class's recall (sensitivity) by Keras and by the artefact."""

    label: str
    reference: float
    artefact: float


@dataclass(frozen=True)
class Comparison:
    """An artefact beside Keras: the figures that go into its spec, and those for the report."""

    verification: Verification
    batch_max_abs_diff: float
    """Largest difference of a probability between an image alone and the same image in a batch."""
    recall: tuple[ClassRecall, ...]
    """Empty unless labelled images judged."""
    difference_counts: tuple[int, ...]
    """Images by their largest difference of a probability, in the bins of `DIFFERENCE_EDGES`."""
    reference_rounding: float | None
    """Keras's own distance from float64, where a float32 artefact is further from it than `FP32_LIMIT`."""
    missed: tuple[str, ...] = ()
    """Images for which either Keras or the artefact gives no number, and the other does."""


def compare(
    artefact: Artefact, trial: Trial, *, rounding: Callable[[], float], max_drop: float, threads: int
) -> Comparison:
    """Compare an artefact with Keras, through the back end that would run it on this CPU.

    Args:
        artefact: as any client reads it.
        trial: the images and Keras's answers.
        rounding: tells Keras's own distance from float64; asked only where it matters.
        max_drop: the largest loss of accuracy that is accepted.
        threads: processor threads.
    """
    backend = choose_backend(artefact.spec.precision, device="cpu").open(artefact, threads)
    answers = np.concatenate([backend.infer(batch)[PROBABILITIES] for batch in trial.batches()])
    first = next(trial.batches())
    alone = np.concatenate(
        [backend.infer(first[place : place + 1])[PROBABILITIES] for place in range(len(first))]
    )
    backend.close()
    differences = _differences(trial.reference, answers)
    found = Verification(
        images=len(answers),
        images_from=trial.images_from,
        max_abs_diff=float(differences.max()),
        top1_agreement=metrics.top1_agreement(trial.reference, answers),
        verdict="unlabelled",
        backend=backend.name,
    )
    batch_difference = float(_differences(answers[: len(first)], alone).max())
    precision = artefact.spec.precision
    limit, own = math.inf, None
    if precision == "fp32":
        limit, own = _fp32_limit(max(found.max_abs_diff, batch_difference), rounding)
    found = _judged(found, artefact.spec, trial, answers, max_drop)
    missed = np.isfinite(answers).all(axis=1) != trial.answered
    if missed.any() or found.max_abs_diff > limit or batch_difference > BATCH_LIMIT.get(precision, limit):
        found = replace(found, verdict="failed")
    elif found.verdict != "failed" and trial.is_constant:
        found = replace(found, verdict="not proven")
    counts, _ = np.histogram(differences, bins=[*DIFFERENCE_EDGES, np.inf])
    recall = _recall(artefact.spec, trial, answers)
    return Comparison(
        found,
        batch_difference,
        recall,
        tuple(int(count) for count in counts),
        own,
        tuple(trial.names[place] for place in np.flatnonzero(missed)),
    )


def _fp32_limit(difference: float, rounding: Callable[[], float]) -> tuple[float, float | None]:
    """Give the largest difference that float32 may show, and Keras's own rounding where it decides."""
    if not FP32_LIMIT < difference <= ROUNDING_CEILING:
        return FP32_LIMIT, None
    own = rounding()
    return max(FP32_LIMIT, min(ROUNDING_FACTOR * own, ROUNDING_CEILING)), own


def _differences(reference: Probabilities, answers: Probabilities) -> NDArray[np.float32]:
    """Give each image's largest difference of a probability: all there can be where one is no number."""
    both = np.isfinite(reference).all(axis=1), np.isfinite(answers).all(axis=1)
    with np.errstate(invalid="ignore"):
        found = np.abs(answers - reference).max(axis=1)
    return np.where(both[0] & both[1], found, np.where(both[0] == both[1], 0, 1)).astype(np.float32)


def _recall(spec: ModelSpec, trial: Trial, answers: Probabilities) -> tuple[ClassRecall, ...]:
    if trial.truth is None:
        return ()
    known, truth = trial.answered, trial.truth[trial.answered]
    before = metrics.evaluate(truth, trial.reference[known].argmax(axis=1), spec.labels)
    after = metrics.evaluate(truth, answers[known].argmax(axis=1), spec.labels)
    pairs = zip(before.per_class, after.per_class, strict=True)
    return tuple(ClassRecall(old.label, old.recall, new.recall) for old, new in pairs)


def _judged(
    found: Verification, spec: ModelSpec, trial: Trial, answers: Probabilities, max_drop: float
) -> Verification:
    if trial.truth is None:
        enough = (
            not task_named(spec.task).exclusive or found.top1_agreement >= AGREEMENT_FLOOR[spec.precision]
        )
        return replace(found, verdict="unlabelled" if enough else "failed")
    reference_right = trial.answered & (trial.reference.argmax(axis=1) == trial.truth)
    right = np.isfinite(answers).all(axis=1) & (answers.argmax(axis=1) == trial.truth)
    low, high = metrics.paired_drop_ci95(reference_right, right, trial.patients)
    drop = float(reference_right.mean() - right.mean())
    return replace(
        found,
        verdict=metrics.judge_drop(drop, high, max_drop),
        accuracy=float(right.mean()),
        accuracy_reference=float(reference_right.mean()),
        accuracy_drop=drop,
        accuracy_drop_ci95=(low, high),
    )


def _reference(source: Source, spec: ModelSpec, batch: NDArray[Any]) -> Probabilities:
    if spec.intensity.rule == "unspecified":
        network_input = batch.astype(np.float32)
    else:
        network_input = to_network_input(batch.astype(np.uint8), spec.intensity)
    return task_named(spec.task).tempered(
        task_of_head(spec.head).finish(source.predict(network_input), spec.head), spec.temperature
    )


def _synthetic_batches(spec: ModelSpec) -> Batches:
    images: NDArray[Any] = synthetic_images(spec.image.rows, spec.image.columns)
    if spec.intensity.rule == "unspecified":
        images = (images[..., : spec.intensity.channels] / 255).astype(np.float32)
    return lambda: (images[start : start + BATCH] for start in range(0, len(images), BATCH))
