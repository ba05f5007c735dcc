from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.train.compression.latency import measure_model
from medimg.train.compression.selection import Ranking
from medimg.train.compression.stages import Stage, full_widths, macs, narrowed, step_of, total_macs
from medimg.train.compression.widths import Widths, by_error, uniform
from medimg.train.errors import TargetError
from medimg.train.networks.options import NetworkOptions


def vgg16() -> tuple[Stage, ...]:
    """VGG16 of 224 pixels with averaged features and four classes, from its published configuration."""
    found, inputs = [], 3
    for block, (filters, count) in enumerate(NetworkOptions().convolutions):
        for number in range(count):
            found.append(Stage(f"conv{block}{number}", inputs, filters, 9, (224 >> block) ** 2))
            inputs = filters
    return (*found, Stage("dense", 512, 4, 1, 1))


STAGES = vgg16()


def rankings(sharpness: dict[int, float] | None = None) -> list[Ranking]:
    """Errors that fall by a power of the width; a high one means that few channels do."""
    found = []
    for place, stage in enumerate(STAGES[:-1]):
        shares = np.linspace(1, 0, stage.width + 1) ** (sharpness or {}).get(place, 3.0)
        found.append(Ranking(np.arange(stage.width), shares))
    return found


def count(widths: Widths) -> float:
    return total_macs(STAGES, widths)


def test_vgg16_has_the_published_multiply_accumulates() -> None:
    full = full_widths(STAGES)
    assert sum(macs(STAGES, full)[:-1]) == 15_346_630_656  # 15.35 G of its convolutions
    halves = narrowed(STAGES, 0.5, 16)
    assert total_macs(STAGES, halves) < count(full) / 3.9


