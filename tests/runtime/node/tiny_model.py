"""A classifier of a few nodes, so that the node's tests need no framework but onnx."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import embed_in_onnx
from medimg.runtime.model.spec import Allowed, Intensity, ModelSpec, OperatingPoint

LABELS = ("cyst", "normal", "solid")


def write_tiny_model(
    path: Path, *, seed: int = 0, allowed: Allowed | None = None, rows: int = 32, heatmap: bool = False
) -> Path:
    """Write the softmax of a linear function of the image's mean; its heat map is that of each pixel."""
    weights = np.random.default_rng(seed).normal(size=(3, 3)).astype(np.float32) / 64
    shapes: dict[str, list[str | int]] = {"probabilities": ["batch", 3]}
    if heatmap:
        shapes["activation_map"] = ["batch", rows, rows, 3]
    nodes = [helper.make_node("MatMul", ["float", "weights"], ["activation_map"])] if heatmap else []
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            *nodes,
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", rows, rows, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    spec = ModelSpec(
        LABELS,
        ImageRule(rows, rows),
        Intensity.named("raw"),
        operating_points=(OperatingPoint("solid", 0.9, "sensitivity 0.95 on validation"),),
        intended_use="Tests of the node; <b>nothing else</b>",
        allowed=allowed or Allowed(),
        heatmap=heatmap,
    )
    path.write_bytes(embed_in_onnx(model.SerializeToString(), spec))
    return path
