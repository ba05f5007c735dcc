import sys
from pathlib import Path

import numpy as np
import pytest

from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.spec import Intensity, ModelSpec

# The scripts outside the wheel import one another by name, as Python does for a script's own folder.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
# Likewise the fakes that these tests share.
sys.path.insert(0, str(Path(__file__).parent))

SIZE = 16
LABELS = ("dark", "grey", "bright")


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    return ModelSpec(LABELS, ImageRule(SIZE, SIZE), Intensity.named("unit"))


@pytest.fixture(scope="session")
def tiny_artefact(tmp_path_factory: pytest.TempPathFactory, tiny_spec: ModelSpec) -> Path:
    """A real ONNX classifier of a few weights, with the contract's input, output and medimg entry."""
    from onnx import TensorProto, helper, numpy_helper

    from medimg.runtime.model.containers import embed_in_onnx

    weights = np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weights"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    path.write_bytes(embed_in_onnx(model.SerializeToString(), tiny_spec))
    return path


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Six readable PNG files."""
    folder = tmp_path / "images"
    folder.mkdir()
    from fakes import write_images

    write_images(folder, 6)
    return folder
