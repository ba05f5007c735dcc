"""Early stopping: the counts that LoadGen states, and the binomial behind them."""

import numpy as np
import pytest
from scipy import stats

from medimg.benchmarks.validity import (
    judge_bound,
    judge_latencies,
    passing_queries,
    queries_needed,
    upper_bound,
)


@pytest.mark.parametrize(("share", "needed"), [(0.9, 64), (0.99, 662)])
def test_the_counts_are_those_in_loadgens_own_summary(share: float, needed: int) -> None:
    assert queries_needed(share) == needed


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("over", [0, 1, 5, 40])
def test_so_many_passing_queries_are_unlikely_by_chance(share: float, over: int) -> None:
    passing = passing_queries(over, share)
    assert stats.binom.cdf(over, passing + over, 1 - share) < 0.01
    assert passing == 0 or stats.binom.cdf(over, passing - 1 + over, 1 - share) >= 0.01


def test_the_bound_lies_above_the_percentile_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    truth = stats.expon.ppf(0.9)
    held = sum((upper_bound(list(random.exponential(size=200)), 0.9) or 0) >= truth for _ in range(1000))
    assert held >= 980


@pytest.mark.parametrize(("queries", "discarded"), [(64, 0), (631, 44)])
def test_as_many_of_the_highest_are_discarded_as_loadgen_does(queries: int, discarded: int) -> None:
    """LoadGen's summary of 631 queries: "Would discard 44 highest latency queries"."""
    assert upper_bound(list(range(queries)), 0.9) == queries - discarded - 1


def test_too_few_queries_give_no_bound_and_are_said() -> None:
    found = judge_latencies([1.0] * 63, 0.9, 1, 1)
    assert (found.valid, found.early_stopping_ms) == (False, None)
    assert found.reasons == ("63 queries where early stopping needs 64",)
    assert judge_latencies([1.0] * 64, 0.9, 1, 1).valid


def test_a_run_that_ended_early_is_not_valid() -> None:
    assert "0.5 s where at least 1 s" in judge_latencies([1.0] * 100, None, 1, 0.5).reasons[0]


@pytest.mark.parametrize(("over", "queries", "valid"), [(0, 459, True), (0, 458, False), (20, 459, False)])
def test_a_bound_is_judged_by_its_percentile_and_the_count(over: int, queries: int, valid: bool) -> None:
    latencies = [5.0] * (queries - over) + [50.0] * over
    assert judge_bound(latencies, 0.99, 10.0).valid is valid
