"""The passes and the two reduced precisions, against independent computations.

The tests of `lint` prove that it finds what makes a Q/DQ graph unportable; that TensorRT takes what passes
it, and refuses what does not, is shown with NVIDIA's own parser in `test_tensorrt_parser.py`.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from medimg.export import ExportOptions, export_model, graph
from medimg.export.calibration import BINS, Histogram, collect, entropy_threshold, quantized_inputs, watch
from medimg.export.equalize import equalize
from medimg.export.errors import SourceError
from medimg.export.to_fp16 import overflowing_nodes, to_fp16
from medimg.export.to_int8 import lint, to_int8
from medimg.export.to_onnx import NETWORK_INPUT
from medimg.runtime.classifier import Classifier
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import embed_in_onnx, open_onnx
from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import Intensity, IntensityName, ModelSpec

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("kept_workers")]


def answers(model: ModelProto, images: NDArray[Any]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": images})
    return np.asarray(found)


def unoptimised(model: ModelProto, images: NDArray[Any]) -> NDArray[np.float32]:
    """What the graph says, node by node, in float32: no kernels for int8."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def identity(rows: int, columns: int, channels: int) -> ModelProto:
    """A network that gives its input back."""
    shape: list[str | int | None] = ["batch", rows, columns, channels]
    made = helper.make_graph(
        [helper.make_node("Identity", [NETWORK_INPUT], ["out"], name="copy")],
        "identity",
        [helper.make_tensor_value_info(NETWORK_INPUT, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def network(small_artefact: Path) -> ModelProto:
    return graph.check(onnx.load_from_string(open_onnx(small_artefact).content))


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    return np.stack([cv2.GaussianBlur(image, (0, 0), 1 + place) for place, image in enumerate(noise)])


@pytest.mark.parametrize("rule", ["caffe", "torch", "tf", "unit", "raw"])
@pytest.mark.parametrize("order", ["rgb", "bgr", None])
def test_preprocessing_in_the_graph_equals_the_reference_bit_for_bit(rule: IntensityName, order: Any) -> None:
    intensity = Intensity.named(rule, color_order=order)
    pixels = np.arange(256, dtype=np.uint8)
    images = np.stack([pixels, pixels[::-1], np.roll(pixels, 77)], axis=-1).reshape(1, 16, 16, 3)
    model = graph.check(graph.add_preprocessing(identity(16, 16, 3), intensity))
    np.testing.assert_array_equal(answers(model, images), to_network_input(images, intensity))


@pytest.mark.parametrize("rule", ["tf", "unit", "raw"])
def test_grey_reduction_equals_opencv_for_every_kind_of_pixel(rule: IntensityName) -> None:
    images = np.random.default_rng(3).integers(0, 256, (2, 200, 300, 3), dtype=np.uint8)
    images[1] = images[1, :, :, :1]
    intensity = Intensity.named(rule, channels=1)
    model = graph.check(graph.add_preprocessing(identity(200, 300, 1), intensity))
    found = answers(model, images)
    np.testing.assert_array_equal(found, to_network_input(images, intensity))
    np.testing.assert_array_equal(found[1], to_network_input(images, intensity)[1])
    if rule == "raw":
        np.testing.assert_array_equal(found[1, ..., 0], images[1, ..., 0])


def test_the_keras_formulas_are_ours() -> None:
    from keras.applications.imagenet_utils import preprocess_input

    images = np.random.default_rng(5).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    modes: tuple[IntensityName, ...] = ("caffe", "torch", "tf")
    for mode in modes:
        expected = preprocess_input(images.astype(np.float32), mode=mode)
        found = to_network_input(images, Intensity.named(mode))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_names_come_from_the_keras_layers(network: ModelProto) -> None:
    names = [node.name for node in network.graph.node]
    assert len(set(names)) == len(names)
    assert {"hidden/Gemm", "classes/Gemm", "head/Softmax"} <= set(names)
    assert network.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert network.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_no_shape_arithmetic_and_no_batch_normalisation_is_left(network: ModelProto) -> None:
    assert {node.op_type for node in network.graph.node}.isdisjoint({"Shape", "BatchNormalization", "Slice"})
    constants = {item.name for item in network.graph.initializer}
    assert all(node.input[1] in constants for node in network.graph.node if node.op_type == "Reshape")
    assert [opset.domain for opset in network.opset_import] == [""]
    assert network.opset_import[0].version == 17
    assert network.ir_version <= 9


def test_fp16_keeps_preprocessing_and_head_in_float32(network: ModelProto, images: NDArray[np.uint8]) -> None:
    half = to_fp16(network)
    onnx.checker.check_model(half, full_check=True)
    kinds = {item.name: item.data_type for item in half.graph.initializer}
    for node in half.graph.node:
        weights = [kinds[name] for name in node.input if name in kinds and node.op_type in ("Conv", "Gemm")]
        assert all(kind == TensorProto.FLOAT16 for kind in weights)
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    (softmax,) = (node for node in half.graph.node if node.op_type == "Softmax")
    assert types[softmax.input[0]] == TensorProto.FLOAT
    assert np.abs(answers(half, images) - answers(network, images)).max() < 5e-3


def test_fp16_refuses_a_weight_beyond_its_range(network: ModelProto) -> None:
    copy = ModelProto()
    copy.CopyFrom(network)
    for item in copy.graph.initializer:
        if item.name == "hidden/Gemm/constant_1":
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 1e8, item.name))
    with pytest.raises(SourceError, match="hidden/Gemm/constant_1"):
        to_fp16(copy)
    beyond = overflowing_nodes(copy, [np.zeros((1, 32, 32, 3), np.uint8)], threads=1)
    assert "hidden/Gemm" in beyond
    to_fp16(copy, float_nodes=beyond)


@pytest.fixture(scope="module")
def quantized(network: ModelProto, images: NDArray[np.uint8]) -> ModelProto:
    histograms = collect(network, [images[:2], images[2:]], threads=1)
    return to_int8(network, {name: entropy_threshold(found) for name, found in histograms.items()})


def test_int8_has_the_portable_form(
    quantized: ModelProto, network: ModelProto, images: NDArray[np.uint8]
) -> None:
    onnx.checker.check_model(quantized, full_check=True)
    assert lint(quantized) == []
    assert np.abs(unoptimised(quantized, images) - answers(network, images)).max() < 0.1


def test_onnxruntime_does_not_saturate(
    quantized: ModelProto, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    """On a processor without VNNI its own choice of kernels is off by 0.7 here."""
    path, spec = (
        tmp_path / "small.int8.onnx",
        ModelSpec(("a", "b", "c"), ImageRule(32, 32), Intensity.named("caffe")),
    )
    bare = ModelProto()
    bare.CopyFrom(quantized)
    del bare.metadata_props[:]
    path.write_bytes(embed_in_onnx(bare.SerializeToString(), spec.with_(precision="int8")))
    with Classifier(path, backend="onnxruntime") as classifier:
        found = classifier.probabilities(images)
    assert np.abs(found - unoptimised(quantized, images)).max() < 1e-5


def test_the_linter_sees_each_departure_from_the_form(quantized: ModelProto, network: ModelProto) -> None:
    assert "operand 0 is not quantised" in "\n".join(lint(network))

    shifted = ModelProto()
    shifted.CopyFrom(quantized)
    for item in shifted.graph.initializer:
        if item.name.endswith("_zero_point"):
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) + np.int8(1), item.name))
    assert "zero point is not 0" in lint(shifted)[0]

    other_axis = ModelProto()
    other_axis.CopyFrom(quantized)
    for node in other_axis.graph.node:
        for attribute in node.attribute:
            attribute.i = (
                1 if attribute.name == "axis" and node.op_type == "DequantizeLinear" else attribute.i
            )
    assert "axis 0" in "\n".join(lint(other_axis))


