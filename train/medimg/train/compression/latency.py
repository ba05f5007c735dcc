"""A model of how long a chain takes on this device: measured on a few chains of other widths.

The time of an image is a sum of a constant, of the activations that are moved, and of the
multiply-accumulates at each resolution (the first layer, which stays in float32, apart), with coefficients
that are not negative.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.optional import require
from medimg.train.compression.stages import Stage, full_widths, macs, narrowed
from medimg.train.compression.widths import Widths

PIXELS = "pixels"
MULTIPLES = (16, 32, 64)
EXPECTED_COUNTS = 0.01
"""What the expectation counts beside a timing, at least: a coefficient twice the one expected is as bad as a
timing that is missed by this share."""
SPREAD = 0.5
"""How far the rates of layers are expected to lie apart, as a share; beside timings that scatter, the
expectation counts by as much as it is the more certain."""
EXPECTED_SHARE = 0.1
"""Of the time at full width, at most, that no layer's rate explains is expected to take."""
TOLERANCE = 1.04
"""Widths that take longer than this times what larger multiples foretell do not suit the hardware."""


@dataclass(frozen=True)
class Timing:
    """How long a chain took."""

    widths: Widths
    latency_ms: float
    """Median of single images, INT8."""


@dataclass(frozen=True)
class LatencyModel:
    """The fitted model."""

    terms: tuple[str, ...]
    ms: tuple[float, ...]
    """Of an image, of a million activations, and of a million multiply-accumulates of each kind."""
    timings: tuple[Timing, ...]
    """What it was fitted to."""
    modelled_ms: tuple[float, ...]
    """What it gives for those."""
    multiple: int
    """Of channels, that suits the hardware."""
    scatter: float
    """Standard deviation of one network's timings, as a share, over all networks."""

    def predict(self, stages: Sequence[Stage], widths: Widths) -> float:
        """Give the modelled latency in milliseconds."""
        return float(_numbers(stages, widths, self.terms) @ np.array(self.ms))


def measure_model(
    stages: Sequence[Stage],
    time_rounds: Callable[[Sequence[Widths]], NDArray[np.float64]],
    multiple: int | None,
) -> LatencyModel:
    """Time chains of other widths, and fit the model to them.

    Args:
        stages: the chain.
        time_rounds: exports chains of such widths to INT8 and times each in every round, `(rounds, chains)`.
            What else the machine does only adds to a timing, so the smallest of each chain counts.
        multiple: of channels; None chooses the one that suits the hardware.
    """
    largest = multiple or max(MULTIPLES)
    half = narrowed(stages, 0.5, largest)
    probes = [full_widths(stages), half]
    probes += [_with_quarters(stages, kind, half, largest) for kind in dict.fromkeys(_kinds(stages))]
    odds = {} if multiple else {smaller: _about_half(stages, smaller) for smaller in MULTIPLES[:-1]}
    timed = list(dict.fromkeys([*probes, *odds.values()]))
    rounds = time_rounds(timed)
    ms = dict(zip(timed, map(float, rounds.min(axis=0)), strict=True))
    scatter = float(np.sqrt(np.log(rounds).var(axis=0, ddof=1).mean()))
    found = fit(stages, [Timing(widths, ms[widths]) for widths in dict.fromkeys(probes)], largest, scatter)
    for smaller, odd in odds.items():
        if ms[odd] <= TOLERANCE * found.predict(stages, odd):
            return replace(found, multiple=smaller)
    return found


def fit(stages: Sequence[Stage], timings: Sequence[Timing], multiple: int, scatter: float) -> LatencyModel:
    """Fit the model by least squares of relative errors, without negative coefficients.

    There are hardly more timings than coefficients. So that a disturbed timing does not end up in a layer of
    a few thousand multiply-accumulates, or make a layer cost nothing, all resolutions are expected to have
    the rate of the whole chain, and the other terms to be small (a ridge with a centre). It counts the more,
    the more the timings scatter.

    Source: C. Lawson, R. Hanson, Solving least squares problems, 1974, chapter 23 (SciPy's `nnls`).
    """
    nnls = require("scipy.optimize", "train").nnls
    terms = ("image", "activations", *dict.fromkeys(_kinds(stages)))
    rows = np.stack([_numbers(stages, timing.widths, terms) for timing in timings])
    times = np.array([timing.latency_ms for timing in timings])
    full = rows[times.argmax()]
    of_rate = np.array([term.endswith(PIXELS) for term in terms])
    expected = times.max() * np.where(of_rate, full / full[of_rate].sum(), EXPECTED_SHARE)
    # Coefficients are looked for as multiples of those expected.
    unit = expected / full
    counts = max(EXPECTED_COUNTS, scatter / SPREAD)
    measured, ridge = rows * unit / times[:, None], counts * np.eye(len(terms))
    wanted = [*np.ones(len(times)), *(counts * of_rate)]
    ms = nnls(np.vstack([measured, ridge]), wanted)[0] * unit
    modelled = tuple(float(value) for value in rows @ ms)
    return LatencyModel(terms, tuple(map(float, ms)), tuple(timings), modelled, multiple, scatter)


def _kinds(stages: Sequence[Stage]) -> tuple[str, ...]:
    return tuple(
        "first layer" if not place else f"{stage.positions} {PIXELS}" for place, stage in enumerate(stages)
    )


def _numbers(stages: Sequence[Stage], widths: Widths, terms: Sequence[str]) -> NDArray[np.float64]:
    """Count what each term is multiplied by, in millions."""
    counts = dict.fromkeys(terms, 0.0)
    counts["image"] = 1.0
    for stage, kind, width, number in zip(stages, _kinds(stages), widths, macs(stages, widths), strict=True):
        counts["activations"] += stage.positions * width / 1e6
        counts[kind] += number / 1e6
    return np.array([counts[term] for term in terms])


def _about_half(stages: Sequence[Stage], multiple: int) -> Widths:
    """Give widths of a half, but in wide layers such as are multiples of this and of no larger number."""
    half = narrowed(stages, 0.5, max(MULTIPLES))
    odd = [
        width - multiple if stage.width >= 4 * max(MULTIPLES) else width
        for stage, width in zip(stages[:-1], half, strict=False)
    ]
    return (*odd, stages[-1].width)


def _with_quarters(stages: Sequence[Stage], kind: str, half: Widths, multiple: int) -> Widths:
    """Give widths of a half, and of a quarter where the layers are of a kind."""
    quarter = narrowed(stages, 0.25, multiple)
    chosen = [q if k == kind else h for k, q, h in zip(_kinds(stages), quarter, half, strict=True)]
    return (*chosen[:-1], stages[-1].width)
