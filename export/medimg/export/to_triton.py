"""A Triton model repository from finished artefacts: `config.pbtxt`, labels, warm-up by a golden image.

    triton/<name>/config.pbtxt
    triton/<name>/labels.txt            for the classification extension
    triton/<name>/warmup/golden         one image as the network takes it, where there is NAME.golden.npz
    triton/<name>/1/model.onnx | model.plan

The configuration is written with the protobuf classes of `tritonclient` (ModelConfig in Triton's
model_config.proto), read back, and compared with what the ONNX file itself says of its tensors.
"""

import math
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from medimg.runtime.backends.with_triton import IDENTITY, served_name
from medimg.runtime.building.make import artefact_stem
from medimg.runtime.engines.golden import SUFFIX, read_golden
from medimg.runtime.errors import CheckFailedError, ModelError, UsageError
from medimg.runtime.files.text import printable
from medimg.runtime.model.containers import PLAN_SUFFIX, file_sha256, open_artefact, open_onnx
from medimg.runtime.model.plan import BatchProfile
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.optional import require

SCHEMA = 1
FOLDER = "triton"
ServingBackend: TypeAlias = Literal["onnxruntime", "openvino", "tensorrt"]
Warming: TypeAlias = Literal["golden image", "random data"]
_DATATYPES = {"UINT8": "TYPE_UINT8", "FLOAT": "TYPE_FP32", "FLOAT16": "TYPE_FP16"}
"""ONNX's names (TensorProto.DataType) and Triton's (model_config.proto, DataType)."""


@dataclass(frozen=True)
class ServingOptions:
    """How a server runs a model."""

    backend: ServingBackend | None = None
    """Of ONNX files; unless given, OpenVINO (processor) for INT8 and ONNX Runtime (GPU) for others."""
    profile: BatchProfile = field(default_factory=BatchProfile)
    """Images at once: the best and the most are what the server tries to gather."""
    queue_delay_us: int = 2000
    """How long the server lets a request wait for others to share its batch, in microseconds."""
    instances: int = 1
    """Copies of the model that run side by side."""


@dataclass(frozen=True)
class Tensor:
    """An input or output, as the ONNX file declares it."""

    name: str
    datatype: str
    """Triton's name of the type."""
    dims: tuple[int, ...]
    """Without the batch axis."""


@dataclass(frozen=True)
class ServedModel:
    """One model of a repository."""

    path: str
    name: str
    backend: ServingBackend
    device: Literal["cpu", "gpu"]
    warmed_by: Warming


@dataclass(frozen=True)
class Repository:
    """What was made of a finished artefact."""

    repository: tuple[ServedModel, ...]


def build_repository(
    paths: Iterable[str | Path], root: Path, options: ServingOptions
) -> tuple[ServedModel, ...]:
    """Put artefacts into a model repository; a model of the same name there is replaced.

    Args:
        paths: `.onnx` files of medimg-export, or TensorRT engines with the ONNX file beside them.
        root: the repository, for `tritonserver --model-repository`.
        options: how they are to be run.

    Raises:
        ModelError: one cannot be served.
        UsageError: it and the back end do not fit, or something cannot be written.
        CheckFailedError: the configuration read back is not what the ONNX file says.
    """
    return tuple(_add(_open(Path(path), options), root, options) for path in paths)


def lines(model: ServedModel) -> list[str]:
    """Say what was written."""
    patient = "; it is a patient's, and only its owner, as whom the server must run, can read it"
    warning = patient if model.warmed_by == "golden image" else ""
    how = f"{model.backend} on {model.device}, warmed up by {model.warmed_by}{warning}"
    return [
        f"{printable(model.path)}  {how}",
        f"    tritonserver --model-repository; medimg-run predict MODEL INPUT --triton URL/{model.name}",
    ]


@dataclass(frozen=True)
class _Source:
    """An artefact, checked, and the ONNX file that tells its tensors."""

    path: Path
    spec: ModelSpec
    content: bytes
    onnx_path: Path


def _open(path: Path, options: ServingOptions) -> _Source:
    artefact = open_artefact(path)
    onnx_path = path
    if artefact.engine is not None:
        onnx_path, most = _origin(path, artefact.engine.onnx_sha256), artefact.engine.profile.most
        if options.profile.most > most:
            raise UsageError(f"{path}: takes at most {most} images at once: say so with --batch-size")
    if artefact.spec.intensity.rule == "unspecified":
        raise ModelError(f"{path}: its preprocessing is unspecified, so clients cannot know what to send")
    return _Source(path, artefact.spec, artefact.content, onnx_path)


def _add(source: _Source, root: Path, options: ServingOptions) -> ServedModel:
    spec, name = source.spec, served_name(source.path)
    backend = _backend(source.path, spec, options)
    golden = source.onnx_path.with_name(artefact_stem(source.onnx_path) + SUFFIX)
    image = read_golden(golden, spec).images[0].tobytes() if golden.exists() else None
    config = _config(name, backend, spec, read_tensors(source.onnx_path), options, warm=image is not None)
    target, draft = root / name, root / f".{name}.{secrets.token_hex(8)}"
    try:
        (draft / "1").mkdir(parents=True)
        (draft / "1" / f"model{source.path.suffix}").write_bytes(source.content)
        (draft / "labels.txt").write_text("".join(f"{printable(label)}\n" for label in spec.labels), "utf-8")
        (draft / "config.pbtxt").write_text(_text(config), "utf-8")
        if image is not None:
            (draft / "warmup").mkdir(mode=0o700)
            (draft / "warmup" / "golden").touch(mode=0o600)
            (draft / "warmup" / "golden").write_bytes(image)
        check(draft, source.onnx_path, config)
        shutil.rmtree(target, ignore_errors=True)
        draft.replace(target)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    warmed: Warming = "random data" if image is None else "golden image"
    return ServedModel(str(target), name, backend, _device(backend, spec), warmed)


