"""When enough has been measured: LoadGen's early stopping and validity rules.

Source:
    MLCommons, MLPerf Inference Rules, appendix "Early Stopping Criterion": with confidence 99 %, the share of
    queries above the percentile's estimate is below what the percentile allows.
"""

from collections.abc import Sequence

from medimg.benchmarks.results import ScenarioName, Validity
from medimg.runtime.optional import require

CONFIDENCE = 0.99
TARGET_PERCENTILES: dict[ScenarioName, str] = {
    "single-stream": "p90",
    "multi-stream": "p99",
    "server": "p99",
}
"""What MLPerf reports of each scenario's latencies; `offline` has none."""


def passing_queries(over: int, share: float) -> int:
    """Count the queries at or below a latency that outweigh some above it.

    Args:
        over: queries above.
        share: of all queries that the percentile bounds, such as 0.99.

    Returns:
        The smallest `h` for which `over` or fewer among `h + over` have a probability below 1 % if queries
        were above with probability `1 - share`.
    """
    special = require("scipy.special", "bench")
    low, high = 0, 64
    while special.betainc(high, over + 1, share) >= 1 - CONFIDENCE:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if special.betainc(middle, over + 1, share) >= 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def queries_needed(share: float) -> int:
    """Count the queries that early stopping needs for a percentile at least: 64 for p90, 662 for p99."""
    return passing_queries(1, share) + 1


def upper_bound(latencies: Sequence[float], share: float) -> float | None:
    """Bound a percentile from above with 99 % confidence, or None for too few queries."""
    queries = len(latencies)
    if queries < queries_needed(share):
        return None
    # The more are above, the more must be there: halve between one, which may be, and all, which may not.
    over, too_many = 1, queries
    while too_many - over > 1:
        middle = (over + too_many) // 2
        if queries >= passing_queries(middle, share) + middle:
            over = middle
        else:
            too_many = middle
    return sorted(latencies)[queries - over]


def judge_latencies(
    latencies_ms: Sequence[float], share: float | None, duration_s: float, elapsed_s: float
) -> Validity:
    """Judge a run whose queries follow one another; `offline` has no percentile."""
    reasons = []
    if elapsed_s < duration_s:
        reasons.append(f"it ran {elapsed_s:.3g} s where at least {duration_s:.3g} s were asked for")
    if share is None:
        return Validity(not reasons, tuple(reasons), None)
    if len(latencies_ms) < (needed := queries_needed(share)):
        reasons.append(f"{len(latencies_ms)} queries where early stopping needs {needed}")
    return Validity(not reasons, tuple(reasons), upper_bound(latencies_ms, share))


def judge_bound(latencies_ms: Sequence[float], share: float, bound_ms: float) -> Validity:
    """Judge whether a percentile of randomly arriving queries stays within a bound."""
    ordered = sorted(latencies_ms)
    reached = ordered[min(len(ordered) - 1, int(len(ordered) * share))]
    over = sum(latency > bound_ms for latency in ordered)
    needed = passing_queries(over, share) + over
    reasons = []
    if reached > bound_ms:
        reasons.append(f"{100 * share:g} % of queries took up to {reached:.4g} ms, above {bound_ms:g} ms")
    if len(ordered) < needed:
        reasons.append(f"{len(ordered)} queries where early stopping needs {needed}, {over} being above")
    return Validity(not reasons, tuple(reasons), upper_bound(latencies_ms, share))
