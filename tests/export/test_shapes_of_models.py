"""Models as they come: outputs in dictionaries and lists, architectures beside weights, broken downloads."""

import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime
import pytest

from medimg.export import graph
from medimg.export.errors import SourceError
from medimg.export.sources import Request, load_source
from medimg.export.sources.framework import FrameworkSource
from medimg.runtime.model.process import sense

LAYERS = keras.layers
SIZE = (16, 16, 3)
pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("kept_workers"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]


def heads(image: Any) -> tuple[Any, Any]:
    flat = LAYERS.Flatten()(image)
    return tuple(
        LAYERS.Dense(n, activation="softmax", name=name)(flat) for n, name in ((3, "grade"), (2, "side"))
    )


def image() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Input(SIZE, name="image")


def one_in_a_dictionary(path: Path) -> Any:
    """And images without a channel axis."""
    keras.utils.set_random_seed(0)
    taken = keras.Input((28, 28), name="image")
    answer = LAYERS.Dense(3, activation="softmax", name="grade")(LAYERS.Flatten()(taken))
    model = keras.Model({"image": taken}, {"probs": answer})
    model.save(path)
    return lambda images: model({"image": images[..., 0]})["probs"]


def two_in_a_dictionary(path: Path) -> Any:
    taken = image()
    model = keras.Model(taken, dict(zip(("first", "second"), heads(taken), strict=True)))
    model.save(path)
    return lambda images: model(images)["second"]


def in_nested_lists(path: Path) -> Any:
    taken = image()
    model = keras.Model([taken], [[heads(taken)[0]]])
    model.save(path)
    return lambda images: keras.tree.flatten(model([images]))[0]


def inner_model_with_a_list(path: Path) -> Any:
    """As Keras 3 saved transfer learning on a model that was made with a list of one output (keras#20084)."""
    taken = image()
    inner = keras.Model(taken, LAYERS.Conv2D(4, 3, name="last")(taken), name="inner")
    end = [LAYERS.GlobalAveragePooling2D(), LAYERS.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input(SIZE), inner, *end])
    model.save(path.with_name("whole.keras"))

    def listed(config: dict[str, Any]) -> None:
        (found,) = (item for item in config["config"]["layers"] if item["class_name"] == "Functional")
        found["config"]["output_layers"] = [["last", 0, 0]]

    with_config(path.with_name("whole.keras"), path, listed)
    return model


def with_config(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            new.writestr(name, content)
    return target


def compared(path: Path, answer: Any, request: Request) -> None:
    with closing(load_source(path, request)) as source:
        images = np.random.default_rng(0).random((3, *source.input_shape), np.float32)
        found = source.predict(images)
        model = graph.check(graph.tidy(source.convert(), source.layer_names()))
    np.testing.assert_allclose(found, np.asarray(answer(images)), atol=1e-6)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (converted,) = session.run(None, {model.graph.input[0].name: images})
    np.testing.assert_allclose(converted, found, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "request_"),
    [
        (one_in_a_dictionary, Request()),
        (two_in_a_dictionary, Request(output_name="second")),
        (in_nested_lists, Request()),
        (inner_model_with_a_list, Request()),
    ],
)
def test_outputs_and_inputs_are_taken_out_of_what_holds_them(
    tmp_path: Path, make: Callable[[Path], Any], request_: Request
) -> None:
    path = tmp_path / "model.keras"
    compared(path, make(path), request_)


