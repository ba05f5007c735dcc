"""The end of the graph: probabilities, temperature, activation map. All of it stays in float32."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from medimg.export.errors import SourceError
from medimg.export.graph import HEAD, OUTPUT, Chain, rename_tensor
from medimg.runtime.spec import Head

ACTIVATION_MAP = "activation_map"
TEMPERATURE = f"{HEAD}temperature"
_POOLING = ("GlobalAveragePool", "ReduceMean")
_FLATTENING = ("Squeeze", "Flatten", "Reshape")


def finish_head(model: ModelProto, head: Head, temperature: float = 1.0) -> ModelProto:
    """Make the output `probabilities`, float32 `[batch, classes]`.

    Logits get a softmax; a one-unit sigmoid becomes two columns, 1 - p and p; the logits are divided by the
    temperature.
    """
    graph = model.graph
    final, units = graph.output[0].name, graph.output[0].type.tensor_type.shape.dim[1].dim_value
    _mark_head(graph, final)
    steps = Chain(final, HEAD)
    if head == "logits" and units > 1:
        steps.add("Softmax", axis=1)
    elif head == "logits":
        steps.add("Sigmoid")
    if head == "sigmoid" or (head == "logits" and units == 1):
        _add_columns(steps, steps.last)
        units = 2
    if steps.nodes:
        steps.nodes[-1].output[0] = OUTPUT
        graph.node.extend(steps.nodes)
        graph.initializer.extend(steps.constants)
    else:
        rename_tensor(graph, final, OUTPUT)
    if temperature != 1:
        _divide_logits(graph, temperature)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", units]))
    return model


def add_heatmap(model: ModelProto) -> ModelProto:
    """Add the output `activation_map`, float32 `[batch, rows, columns, classes]`.

    It is the last layer applied at every place of the feature map; its mean over the places is the logit,
    before the temperature. That is exact where average pooling and one dense layer follow the feature map.

    Args:
        model: a graph after `finish_head`.

    Raises:
        SourceError: the head is another one.

    Source:
        B. Zhou et al., Learning deep features for discriminative localization, CVPR 2016.
    """
    graph = model.graph
    dense, features = _pooled_dense(graph)
    constants = {item.name: item for item in graph.initializer}
    weights = numpy_helper.to_array(constants[dense.input[1]])
    has_bias = len(dense.input) > 2
    bias = numpy_helper.to_array(constants[dense.input[2]]) if has_bias else np.zeros(len(weights))
    if len(weights) == 1:
        weights, bias = np.concatenate([-weights, weights]), np.concatenate([-bias, bias])
    steps = Chain(features, f"{HEAD}map/")
    places = f"{HEAD}map/places"
    steps.nodes.append(helper.make_node("Transpose", [features], [places], name=places, perm=[0, 2, 3, 1]))
    steps.last = places
    steps.add("MatMul", _float(weights.T))
    steps.add("Add", _float(bias))
    steps.nodes[-1].output[0] = ACTIVATION_MAP
    graph.node.extend(steps.nodes)
    graph.initializer.extend(steps.constants)
    shape = ["batch", None, None, len(weights)]
    graph.output.append(helper.make_tensor_value_info(ACTIVATION_MAP, TensorProto.FLOAT, shape))
    return model


def _pooled_dense(graph: onnx.GraphProto) -> tuple[NodeProto, str]:
    """Find the dense layer and the feature map of a head that is pooling and one dense layer."""
    producers = {name: node for node in graph.node for name in node.output}
    activations = [node for node in graph.node if _is_activation(node)]
    node = producers.get(activations[0].input[0]) if activations else None
    if node is not None and node.name == TEMPERATURE:
        node = producers.get(node.input[0])
    dense = node if node is not None and node.op_type == "Gemm" else None
    before = producers.get(dense.input[0]) if dense is not None else None
    while before is not None and before.op_type in _FLATTENING:
        before = producers.get(before.input[0])
    if dense is None or before is None or before.op_type not in _POOLING:
        raise SourceError(
            "an activation map is exact only behind average pooling and one dense layer: leave --heatmap out"
        )
    return dense, before.input[0]


def _is_activation(node: NodeProto) -> bool:
    return node.name.startswith(HEAD) and node.op_type in ("Softmax", "Sigmoid")


def _mark_head(graph: onnx.GraphProto, final: str) -> None:
    """Move the last activation into the part that stays in float32."""
    for node in graph.node:
        if final in node.output and node.op_type in ("Softmax", "Sigmoid"):
            node.name = f"{HEAD}{node.op_type}"


def _add_columns(steps: Chain, final: str) -> None:
    complement = f"{HEAD}complement"
    steps.constants.append(numpy_helper.from_array(np.array(1, np.float32), f"{HEAD}one"))
    steps.nodes.append(helper.make_node("Sub", [f"{HEAD}one", final], [complement], name=complement))
    steps.nodes.append(
        helper.make_node("Concat", [complement, final], [OUTPUT], name=f"{HEAD}columns", axis=1)
    )


def _divide_logits(graph: onnx.GraphProto, temperature: float) -> None:
    (place,) = (place for place, node in enumerate(graph.node) if _is_activation(node))
    activation, constant = graph.node[place], f"{TEMPERATURE}/constant"
    graph.initializer.append(numpy_helper.from_array(_float(np.array(temperature)), constant))
    divide = helper.make_node("Div", [activation.input[0], constant], [TEMPERATURE], name=TEMPERATURE)
    activation.input[0] = TEMPERATURE
    graph.node.insert(place, divide)


def _float(values: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, np.float32)