def test_a_layer_can_stay_in_float32(network: ModelProto, images: NDArray[np.uint8]) -> None:
    histograms = collect(network, [images], threads=1)
    thresholds = {name: entropy_threshold(found) for name, found in histograms.items()}
    kept = to_int8(network, thresholds, float_nodes=("hidden/Gemm",))
    assert lint(kept, float_nodes=("hidden/Gemm",)) == []
    assert lint(kept) != []


def test_calibration_does_not_depend_on_batches_or_order(
    network: ModelProto, images: NDArray[np.uint8]
) -> None:
    once = collect(network, [images], threads=1)
    in_parts = collect(
        network, [images[place : place + 1] for place in reversed(range(len(images)))], threads=1
    )
    assert once.keys() == in_parts.keys() == set(quantized_inputs(network))
    for name, histogram in once.items():
        assert in_parts[name].largest == pytest.approx(histogram.largest, rel=1e-5)
        assert entropy_threshold(in_parts[name]) == pytest.approx(entropy_threshold(histogram), rel=0.02)


def test_histogram_counts_everything_as_its_range_grows() -> None:
    histogram = Histogram()
    values = np.random.default_rng(0).gamma(1.0, 2.0, 50_000).astype(np.float32)
    for part in np.array_split(np.sort(values), 40):
        histogram.add(part)
    assert histogram.counts.sum() == len(values)
    assert histogram.largest == values.max() < histogram.limit
    expected, _ = np.histogram(values, bins=BINS, range=(0, histogram.limit))
    assert np.abs(histogram.counts.cumsum() - expected.cumsum()).max() <= 5


