"""Passes over the converted graph, each with a claim that is checked after it.

The order: `tidy` (names, batch axis, constant reshapes), `add_preprocessing`, `head.finish_head`,
`head.add_heatmap`, `check`.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from medimg.export import simplify
from medimg.export.errors import SourceError
from medimg.export.to_onnx import NETWORK_INPUT
from medimg.runtime.model.spec import Intensity

IR_VERSION = 8
"""The lowest that holds op set 17; ONNX Runtime 1.23, the last for Python 3.10, reads up to 11."""
INPUT, OUTPUT = "image", "probabilities"
PREPROCESSING, HEAD = "preprocessing/", "head/"
"""Prefixes of the nodes that stay in float32 whatever the precision."""

GRAY_WEIGHTS = (9798.0, 19235.0, 3735.0)
"""OpenCV's `RGB2GRAY` for uint8: 0.299, 0.587 and 0.114 in units of 2⁻¹⁵, rounded to the nearest."""


def tidy(model: ModelProto, layers: Iterable[str]) -> ModelProto:
    """Name nodes after their Keras layers, name the batch axis, make every Reshape's shape a constant.

    Claim: one input and one output, whose first axis is `batch`; no Shape node is left; two conversions of
    the same model give the same bytes.
    """
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]
    simplify.drop_inert(model)
    simplify.without_erfc(model)
    simplify.constant_shapes(model)
    simplify.drop_inert(model)
    simplify.nearest_as_gather(model)
    _dense_as_gemm(graph, simplify.known_dims(model))
    simplify.in_fixed_order(graph)
    _name_after_layers(graph, frozenset(layers))
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    clean = helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", opset)], producer_name="medimg"
    )
    if shape_nodes := [node.name for node in graph.node if node.op_type == "Shape"]:
        raise SourceError(
            f"shape arithmetic is left in the graph at {shape_nodes[0]}: the input size must be fixed"
        )
    return clean


def add_preprocessing(model: ModelProto, intensity: Intensity) -> ModelProto:
    """Put the intensity arithmetic before the network: the input becomes uint8 RGB named `image`.

    With the rule `unspecified` the network's own float32 input only takes that name.

    Claim: the nodes compute what `medimg.runtime.model.preprocess.to_network_input` computes, bit for bit.
    """
    graph = model.graph
    if intensity.rule == "unspecified":
        rename_tensor(graph, NETWORK_INPUT, INPUT)
        graph.input[0].name = INPUT
        return model
    _, rows, columns, _ = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim)
    steps = Chain(INPUT, PREPROCESSING)
    steps.add("Cast", to=TensorProto.FLOAT)
    if intensity.channels == 1:
        steps.add("Mul", np.array(GRAY_WEIGHTS, np.float32))
        steps.add("ReduceSum", np.array([3], np.int64), keepdims=1)
        steps.add("Add", np.array(2**14, np.float32))
        steps.add("Mul", np.array(2**-15, np.float32))
        steps.add("Floor")
    elif intensity.color_order == "bgr":
        steps.add("Gather", np.array([2, 1, 0], np.int64), axis=3)
    if intensity.divisor != 1:
        steps.add("Div", np.array(intensity.divisor, np.float32))
    if any(intensity.mean):
        steps.add("Sub", np.array(intensity.mean, np.float32))
    if set(intensity.std) != {1.0}:
        steps.add("Div", np.array(intensity.std, np.float32))
    steps.nodes[-1].output[0] = NETWORK_INPUT
    for node in reversed(steps.nodes):
        graph.node.insert(0, node)
    graph.initializer.extend(steps.constants)
    del graph.input[:]
    shape = ["batch", rows, columns, 3]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
    return model


def check(model: ModelProto) -> ModelProto:
    """Infer every shape and run onnx's full check.

    Raises:
        SourceError: the graph is not valid ONNX, or a foreign operator domain is left in it.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise SourceError(f"the converted graph is not valid ONNX: {error}") from error
    if foreign := sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"}):
        raise SourceError(f"the converted graph needs operators of another domain: {', '.join(foreign)}")
    return inferred


def is_float_node(node: NodeProto) -> bool:
    """Whether a node belongs to the preprocessing or the head, which stay in float32."""
    return node.name.startswith((PREPROCESSING, HEAD))


class Chain:
    """Nodes in a row, each taking the one before and at most one constant."""

    def __init__(self, start: str, prefix: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.last, self._prefix = start, prefix

    def add(self, op_type: str, constant: NDArray[Any] | None = None, **attributes: int) -> None:
        """Append a node; `constant` is its second input."""
        name = f"{self._prefix}{len(self.nodes)}_{op_type}"
        inputs = [self.last]
        if constant is not None:
            self.constants.append(numpy_helper.from_array(constant, f"{name}/constant"))
            inputs.append(f"{name}/constant")
        self.nodes.append(_node(op_type, inputs, name, attributes))
        self.last = name


def _node(op_type: str, inputs: list[str], name: str, attributes: dict[str, int]) -> NodeProto:
    """Make a node whose output has its name."""
    node = helper.make_node(op_type, inputs, [name], name=name)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return node


def _dense_as_gemm(graph: onnx.GraphProto, dims: simplify.Dims) -> None:
    """Write dense layers as Gemm with transposed weights: channels on axis 0, as a convolution's are."""
    constants = {initializer.name: initializer for initializer in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    by_input = {name: node for node in graph.node for name in node.input}
    fused = []
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants:
            continue
        weights = numpy_helper.to_array(constants[node.input[1]])
        if weights.ndim != 2 or uses[node.input[1]] > 1 or len(dims.get(node.input[0], [])) != 2:
            continue
        constants[node.input[1]].CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(weights.T), node.input[1])
        )
        node.op_type = "Gemm"
        node.attribute.append(helper.make_attribute("transB", 1))
        after = by_input.get(node.output[0])
        if after is None or after.op_type != "Add" or uses[node.output[0]] > 1:
            continue
        bias = constants.get(after.input[1])
        if bias is not None and list(bias.dims) == [weights.shape[1]]:
            node.input.append(bias.name)
            node.output[0] = after.output[0]
            fused.append(after)
    for node in fused:
        graph.node.remove(node)


def _name_after_layers(graph: onnx.GraphProto, layers: frozenset[str]) -> None:
    """Name every node `layer/Op` and every tensor after the node that makes or takes it."""
    keep = {"", *(value.name for value in (*graph.input, *graph.output))}
    constants = {initializer.name for initializer in graph.initializer}
    seen: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for node, layer in zip(graph.node, _layers_of(graph, layers), strict=True):
        base = f"{layer}/{node.op_type}".lstrip("/")
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base]}"
        renamed |= {
            name: f"{node.name}:{place}" for place, name in enumerate(node.output) if name not in keep
        }
        for place, name in enumerate(node.input):
            if name in constants:
                renamed.setdefault(name, f"{node.name}/constant_{place}")
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for initializer in graph.initializer:
        initializer.name = renamed[initializer.name]


def _layers_of(graph: onnx.GraphProto, layers: frozenset[str]) -> list[str]:
    """Tell each node's layer from its scopes; a node that lost them belongs to the layer that it feeds."""
    taken_by: dict[str, str] = {}
    found: list[str] = []
    for node in reversed(graph.node):
        scopes = reversed(node.name.split("/")[:-1])
        fed = (taken_by[name] for name in node.output if taken_by.get(name))
        layer = next((scope for scope in scopes if scope in layers), None) or next(fed, "")
        found.append(layer)
        taken_by |= dict.fromkeys(node.input, layer)
    return found[::-1]


def rename_tensor(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give a tensor another name wherever it is made or taken."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
