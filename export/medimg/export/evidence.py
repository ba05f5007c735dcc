"""Preprocessing by evidence: which rule makes the Keras model right on labelled images.

A model file seldom says how its images were scaled. Each rule is tried on Keras itself; the winner must be
better than every rule with other predictions by more than chance.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from medimg.export.errors import PreprocessingError
from medimg.export.sources.base import Source
from medimg.runtime.data import DataSet, load_batches
from medimg.runtime.images.rule import ImageRule, ResizeRule
from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import ColorOrder, Intensity, IntensityName
from medimg.runtime.statistics import metrics
from medimg.runtime.tasks import Head, task_of_head

SCALINGS: tuple[IntensityName, ...] = ("caffe", "torch", "tf", "unit", "raw")
FIRST_IMAGES = 48
"""Images that every candidate is tried on; those that are still in question then see the rest."""
MOST_IMAGES = 256
BATCH = 16
_SAY = "say it with --preprocessing, --color-order and --resize, or give more images"


@dataclass(frozen=True)
class Attempt:
    """One rule and how often Keras was right with it."""

    rule: str
    images: int
    accuracy: float
    same_as_winner: bool
    """Whether it predicted the same class as the winner for every image: then the choice is immaterial."""


@dataclass(frozen=True)
class Evidence:
    """What was found, and what it rests on."""

    intensity: Intensity
    resize: ResizeRule
    attempts: tuple[Attempt, ...]
    margin: float | None
    """Least lead in accuracy over rules with other predictions, on images that both saw; None without."""
    notes: tuple[str, ...]


@dataclass
class _Candidate:
    rule: str
    image: ImageRule
    intensity: Intensity
    predicted: NDArray[np.int64]


def find_preprocessing(
    source: Source,
    head: Head,
    image: ImageRule,
    images: DataSet,
    *,
    resize_is_known: bool,
    threads: int,
    shown: Intensity | None = None,
) -> Evidence:
    """Try every scaling and colour order, then, for the best of them, every resize rule.

    Args:
        source: the Keras model.
        head: what its last layer gives.
        image: size and resize rule for the first round.
        images: labelled; at most 256 are used, drawn evenly with a fixed seed.
        resize_is_known: whether the resize rule was given and is not to be tried.
        threads: processor threads for decoding.
        shown: a scaling that the network itself shows, of which only the colour order is tried.

    Raises:
        PreprocessingError: two rules with different predictions cannot be told apart, or none makes Keras
            right more often than the commonest class is.
    """
    drawn = _drawn(images)
    trial = _Trial(source, head, drawn, threads)
    candidates = [
        _Candidate(f"{rule.rule} {rule.color_order}", image, rule, np.empty(0, np.int64))
        for rule in (_intensities(source.input_shape[2]) if shown is None else _color_orders(shown))
    ]
    winner, rivals = trial.decide(candidates)
    if shown is not None and candidates[0] in rivals:
        winner, rivals = candidates[0], []
    attempts, margin = trial.attempts(candidates, winner), trial.margin(winner, candidates)
    commonest = float(np.bincount(drawn.truth).max() / len(drawn))
    if float(trial.right(winner).mean()) <= commonest:
        raise PreprocessingError(
            f"with no rule is the model right more often than the commonest class is ({commonest:.3f}): do "
            f"these images show its classes? {_SAY}"
        )
    if rivals:
        raise PreprocessingError(_tie(winner, rivals, trial))
    notes = [
        f"{candidate.rule} gives the same predictions on these images: immaterial"
        for candidate in candidates
        if candidate is not winner and trial.same(candidate, winner)
    ]
    resize = image.resize
    if not resize_is_known:
        resize, tried, said = _find_resize(trial, winner)
        attempts += tried
        notes += said
    return Evidence(winner.intensity, resize, attempts, margin, tuple(notes))


class _Trial:
    """Keras's predictions under candidate rules, on the same images."""

    def __init__(self, source: Source, head: Head, images: DataSet, threads: int) -> None:
        self._source, self._head, self._images, self._threads = source, head, images, threads
        self._truth = images.truth
        self._known: dict[bytes, NDArray[np.int64]] = {}

    def decide(self, candidates: list[_Candidate]) -> tuple[_Candidate, list[_Candidate]]:
        """Find the best candidate, and those with other predictions that are not worse beyond chance."""
        for candidate in candidates:
            self._extend(candidate, min(FIRST_IMAGES, len(self._images)))
        winner, rivals = self._leader(candidates)
        if rivals and len(self._images) > FIRST_IMAGES:
            # Only those in question see the rest of the images.
            doubtful = [winner, *rivals]
            doubtful += [other for other in candidates if other not in doubtful and self.same(other, winner)]
            for candidate in doubtful:
                self._extend(candidate, len(self._images))
            winner, rivals = self._leader(doubtful)
        return winner, rivals

    def right(self, candidate: _Candidate) -> NDArray[np.bool_]:
        """Whether Keras was right, for the images that the candidate has seen."""
        return np.asarray(candidate.predicted == self._truth[: len(candidate.predicted)])

    def same(self, first: _Candidate, second: _Candidate) -> bool:
        """Whether two candidates gave every image that both saw the same class."""
        seen = min(len(first.predicted), len(second.predicted))
        return bool(np.array_equal(first.predicted[:seen], second.predicted[:seen]))

    def attempts(self, candidates: list[_Candidate], winner: _Candidate) -> tuple[Attempt, ...]:
        """Report every candidate."""
        return tuple(
            Attempt(item.rule, len(item.predicted), float(self.right(item).mean()), self.same(item, winner))
            for item in candidates
        )

    def margin(self, winner: _Candidate, candidates: list[_Candidate]) -> float | None:
        """How much better the winner is than the nearest candidate with other predictions."""
        leads = []
        for item in candidates:
            if not self.same(item, winner):
                seen = min(len(item.predicted), len(winner.predicted))
                leads.append(self.right(winner)[:seen].mean() - self.right(item)[:seen].mean())
        return float(min(leads)) if leads else None

    def _leader(self, candidates: list[_Candidate]) -> tuple[_Candidate, list[_Candidate]]:
        winner = max(candidates, key=lambda item: float(self.right(item).mean()))
        return winner, [
            item for item in candidates if not self.same(item, winner) and self._tied(winner, item)
        ]

    def _tied(self, winner: _Candidate, other: _Candidate) -> bool:
        seen = min(len(winner.predicted), len(other.predicted))
        low, _ = metrics.paired_drop_ci95(self.right(winner)[:seen], self.right(other)[:seen])
        return low <= 0

    def _extend(self, candidate: _Candidate, count: int) -> None:
        """Predict the images up to `count` that the candidate has not seen."""
        samples = self._images.samples[len(candidate.predicted) : count]
        answers = [candidate.predicted]
        for batch in load_batches(samples, candidate.image, BATCH, self._threads):
            answers.append(self._classes(to_network_input(batch, candidate.intensity)))
        candidate.predicted = np.concatenate(answers)

    def _classes(self, network_input: NDArray[np.float32]) -> NDArray[np.int64]:
        """Ask Keras, but not twice for the same input, as grey images are in either colour order."""
        key = hashlib.sha256(network_input.tobytes()).digest()
        if key not in self._known:
            outputs = self._source.predict(network_input)
            self._known[key] = task_of_head(self._head).finish(outputs, self._head).argmax(axis=1)
        return self._known[key]


