"""Every kind of model file, loaded, converted and compared with the framework that reads it."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from medimg.export import export_model, graph
from medimg.export.errors import SourceError
from medimg.export.options import ExportOptions, make_spec
from medimg.export.sources import Request, Source, load_source
from medimg.runtime.errors import UsageError
from medimg.runtime.model.keras_files.configuration import foreign, without_training
from medimg.runtime.model.spec import ModelSpec

LAYERS = keras.layers
pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("kept_workers"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]


def sequential(*layers: Any, size: tuple[int | None, int | None, int] = (32, 32, 3), head: Any = None) -> Any:
    keras.utils.set_random_seed(0)
    end = head or LAYERS.Dense(3, activation="softmax")
    return keras.Sequential([LAYERS.Input(size), *layers, LAYERS.GlobalAveragePooling2D(), end])


def compared(source: Source) -> tuple[float, Any]:
    """Give the largest difference between the source and its tidied graph, at batch 5, and the graph."""
    with closing(source):
        model = graph.check(graph.tidy(source.convert(), source.layer_names()))
        images = np.random.default_rng(0).random((5, *source.input_shape), np.float32)
        expected = source.predict(images)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {model.graph.input[0].name: images})
    return float(np.abs(found - expected).max()), model


def squeeze_and_excite() -> Any:
    image = keras.Input((32, 32, 3))
    features = LAYERS.Conv2D(4, 3)(keras.applications.mobilenet_v2.preprocess_input(image))
    weights = LAYERS.Reshape((1, 1, 4))(LAYERS.GlobalAveragePooling2D()(features))
    features = LAYERS.Multiply()([features, LAYERS.Dense(4, activation="sigmoid")(weights)])
    return keras.Model(image, LAYERS.Dense(3, activation="softmax")(LAYERS.Flatten()(features)))


def attention() -> Any:
    image = keras.Input((16, 16, 3))
    tokens = LAYERS.Reshape((16, 8))(LAYERS.Conv2D(8, 4, strides=4)(image))
    pooled = LAYERS.GlobalAveragePooling1D()(LAYERS.MultiHeadAttention(2, 4)(tokens, tokens))
    return keras.Model(image, LAYERS.Dense(3, activation="softmax")(pooled))


KERAS_3_MODELS: dict[str, Callable[[], Any]] = {
    "resizing": lambda: sequential(LAYERS.Resizing(48, 40), LAYERS.Conv2D(4, 3)),
    "nearest": lambda: sequential(LAYERS.Resizing(50, 41, interpolation="nearest"), LAYERS.Conv2D(4, 3)),
    "normalised": lambda: sequential(
        LAYERS.Rescaling(1 / 255),
        LAYERS.Normalization(mean=[0.5, 0.4, 0.3], variance=[0.1, 0.2, 0.3]),
        LAYERS.Conv2D(4, 3),
        LAYERS.LayerNormalization(),
        LAYERS.GroupNormalization(2),
    ),
    "inert": lambda: sequential(
        LAYERS.RandomFlip(),
        LAYERS.RandomRotation(0.1),
        LAYERS.RandomZoom(0.1),
        LAYERS.GaussianNoise(0.1),
        LAYERS.SeparableConv2D(4, 3),
        LAYERS.SpatialDropout2D(0.1),
    ),
    "gelu": lambda: sequential(LAYERS.Conv2D(4, 3, activation="gelu")),
    "grouped": lambda: sequential(LAYERS.Conv2D(6, 3, groups=3)),
    "squeeze-and-excite": squeeze_and_excite,
    "attention": attention,
}


@pytest.mark.parametrize("name", KERAS_3_MODELS)
def test_layers_of_keras_3_convert_without_shape_arithmetic(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.keras"
    KERAS_3_MODELS[name]().save(path)
    difference, model = compared(load_source(path))
    assert difference <= 1e-5
    assert {node.op_type for node in model.graph.node}.isdisjoint({"Shape", "Identity", "Dropout", "Erfc"})


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_every_layer_of_a_nested_mixed_model_is_put_into_float32(
    tmp_path: Path, policy: str, suffix: str
) -> None:
    keras.mixed_precision.set_global_policy(policy)
    try:
        inner = keras.Sequential(
            [LAYERS.Input((32, 32, 3)), LAYERS.Rescaling(1 / 255), LAYERS.RandomFlip(), LAYERS.Conv2D(4, 3)]
        )
        sequential(inner, LAYERS.Activation("relu")).save(tmp_path / f"mixed{suffix}")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    difference, model = compared(load_source(tmp_path / f"mixed{suffix}"))
    assert difference <= 1e-5
    assert {item.data_type for item in model.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}


def test_nodes_carry_the_names_of_their_own_layers(tmp_path: Path) -> None:
    convolutions = [
        LAYERS.Conv2D(4, 3, activation="relu", name=name) for name in ("conv2d", "conv2d_1", "conv2d_2")
    ]
    sequential(*convolutions).save(tmp_path / "named.keras")
    _, model = compared(load_source(tmp_path / "named.keras"))
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert names == ["conv2d/Conv", "conv2d_1/Conv", "conv2d_2/Conv"]


def test_a_network_for_any_size_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "any.keras"
    sequential(LAYERS.Conv2D(4, 3), size=(None, None, 3)).save(path)
    with pytest.raises(SourceError, match="--input-size 224x224"):
        load_source(path)
    source = load_source(path, Request(input_size=(40, 44)))
    assert source.input_shape == (40, 44, 3)
    assert compared(source)[0] <= 1e-5


def two_inputs() -> Any:
    image, age = keras.Input((8, 8, 3), name="image"), keras.Input((1,), name="age")
    joined = LAYERS.Concatenate()([LAYERS.Flatten()(image), age])
    return keras.Model([image, age], LAYERS.Dense(2, activation="softmax")(joined))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (two_inputs, r"takes 2 tensors \(image .*age"),
        (
            lambda: keras.Sequential([LAYERS.Input((20,)), LAYERS.Dense(2, activation="softmax")]),
            r"each image as one row of numbers",
        ),
        (lambda: keras.Sequential([LAYERS.Input((8, 8, 3)), LAYERS.Conv2D(2, 3)]), "a classifier gives"),
    ],
)
def test_a_model_that_is_no_image_classifier_is_named(
    tmp_path: Path, make: Callable[[], Any], message: str
) -> None:
    make().save(tmp_path / "other.keras")
    with pytest.raises(SourceError, match=message):
        load_source(tmp_path / "other.keras")


@pytest.mark.parametrize(
    ("units", "activation", "head"),
    [
        (3, "softmax", "softmax"),
        (1, "sigmoid", "sigmoid"),
        (3, "sigmoid", "multilabel"),
        (3, None, "logits"),
        (3, "relu", None),
        (1, None, None),
    ],
)
def test_the_head_is_told_from_the_graph(
    tmp_path: Path, units: int, activation: str | None, head: str | None
) -> None:
    path = tmp_path / "head.keras"
    sequential(LAYERS.Conv2D(4, 3), head=LAYERS.Dense(units, activation=activation)).save(path)
    with closing(load_source(path)) as source:
        if head is not None:
            assert make_spec(source, ExportOptions(), None)[0].head == head
        else:
            with pytest.raises(SourceError, match="--head"):
                make_spec(source, ExportOptions(), None)
            assert make_spec(source, ExportOptions(head="logits"), None)[0].classes == max(2, units)
        if units == 3:
            with pytest.raises(UsageError, match="has 3"):
                make_spec(source, ExportOptions(head="sigmoid"), None)


def test_one_logit_gets_its_sigmoid_and_two_columns(tmp_path: Path) -> None:
    path = tmp_path / "logit.keras"
    sequential(LAYERS.Conv2D(4, 3), head=LAYERS.Dense(1)).save(path)
    result = export_model(path, ExportOptions(head="logits", labels=("benign", "malignant")))
    assert "a sigmoid is added" in " ".join(result.warnings)
    (item,) = result.artefacts
    assert item.verification.max_abs_diff <= 1e-5
    assert ModelSpec.read(item.path).labels == ("benign", "malignant")


LEGACY = """
import os
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import sys
sys.modules["sklearn"] = sys.modules["matplotlib"] = None  # Keras would load them, and uses neither.
import numpy as np
import tf_keras as keras
layers = keras.layers
keras.utils.set_random_seed(0)