def test_entropy_clips_a_lone_outlier() -> None:
    histogram = Histogram()
    histogram.add(np.abs(np.random.default_rng(0).normal(0, 1, 100_000)).astype(np.float32))
    histogram.add(np.array([40.0], np.float32))
    assert 2 < entropy_threshold(histogram) < 20
    assert histogram.largest == 40


def test_the_same_file_gives_the_same_bytes(small_model: Path, small_artefact: Path, tmp_path: Path) -> None:
    """Whatever the seed of the hashes; that of the shared artefact is drawn at random."""
    command: list[str | Path] = [
        Path(sys.executable).with_name("medimg-export"),
        small_model,
        "--output",
        tmp_path,
    ]
    subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": "1", "PATH": ""})
    assert (tmp_path / "small.onnx").read_bytes() == small_artefact.read_bytes()


def test_activations_beyond_half_precision_stay_in_float32(
    network: ModelProto, images: NDArray[np.uint8]
) -> None:
    assert overflowing_nodes(network, [images], threads=1) == ()
    large = ModelProto()
    large.CopyFrom(network)
    scale = {"hidden/Gemm/constant_1": 1e5, "classes/Gemm/constant_1": 1e-5}
    for item in large.graph.initializer:
        if item.name in scale:
            item.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(scale[item.name]), item.name)
            )
    beyond = overflowing_nodes(large, [images], threads=1)
    assert beyond == ("hidden/Gemm", "hidden/Relu", "classes/Gemm")
    kept = to_fp16(large, beyond)
    assert np.abs(answers(kept, images) - answers(large, images)).max() < 0.02


def pooled(units: int, activation: str | None) -> Any:
    import keras

    keras.utils.set_random_seed(4)
    layers = keras.layers
    features = layers.Conv2D(6, 3, activation="relu")
    dense = layers.Dense(units, activation=activation)
    chain = keras.Sequential([layers.Input((20, 24, 3)), features, layers.GlobalAveragePooling2D(), dense])
    # Biases that are zero, as they are before training, leave no trace in a graph.
    dense.bias.assign(keras.random.normal(dense.bias.shape))
    return chain


