"""What a Keras configuration shows of a model's inputs and outputs, before a framework is started.

It tells what is certain and no more: a model that is left for the framework to describe is not refused here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medimg.export.sources.base import Request, TensorShape, check_image, check_one, not_per_image
from medimg.runtime.model.keras_files import allowed

_PASSING = allowed.names(
    """
    Activation ActivityRegularization AlphaDropout BatchNormalization BatchNormalizationV1
    BatchNormalizationV2 Dropout ELU GaussianDropout GaussianNoise LeakyReLU PReLU ReLU Rescaling Softmax
    SpatialDropout2D ThresholdedReLU
    """
)
"""Layers that give what they take, but for the values."""
_OF_IMAGES = allowed.names(
    """
    AveragePooling2D AvgPool2D Conv2D Conv2DTranspose Convolution2D Convolution2DTranspose Cropping2D
    DepthwiseConv2D MaxPool2D MaxPooling2D Resizing SeparableConv2D SeparableConvolution2D UpSampling2D
    ZeroPadding2D
    """
)
"""Layers that give an image for an image."""


def check_configuration(path: Path, config: dict[str, Any], request: Request) -> None:
    """Refuse what is surely no image classifier.

    Args:
        path: for messages.
        config: a judged configuration.
        request: what the user says.

    Raises:
        SourceError: it takes no image, takes or gives several tensors, or gives an image.
    """
    layers = _layers(config)
    by_name = {_name(layer): layer for layer in layers}
    if config["class_name"] == "Sequential":
        firsts = [(_name(layer), _name(layer)) for layer in layers[:1]]
        lasts = [(_name(layer), _name(layer)) for layer in layers[-1:]]
    else:
        firsts, lasts = (list(_ends(config, side)) for side in ("input_layers", "output_layers"))
    inputs = [TensorShape(said, _shape(by_name.get(name, {}))) for said, name in firsts]
    if inputs and all(item.dims for item in inputs):
        check_image(path, inputs)
    if request.output_name is None and len(lasts) > 1:
        check_one(path, [said for said, _ in lasts], None)
    for said, name in lasts:
        if request.output_name in (None, said) and _gives_image(layers, name, config["class_name"]):
            raise not_per_image(path, said)


def _layers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """List a model's own layers; those of Keras 2.0 stand alone in a Sequential's configuration."""
    inner = config.get("config")
    found = inner.get("layers") if isinstance(inner, dict) else inner
    return [
        layer
        for layer in (found if isinstance(found, list) else [])
        if isinstance(layer, dict) and isinstance(layer.get("config"), dict)
    ]


def _name(layer: dict[str, Any]) -> str:
    return str(layer.get("name") or layer["config"].get("name"))


def _shape(layer: dict[str, Any]) -> tuple[int | None, ...]:
    """Give the shape that a layer says its input has; empty if it says none."""
    config = layer.get("config", {})
    for field in ("batch_shape", "batch_input_shape"):
        shape = config.get(field)
        if isinstance(shape, list) and all(size is None or isinstance(size, int) for size in shape):
            return tuple(shape)
    return ()


def _ends(config: dict[str, Any], side: str) -> Iterator[tuple[str, str]]:
    """Name a model's ends and the layers there, nested as they may be: `["x", 0, 0]`, lists, dictionaries."""
    inner = config.get("config")
    waiting = [("", inner.get(side))] if isinstance(inner, dict) else []
    while waiting:
        said, value = waiting.pop(0)
        if isinstance(value, dict):
            waiting = [*sorted(value.items()), *waiting]
        elif isinstance(value, list) and value and isinstance(value[0], str):
            yield said or value[0], value[0]
        elif isinstance(value, list):
            waiting = [*((said if len(value) == 1 else "", item) for item in value), *waiting]


def _gives_image(layers: list[dict[str, Any]], name: str, kind: str) -> bool:
    """Whether a layer's output is an image, told from it or, where it passes on, from what is before it."""
    order = {_name(layer): place for place, layer in enumerate(layers)}
    seen: set[str] = set()
    while name in order and name not in seen:
        seen.add(name)
        layer = layers[order[name]]
        if layer.get("class_name") not in _PASSING:
            return layer.get("class_name") in _OF_IMAGES
        if kind == "Sequential":
            name = _name(layers[order[name] - 1]) if order[name] else ""
        else:
            name = next(_before(layer.get("inbound_nodes")), "")
    return False


def _before(nodes: Any) -> Iterator[str]:  # noqa: ANN401  any JSON value
    """Name what a layer was called on: in Keras 2 `["x", 0, 0, {}]`, in Keras 3 a tensor's history."""
    if isinstance(nodes, dict):
        for key, value in nodes.items():
            if key == "keras_history" and isinstance(value, list) and value:
                yield str(value[0])
            else:
                yield from _before(value)
    elif isinstance(nodes, list):
        if len(nodes) >= 3 and isinstance(nodes[0], str) and isinstance(nodes[1], int):
            yield nodes[0]
        else:
            for value in nodes:
                yield from _before(value)
