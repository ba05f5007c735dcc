"""95 % intervals by the bootstrap, over images or, where they are known, over patients.

Images of one patient are not independent, so whole patients are drawn: an interval over images would be too
narrow. A statistic takes weights, how often each image was drawn, so that thousands of draws are a few matrix
products.

Source:
    B. Efron, R. Tibshirani, An introduction to the bootstrap, 1993, chapter 13 (percentile intervals).
    C. Field, A. Welsh, Bootstrapping clustered data, J. R. Statist. Soc. B 69 (2007), 369-390.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
SEED = 0
CHUNK_NUMBERS = 500_000
"""Weights held at a time."""

Values: TypeAlias = NDArray[np.float64]
Weights: TypeAlias = NDArray[np.float64]
"""`(draws, images)`: how often each image was drawn."""
Statistic: TypeAlias = Callable[[Weights], Values]
"""From weights to `(draws, …)`; NaN where a draw does not define it."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; NaN where the images do not define it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write it as `0.877 (95 %: 0.85–0.90)`."""
        return self._text("95 %: ")

    @property
    def short(self) -> str:
        """Write it as `0.877 (0.85–0.90)`, for a table that says what the interval is."""
        return self._text("")

    def _text(self, said: str) -> str:
        if math.isnan(self.value):
            return "-"
        interval = f"{self.low:.2f}–{self.high:.2f}" if math.isfinite(self.low + self.high) else "-"
        return f"{self.value:.3f} ({said}{interval})"


@dataclass(frozen=True)
class Estimates:
    """Figures of one kind with their 95 % intervals: three arrays of one shape."""

    value: Values
    low: Values
    high: Values

    def __getitem__(self, place: int | tuple[int, ...]) -> Estimate:
        return Estimate(float(self.value[place]), float(self.low[place]), float(self.high[place]))


@dataclass(frozen=True)
class Resampling:
    """How intervals were made."""

    unit: Literal["images", "patients"]
    """What was drawn; an image whose patient is not known is a patient of its own."""
    units: int
    draws: int
    seed: int


class Resamples:
    """Seeded draws with replacement, the same each time they are asked for.

    Args:
        patients: whose image each is; None where that is not known.
        draws: how many.
        seed: the same seed gives the same draws.
    """

    def __init__(self, patients: Sequence[str | None], draws: int = DRAWS, seed: int = SEED) -> None:
        known = any(patient is not None for patient in patients)
        keys = [("image", str(n)) if p is None else ("patient", p) for n, p in enumerate(patients)]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self._unit_of = np.array([numbers[key] for key in keys], np.int64)
        self.resampling = Resampling("patients" if known else "images", len(numbers), draws, seed)

    def weights(self, columns: int = 1) -> Iterator[Weights]:
        """Give the draws, some at a time.

        Args:
            columns: numbers a draw that the statistic needs at once, if they are more than the images.
        """
        plan = self.resampling
        random = np.random.default_rng(plan.seed)
        step = max(1, CHUNK_NUMBERS // max(len(self._unit_of), columns))
        for start in range(0, plan.draws, step):
            drawn = (
                np.bincount(random.integers(0, plan.units, plan.units), minlength=plan.units)
                for _ in range(min(step, plan.draws - start))
            )
            yield np.stack([counts[self._unit_of] for counts in drawn]).astype(np.float64)

    def estimate(self, statistic: Statistic) -> Estimates:
        """Compute a statistic on the images themselves, and its percentile interval over the draws.

        Args:
            statistic: from weights to `(draws, …)`.
        """
        value = statistic(np.ones((1, len(self._unit_of))))[0]
        drawn = np.concatenate([statistic(weights) for weights in self.weights(value.size)])
        low, high = _percentiles(drawn.reshape(len(drawn), -1))
        return Estimates(value, low.reshape(value.shape), high.reshape(value.shape))


def _percentiles(drawn: Values) -> tuple[Values, Values]:
    """Bound each column, `(draws, columns)`, by the draws that define it, if those are most."""
    bounds = np.full((2, drawn.shape[1]), np.nan)
    for column, values in enumerate(drawn.T):
        defined = values[np.isfinite(values)]
        if 2 * len(defined) > len(values):
            bounds[:, column] = np.quantile(defined, (0.025, 0.975))
    return bounds[0], bounds[1]
