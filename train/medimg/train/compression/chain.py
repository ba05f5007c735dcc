"""Reading a Keras classifier as one chain of layers, and building it again at other widths.

Imports no framework until it is called.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.train.compression.selection import Matrix, folded
from medimg.train.compression.stages import Stage
from medimg.train.errors import ChainError
from medimg.train.keras_setup import Policy
from medimg.train.networks.build import Layer, Network

Weights: TypeAlias = Mapping[str, Sequence[NDArray[np.float32]]]
"""The arrays of each layer, by its name."""

MIXING = ("Conv2D", "Dense")
"""Layers whose outputs each depend on all input channels."""
NORMALISING = ("BatchNormalization",)
SILENT = (
    *("Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "AlphaDropout", "RandomFlip"),
    *("RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast", "RandomBrightness"),
)
"""Do something in training only."""
AVERAGING = ("GlobalAveragePooling2D",)
CHANNELWISE = (
    *("Activation", "ReLU", "LeakyReLU", "ELU", "MaxPooling2D", "AveragePooling2D", "GlobalMaxPooling2D"),
    *("ZeroPadding2D", "Cropping2D", "Flatten", "Identity", "Rescaling", "Softmax"),
    *(*NORMALISING, *SILENT, *AVERAGING),
)
LAST_ACTIVATIONS = ("softmax", "sigmoid")
CANNOT = "so its channels cannot be left out"
TOLERANCE = 1e-4
"""Largest difference of an output between the model and the chain that was read from it."""


@dataclass(frozen=True)
class Unit:
    """A layer that mixes channels, and the layers that follow it up to the next such."""

    layer: Layer
    after: tuple[Layer, ...]

    @property
    def outputs(self) -> int:
        """Output channels."""
        return int(self.layer.get_weights()[0].shape[-1])

    @property
    def kernel(self) -> NDArray[np.float32]:
        """Its weights, the output channels last."""
        kernel: NDArray[np.float32] = self.layer.get_weights()[0]
        return kernel

    @property
    def pools_by_mean(self) -> bool:
        """Whether what follows is an average over the image alone, with which sums of channels commute."""
        kinds = [kind_of(layer) for layer in self.after]
        pooled = [place for place, kind in enumerate(kinds) if kind in AVERAGING]
        return bool(pooled) and all(kind in SILENT for kind in kinds[pooled[0] + 1 :])


@dataclass(frozen=True)
class Chain:
    """A classifier as one chain of layers."""

    shape: tuple[int, int, int]
    """Rows, columns and channels of its input."""
    before: tuple[Layer, ...]
    """Layers between the image and the first unit."""
    units: tuple[Unit, ...]

    @property
    def classes(self) -> int:
        """Units of the last layer."""
        return self.units[-1].outputs

    @property
    def activation(self) -> str:
        """What makes probabilities of the last layer's outputs: `softmax`, `sigmoid` or `linear`."""
        last = self.units[-1]
        for layer in (last.layer, *last.after):
            if (name := activation_of(layer)) in LAST_ACTIVATIONS:
                return name
        return "linear"

    @property
    def flattens(self) -> bool:
        """Whether pixels lose their places before a dense layer, which fixes the image's size."""
        return any(kind_of(layer) == "Flatten" for unit in self.units for layer in unit.after)

    def stages(self, rows: int, columns: int) -> tuple[Stage, ...]:
        """Give what the chain costs on images of a size.

        Raises:
            ChainError: nothing is left of an image of that size.
        """
        shape: tuple[Any, ...] = (None, rows, columns, self.shape[2])
        for layer in self.before:
            shape = layer.compute_output_shape(shape)
        found: list[Stage] = []
        for unit in self.units:
            inputs = self._inputs(len(found))
            shape = unit.layer.compute_output_shape(shape)
            positions = int(np.prod(shape[1:-1], dtype=np.int64))
            if positions < 1:
                raise ChainError(f"nothing is left of an image of {rows}x{columns} after {unit.layer.name}")
            taps = unit.kernel.size // (inputs * unit.outputs)
            found.append(Stage(unit.layer.name, inputs, unit.outputs, taps, positions))
            for layer in unit.after:
                shape = layer.compute_output_shape(shape)
        return tuple(found)

    def _inputs(self, place: int) -> int:
        return self.units[place - 1].outputs if place else int(self.units[0].kernel.shape[-2])


def kind_of(layer: Layer) -> str:
    """Give the name of a layer's class."""
    return type(layer).__name__


