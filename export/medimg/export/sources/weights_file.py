"""Files with weights only: recognised, and made into a whole model where the user names the architecture.

A VGG16 is rebuilt from what the arrays' shapes prove: thirteen convolutions, then the dense layers of the
head in the order in which they fit. What shapes cannot tell is the activation between the dense layers; it
is taken to be ReLU and said.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.export.errors import SourceError
from medimg.export.sources.base import Request
from medimg.runtime.model.keras_files.reading import WEIGHTS_GROUP, Parts
from medimg.runtime.model.keras_files.whole import describe
from medimg.runtime.optional import require

Layer: TypeAlias = tuple[str, NDArray[np.float32], NDArray[np.float32]]
"""Name, kernel and bias."""

_BLOCKS = (("1", 2, 64), ("2", 2, 128), ("3", 3, 256), ("4", 3, 512), ("5", 3, 512))
"""Name, number of convolutions and width of VGG16's blocks (Simonyan and Zisserman 2015, configuration D)."""
_BASE_NAMES = [f"block{block}_conv{number + 1}" for block, count, _ in _BLOCKS for number in range(count)]
_SHRINKS = 32
"""Image size over the size of the last block's output."""
_DEFAULT_SIZE = 224


@dataclass(frozen=True)
class WeightsFile:
    """Arrays without an architecture, in the file's own order."""

    path: Path
    keras_version: str | None
    arrays: tuple[tuple[str, NDArray[np.float32]], ...]
    """Each with the name of its layer."""


def read_weights(path: Path, parts: Parts, arrays: Path) -> WeightsFile:
    """Read the arrays of a weights-only file.

    Args:
        path: the user's file, for messages.
        parts: what was read of it.
        arrays: the plain copy of its arrays.

    Raises:
        SourceError: it names arrays that it does not hold.
    """
    with require("h5py", "export").File(arrays, "r") as file:
        group = file.get(WEIGHTS_GROUP, file)
        try:
            found = _of_keras_2(group) if parts.weights == "keras-2" else _of_keras_3(group)
        except (KeyError, ValueError, TypeError) as error:
            raise SourceError(f"{path}: names arrays that it does not hold ({error})") from None
    return WeightsFile(path, parts.version or None, tuple(found))


def offer(weights: WeightsFile) -> str:
    """Offer --arch, where the arrays fit it; else nothing."""
    try:
        _, head = _matched(weights)
    except SourceError:
        return ""
    return f", or have the VGG16 rebuilt that its arrays fit: --arch vgg16 --classes {head[-1][1].shape[-1]}"


def build(weights: WeightsFile, request: Request, folder: Path) -> tuple[Path, str]:
    """Write the whole model that a VGG16's weights belong to.

    Args:
        weights: the arrays.
        request: the number of classes, and the size of the images.
        folder: where the file goes.

    Returns:
        A Keras-3 `.h5`, and what had to be assumed, in words.

    Raises:
        SourceError: the arrays are not those of a VGG16 with a head of dense layers.
    """
    base, head = _matched(weights)
    path, classes = weights.path, head[-1][1].shape[-1]
    if request.classes != classes:
        told = "leaves it open" if request.classes is None else f"says {request.classes}"
        raise SourceError(
            f"{path}: its last layer has {classes} units, --classes {told}: --classes {classes}"
        )
    size, flat = _image_size(path, head[0][1].shape[0], request.input_size)
    names = [name for name, _, _ in head]
    layers = [*_base_config(size), *_head_config(names, [kernel.shape[1] for _, kernel, _ in head], flat)]
    copy = folder / "model.h5"
    config = {"class_name": "Sequential", "config": {"name": "vgg16", "layers": layers}}
    with require("h5py", "export").File(copy, "w") as file:
        describe(file, "3.0.0", config)
        _write_weights(file, [item["config"]["name"] for item in layers], [*base, *head])
    return copy, _assumptions(size, flat, [kernel.shape[1] for _, kernel, _ in head])


def _assumptions(size: tuple[int, int], flat: bool, units: list[int]) -> str:
    head = [f"{'Flatten' if flat else 'GlobalAveragePooling2D'}", *(f"Dense {width}" for width in units)]
    return (
        f"the file holds weights only: rebuilt as VGG16 at {size[0]}x{size[1]} with {', '.join(head)}; that "
        f"the last layer is a {'sigmoid' if units[-1] == 1 else 'softmax'}"
        f"{' and ReLU follows the others' if len(units) > 1 else ''} is assumed, not read"
    )


def _of_keras_2(group: Any) -> list[tuple[str, NDArray[np.float32]]]:  # noqa: ANN401  h5py has no types
    """Read the layout of Keras 1 and 2, in the order that the file records."""
    found = []
    for layer in _names(group, "layer_names"):
        for weight in _names(group[layer], "weight_names"):
            parent = weight.rpartition("/")[0].rpartition("/")[2]
            found.append((parent or layer, np.asarray(group[layer][weight], np.float32)))
    return found


def _of_keras_3(group: Any) -> list[tuple[str, NDArray[np.float32]]]:  # noqa: ANN401
    """Read the layout of Keras 3, whose names count up in the order of the layers."""
    found: list[tuple[str, Any]] = []
    group.visititems(lambda name, item: found.append((name, item)) if hasattr(item, "shape") else None)
    layers = [(name, item) for name, item in found if "/vars/" in name and not name.startswith("optimizer")]
    layers.sort(
        key=lambda pair: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", pair[0])]
    )
    return [(name.split("/")[-3], np.asarray(item, np.float32)) for name, item in layers]