def model(*more):
    return keras.Sequential([
        layers.Input((32, 32, 3)),
        layers.Rescaling(1 / 255),
        *more,
        layers.Conv2D(4, 3, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3, activation="softmax"),
    ])

augmented = model(layers.RandomRotation(0.1))
augmented.save(sys.argv[1] + "/model.h5")
augmented.save(sys.argv[1] + "/model.keras")
augmented.save(sys.argv[1] + "/saved", save_format="tf")
augmented.export(sys.argv[1] + "/random")
model().export(sys.argv[1] + "/exported")
model(layers.LayerNormalization()).save(sys.argv[1] + "/normalised.h5")

images = np.random.default_rng(0).random((5, 32, 32, 3), np.float32) * 255
for name, layer in {
    "center": layers.CenterCrop(24, 20),
    "center-larger": layers.CenterCrop(40, 24),
    "random": layers.RandomCrop(24, 20),
    "random-larger": layers.RandomCrop(40, 40),
    "resized": layers.Resizing(24, 20),
    "resized-in-shape": layers.Resizing(24, 20, crop_to_aspect_ratio=True),
}.items():
    sized = model(layer)
    sized.save(sys.argv[1] + f"/{name}.h5")
    np.save(sys.argv[1] + f"/{name}.npy", sized(images, training=False))
