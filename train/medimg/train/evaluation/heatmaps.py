"""Class activation maps: where in an image a class's logit comes from.

Exact where average pooling and one dense layer follow the feature map: the dense layer is applied at every
place, and the mean over the places is the logit. For other heads there is none.

Source: B. Zhou et al., Learning deep features for discriminative localization, arXiv:1512.04150.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import MissingDependencyError
from medimg.runtime.model.containers import open_onnx
from medimg.runtime.model.preprocess import Images, to_network_input
from medimg.runtime.model.spec import Intensity, ModelSpec
from medimg.runtime.optional import require
from medimg.train.evaluation.keras_process import opened
from medimg.train.keras_files import SUFFIXES
from medimg.train.networks.build import Network

Maps: TypeAlias = NDArray[np.float32]
"""`(batch, rows, columns, classes)`; the mean over rows and columns is the logit."""
MapImages: TypeAlias = Callable[[Images], Maps]
"""From `(batch, rows, columns, 3)` uint8 RGB."""

NO_POOLED_HEAD = (
    "No heat maps: they are exact only where average pooling and one dense layer end the network."
)


@contextmanager
def found_maps(model: Path, spec: ModelSpec) -> Iterator[MapImages | str]:
    """Give what makes the maps of a model, or the reason why nothing does, for the block's time.

    Args:
        model: a Keras file, or an artefact of medimg-export.
        spec: the model's.
    """
    if model.suffix not in SUFFIXES:
        yield _artefact_maps(model, spec)
        return
    with opened(model, spec.intensity) as network:
        first = network.maps(np.zeros((1, spec.image.rows, spec.image.columns, 3), np.uint8))
        yield first if isinstance(first, str) else lambda images: np.asarray(network.maps(images), np.float32)


def _artefact_maps(model: Path, spec: ModelSpec) -> MapImages | str:
    if model.suffix != ".onnx" or not spec.heatmap:
        return "No heat maps: this artefact has no activation_map; medimg-export --heatmap adds it to .onnx."
    try:
        session = require("onnxruntime", "cpu").InferenceSession(open_onnx(model).content)
    except MissingDependencyError as error:
        return f"No heat maps: {error}."
    return lambda images: np.asarray(session.run(["activation_map"], {"image": images})[0], np.float32)


def keras_maps(network: Network, intensity: Intensity) -> MapImages | str:
    """Give what makes the maps of a Keras model, or the reason why nothing does."""
    from keras import Model

    found = _pooled_head(network)
    if found is None:
        return NO_POOLED_HEAD
    features, dense = found
    body = Model(network.inputs, features)
    kernel, bias = (np.asarray(weights) for weights in (dense.kernel, dense.bias))
    if kernel.shape[1] == 1:
        kernel, bias = np.hstack([-kernel, kernel]), np.hstack([-bias, bias])

    def maps(images: Images) -> Maps:
        return np.asarray(
            body.predict_on_batch(to_network_input(images, intensity)) @ kernel + bias, np.float32
        )

    return maps


def _pooled_head(network: Network) -> tuple[Any, Any] | None:
    """Find the feature map, as Keras knows it, and the dense layer of a head that pools and ends in it."""
    from keras import layers

    passing = (layers.Dropout, layers.Activation, layers.Softmax)
    layer = _maker(network.outputs[0])
    while isinstance(layer, passing):
        layer = _maker(layer.input)
    if not isinstance(layer, layers.Dense) or not layer.use_bias:
        return None
    dense, layer = layer, _maker(layer.input)
    while isinstance(layer, layers.Dropout):
        layer = _maker(layer.input)
    pooled = isinstance(layer, layers.GlobalAveragePooling2D) and layer.data_format == "channels_last"
    return (layer.input, dense) if pooled else None


def _maker(tensor: Any) -> Any:  # noqa: ANN401  Keras ships no types
    """Give the layer whose output a tensor is."""
    return tensor._keras_history.operation
