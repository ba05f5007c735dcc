"""Chains as they are read from Keras models, and built again at other widths."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime.model.spec import Intensity
from medimg.train.compression import passes
from medimg.train.compression.chain import (
    Chain,
    build,
    narrowed_weights,
    read_chain,
    set_weights,
    weights_of,
)
from medimg.train.compression.passes import grams
from medimg.train.compression.selection import importance, interpolation, rank
from medimg.train.compression.stages import full_widths, total_macs
from medimg.train.errors import ChainError
from medimg.train.progress import Progress

Maker = Callable[[Any], Any]
SIDE = 12


def plain(keras: Any) -> list[Any]:
    layers = keras.layers
    return [
        layers.Conv2D(8, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(12, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dropout(0.5),
        layers.Dense(3, activation="softmax"),
    ]


def flattened(keras: Any) -> list[Any]:
    layers = keras.layers
    return [
        layers.RandomFlip(),
        layers.Rescaling(2.0),
        layers.Conv2D(8, 3, strides=2, activation="elu"),
        layers.ZeroPadding2D(),
        layers.Conv2D(8, 3, activation="relu"),
        layers.Flatten(),
        layers.BatchNormalization(),
        layers.Dense(16, activation="tanh"),
        layers.Dense(3),
        layers.Softmax(),
    ]


def convolutional_head(keras: Any) -> list[Any]:
    layers = keras.layers
    return [
        layers.Conv2D(8, 3, activation="relu"),
        layers.BatchNormalization(scale=False),
        layers.Conv2D(8, 3, dilation_rate=2, activation="relu"),
        layers.Conv2D(2, 1),
        layers.GlobalMaxPooling2D(),
        layers.Activation("sigmoid"),
    ]


def sequential(keras: Any, make: Maker) -> Any:
    return keras.Sequential([keras.Input((SIDE, SIDE, 3)), *make(keras)])


def functional(keras: Any, make: Maker) -> Any:
    start = values = keras.Input((SIDE, SIDE, 3))
    for layer in make(keras):
        values = layer(values)
    return keras.Model(start, values)


def nested(keras: Any, make: Maker) -> Any:
    """A base of its own, as keras.applications makes them, inside a functional model."""
    first, second = make(keras)[:2], make(keras)[2:]
    base = keras.Sequential([keras.Input((SIDE, SIDE, 3)), *first])
    start = keras.Input((SIDE, SIDE, 3))
    values = base(start)
    for layer in second:
        values = layer(values)
    return keras.Model(start, values)


def doubled(chain: Chain) -> None:
    """Give every channel a twin, so that half the channels make up for the others."""
    channels = chain.shape[2]
    for unit in chain.units[:-1]:
        for layer in (unit.layer, *unit.after):
            if layer.weights:
                layer.set_weights([twins(array, unit.outputs) for array in layer.get_weights()])
    assert channels == 3


def twins(values: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    shaped = values.reshape(*values.shape[:-1], -1, channels).copy()
    shaped[..., channels // 2 :] = shaped[..., : channels // 2]
    return shaped.reshape(values.shape)


def shaken(model: Any) -> Any:
    """Weights as after training: no bias or statistic is what it was at first."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        if hasattr(layer, "layers"):
            shaken(layer)
        elif layer.weights:
            arrays = layer.get_weights()
            changed = [array + 0.1 * random.random(array.shape).astype(np.float32) for array in arrays]
            layer.set_weights(changed)
    return model