@pytest.mark.parametrize(
    ("units", "activation", "temperature"),
    [
        (3, "softmax", 2.5),
        (1, "sigmoid", 1.0),
        pytest.param(4, "sigmoid", 1.0, marks=pytest.mark.soak),
    ],
)
def test_the_mean_of_the_activation_map_is_the_logit(
    tmp_path: Path, units: int, activation: str, temperature: float, pictures: Path
) -> None:
    pooled(units, activation).save(tmp_path / "model.keras")
    options: dict[str, Any] = {"preprocessing": "unit", "heatmap": True, "calibration": pictures / "cyst"}
    options["spec_fields"] = {"temperature": temperature}
    result = export_model(
        tmp_path / "model.keras", ExportOptions(precisions=("fp32", "fp16", "int8"), **options)
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    tolerances = {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.1}
    for item in result.artefacts:
        content = open_onnx(item.path).content
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        probabilities, maps = session.run(["probabilities", "activation_map"], {"image": images})
        logits = maps.mean(axis=(1, 2)) / temperature
        assert maps.dtype == np.float32
        assert maps.shape == (3, 18, 22, probabilities.shape[1])
        if activation == "softmax":
            expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        else:
            expected = 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(probabilities, expected, atol=tolerances[item.precision])


def test_an_activation_map_that_would_not_be_exact_is_refused(small_model: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="average pooling and one dense layer"):
        export_model(small_model, ExportOptions(output=tmp_path, heatmap=True))


@pytest.mark.parametrize(
    ("units", "activation"),
    [
        (3, "softmax"),
        (1, "sigmoid"),
        pytest.param(4, "sigmoid", marks=pytest.mark.soak),
        pytest.param(3, None, marks=pytest.mark.soak),
    ],
)
def test_the_temperature_divides_the_logits(tmp_path: Path, units: int, activation: str | None) -> None:
    pooled(units, activation).save(tmp_path / "model.keras")
    options: dict[str, Any] = {"preprocessing": "unit", "spec_fields": {"temperature": 2.5}}
    (warm,) = export_model(tmp_path / "model.keras", ExportOptions(**options)).artefacts
    assert warm.verification.max_abs_diff <= 1e-5
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    with Classifier(warm.path) as classifier:
        found = classifier.probabilities(images)
    (plain,) = export_model(tmp_path / "model.keras", ExportOptions(preprocessing="unit")).artefacts
    with Classifier(plain.path) as classifier:
        before = classifier.probabilities(images)
    odds_before, odds = np.log(before[:, 0] / before[:, 1]), np.log(found[:, 0] / found[:, 1])
    if activation != "sigmoid" or units == 1:
        np.testing.assert_allclose(odds, odds_before / 2.5, atol=1e-4)
    else:
        expected = np.log(before / (1 - before)) / 2.5
        np.testing.assert_allclose(np.log(found / (1 - found)), expected, atol=1e-4)


def test_equalisation_keeps_the_function_and_evens_the_channels(tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(5)
    layers = keras.layers
    first = layers.Conv2D(6, 3, activation="relu")
    stack = [
        first,
        layers.MaxPooling2D(),
        layers.Conv2D(6, 3),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2),
    ]
    model = keras.Sequential([layers.Input((20, 24, 3)), *stack])
    weights, bias = first.get_weights()
    first.set_weights([weights * 10.0 ** np.arange(-3, 3), bias])
    model.save(tmp_path / "model.keras")
    (item,) = export_model(tmp_path / "model.keras", ExportOptions(preprocessing="unit")).artefacts
    network = graph.check(onnx.load_from_string(open_onnx(item.path).content))
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    even = equalize(network, [images], threads=1)
    np.testing.assert_allclose(answers(even, images), answers(network, images), atol=1e-5)
    (pooled_name,) = (node.output[0] for node in network.graph.node if node.op_type == "MaxPool")

    def spread(model: ModelProto) -> float:
        (found,) = watch(model, (pooled_name,), [images], threads=1)
        largest = found[pooled_name].max(axis=(0, 2, 3))
        return float(largest.max() / largest[largest > 0].min())

    assert spread(even) < spread(network) ** 0.7
