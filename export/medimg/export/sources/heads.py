"""What a classifier's last step is, told from what its graph computes."""

from onnx import ModelProto, NodeProto

from medimg.runtime.spec import Head

_INERT = frozenset(["Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"])
"""Operations after the last activation that change no value."""
_LINEAR = frozenset(
    ["AveragePool", "BatchNormalization", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "ReduceMean"]
)
"""Operations that give bare logits, if they come last."""


def head_of(model: ModelProto, units: int) -> Head | None:
    """Tell the head from the last operation that changes values.

    Args:
        model: a graph with one output, `(batch, units)`.
        units: its width.

    Returns:
        None if it gives neither probabilities nor logits. One linear unit may be a logit or a quantity,
        so it is None too. A log-softmax counts as logits: its softmax is the softmax.
    """
    last = _last(model)
    if last is None:
        return None
    if last.op_type == "Softmax":
        return "softmax" if units > 1 else None
    if last.op_type == "Sigmoid":
        return "sigmoid" if units == 1 else "multilabel"
    if last.op_type == "LogSoftmax" or last.op_type in _LINEAR:
        return "logits" if units > 1 else None
    return None


def _last(model: ModelProto) -> NodeProto | None:
    producers: dict[str, NodeProto] = {name: node for node in model.graph.node for name in node.output}
    constants = {item.name for item in model.graph.initializer}
    node = producers.get(model.graph.output[0].name)
    while node is not None:
        is_bias = node.op_type in {"Add", "Sub"} and any(name in constants for name in node.input)
        if node.op_type not in _INERT and not is_bias:
            return node
        node = next((producers[name] for name in node.input if name in producers), None)
    return None