@pytest.mark.parametrize("wrap", [sequential, functional, nested])
@pytest.mark.parametrize("make", [plain, flattened, convolutional_head])
def test_half_the_channels_give_the_same_answers_where_each_has_a_twin(
    make: Maker, wrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    monkeypatch.setattr(passes, "shrunk", lambda gram, _rows: gram)
    keras.utils.set_random_seed(0)
    model = shaken(wrap(keras, make))
    chain = read_chain(model, "model")
    doubled(chain)
    images = np.random.default_rng(1).integers(0, 256, (32, SIDE, SIDE, 3), dtype=np.uint8)
    unit = Intensity.named("unit")
    found = grams(chain, images, np.arange(32), unit, Progress())
    units = zip(found, chain.units[1:], strict=True)
    widths = tuple(unit.outputs // 2 for unit in chain.units[:-1])
    orders = [rank(gram, importance(unit.kernel, len(gram))).order for gram, unit in units]
    kept = [np.sort(order[:width]) for order, width in zip(orders, widths, strict=True)]
    mixings = [interpolation(gram, chosen) for gram, chosen in zip(found, kept, strict=True)]
    smaller = build(chain, (SIDE, SIDE), (*widths, chain.classes))
    set_weights(smaller, narrowed_weights(chain, kept, mixings))
    inputs = images.astype(np.float32) / 255
    narrow, whole = (np.asarray(network(inputs, training=False)) for network in (smaller, model))
    assert narrow == pytest.approx(whole, abs=1e-3)
    stages = chain.stages(SIDE, SIDE)
    assert total_macs(stages, (*widths, chain.classes)) < 0.55 * total_macs(stages, full_widths(stages))
    assert smaller.count_params() < 0.6 * model.count_params()


def test_what_is_trained_gives_logits() -> None:
    import keras

    model = sequential(keras, plain)
    chain = read_chain(model, "model")
    network = build(chain, (SIDE, SIDE), policy="mixed_bfloat16", for_training=True)
    assert network.output_shape == (None, 3)
    assert {type(layer).__name__ for layer in network.layers}.isdisjoint({"Dropout"})
    exact = build(chain, (SIDE, SIDE), for_training=True)
    for built in (network, exact):
        set_weights(built, weights_of(chain))
    images = np.random.default_rng(0).random((4, SIDE, SIDE, 3), np.float32)
    logits = np.asarray(exact(images))
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert odds == pytest.approx(np.asarray(model(images)), abs=1e-5)
    assert np.asarray(network(images)) == pytest.approx(np.asarray(exact(images)), abs=0.05)


def test_stages_are_counted_by_hand() -> None:
    import keras

    first, second, last = read_chain(sequential(keras, plain), "model").stages(SIDE, SIDE)
    assert (first.inputs, first.width, first.taps, first.positions) == (3, 8, 9, 144)
    assert (second.inputs, second.width, second.taps, second.positions) == (8, 12, 9, 36)
    assert (last.inputs, last.width, last.taps, last.positions) == (12, 3, 1, 1)
    chain = read_chain(sequential(keras, flattened), "model")
    assert chain.flattens
    hidden = chain.stages(SIDE, SIDE)[2]
    # 5 pixels a side after the first convolution and its padding make 7, and 5 after the second.
    assert (hidden.inputs, hidden.width, hidden.taps) == (8, 16, 25)


def added(keras: Any, start: Any) -> Any:
    values = keras.layers.Conv2D(4, 3, padding="same")(start)
    return keras.layers.Add(name="shortcut")([values, keras.layers.Conv2D(4, 1)(start)])


def forked(keras: Any, start: Any) -> Any:
    values = keras.layers.Conv2D(4, 3, padding="same", name="first")(start)
    keras.layers.Conv2D(4, 1, name="aside")(values)
    return keras.layers.Concatenate(name="both")([values, values])


def separable(keras: Any, start: Any) -> Any:
    return keras.layers.DepthwiseConv2D(3, name="depthwise")(keras.layers.Conv2D(4, 3)(start))


def grouped(keras: Any, start: Any) -> Any:
    return keras.layers.Conv2D(4, 3, groups=2, name="grouped")(keras.layers.Conv2D(4, 3)(start))


def softmax_inside(keras: Any, start: Any) -> Any:
    return keras.layers.Conv2D(4, 3, activation="softmax", name="attention")(start)


def used_twice(keras: Any, start: Any) -> Any:
    layer = keras.layers.Conv2D(3, 3, padding="same", name="again")
    return layer(layer(start))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (added, "'shortcut' \\(Add\\) joins branches"),
        (forked, "'both' \\(Concatenate\\) joins branches"),
        (separable, "'depthwise' is a DepthwiseConv2D"),
        (grouped, "'grouped' has 2 groups"),
        (softmax_inside, "'attention' is a softmax inside the network"),
        (used_twice, "again"),
    ],
)
def test_what_cannot_be_narrowed_is_named(make: Any, named: str) -> None:
    import keras

    start = keras.Input((SIDE, SIDE, 3))
    values = keras.layers.GlobalAveragePooling2D()(make(keras, start))
    model = keras.Model(start, keras.layers.Dense(3, activation="softmax")(values))
    with pytest.raises(ChainError, match=named):
        read_chain(model, "model.h5")


def test_a_model_of_one_layer_or_of_no_images_is_refused() -> None:
    import keras

    with pytest.raises(ChainError, match="two layers with weights"):
        read_chain(
            keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]), "m"
        )
    rows = keras.Sequential([keras.Input((7,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    with pytest.raises(ChainError, match="takes no images"):
        read_chain(rows, "m")
