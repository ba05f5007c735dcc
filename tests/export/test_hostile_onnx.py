"""ONNX files of others that would never end, or take all memory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from medimg.export.errors import SourceError
from medimg.export.sources import load_source
from medimg.runtime.machine import memory

FLOAT = TensorProto.FLOAT
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]


def network(*more: NodeProto, end: str = "means", functions: tuple[object, ...] = ()) -> ModelProto:
    """Average the image's three channels, and give `end` after `more` nodes."""
    nodes = [helper.make_node("ReduceMean", ["image"], ["means"], axes=[1, 2], keepdims=0), *more]
    constants = {"true": np.array(True), "often": np.array(2**62), "many": np.array([2**40])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", FLOAT, ["n", 4, 5, 3])],
        [helper.make_tensor_value_info(end, FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8, functions=list(functions))


def endless_loop() -> ModelProto:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_out"]), helper.make_node("Neg", ["x"], ["x_out"])],
        "body",
        [info("i", TensorProto.INT64, []), info("on", TensorProto.BOOL, []), info("x", FLOAT, None)],
        [info("on_out", TensorProto.BOOL, []), info("x_out", FLOAT, None)],
    )
    return network(helper.make_node("Loop", ["often", "true", "means"], ["end"], body=body), end="end")


def calling(name: str, *called: str) -> object:
    """Define a function that calls others one after the other."""
    steps = ["x", *(f"step{place}" for place in range(1, len(called))), "y"]
    nodes = [
        helper.make_node(other, [steps[place]], [steps[place + 1]], domain="own" if other != "Neg" else "")
        for place, other in enumerate(called)
    ]
    return helper.make_function("own", name, ["x"], ["y"], nodes, OPSETS)


def own(name: str) -> NodeProto:
    return helper.make_node(name, ["means"], ["end"], domain="own")


def laughs() -> ModelProto:
    """Let each of thirty functions call the next one twice."""
    functions = [calling(f"F{n}", f"F{n + 1}", f"F{n + 1}") for n in range(30)]
    return network(own("F0"), end="end", functions=(*functions, calling("F30", "Neg")))


def in_a_branch() -> ModelProto:
    sparse = numpy_helper.from_array(np.ones(1, np.float32), "values")
    sparse.external_data.add(key="location", value="/etc/hostname")
    inner = GraphProto(name="inner")
    inner.sparse_initializer.add().values.CopyFrom(sparse)
    return network(helper.make_node("If", ["true"], ["unused"], then_branch=inner, else_branch=inner))


def untyped(*, output: bool) -> ModelProto:
    model = network()
    (model.graph.output if output else model.graph.input)[0].ClearField("type")
    return model


def sequence() -> ModelProto:
    model = network()
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("means", FLOAT, None))
    return model


def huge() -> ModelProto:
    one = helper.make_tensor("one", FLOAT, [1], [1.0])
    return network(
        helper.make_node("ConstantOfShape", ["many"], ["big"], value=one),
        helper.make_node("ReduceMax", ["big"], ["top"], keepdims=0),
        helper.make_node("Add", ["means", "top"], ["end"]),
        end="end",
    )


HOSTILE: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "loop": (endless_loop, r"Loop \(\) repeats a graph as often as the file says"),
    "recursion": (
        lambda: network(own("F"), end="end", functions=(calling("F", "G"), calling("G", "F"))),
        "the function F calls itself",
    ),
    "laughs": (laughs, "its functions stand for 1,073,741,8"),
    "external data in a branch": (in_a_branch, "values keeps its values in another file"),
    "no type of the input": (lambda: untyped(output=False), "image is no tensor of a known type"),
    "no type of the output": (lambda: untyped(output=True), "means is no tensor of a known type"),
    "sequence": (sequence, "means is no tensor of a known type"),
    "memory": (huge, "ONNX Runtime cannot run it: .*AllocateRawInternal"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_onnx_file_that_would_harm_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "BASE_BYTES", 2**29)
    make, reason = HOSTILE[kind]
    path = tmp_path / "hostile.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(SourceError, match=reason):
        load_source(path)


def test_functions_that_end_are_read(tmp_path: Path) -> None:
    path = tmp_path / "functions.onnx"
    functions = (calling("F", "G", "G"), calling("G", "Neg"))
    path.write_bytes(network(own("F"), end="end", functions=functions).SerializeToString())
    source = load_source(path)
    assert source.predict(np.ones((2, 4, 5, 3), np.float32)).tolist() == [[1.0] * 3] * 2
    source.close()