def _names(group: Any, attribute: str) -> list[str]:  # noqa: ANN401
    """Read a list of names, which Keras cuts into numbered pieces where it is long."""
    pieces = [name for name in group.attrs if re.fullmatch(rf"{attribute}\d*", name)]
    pieces.sort(key=lambda name: (len(name), name))
    return [
        name.decode() if isinstance(name, bytes) else str(name)
        for piece in pieces
        for name in group.attrs[piece]
    ]


def _matched(weights: WeightsFile) -> tuple[list[Layer], list[Layer]]:
    """Find the base's convolutions and the head's dense layers, by layer name or else by order."""
    layers = _pairs(weights)
    convolutions = [layer for layer in layers if layer[1].ndim == 4]
    dense = [layer for layer in layers if layer[1].ndim == 2]
    by_name = {layer[0]: layer for layer in convolutions}
    if set(_BASE_NAMES) <= set(by_name):
        convolutions = [by_name[name] for name in _BASE_NAMES]
    shapes = [layer[1].shape for layer in convolutions]
    widths = [width for _, count, width in _BLOCKS for _ in range(count)]
    if shapes != [(3, 3, before, width) for before, width in zip([3, *widths[:-1]], widths, strict=True)]:
        raise SourceError(f"{weights.path}: its arrays are not those of a VGG16: {_summary(weights)}")
    if not dense:
        raise SourceError(f"{weights.path}: holds VGG16 without a head: nothing in it tells classes apart")
    for (first, kernel, _), (second, following, _) in pairwise(dense):
        if kernel.shape[1] != following.shape[0]:
            raise SourceError(f"{weights.path}: {second} does not fit behind {first}: {_summary(weights)}")
    return [(name, *layer[1:]) for name, layer in zip(_BASE_NAMES, convolutions, strict=True)], dense


def _pairs(weights: WeightsFile) -> list[Layer]:
    """Put kernels and biases together."""
    layers: list[Layer] = []
    waiting: tuple[str, NDArray[np.float32]] | None = None
    for name, array in weights.arrays:
        if waiting is not None and array.ndim == 1 and array.shape[0] == waiting[1].shape[-1]:
            layers.append((*waiting, array))
            waiting = None
        elif waiting is None and array.ndim in (2, 4):
            waiting = name, array
        else:
            raise SourceError(
                f"{weights.path}: {name} is neither a convolution nor a dense layer, each with a bias: "
                "such a head cannot be rebuilt from weights; save the whole model with model.save(...)"
            )
    return layers


def _summary(weights: WeightsFile) -> str:
    shapes = [f"{name} {array.shape}" for name, array in weights.arrays]
    return ", ".join(shapes[:4]) + (", …" if len(shapes) > 4 else "")


def _image_size(path: Path, inputs: int, asked: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """Tell the image size from the width of the first dense layer, and whether a Flatten stands before it."""
    cells, rest = divmod(inputs, _BLOCKS[-1][2])
    if rest:
        raise SourceError(f"{path}: its first dense layer takes {inputs} values, no multiple of VGG16's 512")
    side = isqrt(cells)
    if asked is None:
        if side * side != cells:
            raise SourceError(
                f"{path}: its head fits {cells} cells: say the image size with --input-size RxC"
            )
        asked = (_DEFAULT_SIZE, _DEFAULT_SIZE) if cells == 1 else (_SHRINKS * side, _SHRINKS * side)
    if cells not in (1, (asked[0] // _SHRINKS) * (asked[1] // _SHRINKS)):
        raise SourceError(
            f"{path}: its head fits {cells} cells of {_SHRINKS} pixels a side, not {asked[0]}x{asked[1]}"
        )
    return asked, cells > 1


def _base_config(size: tuple[int, int]) -> list[dict[str, Any]]:
    layers = [_layer("InputLayer", "image", batch_shape=[None, *size, 3], dtype="float32")]
    for block, count, width in _BLOCKS:
        layers += [
            _layer(
                "Conv2D",
                f"block{block}_conv{number + 1}",
                filters=width,
                kernel_size=[3, 3],
                padding="same",
                activation="relu",
            )
            for number in range(count)
        ]
        layers.append(_layer("MaxPooling2D", f"block{block}_pool", pool_size=[2, 2], strides=[2, 2]))
    return layers


def _head_config(names: list[str], units: list[int], flat: bool) -> list[dict[str, Any]]:
    last = "sigmoid" if units[-1] == 1 else "softmax"
    activations = ["relu"] * (len(units) - 1) + [last]
    return [
        _layer("Flatten" if flat else "GlobalAveragePooling2D", "features"),
        *(
            _layer("Dense", name, units=width, activation=activation)
            for name, width, activation in zip(names, units, activations, strict=True)
        ),
    ]


def _layer(class_name: str, name: str, **config: Any) -> dict[str, Any]:  # noqa: ANN401  JSON values
    return {"class_name": class_name, "config": {"name": name, **config}}


def _write_weights(file: Any, names: list[str], layers: list[Layer]) -> None:  # noqa: ANN401
    """Write arrays as a `.h5` of Keras has them."""
    weights = file.create_group(WEIGHTS_GROUP)
    weights.attrs["layer_names"] = [name.encode() for name in names[1:]]
    arrays = {name: {"kernel": kernel, "bias": bias} for name, kernel, bias in layers}
    for name in names[1:]:
        group = weights.create_group(name)
        group.attrs["weight_names"] = [f"{name}/{part}".encode() for part in arrays.get(name, ())]
        for part, array in arrays.get(name, {}).items():
            group[f"{name}/{part}"] = array