"""


@pytest.fixture(scope="module")
def legacy_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model that tf-keras wrote in each of its formats."""
    folder = tmp_path_factory.mktemp("legacy")
    subprocess.run([sys.executable, "-c", LEGACY, folder], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.h5", ".h5"),
        ("normalised.h5", ".h5"),
        ("model.keras", ".keras"),
        ("saved", "SavedModel"),
        ("exported", "SavedModel"),
    ],
)
def test_what_keras_2_wrote(legacy_models: Path, name: str, kind: str) -> None:
    source = load_source(legacy_models / name)
    assert source.origin.kind == kind
    assert source.ending.nature.kind == "softmax"
    assert (source.origin.keras_version or "2.").startswith("2.")
    assert compared(source)[0] <= 1e-5


@pytest.mark.parametrize(
    "name", ["center", "center-larger", "random", "random-larger", "resized", "resized-in-shape"]
)
def test_layers_of_keras_2_that_size_images(legacy_models: Path, name: str) -> None:
    images = np.random.default_rng(0).random((5, 32, 32, 3), np.float32) * 255
    source = load_source(legacy_models / f"{name}.h5")
    np.testing.assert_allclose(source.predict(images), np.load(legacy_models / f"{name}.npy"), atol=1e-6)
    difference, model = compared(source)
    assert difference <= 1e-5
    assert {node.op_type for node in model.graph.node}.isdisjoint({"Shape", "If"})


def test_a_signature_that_answers_at_random_is_refused(legacy_models: Path) -> None:
    with pytest.raises(SourceError, match="draws random numbers"):
        load_source(legacy_models / "random")


def test_a_file_is_taken_for_what_it_is_not_for_its_name(legacy_models: Path, tmp_path: Path) -> None:
    shutil.copy(legacy_models / "model.h5", tmp_path / "renamed.keras")
    with closing(load_source(tmp_path / "renamed.keras")) as source:
        assert source.origin.kind == ".h5"


def test_a_saved_model_of_keras_3(tmp_path: Path) -> None:
    sequential(LAYERS.Conv2D(4, 3)).export(tmp_path / "saved", verbose=False)
    assert compared(load_source(tmp_path / "saved"))[0] <= 1e-5


def versioned(path: Path, version: str | None) -> Path:
    sequential(LAYERS.Conv2D(4, 3)).save(path)
    with h5py.File(path, "r+") as file:
        for place in (file, file["model_weights"]):
            del place.attrs["keras_version"]
            if version is not None:
                place.attrs["keras_version"] = version
    return path


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.2.2", "written by Keras 1.2.2"),
        (None, "did not write its version"),
        ("4.0", "Keras 2 and 3 are read"),
    ],
)
def test_other_versions_are_refused_by_name(tmp_path: Path, version: str | None, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load_source(versioned(tmp_path / "old.h5", version))


def onnx_classifier(path: Path, *, first: bool, opset: int = 17, batch: str | int = "n") -> Path:
    """Write a convolution, a pooling and a dense layer with bare logits."""
    generator = np.random.default_rng(0)
    weights = {
        "kernel": generator.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "dense": generator.normal(size=(4, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image" if first else "turned", "kernel"], ["features"], name="/stem/Conv"),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"], name="/pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="/Flatten"),
        helper.make_node("Gemm", ["flat", "dense"], ["logits"], name="/head/Gemm"),
    ]
    if not first:
        nodes.insert(0, helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 3, 1, 2]))
    shape = [batch, 3, 20, 24] if first else [batch, 20, 24, 3]
    made = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save_model(model, path)
    return path


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("opset", [11, 17, 18])
def test_a_ready_onnx_file_goes_through_the_later_steps(tmp_path: Path, first: bool, opset: int) -> None:
    path = onnx_classifier(tmp_path / "ready.onnx", first=first, opset=opset)
    result = export_model(path, ExportOptions(output=tmp_path / "out", preprocessing="unit"))
    (item,) = result.artefacts
    assert result.source.kind == "ONNX"
    assert item.verification.max_abs_diff <= 1e-5
    assert "softmax is added" in " ".join(result.warnings)
    assert ModelSpec.read(item.path).image.rows == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [({"opset": 21}, "opset_version=17"), ({"batch": 1}, "dynamic_axes")],
)
def test_an_onnx_file_that_cannot_be_used_says_what_to_do(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        load_source(onnx_classifier(tmp_path / "ready.onnx", first=True, **options))


def test_an_artefact_of_ours_keeps_what_it_says_and_is_never_overwritten(
    small_artefact: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="would take its place"):
        export_model(small_artefact)
    result = export_model(small_artefact, ExportOptions(output=tmp_path))
    (item,) = result.artefacts
    before, after = ModelSpec.read(small_artefact), ModelSpec.read(item.path)
    assert (after.labels, after.intensity, after.image) == (before.labels, before.intensity, before.image)
    assert item.verification.max_abs_diff <= 1e-5


def vgg16(head: list[Any], size: int = 32) -> Any:
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(size, size, 3))
    return keras.Sequential([base, *head])


