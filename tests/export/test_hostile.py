"""Files made to do harm: each is refused with its own message, and a canary file stays as it was."""

import base64
import io
import json
import marshal
import pickle
import zipfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper

from medimg.export import ExportOptions, export_model
from medimg.export.errors import SourceError
from medimg.export.sources import Request, load_source

LAYERS = keras.layers
pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("kept_workers"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]
UNTOUCHED = b"untouched"
Make = Callable[[Path, Path], Path]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that every hostile file tries to overwrite."""
    path = tmp_path / "canary"
    path.write_bytes(UNTOUCHED)
    return path


def clean(path: Path) -> Path:
    """Save a small classifier that does nothing wrong."""
    keras.utils.set_random_seed(0)
    layers = [LAYERS.Conv2D(4, 3), LAYERS.GlobalAveragePooling2D(), LAYERS.Dense(2, activation="softmax")]
    keras.Sequential([LAYERS.Input((16, 16, 3)), *layers]).save(path)
    return path


def code_that_writes(canary: Path) -> str:
    """Marshal a function that overwrites the canary, as a Lambda layer keeps it."""
    source = f"lambda x: (open({str(canary)!r}, 'w').write('pwned'), x)[1]"
    code = compile(source, "<hostile>", "eval").co_consts[0]
    return base64.b64encode(marshal.dumps(code)).decode()


def lambda_config(canary: Path, keras_version: int) -> dict[str, Any]:
    code = code_that_writes(canary)
    if keras_version == 2:
        written: Any = {"function": [code, None, None], "function_type": "lambda"}
        written |= {"output_shape": None, "output_shape_type": "raw"}
    else:
        inner = {"code": code, "defaults": None, "closure": None}
        written = {"function": {"class_name": "__lambda__", "config": inner}}
    return {"class_name": "Lambda", "config": {"name": "resize", "arguments": {}, **written}}


def with_layer(config: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    config["config"]["layers"].insert(1, layer)
    return config


def lambda_in_hdf5(version: str) -> Make:
    def make(folder: Path, canary: Path) -> Path:
        path = clean(folder / "lambda.h5")
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            layer = lambda_config(canary, int(version[0]))
            if version.startswith("2."):
                image = {"name": "image", "batch_input_shape": [None, 16, 16, 3]}
                config["config"]["layers"] = [{"class_name": "InputLayer", "config": image}]
            file.attrs["model_config"] = json.dumps(with_layer(config, layer))
            file.attrs["keras_version"] = version
        return path

    return make


def rewritten(path: Path, target: Path, changes: dict[str, bytes]) -> Path:
    """Copy an archive with some members replaced or added."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as made:
        for name in source.namelist():
            if name not in changes:
                made.writestr(name, source.read(name))
        for name, content in changes.items():
            made.writestr(name, content)
    return target


