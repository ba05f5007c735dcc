"""The end of the graph: probabilities, temperature, activation map. All of it stays in float32."""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from medimg.export.errors import SourceError
from medimg.export.graph import HEAD, OUTPUT, Chain, rename_tensor
from medimg.export.sources.heads import COMBINING
from medimg.export.tasks import add_end
from medimg.runtime.tasks import Head, task_of_head

ACTIVATION_MAP = "activation_map"
TEMPERATURE = f"{HEAD}temperature"
COMBINED = f"{HEAD}combined/"
"""Prefix of activations that are not the last step, and of what combines them."""
UNTEMPERED, WHOLE = f"{HEAD}untempered", f"{HEAD}temper/whole"
_POOLING = ("GlobalAveragePool", "ReduceMean")
_FLATTENING = ("Squeeze", "Flatten", "Reshape")
_ACTIVATIONS = ("Softmax", "Sigmoid")


def finish_head(model: ModelProto, head: Head, temperature: float = 1.0) -> ModelProto:
    """Make the output `probabilities`, float32 `[batch, classes]`.

    Logits get a softmax; a one-unit sigmoid becomes two columns, 1 - p and p; the logits are divided by the
    temperature.
    """
    graph, task = model.graph, task_of_head(head)
    final, units = graph.output[0].name, graph.output[0].type.tensor_type.shape.dim[1].dim_value
    _mark_head(graph, final, is_output=task.is_finished(head))
    steps = Chain(final, HEAD)
    units = add_end(steps, head, units)
    if steps.nodes:
        steps.nodes[-1].output[0] = OUTPUT
        graph.node.extend(steps.nodes)
        graph.initializer.extend(steps.constants)
    else:
        rename_tensor(graph, final, OUTPUT)
    if temperature != 1 and any(map(_is_activation, graph.node)):
        _divide_logits(graph, temperature)
    elif temperature != 1:
        _temper(graph, temperature, alone=not task.exclusive)
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
    return node.op_type in _ACTIVATIONS and node.name.startswith(HEAD) and not node.name.startswith(COMBINED)


def _mark_head(graph: onnx.GraphProto, final: str, *, is_output: bool) -> None:
    """Move the last activations, and what combines them, into the part that stays in float32.

    Args:
        graph: of the network.
        final: its output.
        is_output: whether that is the artefact's output too, which is float32 whatever gives it.
    """
    producers = {name: node for node in graph.node for name in node.output}
    last = producers[final]
    if last.op_type in _ACTIVATIONS:
        last.name = f"{HEAD}{last.op_type}"
        return
    part = {final} if is_output else set()
    if _combines_activations(final, producers):
        part, waiting = set(), [final]
        while waiting:
            name = waiting.pop()
            if name in producers and name not in part:
                part.add(name)
                waiting += producers[name].input if producers[name].op_type in COMBINING else ()
    for name in part:
        producers[name].name = f"{COMBINED}{producers[name].name}"


def _combines_activations(name: str, producers: Mapping[str, NodeProto]) -> bool:
    """Whether a tensor is combined of softmaxes or sigmoids, with nothing else in between."""
    node = producers[name]
    made = [item for item in node.input if item in producers]
    return node.op_type in _ACTIVATIONS or (
        node.op_type in COMBINING and bool(made) and all(_combines_activations(i, producers) for i in made)
    )


def _divide_logits(graph: onnx.GraphProto, temperature: float) -> None:
    (place,) = (place for place, node in enumerate(graph.node) if _is_activation(node))
    activation, constant = graph.node[place], f"{TEMPERATURE}/constant"
    graph.initializer.append(numpy_helper.from_array(_float(np.array(temperature)), constant))
    divide = helper.make_node("Div", [activation.input[0], constant], [TEMPERATURE], name=TEMPERATURE)
    activation.input[0] = TEMPERATURE
    graph.node.insert(place, divide)


def _temper(graph: onnx.GraphProto, temperature: float, *, alone: bool) -> None:
    """Divide the logits behind probabilities that no single activation gives: raise them to a power."""
    steps, share = Chain(UNTEMPERED, f"{HEAD}temper/"), _float(np.array(1 / temperature))
    rename_tensor(graph, OUTPUT, UNTEMPERED)
    steps.add("Pow", share)
    raised = steps.last
    if alone:
        steps.last = UNTEMPERED
        steps.add("Mul", _float(np.array(-1)))
        steps.add("Add", _float(np.array(1)))
        steps.add("Pow", share)
        whole = helper.make_node("Add", [raised, steps.last], [WHOLE], name=WHOLE)
    else:
        steps.last = raised
        steps.add("ReduceSum", np.array([1], np.int64), keepdims=1)
        whole = helper.make_node("Identity", [steps.last], [WHOLE], name=WHOLE)
    divide = helper.make_node("Div", [raised, WHOLE], [OUTPUT], name=f"{HEAD}temper/Div")
    graph.node.extend([*steps.nodes, whole, divide])
    graph.initializer.extend(steps.constants)


def _float(values: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, np.float32)