LEGACY = """
import os, sys
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import json
import numpy as np, tf_keras as keras, yaml
layers, folder = keras.layers, sys.argv[1]
keras.utils.set_random_seed(0)
image = keras.Input((16, 16, 3), name="image")
flat = layers.Flatten()(image)
heads = [layers.Dense(n, activation="softmax", name=name)(flat) for n, name in ((3, "grade"), (2, "side"))]
two = keras.Model({"image": image}, {"a": heads[0], "b": heads[1]})
two.save(folder + "/two.h5")
images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
np.save(folder + "/two.npy", two(images)["b"])
one = keras.Model(image, heads[0])
one.save_weights(folder + "/one.h5")
config = json.loads(one.to_json())
config["config"]["layers"][0]["config"]["batch_input_shape"] = (None, 16, 16, 3)
open(folder + "/one.yaml", "w").write(yaml.dump(config))
open(folder + "/one.json", "w").write(one.to_json())
np.save(folder + "/one.npy", one(images))
keras.Model(image, layers.Conv2D(2, 1, activation="softmax", name="mask")(image)).save(folder + "/u-net.h5")
"""


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and weights that tf-keras wrote, and what they answer."""
    folder = tmp_path_factory.mktemp("legacy")
    subprocess.run([sys.executable, "-c", LEGACY, folder], check=True, capture_output=True)
    return folder


def test_two_outputs_of_keras_2_in_a_dictionary(legacy: Path) -> None:
    compared(legacy / "two.h5", lambda _images: np.load(legacy / "two.npy"), Request(output_name="b"))


def test_an_architecture_of_keras_2_as_yaml(legacy: Path) -> None:
    assert "python/tuple" in (legacy / "one.yaml").read_text()
    request = Request(architecture_file=legacy / "one.yaml")
    compared(legacy / "one.h5", lambda _images: np.load(legacy / "one.npy"), request)


def test_an_architecture_of_keras_3_as_json(tmp_path: Path) -> None:
    taken = image()
    model = keras.Model(taken, heads(taken)[0])
    model.save_weights(tmp_path / "one.weights.h5")
    (tmp_path / "model.json").write_text(model.to_json())
    request = Request(architecture_file=tmp_path / "model.json")
    compared(tmp_path / "one.weights.h5", model, request)


@pytest.fixture
def no_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    """No framework may be started for what the file itself shows."""

    def started(*_given: object, **_named: object) -> None:
        raise AssertionError("a framework was started")

    monkeypatch.setattr(FrameworkSource, "__init__", started)


def of_two(path: Path) -> Any:
    return two_in_a_dictionary(path)


def u_net(path: Path) -> None:
    taken = image()
    mask = LAYERS.Conv2D(2, 1, name="mask")(LAYERS.UpSampling2D()(LAYERS.MaxPooling2D()(taken)))
    keras.Model(taken, LAYERS.Activation("softmax", name="out")(mask)).save(path)


def sequence(path: Path) -> None:
    keras.Sequential([keras.Input((20, 3)), LAYERS.Flatten(), LAYERS.Dense(2)]).save(path)


@pytest.mark.usefixtures("no_framework")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (of_two, r"gives 2 tensors \(first, second\).*--output-name first\|second"),
        (u_net, r"its output out is an image.*U-Net gives \(segmentation\)"),
        (sequence, r"takes .* \(None, 20, 3\); an image classifier takes"),
    ],
)
def test_what_the_configuration_shows_is_refused_within_5_s(
    tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    make(tmp_path / "model.keras")
    start = time.process_time()
    with pytest.raises(SourceError, match=message):
        load_source(tmp_path / "model.keras")
    assert time.process_time() - start < 5


@pytest.mark.usefixtures("no_framework")
def test_a_u_net_of_keras_2_and_weights_without_an_architecture(legacy: Path) -> None:
    with pytest.raises(SourceError, match=r"its output mask is an image.*segmentation"):
        load_source(legacy / "u-net.h5")
    with pytest.raises(SourceError, match=r"holds weights only.*--architecture model\.json$"):
        load_source(legacy / "one.h5")
    with pytest.raises(SourceError, match="leave --architecture out"):
        load_source(legacy / "two.h5", Request(architecture_file=legacy / "one.json"))


@pytest.mark.usefixtures("no_framework")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b", "not YAML that describes a model"),
        (
            "\n".join(f"a{n + 1}: &a{n + 1} [{f'*a{n}, ' * 9}]" if n else "a1: &a1 [1]" for n in range(12)),
            "refused",
        ),
        ("!!python/object/apply:os.system ['touch canary']", "not YAML that describes a model"),
        ("- 1\n- 2", "names no model"),
    ],
)
def test_yaml_does_nothing_but_describe(legacy: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(SourceError, match=message):
        load_source(legacy / "one.h5", Request(architecture_file=tmp_path / "model.yaml"))


BROKEN = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "pointer of Git LFS"),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "it is a web page"),
    "old page": (b"\xef\xbb\xbf<HTML>", "it is a web page"),
    "error": (b'{"error": "not found"}', "it is JSON text, as a server's error"),
    "empty": (b"", "it is empty"),
    "cut": (b"PK\x03\x04" + bytes(500), "it breaks off"),
}


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".onnx", ".bin"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_downloads_have_names(tmp_path: Path, name: str, suffix: str) -> None:
    content, message = BROKEN[name]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        load_source(path)


def custom(layer: dict[str, Any]) -> Callable[[Path, Path], Path]:
    def make(source: Path, target: Path) -> Path:
        return with_config(source, target, lambda config: config["config"]["layers"].insert(1, layer))

    return make


def lambda_of(code: str | None) -> dict[str, Any]:
    function = {"class_name": "__lambda__", "config": {"code": code, "defaults": None, "closure": None}}
    return {"class_name": "Lambda", "config": {"name": "scale", "function": function}}


ADVICE = {
    "code of no module": (
        {"class_name": "Mine", "registered_name": "Custom>Mine", "module": None, "config": {"name": "m"}},
        r"--allow-code cannot help: the code of the custom object 'Mine'.* model\.export\(folder\)",
    ),
    "other python": (
        lambda_of("4wAAAABOb3RDb2Rl"),
        r"--allow-code cannot help: .*byte code is of another Python",
    ),
    "module that is not here": (
        {"class_name": "Mine", "registered_name": "Mine", "module": "nobody_has_this.layers", "config": {}},
        r"nobody_has_this\.layers on PYTHONPATH$",
    ),
    "named function": (
        {"class_name": "Lambda", "config": {"name": "s", "function": "f", "module": "__main__"}},
        "--allow-code cannot help: the code of the custom function 'f'",
    ),
}


@pytest.mark.usefixtures("no_framework")
@pytest.mark.parametrize("name", ADVICE)
def test_code_is_let_in_only_where_it_could_run(small_model: Path, tmp_path: Path, name: str) -> None:
    layer, message = ADVICE[name]
    path = custom(layer)(small_model, tmp_path / "code.keras")
    with pytest.raises(SourceError, match=message):
        load_source(path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            TypeError(
                'in user code:\n\n    File "x.py", line 1, in f  *\n    call()\n\n    ValueError: bad scope\n'
            ),
            "ValueError: bad scope",
        ),
        (
            ValueError(
                "Exception encountered when calling Sequential.call().\n\n\x1b[1mno such axis\x1b[0m\n\n"
                "Arguments received by Sequential.call():\n  • inputs=1"
            ),
            "ValueError: no such axis",
        ),
        (
            TypeError(
                "Error when deserializing class 'Conv2D'.\n\nException encountered: Unrecognized arguments"
            ),
            "TypeError: Unrecognized arguments",
        ),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_the_sense_of_an_error_is_told(error: Exception, said: str) -> None:
    assert sense(error) == said


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bz2-damaged-config", "or a damaged one"),
        ("deflate-damaged-config", "or a damaged one"),
        ("deflate-damaged-spec", "or a damaged one"),
        ("deflate-damaged-weights", "or a damaged one"),
        ("lzma-damaged-config", "or a damaged one"),
        ("config-bigint", "a number of 5000 digits"),
        ("config-surrogate", "half characters"),
        ("meta-latin1", "metadata.json is not JSON"),
        ("meta-list", "metadata.json is not a JSON object"),
    ],
)
def test_damaged_archives_are_one_message(real_data: Path, name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load_source(real_data.parent / "cases" / "hostile" / "keras-zip" / f"{name}.keras")
