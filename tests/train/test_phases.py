from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from medimg.train.data.array_store import ArrayStore
from medimg.train.data.batches import Batches, as_float
from medimg.train.data.parts import Part
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions, Schedule
from medimg.train.fitting.phases import Plan, run_phase
from medimg.train.progress import Progress

PLAN = Plan("test", epochs=6, patience=6, learning_rate=0.05)


@pytest.fixture
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])


def job(**options: Any) -> Job:
    return Job(ArrayStore(Path()), 1, Progress(), FitOptions(**options))


def data(seed: int, *, inverted: bool = False) -> Batches:
    values = np.random.default_rng(seed).standard_normal((40, 4)).astype(np.float32)
    truth = (values[:, 0] > 0).astype(np.int64)
    part = Part(values, 1 - truth if inverted else truth, np.ones(40, np.float32))
    return Batches(part, 8, as_float)


def test_the_weights_kept_are_those_of_the_best_epoch(model: keras.Model) -> None:
    phase = run_phase(model, data(0), data(1), PLAN, job())
    losses = [epoch.val_loss for epoch in phase.epochs]
    assert phase.best_epoch == 1 + int(np.argmin(losses))
    assert model.evaluate(data(1), verbose=0)[0] == pytest.approx(min(losses), rel=1e-5)
    assert losses[-1] < losses[0]


def test_an_early_best_epoch_is_gone_back_to(model: keras.Model) -> None:
    """Training on the opposite of the validation classes makes every epoch worse than the one before."""
    phase = run_phase(model, data(0), data(1, inverted=True), PLAN, job())
    assert phase.best_epoch == 1
    assert model.evaluate(data(1, inverted=True), verbose=0)[0] == pytest.approx(phase.epochs[0].val_loss)


def test_it_stops_when_patience_ends(model: keras.Model) -> None:
    phase = run_phase(model, data(0), data(1, inverted=True), replace(PLAN, epochs=50, patience=2), job())
    assert len(phase.epochs) == 3


def test_the_start_is_kept_where_nothing_is_better(model: keras.Model) -> None:
    before = model.get_weights()
    phase = run_phase(
        model, data(0), data(1, inverted=True), replace(PLAN, patience=2, may_keep_start=True), job()
    )
    assert phase.best_epoch == 0
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_metric_may_choose_in_place_of_the_loss(model: keras.Model) -> None:
    """Training makes a metric worse that is the negative of what is trained for."""
    loss = keras.losses.sparse_categorical_crossentropy
    opposite = keras.metrics.MeanMetricWrapper(lambda truth, given: -loss(truth, given), name="opposite")
    measures = {"loss": loss, "metrics": ["accuracy", opposite]}
    plan = replace(PLAN, may_keep_start=True, judged_by="opposite")
    phase = run_phase(model, data(0), data(1), plan, job(), measures)
    assert phase.best_epoch == 0
    losses = [epoch.val_loss for epoch in phase.epochs]
    assert losses == sorted(losses)
    assert losses[-1] < 0
    assert model.evaluate(data(1), verbose=0)[0] > -losses[0]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("fixed", [0.05] * 5),
        ("cosine", [0.05 * (1 + np.cos(np.pi * epoch / 5)) / 2 for epoch in range(1, 6)]),
        # Half the patience passes twice: after the third epoch and after the last.
        ("plateau", [0.05] * 3 + [0.01] * 2),
    ],
)
def test_schedules(schedule: Schedule, rates: list[float], model: keras.Model) -> None:
    """Every epoch but the first is worse than the one before."""
    plan = replace(PLAN, epochs=5, patience=4, schedule=schedule)
    phase = run_phase(model, data(0), data(1, inverted=True), plan, job())
    assert [epoch.learning_rate for epoch in phase.epochs] == pytest.approx(rates, abs=1e-8)


def test_the_rate_may_rise_first(model: keras.Model) -> None:
    plan = replace(PLAN, epochs=4, schedule="cosine", warm_up=0.5)
    phase = run_phase(model, data(0), data(1), plan, job())
    rates = [epoch.learning_rate for epoch in phase.epochs]
    assert rates == pytest.approx([0.025, 0.05, 0.025, 0], abs=1e-8)


def test_sgd_with_momentum_learns_too(model: keras.Model) -> None:
    phase = run_phase(model, data(0), data(1), PLAN, job(optimizer="sgd", momentum=0.8))
    assert float(model.optimizer.momentum) == 0.8
    assert phase.epochs[-1].val_loss < phase.epochs[0].val_loss


def test_batches_cover_every_image_once_in_a_new_order_each_epoch() -> None:
    numbers = np.arange(10)
    part = Part(numbers[:, None], numbers, numbers.astype(np.float32))
    batches = Batches(part, 4, as_float, seed=0)
    orders = []
    for _ in range(2):
        pairs = [batches[index] for index in range(len(batches))]
        orders.append(np.concatenate([truth for _, truth, _ in pairs]).tolist())
        for inputs, truth, weights in pairs:
            assert inputs.dtype == np.float32
            np.testing.assert_array_equal(weights, truth)
            np.testing.assert_array_equal(inputs[:, 0], truth)
        batches.on_epoch_end()
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]


def test_each_epoch_takes_the_next_copy_with_what_it_is_to_be_answered() -> None:
    numbers = np.arange(30)
    batches = Batches(Part(numbers[:, None], numbers, np.ones(10, np.float32)), 4, as_float, seed=0)
    for epoch in range(4):
        pairs = [batches[index] for index in range(len(batches))]
        for inputs, truth, _ in pairs:
            np.testing.assert_array_equal(inputs[:, 0], truth)
        shown = sorted(np.concatenate([truth for _, truth, _ in pairs]).tolist())
        assert shown == list(range(10 * (epoch % 3), 10 * (epoch % 3) + 10))
        batches.on_epoch_end()
