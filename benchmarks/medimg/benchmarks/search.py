"""The highest rate of arrivals at which the latency's percentile stays within its bound."""

from collections.abc import Callable

from medimg.benchmarks.results import Trial

STEPS = 6
"""Halvings: the rate is found to 1.6 % of what the system can do at best."""
BACK_OFF = 0.95
"""A rate that held in the search but not in the run itself is lowered so much, so often."""
BACK_OFFS = 6


def search(attempt: Callable[[float], Trial], capacity_per_s: float) -> list[Trial]:
    """Halve the range between nothing and the system's capacity.

    Args:
        attempt: tries a rate.
        capacity_per_s: images a second with all of them there at once; arrivals at random reach less.

    Returns:
        All trials in order; the highest that held is the answer, if any did.
    """
    low, high = 0.0, capacity_per_s
    trials = []
    for _ in range(STEPS):
        trial = attempt((low + high) / 2)
        trials.append(trial)
        if trial.held:
            low = trial.rate_per_s
        else:
            high = trial.rate_per_s
    return trials


def best_rate(trials: list[Trial]) -> float | None:
    """Give the highest rate that held, below all that did not."""
    failed = min((trial.rate_per_s for trial in trials if not trial.held), default=float("inf"))
    return max(
        (trial.rate_per_s for trial in trials if trial.held and trial.rate_per_s < failed), default=None
    )
