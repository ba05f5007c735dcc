"""TensorRT for RTX needs no GPU: NVIDIA's own parser and builder take every architecture and precision.

Proves that the graphs are accepted as strongly typed networks, that medimg's builder drives the real API, and
from the layer list that TensorRT logs that each convolution was compiled in the precision asked for. Does not
prove that engines give the right answers, nor that other builds of TensorRT pick the same kernels.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medimg.export import ExportOptions, export_model
from medimg.export.to_int8 import lint
from medimg.runtime.engines import builder, library
from medimg.runtime.engines.builder import BuildOptions, Built
from medimg.runtime.engines.layers import Executed, compare
from medimg.runtime.errors import BackendError
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import embed_in_onnx, open_onnx, write_spec
from medimg.runtime.model.plan import BatchProfile
from medimg.runtime.model.spec import Intensity, ModelSpec, Precision
from medimg.train.fitting.options import ARCHS, FitOptions
from medimg.train.networks import build as networks

pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("kept_workers"),
    # It keeps the calls of the timing cache, and says that they do nothing in it.
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning"),
]
OPTIONS = BuildOptions(BatchProfile(1, 4, 16), workspace_mib=512)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
SIZE_PX = 32
LABELS = ("cyst", "normal", "solid")


@pytest.fixture(scope="module")
def rtx() -> Any:
    import tensorrt_rtx_bindings as tensorrt
    import tensorrt_rtx_libs  # noqa: F401  loads the libraries

    return tensorrt


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """What TensorRT logs, its finest level included."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caplog.set_level(logging.DEBUG - 1, library.__name__)
    yield caplog
    caplog.clear()


def logged_layers(said: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Read the layer list that the builder logs, one layer a line, into the form of the inspector's JSON."""
    lines = [line for text in said.messages if text.startswith("Layers:") for line in text.splitlines()]
    form = re.compile(
        r"Name: (.*?), LayerType: (.*?), Inputs: \[(.*)\], Constants: \[(.*)\], Outputs: .*Metadata: (.*)"
    )
    tensor = re.compile(r"Dimensions: \[([^]]*)\].*?Datatype: (\w+)")

    def tensors(text: str) -> list[dict[str, Any]]:
        return [
            {"Dimensions": [int(size) for size in sizes.split(",") if size], "Datatype": kind}
            for sizes, kind in tensor.findall(text)
        ]

    return [
        {"Name": found[1], "LayerType": found[2], "Inputs": tensors(found[3]), "Constants": tensors(found[4]),
         "Metadata": found[5]}
        for found in map(form.match, lines)
        if found
    ]  # fmt: skip


def build(rtx: Any, path: str | Path) -> Built:
    return builder.build(rtx, open_onnx(path), OPTIONS, gpu="none")


@pytest.fixture(scope="module", params=ARCHS)
def exported(
    request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """An architecture that `train` offers, untrained, an eighth as wide and on small images; by precision."""
    import keras

    def narrow(layer: Any) -> Any:
        config = layer.get_config()
        if "filters" in config:
            config["filters"] //= 8
        return type(layer).from_config(config)

    whole = networks.build(FitOptions(arch=request.param, image_size=SIZE_PX, dense_units=8), 3, "float32")
    path = tmp_path_factory.mktemp("architecture") / "model.keras"
    model = keras.models.clone_model(whole, clone_function=narrow)
    # A bias that is all zeros would be left out of the graph.
    generator = np.random.default_rng(0)
    model.set_weights(
        [values + 0.01 * generator.standard_normal(values.shape) for values in model.get_weights()]
    )
    model.save(path)
    write_spec(path, ModelSpec(LABELS, ImageRule(SIZE_PX, SIZE_PX), Intensity.named("caffe")))
    result = export_model(
        path,
        ExportOptions(
            precisions=PRECISIONS, calibration=pictures, calibration_images=8, force=True, repair_minutes=0
        ),
    )
    return {item.precision: item.path for item in result.artefacts}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_architecture(
    rtx: Any, said: pytest.LogCaptureFixture, exported: dict[str, str], precision: str
) -> None:
    built = build(rtx, exported[precision])
    kinds = list(built.convolutions.values())
    # The first convolution of an INT8 file stays in float32.
    assert kinds == ["fp32" if precision == "int8" else precision, *[precision] * (len(kinds) - 1)]
    executed = compare(built.convolutions, logged_layers(said))
    assert executed == Executed(precision, (), ())
    assert len(built.engine) > 1000


@pytest.mark.real
def test_vgg16(rtx: Any, said: pytest.LogCaptureFixture, brain_artefacts: dict[str, Path]) -> None:
    sizes = {}
    for name in PRECISIONS:
        said.clear()
        built = build(rtx, brain_artefacts[name])
        sizes[name] = len(built.engine)
        assert len(built.convolutions) == 13
        assert compare(built.convolutions, logged_layers(said)) == Executed(name, (), ())
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8"] < 0.35 * sizes["fp32"]


def spoiled(path: str, fault: str) -> bytes:
    """An INT8 file in a form that TensorRT does not take, under its own spec."""
    import onnx
    from onnx import helper, numpy_helper

    artefact = open_onnx(path)
    model = onnx.load_from_string(artefact.content)
    del model.metadata_props[:]
    constants = {item.name: item for item in model.graph.initializer}
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    if fault == "zero point is not 0":
        constants[first.input[2]].CopyFrom(numpy_helper.from_array(np.array(3, np.int8), first.input[2]))
    else:
        dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        layer = next(
            node for node in model.graph.node if node.input[0] in dequantized and len(node.input) == 3
        )
        bias = (numpy_helper.to_array(constants[layer.input[2]]) / 0.01).astype(np.int32)
        scale = numpy_helper.from_array(np.array(0.01, np.float32), "bias_scale")
        model.graph.initializer.extend([scale, numpy_helper.from_array(bias, "bias_int32")])
        pair = ["bias_int32", "bias_scale"]
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", pair, ["bias_float"], name="bias/DQ"))
        layer.input[2] = "bias_float"
    return embed_in_onnx(model.SerializeToString(), artefact.spec)


@pytest.mark.parametrize("fault", ["zero point is not 0", "bias is not a float constant"])
def test_what_the_linter_finds_tensorrt_refuses(
    rtx: Any, said: Any, exported: dict[str, str], tmp_path: Path, fault: str
) -> None:
    import onnx

    path = tmp_path / "model.int8.onnx"
    path.write_bytes(spoiled(exported["int8"], fault))
    faults = lint(onnx.load_from_string(path.read_bytes()))
    assert any(fault in line for line in faults)
    with pytest.raises(BackendError, match=r"refuses it|builds no engine"):
        build(rtx, path)


def test_progress_is_told(rtx: Any, said: Any, small_artefact: Path) -> None:
    steps: list[str] = []
    builder.build(rtx, open_onnx(small_artefact), OPTIONS, gpu="none", progress=steps.append)
    assert any(re.fullmatch(r"Building engine \d+/\d+", step) for step in steps)
