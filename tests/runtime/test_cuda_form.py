"""The form of an FP16 graph for CUDA computes what the file does, whatever the network is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from medimg.runtime.backends.cuda_form import for_cuda

Make = Callable[["Network"], str]


class Network:
    """Builds an FP16 graph of random weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []
        self._generator = np.random.default_rng(0)

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))  # type: ignore[arg-type]
        return output

    def convolution(self, image: str, channels: int, outputs: int, *, bias: bool = True) -> str:
        shapes = [(outputs, channels, 3, 3), *([(outputs,)] if bias else [])]
        names = [self._array(shape) for shape in shapes]
        return self.node("Conv", image, *names, pads=[1, 1, 1, 1])

    def pool(self, image: str) -> str:
        return self.node("MaxPool", image, kernel_shape=[2, 2], strides=[2, 2])

    def model(self, output: str, *more: str) -> bytes:
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT16, [None] * 4) for name in (output, *more)
        ]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT16, ["batch", 3, 16, 16])
        graph = helper.make_graph(self.nodes, "network", [image], values, self.arrays)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())

    def _array(self, shape: tuple[int, ...]) -> str:
        values = self._generator.normal(size=shape).astype(np.float16)
        self.arrays.append(numpy_helper.from_array(values, f"array_{len(self.arrays)}"))
        return self.arrays[-1].name


def chain(network: Network) -> str:
    first = network.node("Relu", network.convolution("image", 3, 8))
    second = network.node("Relu", network.convolution(first, 8, 8))
    third = network.convolution(network.pool(second), 8, 4, bias=False)
    return network.pool(network.node("Relu", network.convolution(third, 4, 4)))


def residual(network: Network) -> str:
    first = network.node("Relu", network.convolution("image", 3, 8))
    branch = network.convolution(first, 8, 8)
    joined = network.node("Relu", network.node("Add", first, branch))
    return network.node("Concat", network.pool(joined), network.pool(first), axis=1)


def relu_used_twice(network: Network) -> str:
    active = network.node("Relu", network.convolution("image", 3, 8))
    return network.node("Add", network.pool(active), network.pool(network.node("Neg", active)))


def other_activation(network: Network) -> str:
    return network.pool(network.node("Sigmoid", network.pool(network.convolution("image", 3, 8))))


@pytest.mark.parametrize("make", [chain, residual, relu_used_twice, other_activation])
def test_it_computes_the_same_bits(make: Make) -> None:
    network = Network()
    model = network.model(make(network))
    form = for_cuda(model)
    onnx.checker.check_model(onnx.load_from_string(form), full_check=True)
    images = np.random.default_rng(1).normal(size=(3, 3, 16, 16)).astype(np.float16)
    assert np.array_equal(run(form, images), run(model, images))


def test_biases_follow_the_pooling() -> None:
    network = Network()
    form = onnx.load_from_string(for_cuda(network.model(chain(network))))
    kinds = [node.op_type for node in form.graph.node]
    expected = "Conv Add Relu Conv MaxPool Add Relu Conv Conv MaxPool Add Relu"
    assert kinds == expected.split()
    assert all(len(node.input) == 2 for node in form.graph.node if node.op_type == "Conv")


def test_what_is_an_output_keeps_its_place() -> None:
    """A heat map's features, for instance, are an output beside the answer."""
    network = Network()
    before = network.convolution("image", 3, 8)
    active = network.node("Relu", before)
    model = network.model(network.pool(active), before, active)
    images = np.ones((1, 3, 16, 16), np.float16)
    for found, expected in zip(outputs(for_cuda(model), images), outputs(model, images), strict=True):
        assert np.array_equal(found, expected)


def test_metadata_stays(ready_artefact: Path) -> None:
    content = ready_artefact.read_bytes()
    form = onnx.load_from_string(for_cuda(content))
    assert form.metadata_props == onnx.load_from_string(content).metadata_props


def run(model: bytes, images: NDArray[np.float16]) -> NDArray[np.float16]:
    return outputs(model, images)[0]


def outputs(model: bytes, images: NDArray[np.float16]) -> list[NDArray[np.float16]]:
    """Run each node by itself, so that float16 is rounded where the graph says."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    return list(session.run(None, {"image": images}))