def activation_of(layer: Layer) -> str:
    """Give the name of a layer's activation, `linear` for none."""
    if kind_of(layer) == "Softmax":
        return "softmax"
    return getattr(getattr(layer, "activation", None), "__name__", "linear")


def read_chain(model: Network, name: str) -> Chain:
    """Read a model as a chain; models inside it are opened.

    Args:
        model: a Keras model of images.
        name: what messages call it.

    Raises:
        ChainError: it branches, shares a layer, or has one that cannot be narrowed; the message names it.
    """
    layers = [layer for layer in _flat(model, name) if kind_of(layer) != "InputLayer"]
    for layer in layers:
        _require_known(layer, name)
    places = [place for place, layer in enumerate(layers) if kind_of(layer) in MIXING]
    if len(places) < 2 or len(model.inputs) != 1:
        raise ChainError(f"{name}: two layers with weights and one input at least are needed to compress it")
    names = [layer.name for layer in layers]
    if repeated := sorted({found for found in names if names.count(found) > 1}):
        raise ChainError(f"{name}: two of its layers are called {repeated[0]!r}: rename one")
    ends = [*places[1:], len(layers)]
    units = tuple(
        Unit(layers[start], tuple(layers[start + 1 : end])) for start, end in zip(places, ends, strict=True)
    )
    for unit in units[:-1]:
        for layer in (unit.layer, *unit.after):
            if activation_of(layer) == "softmax":
                raise ChainError(f"{name}: layer {layer.name!r} is a softmax inside the network, {CANNOT}")
    chain = Chain(_image_shape(model, name), tuple(layers[: places[0]]), units)
    _check(chain, model, name)
    return chain


def _flat(model: Network, name: str) -> Iterator[Layer]:
    """Walk the layers in order, and refuse what is no chain."""
    import keras

    sources = {} if isinstance(model, keras.Sequential) else _sources(model)
    for layer in model.layers:
        if len(sources.get(layer.name, ())) > 1:
            raise ChainError(f"{name}: layer {layer.name!r} ({kind_of(layer)}) joins branches, {CANNOT}")
    previous = None
    for layer in model.layers:
        found = sources.get(layer.name, ())
        if found and found[0] != previous:
            raise ChainError(
                f"{name}: layer {layer.name!r} ({kind_of(layer)}) follows {found[0]!r} and not {previous!r}: "
                "the network branches there, and only chains can be compressed"
            )
        previous = layer.name
        if isinstance(layer, keras.Model):
            yield from _flat(layer, name)
        else:
            yield layer


def _sources(model: Network) -> dict[str, list[str]]:
    """Tell which layers each layer of a functional model takes its inputs from."""
    return {layer["name"]: list(_histories(layer["inbound_nodes"])) for layer in model.get_config()["layers"]}


def _histories(value: Any) -> Iterator[str]:  # noqa: ANN401  nested JSON values
    """Find the names of the layers that tensors in a configuration come from."""
    if isinstance(value, dict):
        if "keras_history" in value:
            yield value["keras_history"][0]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _histories(item)


def _require_known(layer: Layer, name: str) -> None:
    kind = kind_of(layer)
    if kind not in (*MIXING, *CHANNELWISE):
        raise ChainError(
            f"{name}: layer {layer.name!r} is a {kind}, {CANNOT}; what can be: {', '.join(MIXING)} with "
            "normalisation, activations, pooling, flattening and dropout between them"
        )
    if getattr(layer, "groups", 1) != 1:
        raise ChainError(f"{name}: layer {layer.name!r} has {layer.groups} groups of channels, {CANNOT}")
    if getattr(layer, "data_format", "channels_last") not in ("channels_last", None):
        raise ChainError(f"{name}: layer {layer.name!r} has its channels first: save it with channels last")
    if kind in NORMALISING and layer.axis not in (-1, 3):
        raise ChainError(f"{name}: layer {layer.name!r} does not normalise channels, {CANNOT}")


def _image_shape(model: Network, name: str) -> tuple[int, int, int]:
    shape = model.inputs[0].shape[1:]
    if len(shape) != 3:
        raise ChainError(f"{name}: takes no images, but inputs of the shape {tuple(shape)}")
    # A network of any size takes what its spec says; its weights are tried on a small image.
    rows, columns, channels = (int(size) if size else 64 for size in shape)
    return rows, columns, channels