def legacy_weights(path: Path, model: Any) -> Path:
    """Write weights in the layout of Keras 2."""
    with h5py.File(path, "w") as file:
        layers = [layer for layer in [*model.layers[0].layers, *model.layers[1:]] if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group, names = file.create_group(layer.name), [f"{layer.name}/{v.name}:0" for v in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value
    return path


@pytest.mark.parametrize("layout", ["keras 2", "keras 3"])
@pytest.mark.parametrize("flat", [True, False])
def test_weights_of_a_vgg16_become_the_model_again(tmp_path: Path, layout: str, flat: bool) -> None:
    keras.utils.set_random_seed(0)
    pooling = LAYERS.Flatten() if flat else LAYERS.GlobalAveragePooling2D()
    model = vgg16([pooling, LAYERS.Dense(8, activation="relu"), LAYERS.Dense(4, activation="softmax")])
    path = tmp_path / "only.weights.h5"
    if layout == "keras 2":
        legacy_weights(path, model)
    else:
        model.save_weights(path)
    with pytest.raises(SourceError, match=r"--architecture model\.json, or .*--arch vgg16 --classes 4$"):
        load_source(path)
    with pytest.raises(SourceError, match="4 units, --classes says 5"):
        load_source(path, Request(architecture="vgg16", classes=5))
    with closing(load_source(path, Request(architecture="vgg16", classes=4, input_size=(32, 32)))) as source:
        images = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)
        np.testing.assert_allclose(source.predict(images), model(images, training=False), atol=1e-6)
        assert "is assumed, not read" in source.origin.warnings[0]


@pytest.mark.parametrize(
    "config",
    [
        {"class_name": "Dense", "config": {"activation": "exec"}},
        {"class_name": "Dense", "config": {"kernel_initializer": "os_system"}},
        {"class_name": "Dense", "module": "evil.layers", "config": {}},
        {"class_name": "Dense", "registered_name": "evil>Dense", "config": {}},
        {"class_name": "function", "config": "system", "module": "os"},
        {"class_name": "TFOpLambda", "config": {"function": "io.write_file"}},
        {"class_name": "TensorFlowOpLayer", "config": {"node_def": {"op": "WriteFile"}}},
        {"class_name": "TFSMLayer", "config": {"filepath": "/somewhere"}},
        {"class_name": "__lambda__", "config": {"value": "code"}},
        {"class_name": {"deep": 1}, "config": {}},
        {
            "class_name": "Sequential",
            "config": {"layers": [{"class_name": "TorchModuleWrapper", "config": {}}]},
        },
    ],
)
def test_what_is_not_on_the_lists_is_foreign(config: dict[str, Any]) -> None:
    assert foreign(config)


def test_what_only_training_needs_is_left_out_and_floats_are_float32() -> None:
    policy = {"class_name": "Policy", "config": {"name": "mixed_float16"}}
    config = {
        "class_name": "Sequential",
        "compile_config": {"loss": {"class_name": "MyLoss"}},
        "config": {
            "layers": [{"class_name": "Dense", "config": {"dtype": policy, "batch_input_shape": [8, 4]}}]
        },
    }
    plain = without_training(config)
    assert foreign(plain) == ()
    assert plain["config"]["layers"][0]["config"] == {"dtype": "float32", "batch_input_shape": [None, 4]}


def test_a_worker_that_dies_is_an_error_that_says_so(tmp_path: Path) -> None:
    sequential(LAYERS.Conv2D(4, 3)).save(tmp_path / "model.keras")
    source = load_source(tmp_path / "model.keras")
    source._worker._process.kill()  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match="ran in was killed"):
        source.predict(np.zeros((1, *source.input_shape), np.float32))


@pytest.mark.usefixtures("own_worker")
def test_the_worker_ends_with_its_source(tmp_path: Path) -> None:
    sequential(LAYERS.Conv2D(4, 3)).save(tmp_path / "model.keras")
    source = load_source(tmp_path / "model.keras")
    process = source._worker._process  # type: ignore[attr-defined]
    source.close()
    assert process.poll() is not None
