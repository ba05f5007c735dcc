"""Scaling inside of a network: what its first layers make of an image's values.

A network with a `Rescaling`, a `Normalization` or a division in front takes values from 0 to 255; one whose
first layers expect less is told from the numbers that they hold.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from medimg.export.large_weights import array_of
from medimg.export.sources.constants import constants_of
from medimg.export.to_onnx import NETWORK_INPUT

_TAKING_APART = frozenset(["Gather", "Slice", "Split"])
_PASSING = _TAKING_APART | frozenset(
    ["Cast", "Concat", "Identity", "Pad", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze"]
)
"""Operations that leave the values' scale as it is."""
_SCALING = frozenset(["Add", "BatchNormalization", "Div", "Mul", "Sub"])
FAR = 16.0
"""What is divided by more, or has more subtracted from it, is a value from 0 to 255, not one from -1 to 1."""
SPREADS = 1.9
"""A gain from which on the values are fractions: doubled, or divided by their deviation."""

_Values = NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """The first layers' arithmetic, `gain * values + offset`, by channel."""

    gain: _Values
    offset: _Values
    layers: tuple[str, ...]
    """Which layers compute it."""

    @property
    def is_for_bytes(self) -> bool:
        """Whether it brings values from 0 to 255 into a network's range."""
        with np.errstate(divide="ignore", invalid="ignore"):
            divided, subtracted = 1 / np.abs(self.gain), np.abs(self.offset / self.gain)
        return bool(np.nanmedian(divided) > FAR or np.nanmedian(subtracted) > FAR)

    @property
    def is_for_fractions(self) -> bool:
        """Whether it spreads values within -1 and 1, as a normalisation of scaled images does."""
        return bool(np.median(np.abs(self.gain)) > SPREADS)


def input_scaling(model: ModelProto, layers: Iterable[str]) -> Scaling | None:
    """Read the arithmetic on an image's values before anything else happens to them.

    Args:
        model: a graph with the input `NETWORK_INPUT`.
        layers: names of the layers, which are scopes in the names of the nodes.

    Returns:
        None where the first layers change no value.
    """
    constants = constants_of(model.graph)
    takers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    gain, offset, found, last = np.ones(1), np.zeros(1), [], NETWORK_INPUT
    while node := _next(last, takers):
        step = _step(node, last, constants)
        if step is None:
            break
        gain, offset, last = step[0] * gain, step[0] * offset + step[1], node.output[0]
        if node.op_type not in _PASSING:
            found.append(_layer(node, frozenset(layers)))
    changes = bool((gain != 1).any() or offset.any())
    return Scaling(gain, offset, tuple(dict.fromkeys(found))) if changes else None


def _next(last: str, takers: Mapping[str, list[NodeProto]]) -> NodeProto | None:
    """Find the one node that takes a tensor, or that puts its channels together again."""
    nodes = takers.get(last, [])
    if len(nodes) > 1 and all(node.op_type in _TAKING_APART for node in nodes):
        joins = [taker for node in nodes for taker in takers.get(node.output[0], [])]
        if {id(node) for node in joins} == {id(joins[0])} and joins[0].op_type == "Concat":
            return joins[0]
    return nodes[0] if len(nodes) == 1 else None


def _step(node: NodeProto, last: str, constants: Mapping[str, TensorProto]) -> tuple[_Values, _Values] | None:
    """Tell a node's gain and offset by channel; None if it does something else."""
    if node.op_type in _PASSING:
        return np.ones(1), np.zeros(1)
    others = [name for name in node.input if name != last]
    if node.op_type not in _SCALING or not all(name in constants for name in others):
        return None
    values = [_by_channel(array_of(constants[name])) for name in others]
    if any(value is None for value in values) or not values:
        return None
    first = values[0]
    assert first is not None
    if node.op_type == "BatchNormalization":
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
        scale, bias, mean, variance = values
        gain = scale / np.sqrt(variance + epsilon)  # type: ignore[operator]  # none is None
        return gain, bias - gain * mean  # type: ignore[operator]
    one, is_first = np.ones(1), node.input[0] == last
    if node.op_type == "Div":
        return (1 / first, np.zeros(1)) if is_first else None
    if node.op_type == "Mul":
        return first, np.zeros(1)
    if node.op_type == "Add":
        return one, first
    return (one, -first) if is_first else (-one, first)


def _by_channel(values: NDArray[Any]) -> _Values | None:
    """Give one number, or one a channel; None for a value a pixel, or what is no number to scale by."""
    flat = np.asarray(values, np.float64).reshape(-1)
    return flat if flat.size in (1, 3) and np.isfinite(flat).all() else None


def _layer(node: NodeProto, layers: frozenset[str]) -> str:
    """Name the layer that a node is of, or the node itself, as of a division outside of layers."""
    *scopes, own = node.name.split("/")
    return next((scope for scope in reversed(scopes) if scope in layers), own)
