"""Cross-layer equalisation: channels of one activation are brought to like ranges before INT8.

An activation has one INT8 range for all its channels, so a channel that stays far below the others keeps few
levels. Where a convolution's ReLU output goes only to the next convolution, through max-pooling at most, its
channels can be scaled freely: the producer's weights and bias are divided, the consumer's multiplied.

Source:
    M. Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019,
    section 4.1; with activation ranges in place of the producer's weight ranges, as in G. Xiao et al.,
    SmoothQuant, ICML 2023, since the producer's weights are quantised a channel at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from medimg.export.calibration import numbers_only, watch

STRENGTH = 0.5
"""How much of an activation's spread moves into the consumer's weights: half, as SmoothQuant's default."""
_POSITIVELY_HOMOGENEOUS = ("Relu", "MaxPool")


def equalize(
    model: ModelProto, batches: Iterable[NDArray[Any]], threads: int, names: Sequence[str] = ()
) -> ModelProto:
    """Scale channels between convolutions; the model computes the same function.

    Args:
        model: a checked float32 graph.
        batches: arrays for the input `image`, from which each channel's range is taken.
        threads: processor threads.
        names: what the images are called.
    """
    equalized = ModelProto()
    equalized.CopyFrom(model)
    constants = {item.name: item for item in equalized.graph.initializer}
    pairs = [pair for pair in _pairs(equalized) if _constant_weights(pair, constants)]
    watched = tuple(second.input[0] for _, second in pairs)
    ranges = _channel_ranges(numbers_only(watch(model, watched, batches, threads), names))
    for first, second in pairs:
        weights = numpy_helper.to_array(constants[second.input[1]])
        scale = _scales(ranges[second.input[0]], np.abs(weights).max(axis=(0, 2, 3)))
        _multiply(constants, second.input[1], scale[None, :, None, None])
        for name, shape in zip(first.input[1:], ((-1, 1, 1, 1), (-1,)), strict=False):
            _multiply(constants, name, 1 / scale.reshape(shape))
    return equalized


def _pairs(model: ModelProto) -> Iterator[tuple[NodeProto, NodeProto]]:
    """Find convolutions whose output goes to one other convolution alone, through ReLU and max-pooling."""
    consumers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    for first in model.graph.node:
        if first.op_type != "Conv":
            continue
        after = consumers.get(first.output[0], [])
        while len(after) == 1 and after[0].op_type in _POSITIVELY_HOMOGENEOUS:
            after = consumers.get(after[0].output[0], [])
        if len(after) == 1 and after[0].op_type == "Conv":
            yield first, after[0]


def _constant_weights(pair: tuple[NodeProto, NodeProto], constants: Mapping[str, Any]) -> bool:
    """Whether both convolutions are dense in their channels, with constant weights that nothing shares."""
    grouped = any(item.name == "group" and item.i != 1 for node in pair for item in node.attribute)
    return not grouped and all(name in constants for node in pair for name in node.input[1:])


def _channel_ranges(watched: Iterable[dict[str, NDArray[np.float32]]]) -> dict[str, NDArray[np.float32]]:
    ranges: dict[str, NDArray[np.float32]] = {}
    for activations in watched:
        for name, values in activations.items():
            largest = np.abs(values).max(axis=(0, 2, 3))
            ranges[name] = np.maximum(ranges.get(name, largest), largest)
    return ranges


def _scales(activations: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Choose each channel's divisor; a channel that is never active is left alone."""
    active = (activations > 0) & (weights > 0)
    quotient = np.where(active, activations, 1) ** STRENGTH / np.where(active, weights, 1) ** (1 - STRENGTH)
    mean = np.exp(np.log(quotient[active]).mean()) if active.any() else 1.0
    return np.where(active, np.clip(quotient / mean, 1 / 32, 32), 1).astype(np.float32)


def _multiply(constants: Mapping[str, Any], name: str, factor: NDArray[np.floating[Any]]) -> None:
    values = numpy_helper.to_array(constants[name]) * factor
    constants[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
