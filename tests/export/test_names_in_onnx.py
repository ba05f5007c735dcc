"""Ready `.onnx` files whose names or inputs are not what the steps after them expect."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from medimg.export import ExportOptions, export_model
from medimg.export.errors import SourceError
from medimg.export.sources import load_source
from medimg.runtime.errors import MedimgError
from medimg.train.simulation.secondary_capture import write_secondary_capture

SIZE = 8


def onnx_file(path: Path, shape: list[str | int], *, taken: str, inner: str, given: str) -> Path:
    """Write a dense layer on all pixels that gives logits, with names of its own."""
    weights = np.random.default_rng(0).normal(0, 0.1, (SIZE * SIZE * 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", [taken], [inner]), helper.make_node("MatMul", [inner, "w"], [given])],
        "named",
        [helper.make_tensor_value_info(taken, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("taken", "inner", "given"),
    [
        ("x", "y", "probabilities"),
        ("probabilities", "y", "z"),
        ("x", "probabilities", "image"),
        ("image", "network_input", "network_output"),
        ("x", "network_output", "network_input"),
        ("x", "head/0_Softmax", "head/probabilities"),
    ],
)
def test_names_of_a_file_meet_none_of_ours(tmp_path: Path, taken: str, inner: str, given: str) -> None:
    path = onnx_file(tmp_path / "named.onnx", ["n", SIZE, SIZE, 3], taken=taken, inner=inner, given=given)
    result = export_model(
        path,
        ExportOptions(output=tmp_path / "out", preprocessing="unit", head="logits", labels=("a", "b", "c")),
    )
    (item,) = result.artefacts
    assert item.written
    images = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    logits = onnxruntime.InferenceSession(path).run(None, {taken: images.astype(np.float32) / 255})[0]
    shares = np.exp(logits)
    found = onnxruntime.InferenceSession(item.path).run(["probabilities"], {"image": images})[0]
    np.testing.assert_allclose(found, shares / shares.sum(axis=1, keepdims=True), atol=1e-6)


def test_an_input_without_rows_and_columns_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "flat.onnx", ["n", SIZE * SIZE * 3], taken="x", inner="y", given="z")
    with pytest.raises(SourceError, match=r"one row of numbers, whose rows.*Flatten\(\), model\]\)"):
        load_source(path)


@pytest.mark.parametrize("data", ["calibration", "validation"])
def test_images_that_the_model_is_not_for_prove_nothing(tmp_path: Path, data: str) -> None:
    path = onnx_file(tmp_path / "named.onnx", ["n", SIZE, SIZE, 3], taken="x", inner="y", given="z")
    (tmp_path / "data").mkdir()
    write_secondary_capture(tmp_path / "data" / "a.dcm", np.zeros((SIZE, SIZE), np.uint8), "patient")
    told: dict[str, Any] = {data: tmp_path / "data", "spec_fields": {"allowed": {"modality": ["DX"]}}}
    with pytest.raises(MedimgError, match=r"a\.dcm: its modality is US; the model is for DX"):
        export_model(
            path, ExportOptions(output=tmp_path / "out", preprocessing="unit", head="logits", **told)
        )
    assert not list((tmp_path / "out").iterdir())
