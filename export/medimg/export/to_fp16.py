"""FP16: weights and activations in half precision, preprocessing and head in float32.

ONNX Runtime's converter (`onnxruntime.transformers.float16`) gives two nodes one name when a tensor has two
consumers that stay in float32, as a one-unit sigmoid head has; this pass is small because the graph has
only two regions.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from medimg.export.calibration import watch
from medimg.export.errors import SourceError
from medimg.export.graph import is_float_node

FP16_MAX = float(np.finfo(np.float16).max)


def to_fp16(model: ModelProto, float_nodes: tuple[str, ...] = ()) -> ModelProto:
    """Convert the network of a float32 graph to half precision.

    Args:
        model: a checked float32 graph, with every shape inferred.
        float_nodes: names of further nodes that stay in float32.

    Raises:
        SourceError: a weight is beyond the range of half precision.

    Claim: input and output keep their types, and every float tensor has the type of the node that makes it.
    """
    half = ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    stays = {node.name for node in graph.node if is_float_node(node) or node.name in float_nodes}
    floats = _float_tensors(model)
    made_in_half = {
        name for node in graph.node if node.name not in stays for name in node.output if name in floats
    } - {value.name for value in graph.output}
    edges = _Casts(floats, made_in_half)
    nodes: list[NodeProto] = []
    for node in graph.node:
        before = edges.resolve(node, wants_half=node.name not in stays)
        nodes += [*before, node]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    _convert_constants(half, stays)
    return half


def overflowing_nodes(model: ModelProto, batches: Iterable[NDArray[Any]], threads: int) -> tuple[str, ...]:
    """Find the nodes that would overflow in half precision on these images.

    Args:
        model: a checked float32 graph, with every shape inferred.
        batches: arrays for the input `image`.
        threads: processor threads.

    Returns:
        Names of the network's nodes that give, take or hold a magnitude beyond 65504, in graph order.
    """
    network = [node for node in model.graph.node if not is_float_node(node)]
    floats = _float_tensors(model)
    names = tuple(name for node in network for name in node.output if name in floats)
    beyond = {
        name
        for activations in watch(model, names, batches, threads)
        for name, values in activations.items()
        if not np.abs(values).max() <= FP16_MAX
    }
    beyond |= {item.name for item in model.graph.initializer if _exceeds(item)}
    return tuple(node.name for node in network if beyond.intersection((*node.input, *node.output)))


def costliest_layer(model: ModelProto, half: ModelProto, batch: NDArray[Any], threads: int) -> str:
    """Name the node at which half precision adds most to the error.

    Args:
        model: the float32 graph, with every shape inferred.
        half: what `to_fp16` made of it.
        batch: an array for the input `image`.
        threads: processor threads.
    """
    network = [node for node in model.graph.node if not is_float_node(node)]
    names = tuple(name for node in network for name in node.output if name in _float_tensors(model))
    (exact,), (given,) = (list(watch(item, names, [batch], threads)) for item in (model, half))
    errors = {name: _relative_error(exact[name], given[name]) for name in names}
    added = {
        node.name: errors.get(node.output[0], 0.0) - max(errors.get(name, 0.0) for name in node.input)
        for node in network
    }
    return str(max(added, key=lambda name: added[name]))


def _relative_error(exact: NDArray[Any], given: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(given.astype(np.float64) - exact).max() / max(float(np.abs(exact).max()), 1e-30)
    return float(error) if np.isfinite(error) else float(np.finfo(np.float64).max)


def _exceeds(item: TensorProto) -> bool:
    values = numpy_helper.to_array(item)
    return item.data_type == TensorProto.FLOAT and values.size > 0 and not np.abs(values).max() <= FP16_MAX


class _Casts:
    """Casts between the two regions, one for each tensor that crosses."""

    def __init__(self, floats: set[str], made_in_half: set[str]) -> None:
        self._floats, self._half = floats, made_in_half
        self._made: set[str] = set()

    def resolve(self, node: NodeProto, *, wants_half: bool) -> list[NodeProto]:
        """Point a node's inputs to tensors of the right type; return the casts that are new."""
        casts = []
        for place, name in enumerate(node.input):
            if name not in self._floats or (name in self._half) == wants_half:
                continue
            cast = f"{name}/{'fp16' if wants_half else 'fp32'}"
            node.input[place] = cast
            if cast not in self._made:
                self._made.add(cast)
                kind = TensorProto.FLOAT16 if wants_half else TensorProto.FLOAT
                casts.append(helper.make_node("Cast", [name], [cast], name=f"{cast}/Cast", to=kind))
        return casts


def _float_tensors(model: ModelProto) -> set[str]:
    """Name the float32 activations."""
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}


def _convert_constants(model: ModelProto, stays: set[str]) -> None:
    """Convert the constants of the half-precision region; one that both regions use is kept twice."""
    graph = model.graph
    converted: dict[str, TensorProto] = {}
    floats = {item.name: item for item in graph.initializer if item.data_type == TensorProto.FLOAT}
    in_float = {name for node in graph.node if node.name in stays for name in node.input}
    for node in graph.node:
        if node.name in stays or node.op_type == "Cast":
            continue
        for place, name in enumerate(node.input):
            if name in floats:
                node.input[place] = f"{name}/fp16"
                converted.setdefault(name, _half_constant(floats[name]))
    kept = [item for item in graph.initializer if item.name not in converted or item.name in in_float]
    kept += converted.values()
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _half_constant(item: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(item)
    if _exceeds(item):
        raise SourceError(
            f"{item.name}: holds {np.abs(values).max():g}, beyond half precision ({FP16_MAX:g})"
        )
    return numpy_helper.from_array(values.astype(np.float16), f"{item.name}/fp16")
