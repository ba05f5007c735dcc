"""What a classifier's outputs are, told from what its graph computes.

Each operation is judged by what it makes of what it takes: an average of probabilities is a probability, a
weighted sum of them may be anything.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from medimg.export.large_weights import array_of
from medimg.export.sources.constants import constants_of

_INERT = frozenset(["Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"])
"""Operations that change no value."""
_PICKS = frozenset(["Expand", "Gather", "Slice", "Split", "Tile", "Transpose"])
_AVERAGES = frozenset(["AveragePool", "GlobalAveragePool", "ReduceMean"])
_LARGEST = frozenset(["GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMin"])
_ARITHMETIC = frozenset(["Add", "Clip", "Concat", "Div", "Max", "Min", "Mul", "ReduceSum", "Sub", "Sum"])
COMBINING = _INERT | _PICKS | _AVERAGES | _LARGEST | _ARITHMETIC
"""Operations that combine probabilities at the end of a network, where they are part of its head."""

_Constants: TypeAlias = Mapping[str, TensorProto]


@dataclass(frozen=True)
class Nature:
    """What a tensor holds."""

    kind: Literal["softmax", "sigmoid", "linear", "other"]
    """What was combined of softmaxes alone; of sigmoids too; free numbers; anything else."""
    most: float = math.inf
    """The largest value that combined probabilities can reach; the least is 0."""

    @property
    def is_probable(self) -> bool:
        """Whether it was combined of probabilities."""
        return self.kind in {"softmax", "sigmoid"}


@dataclass(frozen=True)
class Ending:
    """What a network's outputs are, as far as its graph tells."""

    nature: Nature
    direct: bool
    """Whether a softmax or sigmoid is the last operation that changes values."""


_LINEAR, _OTHER = Nature("linear"), Nature("other")


def ending_of(model: ModelProto) -> Ending:
    """Tell what the one output of a graph holds; its nodes stand in the order of computation."""
    constants = constants_of(model.graph)
    natures: dict[str, Nature] = {}
    for node in model.graph.node:
        if node.op_type != "Constant":
            natures |= dict.fromkeys(node.output, _nature(node, natures, constants))
    output = model.graph.output[0].name
    last = _last_change(model, output)
    direct = last is not None and last.op_type in {"Softmax", "Sigmoid"}
    return Ending(natures.get(output, _OTHER), direct)


def _nature(node: NodeProto, natures: Mapping[str, Nature], constants: _Constants) -> Nature:
    """Tell what a node gives from what it takes."""
    kind = node.op_type
    if kind in {"Softmax", "Sigmoid"}:
        return Nature("softmax" if kind == "Softmax" else "sigmoid", 1)
    taken = [natures.get(name, _OTHER) for name in node.input if name and name not in constants]
    if kind == "LogSoftmax":
        return _LINEAR
    if not taken or kind in {"Relu", *_INERT, *_PICKS, *_AVERAGES, *_LARGEST}:
        # What a ReLU makes of free numbers is not what a loss takes for logits.
        return taken[0] if taken and (kind != "Relu" or taken[0].is_probable) else _OTHER
    if kind in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        return _of_product(node, taken, constants)
    if kind in _ARITHMETIC:
        return _of_arithmetic(node, taken, constants)
    return _LINEAR if kind == "BatchNormalization" and taken[0] != _OTHER else _OTHER


def _of_product(node: NodeProto, taken: list[Nature], constants: _Constants) -> Nature:
    """Tell what a matrix product gives: free numbers, unless probabilities get no negative weight."""
    if len(taken) == 2:
        # Weights that were computed, as in attention or in a mixture of experts.
        mixed = _LINEAR if _LINEAR in taken else _OTHER
        return _combined(taken, math.inf) if all(item.is_probable for item in taken) else mixed
    arrays = _fixed(node, constants) if taken[0].is_probable else []
    if not arrays or any((item < 0).any() for item in arrays):
        return _LINEAR
    biases = sum(float(item.max()) for item in arrays[1:])
    return _combined(taken, _largest_sum(node, arrays[0]) * taken[0].most + biases)


def _largest_sum(node: NodeProto, weights: NDArray[Any]) -> float:
    """Give the largest sum of the weights that go into one output."""
    if node.op_type == "Conv":
        return float(weights.reshape(len(weights), -1).sum(axis=1).max())
    turned = any(item.name == "transB" and item.i for item in node.attribute)
    known = node.op_type in {"Gemm", "MatMul"} and weights.ndim == 2
    return float(weights.sum(axis=int(turned)).max()) if known else math.inf


def _of_arithmetic(node: NodeProto, taken: list[Nature], constants: _Constants) -> Nature:
    """Tell what sums, products and choices of single values give."""
    kind = node.op_type
    if all(item.is_probable for item in taken):
        if kind == "Sub":
            return _difference(node, taken, constants)
        most = _most(kind, [item.most for item in taken], _fixed(node, constants))
        return _OTHER if most is None else _combined(taken, most)
    # A product of two free numbers, or one that is cut off, is not what a loss takes for logits.
    keeps = kind != "Clip" and (len(taken) == 1 or kind not in {"Div", "Mul"})
    return _LINEAR if set(taken) == {_LINEAR} and keeps else _OTHER


def _difference(node: NodeProto, taken: list[Nature], constants: _Constants) -> Nature:
    """Tell what a subtraction gives: 1 - p is a probability like p; other differences may be anything."""
    whole = array_of(constants[node.input[0]]) if node.input[0] in constants else np.zeros(1)
    return Nature("sigmoid", float(whole.max())) if (whole >= taken[0].most).all() else _OTHER


def _most(kind: str, taken: list[float], fixed: list[NDArray[Any]]) -> float | None:
    """Give the largest value of an operation on numbers from 0 to `taken`; None if it may be negative."""
    if kind in {"Clip", "Concat", "Max", "Min"}:
        return max(taken)
    if kind == "ReduceSum":
        return math.inf
    if any((item < 0).any() for item in fixed):
        return None
    if kind == "Div":
        least = min((float(item.min()) for item in fixed), default=0.0)
        return taken[0] / least if least else math.inf
    largest = [float(item.max()) for item in fixed]
    return math.prod([*taken, *largest]) if kind == "Mul" else math.fsum([*taken, *largest])


def _combined(taken: list[Nature], most: float) -> Nature:
    return Nature("softmax" if all(item.kind == "softmax" for item in taken) else "sigmoid", most)


def _fixed(node: NodeProto, constants: _Constants) -> list[NDArray[Any]]:
    return [array_of(constants[name]) for name in node.input if name in constants]


def _last_change(model: ModelProto, output: str) -> NodeProto | None:
    """Find the last node before an output that changes values."""
    producers: dict[str, NodeProto] = {name: node for node in model.graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in _INERT:
        node = next((producers[name] for name in node.input if name in producers), None)
    return node