def _origin(plan: Path, onnx_sha256: str) -> Path:
    """Find the ONNX file that an engine was built from."""
    for path in sorted(plan.parent.glob("*.onnx")):
        if file_sha256(path) == onnx_sha256:
            return path
    raise UsageError(f"{plan}: the ONNX file that it was built from must lie beside it, to check against")


def _backend(path: Path, spec: ModelSpec, options: ServingOptions) -> ServingBackend:
    if path.suffix == PLAN_SUFFIX:
        return "tensorrt"
    if options.backend == "tensorrt":
        raise UsageError(
            f"{path}: TensorRT runs engines: build one with --to tensorrt and give the .plan file"
        )
    return options.backend or ("openvino" if spec.precision == "int8" else "onnxruntime")


def _device(backend: ServingBackend, spec: ModelSpec) -> Literal["cpu", "gpu"]:
    """Where a back end runs: OpenVINO's on processors; ONNX Runtime has no INT8 kernels for GPUs."""
    return "cpu" if backend == "openvino" or (backend, spec.precision) == ("onnxruntime", "int8") else "gpu"


def read_tensors(path: Path) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Read inputs and outputs out of an ONNX file.

    Raises:
        ModelError: the first axis is not a free batch axis, or another one is not fixed.
    """
    onnx = require("onnx", "export")
    graph = onnx.load_model_from_string(open_onnx(path).content).graph

    def tensor(value: Any) -> Tensor:  # noqa: ANN401  an onnx.ValueInfoProto
        kind = value.type.tensor_type
        batch, *sizes = kind.shape.dim
        if not batch.dim_param or not all(size.dim_value for size in sizes):
            raise ModelError(f"{path}: {value.name} has no free batch axis before fixed sizes")
        datatype = _DATATYPES[onnx.TensorProto.DataType.Name(kind.elem_type)]
        return Tensor(value.name, datatype, tuple(size.dim_value for size in sizes))

    return tuple(map(tensor, graph.input)), tuple(map(tensor, graph.output))


def _config(
    name: str,
    backend: ServingBackend,
    spec: ModelSpec,
    tensors: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
    options: ServingOptions,
    *,
    warm: bool,
) -> Any:  # noqa: ANN401  a ModelConfig, which has no types
    proto = require("tritonclient.grpc", "triton").model_config_pb2
    inputs, outputs = tensors
    best, most = options.profile.best, options.profile.most
    config = proto.ModelConfig(
        name=name,
        backend=backend,
        default_model_filename="model.plan" if backend == "tensorrt" else "model.onnx",
        max_batch_size=most,
        input=[{"name": item.name, "data_type": item.datatype, "dims": item.dims} for item in inputs],
        output=[{"name": item.name, "data_type": item.datatype, "dims": item.dims} for item in outputs],
        dynamic_batching={
            "preferred_batch_size": sorted({best, most}),
            "max_queue_delay_microseconds": options.queue_delay_us,
        },
        instance_group=[{"count": options.instances, "kind": f"KIND_{_device(backend, spec).upper()}"}],
        parameters={IDENTITY: {"string_value": spec.artefact_sha256}},
    )
    next(item for item in config.output if item.name == "probabilities").label_filename = "labels.txt"
    if backend == "openvino":
        config.parameters["NUM_STREAMS"].string_value = str(options.instances)
    for size in sorted({1, best}):
        sample = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        for item in inputs:
            made = sample.inputs[item.name]
            made.data_type = proto.DataType.Value(item.datatype)
            made.dims.extend(item.dims)
            if warm:
                made.input_data_file = "golden"
            else:
                made.random_data = True
    return config


def _text(config: Any) -> str:  # noqa: ANN401  a ModelConfig
    from google.protobuf import text_format

    return str(text_format.MessageToString(config, as_utf8=True))


def check(folder: Path, onnx_path: Path, config: Any) -> None:  # noqa: ANN401  a ModelConfig
    """Read a model's folder back, and hold it against the ONNX file.

    Args:
        folder: of the model.
        onnx_path: what is served, or what the engine that is served was built from.
        config: what was meant to be written.

    Raises:
        CheckFailedError: something differs.
    """
    from google.protobuf import text_format

    found = text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), type(config)())
    type_name = require("tritonclient.grpc", "triton").model_config_pb2.DataType.Name

    def declared(items: Any) -> tuple[Tensor, ...]:  # noqa: ANN401  ModelInput or ModelOutput
        return tuple(Tensor(item.name, type_name(item.data_type), tuple(item.dims)) for item in items)

    inputs, outputs = read_tensors(onnx_path)
    warmed = [
        Tensor(name, type_name(made.data_type), tuple(made.dims))
        for sample in found.model_warmup
        for name, made in sample.inputs.items()
    ]
    labels = (folder / "labels.txt").read_text("utf-8").splitlines()
    golden = folder / "warmup" / "golden"
    right = {
        "config.pbtxt": found == config,
        "input": declared(found.input) == inputs,
        "output": declared(found.output) == outputs,
        "model_warmup": set(warmed) == set(inputs),
        "labels.txt": [(len(labels),)] == [item.dims for item in outputs if item.name == "probabilities"],
        "warmup/golden": not golden.exists() or golden.stat().st_size == math.prod(inputs[0].dims),
    }
    if wrong := [name for name, holds in right.items() if not holds]:
        raise CheckFailedError(f"{folder}: {', '.join(wrong)} read back otherwise than the ONNX file says")
