"""Artefacts whose hashes fit and whose graphs are made to harm."""

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from medimg.runtime.backends import NAMES, Backend, Choice, choose_backend
from medimg.runtime.errors import BackendError, ModelError
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.machine import memory
from medimg.runtime.model.containers import Artefact, embed_in_onnx, open_onnx
from medimg.runtime.model.spec import Intensity, ModelSpec

SPEC = ModelSpec(("a", "b"), ImageRule(4, 5), Intensity.named("unit"))
TRUE = numpy_helper.from_array(np.array(True), "true")


def network(*more: NodeProto, end: str = "logits", constants: tuple[TensorProto, ...] = ()) -> ModelProto:
    """Average the image, and give `end` after `more` nodes as probabilities."""
    weights = numpy_helper.from_array(np.ones((3, 2), np.float32), "weights")
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["logits"]),
        *more,
        helper.make_node("Softmax", [end], ["probabilities"], axis=-1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 5, 3])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [image], [answer], [weights, *constants])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(name: str, location: str = "/etc/hostname") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def branch(*nodes: NodeProto, constants: tuple[TensorProto, ...] = ()) -> NodeProto:
    inner = helper.make_graph(list(nodes), "inner", [], [], list(constants))
    return helper.make_node("If", ["true"], ["chosen"], then_branch=inner, else_branch=inner)


def marked_external_alone() -> ModelProto:
    tensor = numpy_helper.from_array(np.ones(1, np.float32), "w")
    tensor.data_location = TensorProto.EXTERNAL
    return network(constants=(tensor,))


def in_a_tensor_list() -> ModelProto:
    node = helper.make_node("Identity", ["logits"], ["same"], name="listed")
    node.attribute.append(helper.make_attribute("values", [external("w")]))
    return network(node)


def with_training() -> ModelProto:
    model = network()
    model.training_info.add().algorithm.CopyFrom(helper.make_graph([], "t", [], [], [external("w")]))
    return model


def with_function() -> ModelProto:
    model = network()
    node = helper.make_node("Itself", ["x"], ["y"], domain="own")
    model.functions.append(helper.make_function("own", "Itself", ["x"], ["y"], [node], model.opset_import))
    return model


def with_sparse() -> ModelProto:
    model = network()
    model.graph.sparse_initializer.add().values.CopyFrom(external("w"))
    return model


FORGED: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "constant": (lambda: network(constants=(external("w"),)), "w takes its values from another file"),
    "relative": (lambda: network(constants=(external("w", "secret.bin"),)), "from another file"),
    "marked": (marked_external_alone, "from another file"),
    "in a node": (
        lambda: network(helper.make_node("Constant", [], ["c"], value=external("w"))),
        "from another file",
    ),
    "in a list": (in_a_tensor_list, "from another file"),
    "in a branch": (lambda: network(branch(constants=(external("w"),)), constants=(TRUE,)), "holds a graph"),
    "training": (with_training, "a graph for training"),
    "function": (with_function, "functions of its own"),
    "sparse": (with_sparse, "sparse constants"),
    "domain": (
        lambda: network(helper.make_node("Gelu", ["logits"], ["l2"], domain="com.microsoft"), end="l2"),
        "operator of 'com.microsoft'",
    ),
    "cycle": (
        lambda: network(
            helper.make_node("Add", ["logits", "c2"], ["c1"]), helper.make_node("Neg", ["c1"], ["c2"])
        ),
        "takes c2, which nothing before it gives",
    ),
}


def forged(folder: Path, model: ModelProto) -> Path:
    path = folder / "forged.onnx"
    path.write_bytes(embed_in_onnx(model.SerializeToString(), SPEC))
    return path


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_graph_is_refused_before_a_back_end_sees_it(kind: str, tmp_path: Path) -> None:
    make, reason = FORGED[kind]
    with pytest.raises(ModelError, match=reason):
        open_onnx(forged(tmp_path, make()))


def test_graphs_that_a_parser_would_merge_are_all_looked_at(tmp_path: Path) -> None:
    second = ModelProto(graph=onnx.GraphProto(initializer=[external("w")]))
    content = network().SerializeToString() + second.SerializeToString()
    assert len(ModelProto.FromString(content).graph.initializer) == 2
    path = tmp_path / "merged.onnx"
    path.write_bytes(embed_in_onnx(content, SPEC))
    with pytest.raises(ModelError, match="w takes its values from another file"):
        open_onnx(path)


