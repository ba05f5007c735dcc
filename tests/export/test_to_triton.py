"""Model repositories for Triton: parsed by its own protobuf, held against the ONNX file by onnx."""

import hashlib
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from medimg.export import to_triton
from medimg.export.to_triton import ServingOptions, build_repository
from medimg.runtime.engines.golden import Golden, write_golden
from medimg.runtime.errors import CheckFailedError, ModelError, UsageError
from medimg.runtime.model.containers import embed_in_onnx, file_sha256, open_onnx
from medimg.runtime.model.plan import BatchProfile, EngineRecord, write_plan
from medimg.runtime.model.spec import Intensity

Run = Callable[..., Any]
TINY = runpy.run_path(str(Path(__file__).parents[1] / "runtime" / "node" / "tiny_model.py"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made: Path = TINY["write_tiny_model"](tmp_path / "tiny.onnx")
    return made


def respecified(model: Path, **changes: object) -> Path:
    """The same network with another spec."""
    artefact = open_onnx(model)
    proto = onnx.load_model_from_string(artefact.content)
    del proto.metadata_props[:]
    target = model.with_name("changed.onnx")
    target.write_bytes(embed_in_onnx(proto.SerializeToString(), artefact.spec.with_(**changes)))
    return target


def read_config(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.mark.parametrize(
    ("precision", "asked", "backend", "kind"),
    [
        ("fp32", None, "onnxruntime", "KIND_GPU"),
        ("fp32", "openvino", "openvino", "KIND_CPU"),
        ("int8", None, "openvino", "KIND_CPU"),
        ("int8", "onnxruntime", "onnxruntime", "KIND_CPU"),
    ],
)
def test_every_field_is_what_the_onnx_file_says(
    precision: str, asked: Any, backend: str, kind: str, model: Path, tmp_path: Path
) -> None:
    path = respecified(model, precision=precision)
    options = ServingOptions(asked, BatchProfile(1, 4, 16), queue_delay_us=500, instances=2)
    (served,) = build_repository([path], tmp_path / "triton", options)
    folder = Path(served.path)
    graph = onnx.load(folder / "1" / "model.onnx").graph
    config = read_config(folder)
    assert config.name == folder.name == "changed"
    assert (config.backend, config.default_model_filename, config.max_batch_size) == (
        backend,
        "model.onnx",
        16,
    )
    types = {"TYPE_UINT8": onnx.TensorProto.UINT8, "TYPE_FP32": onnx.TensorProto.FLOAT}
    for ours, theirs in ((config.input, graph.input), (config.output, graph.output)):
        assert [item.name for item in ours] == [item.name for item in theirs]
        for item, value in zip(ours, theirs, strict=True):
            kind_of = value.type.tensor_type
            assert types[model_config_pb2.DataType.Name(item.data_type)] == kind_of.elem_type
            assert list(item.dims) == [dim.dim_value for dim in kind_of.shape.dim][1:]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert (group.count, model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind)) == (2, kind)
    assert config.output[0].label_filename == "labels.txt"
    assert (folder / "labels.txt").read_text().splitlines() == list(TINY["LABELS"])
    spec = open_onnx(folder / "1" / "model.onnx").spec
    assert config.parameters["medimg_artefact_sha256"].string_value == spec.artefact_sha256
    assert [(item.batch_size, item.inputs["image"].random_data) for item in config.model_warmup] == [
        (1, True),
        (4, True),
    ]


def test_a_golden_image_warms_up(model: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    write_golden(model.with_name("tiny.golden.npz"), Golden(images, np.ones((2, 3), np.float32)))
    (served,) = build_repository([model], tmp_path / "triton", ServingOptions())
    warmup = read_config(Path(served.path)).model_warmup[0].inputs["image"]
    assert warmup.input_data_file == "golden"
    copy = Path(served.path) / "warmup" / "golden"
    assert (copy.stat().st_mode & 0o777, copy.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    found = np.frombuffer(copy.read_bytes(), np.uint8)
    assert np.array_equal(found.reshape(tuple(warmup.dims)), images[0])


def test_an_engine_is_held_against_the_onnx_file_beside_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    plan = tmp_path / "tiny.sm87.fp32.plan"
    spec, engine = open_onnx(model).spec, b"engine"
    hashes = (hashlib.sha256(engine).hexdigest(), len(engine), file_sha256(model))
    record = EngineRecord(spec, *hashes, "10.3.0", "8.7", "Orin", BatchProfile(1, 4, 8), "fp32")
    write_plan(plan, engine, record)
    options = ServingOptions(profile=BatchProfile(1, 4, 8))
    (served,) = build_repository([plan], tmp_path / "triton", options)
    config = read_config(Path(served.path))
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert served.name == "tiny_sm87_fp32"
    assert (Path(served.path) / "1" / "model.plan").read_bytes() == engine
    with pytest.raises(UsageError, match="takes at most 8 images at once"):
        build_repository([plan], tmp_path / "triton", ServingOptions())
    model.rename(tmp_path / "tiny.moved")
    with pytest.raises(UsageError, match="the ONNX file that it was built from must lie beside it"):
        build_repository([plan], tmp_path / "triton", options)


def test_what_cannot_be_served_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="TensorRT runs engines"):
        build_repository([model], tmp_path / "triton", ServingOptions("tensorrt"))
    unknown = respecified(model, intensity=Intensity("unspecified"))
    with pytest.raises(ModelError, match="preprocessing is unspecified"):
        build_repository([unknown], tmp_path / "triton", ServingOptions())
    assert not (tmp_path / "triton").exists()


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("config.pbtxt", ("dims: 32", "dims: 31"), "config.pbtxt, input"),
        ("config.pbtxt", ("TYPE_FP32", "TYPE_FP16"), "output"),
        ("config.pbtxt", ('"probabilities"', '"scores"'), "output"),
        ("config.pbtxt", ("TYPE_UINT8\n      dims", "TYPE_INT8\n      dims"), "model_warmup"),
        ("labels.txt", ("solid\n", ""), "labels.txt"),
    ],
)
def test_a_field_that_differs_is_found(
    file: str, change: tuple[str, str], named: str, model: Path, tmp_path: Path
) -> None:
    (served,) = build_repository([model], tmp_path / "triton", ServingOptions())
    path = Path(served.path) / file
    config = read_config(Path(served.path))
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(CheckFailedError, match=named):
        to_triton.check(Path(served.path), model, config)


def test_the_command_writes_a_repository_from_a_finished_file(
    model: Path, tmp_path: Path, run: Run, run_here: Run
) -> None:
    done = run("medimg-export", model, "--to", "triton", "--batch-size", "8", "--json", tmp_path / "t.json")
    assert done.returncode == 0, done.stderr
    (served,) = json.loads((tmp_path / "t.json").read_text())["repository"]
    assert served == {
        "path": str(tmp_path / "triton" / "tiny"),
        "name": "tiny",
        "backend": "onnxruntime",
        "device": "gpu",
        "warmed_by": "random data",
    }
    assert "onnxruntime on gpu" in done.stdout
    assert read_config(tmp_path / "triton" / "tiny").max_batch_size == 8
    again = run_here("medimg-export", model, "--to", "triton", "--output", tmp_path, "--max-drop", "0.1")
    assert again.returncode == 2
    assert "--max-drop concerns an export" in again.stderr


@pytest.mark.long
@pytest.mark.usefixtures("kept_workers")
def test_an_export_ends_in_a_repository(small_model: Path, tmp_path: Path, run_here: Run) -> None:
    done = run_here("medimg-export", small_model, "--to", "triton", "--golden", "2", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warmed up by golden image" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "small.golden.npz", "triton"}
    assert read_config(tmp_path / "triton" / "small").backend == "onnxruntime"
