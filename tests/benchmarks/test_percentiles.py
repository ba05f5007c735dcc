import math
from fractions import Fraction

import numpy as np
import pytest

from medimg.benchmarks.percentiles import SHARES, samples_needed, summarise

EXACT_SHARES = {
    "p50": Fraction(1, 2),
    "p90": Fraction(9, 10),
    "p95": Fraction(19, 20),
    "p99": Fraction(99, 100),
    "p99.9": Fraction(999, 1000),
}


def samples(count: int) -> list[float]:
    return list(np.random.default_rng(count).lognormal(2, 0.5, count))


@pytest.mark.parametrize("count", [1, 2, 5, 19, 20, 100, 999, 1000, 1001, 20_000])
def test_a_percentile_is_the_smallest_sample_that_enough_others_do_not_exceed(count: int) -> None:
    values = samples(count)
    found = summarise(values)
    ordered = sorted(values)
    for name, share in EXACT_SHARES.items():
        assert found[name] == ordered[math.ceil(share * count) - 1], name


def test_percentiles_lie_within_numpys_neighbouring_definitions() -> None:
    values = samples(12_345)
    found = summarise(values)
    for name, share in SHARES.items():
        assert np.quantile(values, share, method="lower") <= found[name]
        assert found[name] <= np.quantile(values, share, method="higher")
        assert found[name] == pytest.approx(np.quantile(values, share), rel=0.02)


def test_maximum_and_mean_leave_nothing_out() -> None:
    found = summarise([1.0] * 999 + [1001.0])
    assert found["max"] == 1001
    assert found["mean"] == pytest.approx(2)
    assert found["p99.9"] == 1


def test_the_result_has_the_keys_of_the_contract_in_order() -> None:
    assert list(summarise([1.0])) == ["p50", "p90", "p95", "p99", "p99.9", "max", "mean"]


@pytest.mark.parametrize(("share", "needed"), [(0.5, 5), (0.9, 29), (0.95, 59), (0.99, 299), (0.999, 2995)])
def test_samples_needed_are_those_of_wilks(share: float, needed: int) -> None:
    assert samples_needed(share) == needed
    assert 1 - share**needed >= 0.95 > 1 - share ** (needed - 1)
