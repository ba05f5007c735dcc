"""A model that needs no framework but onnx, and libraries in place of NVIDIA's, compiled for the tests."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import embed_in_onnx
from medimg.runtime.model.spec import Intensity, ModelSpec, Verification

FAKES = Path(__file__).parent / "fakes"
Compile = Callable[[str], Path]


@pytest.fixture(scope="session")
def ready_artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `small_model` as its export would write it, with weights of noise, in milliseconds."""
    path = tmp_path_factory.mktemp("ready") / "ready.onnx"
    spec = ModelSpec(
        ("cyst", "normal", "solid"),
        ImageRule(32, 32),
        Intensity.named("caffe"),
        verification=Verification(64, "synthetic", 1e-6, 1.0, "unlabelled"),
    )
    path.write_bytes(embed_in_onnx(_network(spec), spec))
    return path


def _network(spec: ModelSpec) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    side, classes, channels, hidden = spec.image.rows, spec.classes, 8, 16
    features = channels * (side // 2) ** 2
    weights = {
        "kernel": generator.normal(size=(channels, 3, 3, 3)) / 5,
        "bias": generator.normal(size=channels),
        "hidden": generator.normal(size=(features, hidden)) / features,
        "classes": generator.normal(size=(hidden, classes)) / hidden,
        "mean": np.array(spec.intensity.mean),
    }
    initialisers = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["float", "bgr"], ["ordered"], axis=3),
        helper.make_node("Sub", ["ordered", "mean"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel", "bias"], ["convolved"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["convolved"], ["active"]),
        helper.make_node("MaxPool", ["active"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "hidden"], ["dense"]),
        helper.make_node("Relu", ["dense"], ["dense_active"]),
        helper.make_node("MatMul", ["dense_active", "classes"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    for node in nodes:
        node.name = f"{node.output[0]}/{node.op_type}"
    graph = helper.make_graph(
        nodes,
        "ready",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes])],
        [*initialisers, numpy_helper.from_array(np.array([2, 1, 0]), "bgr")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compile `fakes/NAME.c` once; give the library's path."""
    folder = tmp_path_factory.mktemp("fakes")

    def compiled(name: str) -> Path:
        target = folder / f"{name}.so"
        if not target.exists():
            source = FAKES / f"{name}.c"
            # TensorFlow has functions of the same names, and must not take their place within the library.
            flags = ["-std=c11", "-Wall", "-O1", "-shared", "-fPIC", "-Wl,-Bsymbolic"]
            subprocess.run(["cc", *flags, "-o", str(target), str(source)], check=True)
        return target

    return compiled
