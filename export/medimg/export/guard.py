"""No number stays no number: NaN is kept from being hidden on its way through a graph.

Keras and ONNX Runtime carry NaN to the outputs; OpenVINO's ReLU, and int8, make a number of it. Where a
network can come by one, as by dividing by an image's own range, the graph itself gives NaN for that image.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from medimg.export.errors import SourceError
from medimg.export.graph import HEAD, OUTPUT, is_float_node, rename_tensor
from medimg.export.sources.constants import constants_of

Sign: TypeAlias = Literal["positive", "not negative", "any"]
_Array: TypeAlias = NDArray[Any]
_PREFIX = f"{HEAD}guard/"
SMALL = 4096
"""Most elements of a constant whose values matter here."""
_KEEPING = (
    frozenset(
        [
            "AveragePool",
            "Cast",
            "Expand",
            "Flatten",
            "Gather",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Identity",
        ]
    )
    | frozenset(
        [
            "MaxPool",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceSum",
            "Reshape",
            "Slice",
            "Split",
            "Squeeze",
        ]
    )
    | frozenset(["Concat", "Tile", "Transpose", "Unsqueeze"])
)
_NEVER_NEGATIVE = frozenset(
    ["Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu", "Sigmoid", "Softmax"]
) | {"Softplus"}


def refuse_nan_weights(model: ModelProto) -> None:
    """Refuse a network that gives no number for any image.

    Raises:
        SourceError: a weight is NaN.
    """
    for item in model.graph.initializer:
        if item.data_type == TensorProto.FLOAT and np.isnan(numpy_helper.to_array(item)).any():
            layer = item.name.rpartition("/")[0] or item.name
            raise SourceError(
                f"its weights hold NaN ({layer}): the training diverged; nothing that it answers is a number"
            )


def guard(model: ModelProto) -> ModelProto:
    """Give NaN as the probabilities of an image for which the network has come by no finite number.

    Args:
        model: a graph after `finish_head`.

    Claim: a network whose divisions, roots and logarithms are all of positive numbers is left as it is.
    """
    graph = model.graph
    unsafe = unsafe_tensors(model)
    if not unsafe:
        return model
    flags = [_flag(graph, name, f"{_PREFIX}{place}/") for place, name in enumerate(unsafe)]
    answer = f"{_PREFIX}answer"
    rename_tensor(graph, OUTPUT, answer)
    for name, value in (("nan", np.nan), ("largest", np.finfo(np.float32).max)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{_PREFIX}{name}"))
    last = flags[0]
    for place, flag in enumerate(flags[1:]):
        both = f"{_PREFIX}all_{place}"
        graph.node.append(helper.make_node("And", [last, flag], [both], name=both))
        last = both
    chosen = [last, answer, f"{_PREFIX}nan"]
    graph.node.append(helper.make_node("Where", chosen, [OUTPUT], name=f"{_PREFIX}Where"))
    return model


def unsafe_tensors(model: ModelProto) -> list[str]:
    """Name what the network computes that may be no finite number although its input is, in graph order."""
    constants: dict[str, _Array] = {}
    signs: dict[str, Sign] = {}
    for name, item in constants_of(model.graph).items():
        values = numpy_helper.to_array(item)
        signs[name] = _sign_of(values)
        if values.size <= SMALL:
            constants[name] = values
    chosen = {name for node in model.graph.node if node.op_type == "Where" for name in node.input[1:]}
    found = []
    for node in model.graph.node:
        taken = [signs.get(name, "any") for name in node.input]
        if _may_fail(node, taken, constants) and not is_float_node(node) and node.output[0] not in chosen:
            found.append(node.output[0])
        signs |= dict.fromkeys(node.output, _sign(node, taken, constants))
    return found


def _flag(graph: Any, name: str, prefix: str) -> str:  # noqa: ANN401  a protobuf message
    """Add nodes that tell of each image whether a tensor holds finite numbers alone, `(batch, 1)` bool."""
    axes = f"{prefix}axes"
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), axes))
    magnitude, within, values, flat, least = (
        f"{prefix}{part}" for part in ("Abs", "LessOrEqual", "Cast", "Flatten", "least")
    )
    flag = f"{prefix}flag"
    graph.node.extend(
        [
            helper.make_node("Abs", [name], [magnitude], name=magnitude),
            helper.make_node("LessOrEqual", [magnitude, f"{_PREFIX}largest"], [within], name=within),
            helper.make_node("Cast", [within], [values], name=values, to=TensorProto.FLOAT),
            helper.make_node("Flatten", [values], [flat], name=flat, axis=1),
            helper.make_node("ReduceMin", [flat], [least], name=least, axes=[1], keepdims=1),
            helper.make_node("Cast", [least], [flag], name=flag, to=TensorProto.BOOL),
        ]
    )
    return flag


def _may_fail(node: NodeProto, taken: list[Sign], constants: Mapping[str, _Array]) -> bool:
    """Whether an operation gives no finite number of some finite ones."""
    if node.op_type == "Div":
        divisor = constants.get(node.input[1])
        return taken[1] != "positive" and (divisor is None or bool((divisor == 0).any()))
    if node.op_type == "Pow":
        exponent = constants.get(node.input[1])
        if exponent is None or (exponent < 0).any():
            return taken[0] != "positive"
        return bool((exponent != np.round(exponent)).any()) and taken[0] == "any"
    if node.op_type in {"Log", "Reciprocal"}:
        return taken[0] != "positive"
    return node.op_type == "Sqrt" and taken[0] == "any"


def _sign(node: NodeProto, taken: list[Sign], constants: Mapping[str, _Array]) -> Sign:
    """Tell the sign of what an operation gives."""
    kind = node.op_type
    if kind in _KEEPING or kind in {"Sqrt", "Reciprocal"}:
        return taken[0] if kind != "Concat" else _least(taken)
    if kind in {"Add", "Max", "Sum"}:
        if kind == "Max" and "positive" in taken:
            return "positive"
        return "any" if "any" in taken else "positive" if "positive" in taken else "not negative"
    if kind in {"Mul", "Div"}:
        return "not negative" if node.input[0] == node.input[1] and kind == "Mul" else _least(taken[:2])
    if kind == "Clip":
        lowest = constants.get(node.input[1]) if len(node.input) > 1 else None
        return _sign_of(lowest) if lowest is not None else taken[0]
    if kind == "Pow":
        exponent = constants.get(node.input[1])
        even = exponent is not None and bool((exponent % 2 == 0).all())
        return taken[0] if taken[0] != "any" else "not negative" if even else "any"
    return "not negative" if kind in _NEVER_NEGATIVE else "any"


def _least(signs: list[Sign]) -> Sign:
    return next((sign for sign in ("any", "not negative") if sign in signs), "positive")


def _sign_of(values: _Array) -> Sign:
    if not values.size or values.dtype.kind not in "fiu":
        return "any"
    return "positive" if (values > 0).all() else "not negative" if (values >= 0).all() else "any"
