"""Large weights beside the graph: a conversion copies its graph many times, and weights would go with it.

`freeze` leaves the kernels of convolutions and dense layers out of TensorFlow's graph, as inputs of it. What
the converter makes of an input, a transposition or a scaling behind the layer, `put_apart` computes on the
array itself, one at a time, into a file. `joined` makes the graph whole, when nothing else is in memory.
"""

from collections.abc import Mapping
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from medimg.runtime.optional import require

LARGE = 2**18
"""From how many numbers on a weight is kept out of the graph."""
_KERNELS = {"Conv2D": 1, "MatMul": 1, "BatchMatMulV2": 1}
"""TensorFlow's operations, and which of their inputs is a kernel that may be left out."""
_MOVES = frozenset(["Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"])
"""What may become of a kernel before it is used."""

_Array: TypeAlias = NDArray[Any]
Held: TypeAlias = Mapping[str, Any]
"""TensorFlow's variables, by the names of the inputs that stand for them."""


def freeze(function: Any) -> tuple[Any, Held]:  # noqa: ANN401  TensorFlow's
    """Make constants of a traced function's variables, but for large kernels.

    Args:
        function: a concrete function.

    Returns:
        Its graph, and what was left out of it.
    """
    inputs = [tensor.op.name for _, tensor in function.graph.captures]
    places = {
        inputs[place]: variable
        for variable in function.graph.variables
        for place, handle in enumerate(function.captured_inputs)
        if handle is variable.handle
    }
    large = {
        name: item
        for name, item in places.items()
        if item.dtype == "float32" and np.prod(item.shape) >= LARGE
    }
    definition = _frozen(function, set(large))
    if unfit := {name for name in large if not _only_read_by_kernels(definition, name)}:
        large = {name: item for name, item in large.items() if name not in unfit}
        definition = _frozen(function, set(large))
    return definition, _as_inputs(definition, large)


def put_apart(model: ModelProto, held: Held, file: BinaryIO) -> None:
    """Write the weights that were left out, as the graph takes them, into a file beside it.

    Args:
        model: the converted graph, with an input for each of them.
        held: the variables, by input.
        file: takes the arrays; the graph's constants name their places in it.
    """
    graph = model.graph
    for value in [item for item in graph.input if item.name in held]:
        graph.input.remove(value)
        for name, array in _as_taken(model, value.name, held[value.name].numpy()).items():
            constant = TensorProto(name=name, dims=array.shape, data_type=TensorProto.FLOAT)
            constant.data_location = TensorProto.EXTERNAL
            constant.external_data.add(key="location", value=file.name)
            constant.external_data.add(key="offset", value=str(file.tell()))
            graph.initializer.append(constant)
            file.write(np.ascontiguousarray(array).data)
    file.flush()


def array_of(constant: TensorProto) -> NDArray[Any]:
    """Give a constant's values, from the file where they are apart."""
    if not _is_apart(constant):
        return numpy_helper.to_array(constant)
    place = {entry.key: entry.value for entry in constant.external_data}
    return np.memmap(
        place["location"], np.float32, "r", offset=int(place["offset"]), shape=tuple(constant.dims)
    )


def joined(model: ModelProto) -> ModelProto:
    """Copy a graph, with all its weights in it."""
    whole = ModelProto()
    whole.CopyFrom(model)
    for constant in whole.graph.initializer:
        if _is_apart(constant):
            values = array_of(constant).tobytes()
            constant.ClearField("external_data")
            constant.ClearField("data_location")
            constant.raw_data = values
    return whole


def _frozen(function: Any, left_out: set[str]) -> Any:  # noqa: ANN401
    freezing = require("tensorflow.python.framework.convert_to_constants", "export")
    data = freezing._FunctionConverterDataInEager(
        func=function,
        lower_control_flow=False,
        aggressive_inlining=True,
        variable_names_denylist=left_out,
    )
    definition, _ = freezing._replace_variables_by_constants(data)
    return definition


def _takers(definition: Any, name: str) -> list[tuple[Any, int]]:  # noqa: ANN401
    """Find the nodes that take an output, each with the place among its inputs."""
    return [
        (node, place)
        for node in definition.node
        for place, taken in enumerate(node.input)
        if taken.partition(":")[0] == name
    ]


def _only_read_by_kernels(definition: Any, name: str) -> bool:  # noqa: ANN401
    """Whether a variable is read, and given to convolutions and dense layers as it is."""
    return all(
        node.op == "ReadVariableOp" and _feeds_kernels(definition, node.name)
        for node, _ in _takers(definition, name)
    )


def _feeds_kernels(definition: Any, name: str) -> bool:  # noqa: ANN401
    return all(
        _KERNELS.get(node.op) == place or (node.op == "Identity" and _feeds_kernels(definition, node.name))
        for node, place in _takers(definition, name)
    )