def config_of(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        config: dict[str, Any] = json.loads(archive.read("config.json"))
        return config


def lambda_in_archive(folder: Path, canary: Path) -> Path:
    path = clean(folder / "clean.keras")
    config = with_layer(config_of(path), lambda_config(canary, 3))
    return rewritten(path, folder / "lambda.keras", {"config.json": json.dumps(config).encode()})


def lambda_as_activation(folder: Path, canary: Path) -> Path:
    path = clean(folder / "clean.keras")
    config = config_of(path)
    inner = {"value": code_that_writes(canary)}
    config["config"]["layers"][-1]["config"]["activation"] = {"class_name": "__lambda__", "config": inner}
    return rewritten(path, folder / "activation.keras", {"config.json": json.dumps(config).encode()})


def foreign_class(folder: Path, canary: Path) -> Path:
    path = clean(folder / "clean.keras")
    layer = {
        "class_name": "Attention",
        "module": "my_layers",
        "registered_name": "mine>Attention",
        "config": {},
    }
    config = with_layer(config_of(path), layer)
    return rewritten(path, folder / "custom.keras", {"config.json": json.dumps(config).encode()})


class Writes:
    """Unpickles into a file that is overwritten."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> Any:
        return (exec, (f"open({str(self._canary)!r}, 'w').write('pwned')",))


def pickle_named_keras(folder: Path, canary: Path) -> Path:
    path = folder / "pickle.keras"
    path.write_bytes(pickle.dumps(Writes(canary)))
    return path


def pickle_in_archive(folder: Path, canary: Path) -> Path:
    content = {"data.pkl": pickle.dumps(Writes(canary))}
    return rewritten(clean(folder / "clean.keras"), folder / "member.keras", content)


def pickled_weights(folder: Path, canary: Path) -> Path:
    buffer = io.BytesIO()
    np.savez(buffer, weights=np.array([Writes(canary)], object))
    content = {"model.weights.npz": buffer.getvalue()}
    return rewritten(clean(folder / "clean.keras"), folder / "weights.keras", content)


def traversal(folder: Path, canary: Path) -> Path:
    return rewritten(clean(folder / "clean.keras"), folder / "up.keras", {"../canary": b"pwned"})


def absolute_member(folder: Path, canary: Path) -> Path:
    return rewritten(clean(folder / "clean.keras"), folder / "root.keras", {str(canary): b"pwned"})


def zip_bomb(folder: Path, canary: Path) -> Path:
    path = folder / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.8.0"}))
        archive.writestr("config.json", b" " * (40 << 20))
        archive.writestr("model.weights.h5", b"")
    return path


def member_twice(folder: Path, canary: Path) -> Path:
    path = clean(folder / "twice.keras")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    return path


def external_link(folder: Path, canary: Path) -> Path:
    path = clean(folder / "link.h5")
    with h5py.File(path, "r+") as file:
        file["model_weights"]["elsewhere"] = h5py.ExternalLink(str(canary), "/")
    return path


def soft_link(folder: Path, canary: Path) -> Path:
    path = clean(folder / "soft.h5")
    with h5py.File(path, "r+") as file:
        file["model_weights"]["elsewhere"] = h5py.SoftLink("/nowhere")
    return path


def external_storage(folder: Path, canary: Path) -> Path:
    path = clean(folder / "external.h5")
    with h5py.File(path, "r+") as file:
        stored = [(str(canary), 0, len(UNTOUCHED))]
        file["model_weights"].create_dataset("stolen", (len(UNTOUCHED),), "u1", external=stored)
    return path


def virtual_array(folder: Path, canary: Path) -> Path:
    path = clean(folder / "virtual.h5")
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(canary), "data", shape=(4,))
    with h5py.File(path, "r+") as file:
        file["model_weights"].create_virtual_dataset("stolen", layout)
    return path


def link_within_an_archive(folder: Path, canary: Path) -> Path:
    path = clean(folder / "clean.keras")
    weights = folder / "weights.h5"
    with zipfile.ZipFile(path) as archive:
        weights.write_bytes(archive.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        file["elsewhere"] = h5py.ExternalLink(str(canary), "/")
    return rewritten(path, folder / "link.keras", {"model.weights.h5": weights.read_bytes()})


def array_bomb(folder: Path, canary: Path) -> Path:
    path = clean(folder / "arrays.h5")
    with h5py.File(path, "r+") as file:
        file["model_weights"].create_dataset("huge", (1 << 36,), "f4", chunks=(1 << 20,))
    return path


def deep_configuration(folder: Path, canary: Path) -> Path:
    path = clean(folder / "deep.h5")
    nested = '{"class_name": "Sequential", "config": ' * 20_000 + "0" + "}" * 20_000
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = nested
    return path


REFUSED: dict[str, tuple[Make, str]] = {
    "lambda, Keras 3 .h5": (lambda_in_hdf5("3.10.0"), "the Lambda layer 'resize'"),
    "lambda, Keras 2 .h5": (lambda_in_hdf5("2.15.0"), "the Lambda layer 'resize'"),
    "lambda, .keras": (lambda_in_archive, "the Lambda layer 'resize'"),
    "lambda as an activation": (lambda_as_activation, "Python function in the file"),
    "foreign class": (foreign_class, "the custom object 'Attention' of my_layers"),
    "pickle named .keras": (pickle_named_keras, "not a .keras archive"),
    "pickle in an archive": (pickle_in_archive, "'data.pkl', which no Keras model has"),
    "pickled weights": (pickled_weights, "'model.weights.npz', which no Keras model has"),
    "member that climbs": (traversal, "'../canary', which no Keras model has"),
    "absolute member": (absolute_member, "which no Keras model has"),
    "zip bomb": (zip_bomb, "config.json unfolds from"),
    "member twice": (member_twice, "holds config.json twice"),
    "external link": (external_link, "is a link to another file"),
    "soft link": (soft_link, "is a symbolic link"),
    "external storage": (external_storage, "keeps its values in another file"),
    "virtual array": (virtual_array, "is a virtual array"),
    "link within an archive": (link_within_an_archive, "is a link to another file"),
    "array bomb": (array_bomb, "its arrays unfold to"),
    "deep configuration": (deep_configuration, "deep.h5: its model configuration is n"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path: Path, canary: Path, name: str) -> None:
    make, message = REFUSED[name]
    path = make(tmp_path, canary)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SourceError) as raised:
        export_model(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(path)) or name == "link within an archive"
    assert canary.read_bytes() == UNTOUCHED
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", [name for name in REFUSED if not name.startswith(("lambda", "foreign"))])
def test_allow_code_lets_in_nothing_but_code(tmp_path: Path, canary: Path, name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(SourceError) as raised:
        load_source(make(tmp_path, canary), Request(allow_code=True))
    assert message in str(raised.value)
    assert canary.read_bytes() == UNTOUCHED


@pytest.mark.parametrize(
    "name",
    ["lambda, Keras 3 .h5", "lambda, Keras 2 .h5", pytest.param("lambda, .keras", marks=pytest.mark.soak)],
)
def test_the_hostile_code_is_real(tmp_path: Path, canary: Path, name: str) -> None:
    """With --allow-code the same files do run: the refusals above are what stands between."""
    make, _ = REFUSED[name]
    with suppress(SourceError):
        load_source(make(tmp_path, canary), Request(allow_code=True)).close()
    assert canary.read_bytes() == b"pwned"


class DoesMore(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    """A classifier that does something with a file beside."""

    def __init__(self, what: str, canary: Path) -> None:
        super().__init__()
        self._what, self._canary = what, str(canary)

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32)])  # type: ignore[untyped-decorator]
    def serve(self, images: Any) -> Any:
        if self._what == "python":
            images = tf.py_function(lambda x: x, [images], tf.float32)
        elif self._what == "read":
            images += tf.cast(tf.strings.length(tf.io.read_file(self._canary)), tf.float32)
        else:
            with tf.control_dependencies([tf.io.write_file(self._canary, "pwned")]):
                images = tf.identity(images)
        return tf.nn.softmax(tf.reduce_mean(tf.reshape(images, (-1, 192, 1)), 1) * [[1.0, 2.0]])


@pytest.mark.parametrize(
    ("what", "operation"), [("write", "WriteFile"), ("read", "ReadFile"), ("python", "EagerPyFunc")]
)
def test_a_saved_model_that_does_more_than_compute_is_refused(
    tmp_path: Path, canary: Path, what: str, operation: str
) -> None:
    folder, model = tmp_path / "saved", DoesMore(what, canary)
    tf.saved_model.save(model, str(folder), signatures={"serving_default": model.serve})
    assert canary.read_bytes() == UNTOUCHED
    for allow_code in (False, True):
        with pytest.raises(SourceError, match=f"holds the operation {operation}"):
            load_source(folder, Request(allow_code=allow_code))
    assert canary.read_bytes() == UNTOUCHED


def test_a_saved_model_with_a_link_that_leads_out_is_refused(tmp_path: Path, canary: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "saved_model.pb").symlink_to(canary)
    with pytest.raises(SourceError, match="outside of the folder"):
        load_source(folder)


def onnx_file(path: Path, *, external: Path | None = None, domain: str = "") -> Path:
    weights = numpy_helper.from_array(np.ones((192, 2), np.float32), "weights")
    if external:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=str(external))
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["answer"], name="last", domain=domain),
        ],
        "hostile",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["n", 2])],
        [weights],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"external": Path("/etc/hostname")}, "keeps its values in another file"),
        ({"external": Path("../canary")}, "keeps its values in another file"),
        ({"domain": "com.evil"}, "an operator of 'com.evil'"),
    ],
)
def test_a_hostile_onnx_file_is_refused(
    tmp_path: Path, canary: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        load_source(onnx_file(tmp_path / "hostile.onnx", **options))
    assert canary.read_bytes() == UNTOUCHED


def test_external_data_is_found_inside_of_nodes_too(tmp_path: Path) -> None:
    model = onnx.load(onnx_file(tmp_path / "plain.onnx"))
    tensor = TensorProto(name="inside", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=tensor))
    (tmp_path / "inside.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="inside keeps its values in another file"):
        load_source(tmp_path / "inside.onnx")


def tutorial_model(path: Path, base: Any) -> Path:
    """Write what tutorials for CIFAR-10 do, without the resize being a layer of Keras."""
    resize = LAYERS.Lambda(lambda x: tf.image.resize(x, (64, 64)), output_shape=(64, 64, 3), name="resize")
    keras.Sequential([LAYERS.Input((32, 32, 3)), resize, base, LAYERS.Flatten(), LAYERS.Dense(10)]).save(path)
    return path


def narrow_base() -> Any:
    image = keras.Input((64, 64, 3))
    return keras.Model(image, LAYERS.MaxPooling2D(8)(LAYERS.Conv2D(4, 3, activation="relu")(image)))


def vgg16_base() -> Any:
    return keras.applications.VGG16(include_top=False, weights=None, input_shape=(64, 64, 3))


@pytest.mark.parametrize(
    ("suffix", "base"), [pytest.param(".h5", vgg16_base, marks=pytest.mark.soak), (".keras", narrow_base)]
)
def test_a_model_as_tutorials_build_it_exports_when_its_code_is_let_in(
    tmp_path: Path, suffix: str, base: Callable[[], Any]
) -> None:
    keras.utils.set_random_seed(0)
    path = tutorial_model(tmp_path / f"tutorial{suffix}", base())
    with pytest.raises(SourceError, match=r"the Lambda layer 'resize'.*--allow-code"):
        export_model(path)
    result = export_model(path, ExportOptions(allow_code=True))
    said = " ".join(result.warnings)
    assert "--allow-code let in the Lambda layer 'resize'" in said
    assert "a softmax is added" in said
    assert result.artefacts[0].verification.max_abs_diff <= 1e-5


def test_a_custom_layer_is_imported_only_when_let_in(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_layers.py").write_text(
        f"open({str(canary)!r}, 'w').write('imported')\n"
        "import keras\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
    )
    path = clean(tmp_path / "clean.keras")
    layer = {
        "class_name": "Twice",
        "module": "my_layers",
        "registered_name": "Twice",
        "config": {"name": "twice"},
    }
    config = with_layer(config_of(path), layer)
    custom = rewritten(path, tmp_path / "custom.keras", {"config.json": json.dumps(config).encode()})
    with pytest.raises(SourceError, match="'Twice' of my_layers"):
        load_source(custom)
    with pytest.raises(SourceError, match="PYTHONPATH"):
        load_source(custom, Request(allow_code=True))
    assert canary.read_bytes() == UNTOUCHED
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with closing(load_source(custom, Request(allow_code=True))) as source:
        assert "'Twice' of my_layers" in source.origin.warnings[0]
    assert canary.read_bytes() == b"imported"
