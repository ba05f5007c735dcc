"""The images that a benchmark sends: a user's own, or made ones."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from medimg.benchmarks.results import ImagesFrom
from medimg.runtime.data import Sample, read_data
from medimg.runtime.errors import DataError, ImageError
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.applicability import require_applicable
from medimg.runtime.model.preprocess import Images
from medimg.runtime.model.spec import Allowed

MAX_IMAGES = 512
"""Of a larger set so many are used, chosen by a seed."""
SYNTHETIC_IMAGES = 64
ANY_IMAGE = Allowed()


@dataclass(frozen=True)
class Queries:
    """Images that can all be read."""

    images_from: ImagesFrom
    samples: tuple[Sample, ...]
    warnings: tuple[str, ...] = ()
    """Which files are left out, and why."""

    @property
    def measured(self) -> int:
        """How many of them, from the first, speed is measured on; accuracy takes all."""
        return min(len(self.samples), MAX_IMAGES)

    def decoded(self, rule: ImageRule) -> "Queries":
        """Give the images that speed is measured on as arrays of the network's size."""
        samples = (replace(sample, source=sample.load(rule)) for sample in self.samples[: self.measured])
        return Queries("arrays", tuple(samples), self.warnings)


def read_queries(
    data: str | Path,
    rule: ImageRule,
    threads: int,
    labels: tuple[str, ...] | None = None,
    allowed: Allowed = ANY_IMAGE,
) -> Queries:
    """Choose images of a data set and read each once, so that none fails while the clock runs.

    Files therefore come from the page cache when they are measured: decoding counts, the disk does not.

    Args:
        data: any kind of DATA.
        rule: how pixels become the network's input.
        threads: for decoding.
        labels: the model's classes, where accuracy is wanted: then all images of the part `test` are taken,
            if there is one, and all must be labelled.
        allowed: what the model is for; other images are left out, as those that cannot be read.

    Raises:
        DataError: it holds no image that can be read, or its labels are not the model's.
    """
    samples = _choose(data, labels)
    with ThreadPoolExecutor(threads) as pool:
        errors = list(pool.map(lambda sample: _error(sample, rule, allowed), samples))
    readable = tuple(sample for sample, error in zip(samples, errors, strict=True) if error is None)
    found = [error for error in errors if error is not None]
    if not readable:
        raise DataError(
            f"{data}: holds no image that can be read" + (f"; the first: {found[0]}" if found else "")
        )
    warnings = (f"{len(found)} images are left out; the first: {found[0]}",) if found else ()
    from_files = isinstance(readable[0].source, Path)
    return Queries("files" if from_files else "arrays", readable, warnings)


def make_queries(rule: ImageRule, seed: int = 0) -> Queries:
    """Make seeded images of the network's size: noise, gradients, blobs and constants in turn."""
    generator = np.random.default_rng(seed)
    samples = tuple(
        Sample(f"synthetic-{number}", _make_image(number, rule, generator))
        for number in range(SYNTHETIC_IMAGES)
    )
    return Queries("synthetic", samples)


def _choose(data: str | Path, labels: tuple[str, ...] | None) -> list[Sample]:
    dataset = read_data(data, labelled=labels is not None)
    wanted = MAX_IMAGES
    if labels is not None:
        dataset = dataset.relabelled(labels)
        dataset = dataset.part("test") if len(dataset.part("test")) else dataset
        wanted = len(dataset)
    order = np.random.default_rng(0).permutation(len(dataset))[:wanted]
    return [dataset.samples[index] for index in order]


def _error(sample: Sample, rule: ImageRule, allowed: Allowed) -> ImageError | None:
    try:
        if isinstance(sample.source, Path):
            require_applicable(sample.source, allowed)
        sample.load(rule)
    except ImageError as error:
        return error
    return None


def _make_image(number: int, rule: ImageRule, generator: np.random.Generator) -> Images:
    shape = (rule.rows, rule.columns, 3)
    kind = number % 4
    if kind == 0:
        return generator.integers(0, 256, shape, np.uint8)
    if kind == 1:
        ramp = np.add.outer(np.linspace(0, 1, rule.rows), np.linspace(0, 1, rule.columns))
        return (ramp[..., None] * generator.uniform(20, 127, 3)).astype(np.uint8)
    if kind == 2:
        coarse = generator.integers(0, 256, (7, 7, 3), np.uint8)
        return np.asarray(cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_CUBIC), np.uint8)
    return np.full(shape, generator.integers(0, 256, 3), np.uint8)