def _as_inputs(definition: Any, variables: Held) -> Held:  # noqa: ANN401
    """Put one input in place of each variable and of what reads it."""
    held: dict[str, Any] = {}
    first: dict[str, str] = {}
    for node in [node for node in definition.node if node.op == "ReadVariableOp"]:
        variable = node.input[0].partition(":")[0]
        if variable not in variables:
            continue
        del node.input[:]
        node.attr.clear()
        if variable in first:
            node.op, node.attr["T"].type = "Identity", 1
            node.input.append(first[variable])
        else:
            first[variable] = node.name
            node.op, node.attr["dtype"].type = "Placeholder", 1
            node.attr["shape"].shape.CopyFrom(variables[variable].shape.as_proto())
            held[f"{node.name}:0"] = variables[variable]
    for node in [node for node in definition.node if node.name in variables]:
        definition.node.remove(node)
    return held


def _as_taken(model: ModelProto, name: str, array: _Array) -> dict[str, _Array]:
    """Compute what a graph makes of a weight, in place of the nodes that would."""
    graph = model.graph
    found: dict[str, _Array] = {}
    takers = [node for node in graph.node if name in node.input]
    for node in takers:
        if node.op_type in _MOVES and node.input[0] == name:
            moved = _moved(model, node, array)
            graph.node.remove(node)
            found |= _as_taken(model, node.output[0], moved)
    if any(name in node.input for node in takers if node.op_type not in _MOVES):
        found[name] = _scaled(model, name, array)
    return found


def _moved(model: ModelProto, node: NodeProto, array: _Array) -> _Array:
    constants = [item for item in model.graph.initializer if item.name in node.input]
    given = helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, array.shape)
    graph = helper.make_graph(
        [node], "moved", [given], [helper.make_empty_tensor_value_info(node.output[0])], constants
    )
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import))
    (moved,) = evaluator.run(None, {node.input[0]: array})
    return np.asarray(moved, np.float32)


def _scaled(model: ModelProto, name: str, array: _Array) -> _Array:
    """Take a scaling of channels behind a convolution into its kernel, as the converter does itself."""
    takers = [node for node in model.graph.node if name in node.input]
    if len(takers) != 1 or takers[0].op_type != "Conv":
        return array
    small = {item.name: item for item in model.graph.initializer if not _is_apart(item)}
    factors = _multiplied(model, takers[0], small, len(array))
    if factors is None:
        factors = _normalised(model, takers[0], small)
    return array if factors is None else np.asarray(array * factors.reshape(-1, 1, 1, 1), np.float32)


def _multiplied(
    model: ModelProto, layer: NodeProto, constants: Mapping[str, TensorProto], channels: int
) -> _Array | None:
    """Take a multiplication behind a layer, and an addition behind that, out of the graph."""
    follower = _follower(model, layer, "Mul")
    factors = _by_channel(follower, layer.output[0], constants, channels)
    if follower is None or factors is None or len(layer.input) != 2:
        return None
    _take_in(model, layer, follower)
    follower = _follower(model, layer, "Add")
    offset = _by_channel(follower, layer.output[0], constants, channels)
    if follower is not None and offset is not None:
        _take_in(model, layer, follower, offset)
    return factors


def _normalised(model: ModelProto, layer: NodeProto, constants: Mapping[str, TensorProto]) -> _Array | None:
    """Take a batch normalisation behind a layer out of the graph."""
    follower = _follower(model, layer, "BatchNormalization")
    if follower is None or any(item not in constants for item in (*layer.input[2:], *follower.input[1:])):
        return None
    scale, offset, mean, variance = (numpy_helper.to_array(constants[item]) for item in follower.input[1:])
    epsilon = next((item.f for item in follower.attribute if item.name == "epsilon"), 1e-5)
    factors: _Array = scale / np.sqrt(variance + np.float32(epsilon))
    bias = numpy_helper.to_array(constants[layer.input[2]]) if len(layer.input) > 2 else np.float32(0)
    _take_in(model, layer, follower, (bias - mean) * factors + offset)
    return factors


def _follower(model: ModelProto, layer: NodeProto, kind: str) -> NodeProto | None:
    """Find the one node that takes a layer's output, if it is of a kind."""
    after = [node for node in model.graph.node if layer.output[0] in node.input]
    return after[0] if len(after) == 1 and after[0].op_type == kind and len(after[0].output) == 1 else None


def _by_channel(
    node: NodeProto | None, taken: str, constants: Mapping[str, TensorProto], channels: int
) -> _Array | None:
    """Give a node's constant, where it has one number a channel."""
    other = next((item for item in node.input if item != taken), "") if node is not None else ""
    if other not in constants or list(constants[other].dims) not in ([channels, 1, 1], [1, channels, 1, 1]):
        return None
    return numpy_helper.to_array(constants[other]).reshape(-1)


def _take_in(model: ModelProto, layer: NodeProto, follower: NodeProto, bias: _Array | None = None) -> None:
    """Have a layer do what the node behind it does."""
    layer.output[0] = follower.output[0]
    model.graph.node.remove(follower)
    if bias is not None:
        name = f"{layer.name}/bias"
        del layer.input[2:]
        layer.input.append(name)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(bias, np.float32), name))


def _is_apart(constant: TensorProto) -> bool:
    return constant.data_location == TensorProto.EXTERNAL