def huge(*, by_batch: bool, numbers: int = 2**30) -> ModelProto:
    """Add a constant, of 4 GB unless told otherwise, made when the file is opened or when images come."""
    rank_and_size = (
        numpy_helper.from_array(np.array([numbers]), "many"),
        numpy_helper.from_array(np.array([0]), "first"),
    )
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    return network(
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Mul", ["batch", "many"], ["size"]),
        helper.make_node("ConstantOfShape", ["size" if by_batch else "many"], ["big"], value=one),
        helper.make_node("ReduceMax", ["big"], ["top"], keepdims=0),
        helper.make_node("Add", ["logits", "top"], ["more"]),
        end="more",
        constants=rank_and_size,
    )


def doubling() -> ModelProto:
    nodes = [
        helper.make_node("Concat", [f"x{n}" if n else "logits"] * 2, [f"x{n + 1}"], axis=1) for n in range(34)
    ]
    return network(*nodes, helper.make_node("ReduceMax", ["x34"], ["top"], axes=[1]), end="top")


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(
    "make",
    [lambda: huge(by_batch=False), lambda: huge(by_batch=True), doubling],
    ids=["open", "run", "twice"],
)
def test_memory_is_bounded(
    make: Callable[[], ModelProto], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "BASE_BYTES", 2**29)
    artefact = open_onnx(forged(tmp_path, make()))
    with pytest.raises(BackendError, match=r"refused: one image takes more than 0\.5 GB"):
        choose_backend("fp32", backend, "cpu").open(artefact, 2)


def as_large_as_its_brightest_pixel() -> ModelProto:
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    return network(
        helper.make_node("ReduceMax", ["floats"], ["brightest"], keepdims=0),
        helper.make_node("Cast", ["brightest"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "many"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["big"], value=one),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["logits", "sum"], ["more"]),
        end="more",
        constants=(numpy_helper.from_array(np.array([2**20]), "many"),),
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_gives_no_earlier_answer_where_it_has_none(threads: int, tmp_path: Path) -> None:
    artefact = open_onnx(forged(tmp_path, as_large_as_its_brightest_pixel()))
    backend = choose_backend("fp32", "openvino", "cpu").open(artefact, threads)
    dark, bright = np.zeros((1, 4, 5, 3), np.uint8), np.full((1, 4, 5, 3), 200, np.uint8)
    assert np.isfinite(backend.infer(dark)["probabilities"]).all()
    answers = np.full((1, 2), np.nan)
    with memory.limited(2**27), contextlib.suppress(BackendError):
        answers = backend.infer(bright)["probabilities"]
    assert np.isnan(answers).all()


@pytest.mark.parametrize("backend", NAMES)
def test_an_artefact_answers_with_the_columns_that_its_labels_name(backend: str, tmp_path: Path) -> None:
    twice = helper.make_node("Concat", ["logits", "logits"], ["four"], axis=1)
    artefact = open_onnx(forged(tmp_path, network(twice, end="four")))
    with pytest.raises(ModelError, match=r"shape \(4,\) an image, and its spec names 2 classes"):
        choose_backend("fp32", backend, "cpu").open(artefact, 2)


def test_the_bound_is_lifted_afterwards() -> None:
    with memory.limited(2**26), pytest.raises(MemoryError):
        np.ones(2**26, np.float64)
    assert np.ones(2**26, np.float64).nbytes == 2**29


@pytest.mark.parametrize("backend", NAMES)
def test_a_graph_is_tried_on_the_processor_before_a_gpu_sees_it(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"medimg.runtime.backends.with_{backend}")
    real, devices = module.open_artefact, []

    def opened(artefact: Artefact, device: str, *more: Any) -> Backend:
        devices.append(device)
        made: Backend = real(artefact, "cpu", *more)
        return made

    monkeypatch.setattr(module, "open_artefact", opened)
    Choice(backend, "gpu:0", "").open(open_onnx(forged(tmp_path, network())), 1).close()
    assert devices == ["cpu", "gpu:0"]
    monkeypatch.setattr(memory, "BASE_BYTES", 2**29)
    with pytest.raises(BackendError, match=r"refused: one image takes more than 0\.5 GB"):
        Choice(backend, "gpu:0", "").open(open_onnx(forged(tmp_path, huge(by_batch=False))), 1)
    assert devices == ["cpu", "gpu:0", "cpu"]