def _check(chain: Chain, model: Network, name: str) -> None:
    """Compare the chain with the model it was read from."""
    images = np.random.default_rng(0).random((2, *chain.shape), np.float32)
    again = build(chain, chain.shape[:2])
    set_weights(again, weights_of(chain))
    wanted, found = (np.asarray(network(images, training=False)) for network in (model, again))
    scale = max(1.0, float(np.abs(wanted).max()))
    if wanted.shape != found.shape or not np.abs(wanted - found).max() <= TOLERANCE * scale:
        raise ChainError(
            f"{name}: does not compute what its layers compute one after the other: a layer is used twice"
        )


def build(
    chain: Chain,
    size: tuple[int, int],
    widths: Sequence[int] | None = None,
    policy: Policy = "float32",
    *,
    for_training: bool = False,
) -> Network:
    """Build the chain with new weights.

    Args:
        chain: the layers.
        size: rows and columns of the images.
        widths: output channels of each unit; by default as they are.
        policy: precision of all but the last unit, which is float32.
        for_training: leave out augmentation, dropout and the last activation, so that it gives logits.
    """
    from keras import Input, Model

    widths = widths or [unit.outputs for unit in chain.units]
    start = values = Input((*size, chain.shape[2]), name="image")
    for layer in chain.before:
        if not (for_training and kind_of(layer) in SILENT):
            values = _copy(layer, policy)(values)
    for unit, width in zip(chain.units, widths, strict=True):
        last = unit is chain.units[-1]
        dtype = "float32" if last else policy
        values = _copy(unit.layer, dtype, width, linear=last and for_training)(values)
        for layer in unit.after:
            plain = kind_of(layer) in SILENT or (last and activation_of(layer) in LAST_ACTIVATIONS)
            if not (for_training and plain):
                values = _copy(layer, dtype)(values)
    return Model(start, values, name="compressed")


def _copy(layer: Layer, policy: str, width: int | None = None, *, linear: bool = False) -> Layer:
    """Make a layer anew, in a precision and of a width, without penalties and constraints."""
    config = {**layer.get_config(), "dtype": policy}
    config |= {key: None for key in config if key.endswith(("_regularizer", "_constraint"))}
    if width is not None:
        config["filters" if "filters" in config else "units"] = width
    if linear:
        config["activation"] = "linear"
    return type(layer).from_config(config)


def without_activation(layer: Layer) -> Layer:
    """Copy a convolution or dense layer with its weights, to give what its activation takes."""
    found = _copy(layer, "float32", linear=True)
    found.build(layer.input.shape)
    found.set_weights(layer.get_weights())
    return found


def weights_of(chain: Chain) -> Weights:
    """Give the chain's own weights."""
    layers = (*chain.before, *(layer for unit in chain.units for layer in (unit.layer, *unit.after)))
    return {layer.name: layer.get_weights() for layer in layers if layer.weights}


def arrays_of(network: Network) -> Weights:
    """Give the weights of a network that was built."""
    return {layer.name: layer.get_weights() for layer in network.layers if layer.weights}


def narrowed_weights(
    chain: Chain, kept: Sequence[NDArray[np.int64]], mixings: Sequence[Matrix]
) -> dict[str, list[NDArray[np.float32]]]:
    """Give the weights of a narrower chain.

    Args:
        chain: the chain as it is.
        kept: output channels that stay, of each unit but the last.
        mixings: `(kept, channels)`, how the input of each unit but the first is made of the kept channels.
    """
    found = {name: list(arrays) for name, arrays in weights_of(chain).items()}
    for place, unit in enumerate(chain.units):
        kernel, *bias = found[unit.layer.name]
        if place:
            kernel = folded(kernel, mixings[place - 1])
        if place < len(kept):
            channels = kept[place]
            kernel, bias = kernel[..., channels], [array[channels] for array in bias]
            for layer in unit.after:
                if layer.name in found:
                    found[layer.name] = [
                        _columns(array, channels, unit.outputs) for array in found[layer.name]
                    ]
        found[unit.layer.name] = [kernel, *bias]
    return found


def _columns(values: NDArray[np.float32], kept: NDArray[np.int64], channels: int) -> NDArray[np.float32]:
    """Keep the values of some channels, of which a flattened image has several columns each."""
    return values.reshape(-1, channels)[:, kept].reshape(-1)


def set_weights(network: Network, weights: Weights) -> None:
    """Give the layers of a network the arrays under their names."""
    for layer in network.layers:
        if layer.weights and layer.name in weights:
            layer.set_weights(weights[layer.name])
