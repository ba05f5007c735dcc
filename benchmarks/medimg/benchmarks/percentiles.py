"""Percentiles of latencies, and how many samples they need."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

SHARES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
"""Share of the samples that a percentile bounds, by its name."""

CONFIDENCE = 0.95


def summarise(latencies_ms: Sequence[float]) -> dict[str, float]:
    """Compute the percentiles, maximum and mean.

    A percentile is the smallest measured value that at least its share of the samples does not exceed: a
    latency that happened, never one between two that did.

    Args:
        latencies_ms: at least one sample, in milliseconds.
    """
    values = np.asarray(latencies_ms, np.float64)
    found = np.quantile(values, list(SHARES.values()), method="inverted_cdf")
    percentiles = {name: float(value) for name, value in zip(SHARES, found, strict=True)}
    return {**percentiles, "max": float(values.max()), "mean": float(values.mean())}


def samples_needed(share: float) -> int:
    """Count the samples of which the largest exceeds the true percentile with 95 % confidence.

    With fewer, even the maximum is likely to lie below the percentile that it is taken for.

    Source:
        S. S. Wilks, Determination of sample sizes for setting tolerance limits, Annals of Mathematical
        Statistics 12 (1941), 91-96.
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(share))


def too_few(samples: int) -> dict[str, int]:
    """Name the percentiles that need more samples than there are, and how many each needs."""
    needed = {name: samples_needed(share) for name, share in SHARES.items()}
    return {name: count for name, count in needed.items() if count > samples}
