"""Large weights beside the graph: what comes out is the graph that constants give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers
from onnx import ModelProto

from medimg.export import large_weights
from medimg.export.sources.constants import constants_of
from medimg.export.to_onnx import NETWORK_INPUT, convert, traced

SHAPE = (12, 12, 3)


def plain(image: Any) -> Any:
    hidden = layers.Conv2D(6, 3, activation="relu")(image)
    return layers.Dense(4, activation="softmax")(layers.Flatten()(layers.MaxPooling2D()(hidden)))


def normalised(image: Any) -> Any:
    hidden = layers.Conv2D(6, 3, use_bias=False)(image)
    hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    hidden = layers.BatchNormalization()(layers.SeparableConv2D(8, 3, use_bias=False)(hidden))
    hidden = layers.BatchNormalization()(layers.Conv2D(8, 1)(hidden))
    hidden = layers.Dense(5, use_bias=False)(layers.GlobalAveragePooling2D()(hidden))
    return layers.Dense(4)(layers.BatchNormalization()(hidden))


def shared(image: Any) -> Any:
    again = layers.Conv2D(3, 3, padding="same")
    return layers.Dense(4)(layers.GlobalMaxPooling2D()(layers.Add()([again(again(image)), image])))


def grouped(image: Any) -> Any:
    hidden = layers.Conv2D(6, 3, groups=3, strides=2)(image)
    hidden = layers.Conv2DTranspose(4, 3)(hidden)
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, dilation_rate=2)(hidden)))


def attention(image: Any) -> Any:
    tokens = layers.Reshape((36, 8))(layers.Conv2D(8, 2, strides=2)(image))
    tokens = layers.LayerNormalization()(tokens + layers.MultiHeadAttention(2, 4)(tokens, tokens))
    return layers.Dense(4)(layers.GlobalAveragePooling1D()(layers.Dense(6, activation="relu")(tokens)))


NETWORKS = [plain, normalised, shared, grouped, attention]


def converted(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, large: float) -> ModelProto:
    """Convert a model, with weights from so many numbers on beside the graph."""
    monkeypatch.setattr(large_weights, "LARGE", large)
    function = traced(lambda images: model(images, training=False), SHAPE)
    with (folder / "weights").open("wb") as apart:
        return convert(function, apart)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_graph_is_what_constants_give(
    network: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras.utils.set_random_seed(3)
    image = keras.Input(SHAPE)
    model = keras.Model(image, network(image))
    generator = np.random.default_rng(0)
    model.set_weights([generator.uniform(0.2, 1, item.shape) for item in model.get_weights()])
    whole = converted(model, tmp_path, monkeypatch, np.inf)
    apart = converted(model, tmp_path, monkeypatch, 1)
    beside = [item for item in apart.graph.initializer if large_weights._is_apart(item)]
    assert beside
    joined = large_weights.joined(apart)
    assert [item.name for item in joined.graph.input] == [NETWORK_INPUT]
    assert not any(large_weights._is_apart(item) for item in joined.graph.initializer)
    kinds = [sorted(node.op_type for node in item.graph.node) for item in (joined, whole)]
    assert kinds[0] == kinds[1]
    images = generator.random((3, *SHAPE)).astype(np.float32)
    answers = [
        onnxruntime.InferenceSession(item.SerializeToString()).run(None, {NETWORK_INPUT: images})[0]
        for item in (joined, whole)
    ]
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answers[0], model(images, training=False), rtol=1e-4, atol=1e-5)


def test_values_are_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = keras.Input(SHAPE)
    model = keras.Model(image, plain(image))
    found = converted(model, tmp_path, monkeypatch, 1)
    dense = [item for item in constants_of(found.graph).values() if list(item.dims) == [150, 4]]
    np.testing.assert_array_equal(large_weights.array_of(dense[0]), model.layers[-1].get_weights()[0])
