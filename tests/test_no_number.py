"""Images for which a network gives no number: an error of that image at every door, on both back ends."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import embed_in_onnx
from medimg.runtime.model.spec import Intensity, ModelSpec

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SIDE = 16
KINDS = ("nan", "infinite")
BACKENDS = ("onnxruntime", "openvino")


def write_model(path: Path, kind: str) -> Path:
    """Write a network that divides by the image's largest value, which is 0 where all is black."""
    from onnx import TensorProto, helper, numpy_helper

    numerator = "float" if kind == "nan" else "one"
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["float"], ["largest"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Div", [numerator, "largest"], ["share"]),
        helper.make_node("Mul", ["share", "one"], ["same"]),
        helper.make_node("ReduceMean", ["same"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    last = "Softmax" if kind == "nan" else "Identity"
    nodes.append(helper.make_node(last, ["logits"], ["probabilities"]))
    constants = {"one": np.ones((1, 1, 1, 3)), "weights": np.array([[0.1, 0.2]] * 3)}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    spec = ModelSpec(("a", "b"), ImageRule(SIDE, SIDE), Intensity.named("raw"))
    path.write_bytes(embed_in_onnx(model.SerializeToString(), spec))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of two classes, one of which is black."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for number in range(8):
        pixels = generator.integers(1, 255, (SIDE, SIDE, 3), dtype=np.uint8) * (number != 3)
        path = folder / "test" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_model(folder / f"{kind}.onnx", kind) for kind in KINDS}


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> Path:
    return models["nan"]


def strict(text: str) -> Any:
    """Read JSON as RFC 8259 has it, without NaN and Infinity."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_predict(run: Run, models: dict[str, Path], data: Path, kind: str, backend: str) -> None:
    done = run("medimg-run", "predict", models[kind], data, "--backend", backend, "--format", "jsonl")
    assert done.returncode == 1
    failed = {
        Path(row["path"]).name: row["error"]["type"]
        for row in map(strict, done.stdout.splitlines())
        if "error" in row
    }
    assert failed == {"3.png": "NoNumberError"}
    assert "7 answered, 0 could not be read, for 1 the model gave no number" in done.stderr


def test_evaluate(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    options = ("--json", tmp_path / "found.json", "--report", report)
    done = run("medimg-train", "evaluate", model, data, *options)
    assert done.returncode == 1, done.stderr
    found = strict((tmp_path / "found.json").read_text())
    black = "test/b/3.png"
    assert found["failed"] == [black]
    assert found["scores"]["images"] == 7
    message = "failed: 1 image(s), in no figure: the model gives no number for them (NaN)"
    assert f"{message}:\n  {black}" in done.stdout
    assert message in report.read_text()


def test_nothing_but_failures_is_an_error(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).write_bytes((data / "test" / "b" / "3.png").read_bytes())
    done = run("medimg-train", "evaluate", model, tmp_path)
    assert done.returncode == 2
    assert "1.png: the model gives no number for it" in done.stderr


def test_bench_names_the_image(run: Run, model: Path, data: Path) -> None:
    options = ("--scenario", "offline", "--duration", "1")
    done = run("medimg-bench", "run", model, "--data", data, *options)
    assert done.returncode != 0
    assert "3.png: the model gives no number for it" in done.stderr
    assert "Traceback" not in done.stderr


def test_archive(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    import pyarrow.dataset

    done = run("medimg-run", "archive", model, data, "--output", tmp_path / "out", "--workers", "1")
    assert "7 images answered, 1 errors" in done.stdout + done.stderr
    rows = pyarrow.dataset.dataset(sorted((tmp_path / "out").glob("part-*.parquet"))).to_table().to_pylist()
    failed = {Path(row["path"]).name: row["error_type"] for row in rows if row["error_type"]}
    assert failed == {"3.png": "NoNumberError"}
