from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import Intensity
from medimg.train.compression.chain import Chain, build, narrowed_weights, read_chain, set_weights
from medimg.train.compression.reconstruction import (
    SAMPLED,
    corrected,
    inputs_of,
    reconstruct,
    sampled_pixels,
)
from medimg.train.compression.selection import dropped
from medimg.train.progress import Progress

Values = NDArray[np.float32]
INTENSITY = Intensity.named("unit")


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("size", "strides", "dilation"),
    [((3, 3), 1, 1), ((2, 5), (1, 1), 1), ((3, 3), 2, 1), ((4, 3), (3, 2), 1), ((3, 2), 1, (2, 3))],
)
def test_a_convolution_is_its_kernel_times_what_its_pixels_are_made_of(
    padding: str, size: tuple[int, int], strides: Any, dilation: Any
) -> None:
    import keras

    layer = keras.layers.Conv2D(5, size, strides, padding, dilation_rate=dilation, use_bias=False)
    image = np.random.default_rng(0).normal(size=(1, 13, 11, 4)).astype(np.float32)
    wanted = np.asarray(layer(image))[0].reshape(-1, 5)
    pixels = np.array([len(wanted) - 1, 0, 7, 7])
    rows = inputs_of(layer, image[0], pixels)
    assert np.allclose(rows @ layer.get_weights()[0].reshape(-1, 5), wanted[pixels], atol=1e-4)


def test_a_dense_layer_takes_its_input_as_it_is() -> None:
    import keras

    values = np.arange(6, dtype=np.float32)
    assert inputs_of(keras.layers.Dense(2), values, np.array([0])).tolist() == [values.tolist()]


def test_the_same_pixels_are_drawn_for_a_layer_each_time() -> None:
    drawn = sampled_pixels(50_176, 3)
    assert drawn.shape == (3, SAMPLED)
    assert (drawn == sampled_pixels(50_176, 3)).all()
    assert 0 <= drawn.min() < drawn.max() < 50_176
    assert (drawn[0] != drawn[1]).any()
    assert sampled_pixels(3, 2).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("bias", [True, False])
def test_what_rows_explain_is_found_and_few_rows_change_little(*, bias: bool) -> None:
    random = np.random.default_rng(1)
    start = [random.normal(size=(6, 3)).astype(np.float32), *([np.zeros(3, np.float32)] if bias else [])]
    true = random.normal(size=(6, 3)).astype(np.float32)
    rows = random.normal(1, 1, (20_000, 6)).astype(np.float32)
    found = corrected(start, rows, rows @ true + (2 if bias else 0))
    assert np.allclose(found[0], true, atol=5e-3)
    if bias:
        assert np.allclose(found[1], 2, atol=2e-2)
    few = corrected(start, rows[:2], rows[:2] @ true)
    assert np.abs(few[0] - start[0]).mean() < np.abs(true - start[0]).mean() / 2
    nothing = corrected(start, np.zeros_like(rows), np.zeros((len(rows), 3), np.float32))
    assert np.isfinite(nothing[0]).all()


@pytest.fixture(scope="module")
def network() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.Conv2D(8, 3, strides=2),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(8, 3, activation="relu", use_bias=False),
            layers.Flatten(),
            layers.Dense(5, activation="relu"),
            layers.Dense(2),
        ]
    )


def plain(chain: Chain, kept: list[NDArray[np.int64]]) -> Any:
    """The network without the other channels."""
    found = build(chain, (12, 12), [*map(len, kept), chain.classes])
    mixings = [dropped(unit.outputs, some) for unit, some in zip(chain.units, kept, strict=False)]
    set_weights(found, narrowed_weights(chain, kept, mixings))
    return found


def apart(network: Any, narrow: Any, images: Values) -> float:
    wanted, found = (np.asarray(model(images, training=False)) for model in (network, narrow))
    return float(np.square(wanted - found).mean() / wanted.var())


def test_each_layer_makes_up_for_what_the_others_lost(network: Any) -> None:
    from medimg.train.compression.passes import by_unit, layer_answers

    random = np.random.default_rng(2)
    images = random.integers(0, 256, (120, 12, 12, 3), np.uint8)
    seen, unseen = images[:80], to_network_input(images[80:], INTENSITY)
    chain = read_chain(network, "model")
    answers = np.concatenate(list(layer_answers(chain, seen, np.arange(80), INTENSITY, Progress())))
    kept = [np.arange(0, 8, 2), np.array([0, 1, 3, 4, 6, 7]), np.arange(6), np.arange(5)]
    narrow = plain(chain, kept)
    before = apart(network, narrow, unseen)

    def batches() -> list[Values]:
        return [to_network_input(some, INTENSITY) for some in (seen[:50], seen[50:])]

    units = by_unit(chain.stages(12, 12), answers)
    shapes = [(SAMPLED, 8), (25, 8), (9, 8), (1, 5), (1, 2)]
    assert [unit.shape for unit in units] == [(80, *shape) for shape in shapes]
    reconstruct(narrow, chain, kept, units, batches, Progress())
    assert apart(network, narrow, unseen) < before / 2


def test_a_network_that_lost_nothing_stays_as_it_is(network: Any) -> None:
    chain = read_chain(network, "model")
    kept = [np.arange(unit.outputs) for unit in chain.units[:-1]]
    same = plain(chain, kept)

    def batches() -> list[Values]:
        raise AssertionError("nothing has to be asked")

    reconstruct(same, chain, kept, [np.zeros((1, 1, 1), np.float32)] * 5, batches, Progress())
    images = np.random.default_rng(3).integers(0, 256, (4, 12, 12, 3), np.uint8)
    assert apart(network, same, to_network_input(images, INTENSITY)) < 1e-9