@pytest.mark.parametrize("multiple", [16, 32, 64])
def test_widths_reach_the_target_in_multiples_that_suit(multiple: int) -> None:
    found = by_error(
        STAGES,
        rankings(),
        price=count,
        cost=count,
        target=count(full_widths(STAGES)) / 8,
        unit="",
        multiple=multiple,
    )
    assert count(found) <= count(full_widths(STAGES)) / 8 < 1.3 * count(found)
    assert found[-1] == 4
    for stage, width in zip(STAGES[:-1], found, strict=False):
        step = step_of(stage.width, multiple)
        assert width % step == 0
        assert step <= min(multiple, stage.width // 4)


def test_layers_that_few_channels_explain_are_narrowed_most() -> None:
    target = count(full_widths(STAGES)) / 3
    found = by_error(STAGES, rankings({8: 40.0, 9: 1.0}), price=count, cost=count, target=target, multiple=16)
    assert found[8] < found[9]


def test_time_is_saved_where_it_is_spent() -> None:
    def slow_first(widths: Widths) -> float:
        return sum(number * (10 if place < 4 else 1) for place, number in enumerate(macs(STAGES, widths)))

    target = count(full_widths(STAGES)) / 3
    by_count = by_error(STAGES, rankings(), price=count, cost=count, target=target, multiple=16)
    by_time = by_error(STAGES, rankings(), price=slow_first, cost=count, target=target, multiple=16)
    assert slow_first(by_time) < slow_first(by_count)


def test_a_target_that_no_width_reaches_says_what_would_be() -> None:
    with pytest.raises(TargetError, match=r"narrowing comes down to .* 1e\+06 are asked"):
        by_error(STAGES, rankings(), price=count, cost=count, target=1e6, multiple=64)
    with pytest.raises(TargetError, match=r"narrowing comes down to .* 1e\+06 are asked"):
        uniform(STAGES, cost=count, target=1e6, multiple=64)


def test_uniform_widths_are_one_share_of_all() -> None:
    found = uniform(STAGES, cost=count, target=count(full_widths(STAGES)) / 4, multiple=16)
    shares = [width / stage.width for width, stage in zip(found[:-1], STAGES, strict=False)]
    assert max(shares) - min(shares) < 0.26
    assert count(found) <= count(full_widths(STAGES)) / 4


def device(multiple: int = 1, noise: float = 0.0, seed: int = 0) -> Callable[[Widths], float]:
    """A device whose kernels take the channels of wide layers by so many at a time."""
    random = np.random.default_rng(seed)
    lanes = [step_of(stage.width, multiple) for stage in STAGES[:-1]]

    def time_ms(widths: Widths) -> float:
        padded = [-(-width // lane) * lane for width, lane in zip(widths, lanes, strict=False)]
        numbers = macs(STAGES, (*padded, widths[-1]))
        speed = [8e8 if not place else 2e9 if place < 4 else 4e9 for place in range(len(numbers))]
        moved = sum(stage.positions * width for stage, width in zip(STAGES, padded, strict=False))
        exact = 0.3 + 1e3 * sum(n / (1e3 * s) for n, s in zip(numbers, speed, strict=True)) + moved / 2e7
        # Other work of a machine takes time; it gives none.
        return float(exact * (1 + noise * abs(random.normal())))

    return time_ms


def rounds(time_ms: Callable[[Widths], float]) -> Callable[[Sequence[Widths]], NDArray[np.float64]]:
    return lambda several: np.array([[time_ms(widths) for widths in several] for _ in range(3)])


def test_the_model_foretells_widths_that_were_not_timed() -> None:
    time_ms = device()
    found = measure_model(STAGES, rounds(time_ms), 16)
    assert len(found.timings) < 10
    assert found.scatter == 0
    assert found.modelled_ms == pytest.approx([timing.latency_ms for timing in found.timings], rel=0.01)
    for share in (0.3, 0.65):
        widths = narrowed(STAGES, share, 16)
        assert found.predict(STAGES, widths) == pytest.approx(time_ms(widths), rel=0.05)


def test_noise_of_some_percent_stays_that() -> None:
    found = measure_model(STAGES, rounds(device(noise=0.03)), 16)
    assert 0.01 < found.scatter < 0.03
    widths = narrowed(STAGES, 0.4, 16)
    assert found.predict(STAGES, widths) == pytest.approx(device()(widths), rel=0.15)
    assert min(found.ms) >= 0


def test_however_much_timings_scatter_no_resolution_is_free() -> None:
    full = full_widths(STAGES)
    for seed in range(20):
        found = measure_model(STAGES, rounds(device(noise=0.2, seed=seed)), 16)
        costs = dict(zip(found.terms, found.ms, strict=True))
        rate = device()(full) / count(full) * 1e6
        assert min(costs[f"{(224 >> block) ** 2} pixels"] for block in range(5)) > 0.3 * rate


def test_a_disturbed_timing_does_not_end_up_in_the_smallest_layer() -> None:
    quiet, calls = device(), []

    def time_ms(widths: Widths) -> float:
        calls.append(widths)
        return quiet(widths) * (1.25 if len(calls) == 2 else 1)

    found = measure_model(STAGES, lambda several: rounds(time_ms)(several)[:2], 16)
    full = full_widths(STAGES)
    dense = macs(STAGES, full)[-1] / 1e6 * found.ms[found.terms.index("1 pixels")]
    assert dense < 0.01 * quiet(full)
    for share in (0.3, 0.65):
        widths = narrowed(STAGES, share, 16)
        assert found.predict(STAGES, widths) == pytest.approx(quiet(widths), rel=0.15)


@pytest.mark.parametrize(("lanes", "multiple"), [(1, 16), (32, 32), (64, 64)])
def test_the_multiple_is_that_of_the_hardware(lanes: int, multiple: int) -> None:
    assert measure_model(STAGES, rounds(device(lanes)), None).multiple == multiple


def test_a_chain_of_two_layers_has_a_model_too() -> None:
    stages = (Stage("a", 3, 8, 9, 100), Stage("b", 8, 2, 1, 1))
    found = measure_model(stages, rounds(lambda widths: 1.0 + widths[0] / 8), None)
    assert found.predict(stages, (8, 2)) == pytest.approx(2.0, rel=0.05)
