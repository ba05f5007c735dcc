"""The choice of INT8 ranges: four methods, judged on images that gave no range."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from medimg.export.answers import answers
from medimg.export.calibration import (
    Histogram,
    collect,
    ends,
    entropy_threshold,
    largest_magnitude,
    no_number,
    percentile_threshold,
    squared_error_threshold,
)
from medimg.export.errors import CalibrationError
from medimg.export.to_int8 import to_int8
from medimg.runtime.data import DataSet, load_batches
from medimg.runtime.model.preprocess import Images
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.statistics import metrics
from medimg.runtime.tasks import Probabilities
from medimg.runtime.tasks.probabilities import answered

METHODS: dict[str, Callable[[Histogram], float]] = {
    "entropy": entropy_threshold,
    "percentile": percentile_threshold,
    "squared-error": squared_error_threshold,
    "min-max": largest_magnitude,
}
HELD_BACK_SHARE = 0.2
MOST_TO_HOLD_BACK = 100
"""They stay in memory, which is not to grow with the number of images."""
FEWEST_TO_HOLD_BACK = 20
"""With fewer images all of them give ranges and judge the methods."""
BATCH = 8
SMALLEST = np.finfo(np.float32).tiny
"""A probability of 0 in float32 counts as this."""


@dataclass(frozen=True)
class MethodScore:
    """How near one method's INT8 came to float32 on the held-back images."""

    method: str
    top1_agreement: float
    log_rms: float
    """Root mean square difference of log probabilities: on images of which the network is sure, probabilities
    themselves hardly move."""


@dataclass(frozen=True)
class Ranges:
    """The ranges that were chosen, and why."""

    method: str
    thresholds: dict[str, float]
    """The largest magnitude that each activation keeps, by tensor."""
    scores: tuple[MethodScore, ...]


@dataclass(frozen=True)
class HeldBack:
    """Calibration images that gave no range, with what the float32 graph answers."""

    batches: tuple[Images, ...]
    reference: Probabilities


def split_calibration(calibration: DataSet) -> tuple[DataSet, DataSet]:
    """Divide the images into those that give ranges and those that judge, drawn evenly with a fixed seed."""
    if len(calibration) < FEWEST_TO_HOLD_BACK:
        return calibration, calibration
    order = np.random.default_rng(1).permutation(len(calibration))
    held_back = min(round(HELD_BACK_SHARE * len(calibration)), MOST_TO_HOLD_BACK)
    judges = set(order[:held_back].tolist())
    parts = (
        tuple(sample for place, sample in enumerate(calibration.samples) if (place in judges) == wanted)
        for wanted in (False, True)
    )
    feeding, judging = (DataSet(calibration.labels, part) for part in parts)
    return feeding, judging


def hold_back(network: ModelProto, spec: ModelSpec, images: DataSet, threads: int) -> HeldBack:
    """Load the judging images and run the float32 graph on them."""
    batches = tuple(load_batches(images.samples, spec.image, BATCH, threads))
    reference = answers(network, spec, batches, threads)
    for sample, is_number in zip(images.samples, answered(reference), strict=True):
        if not is_number:
            raise CalibrationError(no_number(sample.name))
    return HeldBack(batches, reference)


def choose_ranges(
    network: ModelProto, spec: ModelSpec, feeding: DataSet, judging: HeldBack, threads: int
) -> Ranges:
    """Collect histograms once, quantise by each method, and keep the one that agrees best with float32.

    Args:
        network: the checked float32 graph.
        spec: its spec.
        feeding: images for the histograms, one at a time.
        judging: images for the choice; top-1 agreement decides, then the difference of log probabilities.
        threads: processor threads.
    """
    kept = ends(network)
    histograms = collect(
        network,
        load_batches(feeding.samples, spec.image, 1, threads),
        threads,
        [item.name for item in feeding.samples],
    )
    candidates = {
        name: {tensor: threshold(found) for tensor, found in histograms.items()}
        for name, threshold in METHODS.items()
    }
    scores = []
    for name, found in candidates.items():
        given = answers(to_int8(network, found, kept), spec, judging.batches, threads)
        scores.append(score(name, given, judging.reference))
    best = max(scores, key=lambda found: (found.top1_agreement, -found.log_rms))
    return Ranges(best.method, candidates[best.method], tuple(scores))


def score(method: str, found: Probabilities, reference: Probabilities) -> MethodScore:
    """Compare INT8 answers with those of float32, both `(images, classes)`."""
    given, wanted = (np.log(np.maximum(values, SMALLEST)) for values in (found, reference))
    difference = float(np.sqrt(np.mean((given - wanted) ** 2)))
    return MethodScore(method, metrics.top1_agreement(reference, found), difference)
