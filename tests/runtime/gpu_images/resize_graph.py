"""Makes `resize.onnx` of the runtime; the test beside it holds that file against what this makes."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHT_BITS = 8


def make_resize_graph() -> bytes:
    """Blend two rows and two columns of uint8 with weights of 1/256 each, in int32, rounding once."""
    nodes = []

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    blended = []
    for row in "01":
        node("Gather", ["image", f"y{row}"], f"row{row}", axis=0)
        parts = []
        for column in "01":
            place = f"{row}{column}"
            node("Gather", [f"row{row}", f"x{column}"], f"pixel{place}", axis=1)
            node("Cast", [f"pixel{place}"], f"value{place}", to=TensorProto.INT32)
            parts.append(node("Mul", [f"value{place}", f"wx{column}"], f"part{place}"))
        node("Add", parts, f"across{row}")
        blended.append(node("Mul", [f"across{row}", f"wy{row}"], f"part{row}"))
    node("Add", blended, "sum")
    node("Add", ["sum", "half"], "raised")
    node("Div", ["raised", "one"], "quotient")
    node("Cast", ["quotient"], "resized", to=TensorProto.UINT8)
    one = 1 << 2 * WEIGHT_BITS
    constants = [
        numpy_helper.from_array(np.array(value, np.int32), name)
        for name, value in (("half", one // 2), ("one", one))
    ]
    integers: list[tuple[str, list[str | int]]]
    integers = [("y0", ["R"]), ("y1", ["R"]), ("x0", ["C"]), ("x1", ["C"])]
    weights: list[tuple[str, list[str | int]]]
    weights = [("wy0", ["R", 1, 1]), ("wy1", ["R", 1, 1]), ("wx0", ["C", 1]), ("wx1", ["C", 1])]
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["rows", "columns", 3])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in integers]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in weights]
    outputs = [helper.make_tensor_value_info("resized", TensorProto.UINT8, ["R", "C", 3])]
    graph = helper.make_graph(nodes, "resize", inputs, outputs, constants)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="medimg"
    )
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content
