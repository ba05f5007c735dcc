"""The simulation of a fleet, against what can be said without one."""

import pytest

from fleet_figures import simulate_deaths, simulate_feeding, useful_share


@pytest.mark.parametrize("cores", [2, 5, 8])
def test_too_few_cores_bound_the_rate(cores: int) -> None:
    # A core decodes 100 files a second, the GPU takes 1,000.
    assert simulate_feeding(cores, 10, 1000) == pytest.approx(cores / 10, rel=0.03)


@pytest.mark.parametrize("cores", [13, 40])
def test_enough_cores_keep_the_gpu_busy(cores: int) -> None:
    assert simulate_feeding(cores, 10, 1000) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("files", "hours"), [(256, 1.0), (24_415, 24.0)])
def test_dying_workers_cost_what_the_formula_says(files: int, hours: float) -> None:
    assert simulate_deaths(50, files, hours, 30, 20_000) == pytest.approx(
        useful_share(50, files, hours, 30), abs=0.003
    )