def _find_resize(trial: _Trial, winner: _Candidate) -> tuple[ResizeRule, tuple[Attempt, ...], list[str]]:
    """Leave the default resize rule only for one that is better beyond chance."""
    default = winner.image.resize
    candidates = [winner]
    for rule in get_args(ResizeRule):
        if rule != default:
            image = replace(winner.image, resize=rule)
            candidates.append(_Candidate(rule, image, winner.intensity, np.empty(0, np.int64)))
    best, rivals = trial.decide(candidates)
    if best is winner or winner in rivals or trial.same(best, winner):
        alike = [
            item.rule for item in candidates[1:] if item is best or item in rivals or trial.same(item, winner)
        ]
        said = (
            f"resize {default} is kept: these images do not tell it from {', '.join(alike)}; --resize decides"
        )
        return default, trial.attempts(candidates[1:], winner), [said] if alike else []
    if rivals:
        raise PreprocessingError(_tie(best, rivals, trial))
    said = f"resize {best.image.resize} is better than {default} beyond chance"
    return best.image.resize, trial.attempts(candidates[1:], best), [said]


def _color_orders(shown: Intensity) -> Iterator[Intensity]:
    yield shown
    if shown.channels == 3:
        yield Intensity.named(shown.rule, color_order="bgr" if shown.color_order == "rgb" else "rgb")


def _intensities(channels: int) -> Iterator[Intensity]:
    """Each named rule in its own channel order first, then in the other."""
    if channels == 1:
        yield from (Intensity.named(rule, channels=1) for rule in SCALINGS if rule not in ("caffe", "torch"))
        return
    orders: tuple[ColorOrder, ...] = ("rgb", "bgr")
    for rule in SCALINGS:
        own = Intensity.named(rule)
        yield own
        yield Intensity.named(rule, color_order=next(order for order in orders if order != own.color_order))


def _drawn(images: DataSet) -> DataSet:
    """Shuffle the images with a fixed seed, so that any first part holds every class."""
    order = np.random.default_rng(0).permutation(len(images))[:MOST_IMAGES]
    return DataSet(images.labels, tuple(images.samples[place] for place in order))


def _tie(winner: _Candidate, rivals: list[_Candidate], trial: _Trial) -> str:
    figures = ", ".join(f"{item.rule} {trial.right(item).mean():.3f}" for item in [winner, *rivals])
    return (
        f"these {len(winner.predicted)} labelled images do not tell how the model's images were prepared "
        f"(accuracies: {figures}): {_SAY}"
    )
