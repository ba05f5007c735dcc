"""Keras files that do more than compute: every verb of training refuses them and starts no Keras."""

import base64
import json
import marshal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from medimg.runtime.errors import ModelError
from medimg.train.compression import parent
from medimg.train.compression.options import CompressOptions
from medimg.train.compression.parent import read_parent
from medimg.train.errors import WeightsError
from medimg.train.evaluation import keras_process
from medimg.train.evaluation.calibrate import calibrate
from medimg.train.evaluation.evaluate import evaluate
from medimg.train.keras_files import load_float32
from medimg.train.networks.weights import load_weights

Verb = Callable[[Path, Path], object]
VERBS: dict[str, Verb] = {
    "evaluate": evaluate,
    "calibrate": calibrate,
    "compress": lambda model, data: read_parent(model, data, CompressOptions(), 1),
    "load": lambda model, _data: load_float32(model),
}


def loads_a_folder(name: str) -> dict[str, Any]:
    """A layer that is a function by that name of Keras's own, called with a folder's name."""
    function = {"module": "keras.layers", "class_name": "function", "config": name, "registered_name": name}
    return {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"name": "crop", "function": function, "arguments": {}},
        "inbound_nodes": [{"args": [], "kwargs": {"inputs": "data/.cache"}}],
    }


def own_code(canary: Path) -> dict[str, Any]:
    code = compile(f"lambda x: open({str(canary)!r}, 'w')", "<hostile>", "eval").co_consts[0]
    config = {"code": base64.b64encode(marshal.dumps(code)).decode(), "defaults": None, "closure": None}
    function = {"class_name": "__lambda__", "config": config}
    return {"class_name": "Lambda", "config": {"name": "crop", "function": function}}


LAYERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "TFSMLayer by name": lambda _canary: loads_a_folder("TFSMLayer"),
    "TFSMLayer": lambda canary: {
        "module": "keras.layers",
        "class_name": "TFSMLayer",
        "config": {"name": "crop", "filepath": str(canary.parent)},
    },
    "StringLookup": lambda canary: {
        "module": "keras.layers",
        "class_name": "StringLookup",
        "config": {"name": "crop", "vocabulary": str(canary)},
    },
    "own code": own_code,
    "load_model as an activation": lambda _canary: {
        "module": "keras.layers",
        "class_name": "Activation",
        "config": {
            "name": "crop",
            "activation": {"module": "keras.saving", "class_name": "function", "config": "load_model"},
        },
    },
}


def with_layer(model: Path, target: Path, layer: dict[str, Any]) -> Path:
    with zipfile.ZipFile(model) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                config["config"]["layers"].insert(1, layer)
                content = json.dumps(config).encode()
            new.writestr(name, content)
    return target


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some images of the small model's classes."""
    folder = tmp_path_factory.mktemp("images")
    for label in ("cyst", "normal", "solid"):
        (folder / label).mkdir()
        for number in range(4):
            image = np.full((32, 32, 3), 20 * number, np.uint8)
            cv2.imwrite(str(folder / label / f"{number}.png"), image)
    return folder


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", LAYERS)
def test_code_and_files_are_refused_by_every_verb(
    small_model: Path, images: Path, tmp_path: Path, verb: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, started = tmp_path / "canary", list[str]()
    monkeypatch.setattr(keras_process, "ModelProcess", lambda *given: started.append(str(given)))
    monkeypatch.setattr(parent, "start_keras", lambda *given: started.append(str(given)))
    path = with_layer(small_model, tmp_path / "hostile.keras", LAYERS[name](canary))
    with pytest.raises(ModelError, match=r"hostile\.keras: holds or needs code that is not Keras's"):
        VERBS[verb](path, images)
    assert not started
    assert not canary.exists()


@pytest.mark.long
def test_a_model_far_larger_than_its_arrays_is_refused(small_model: Path, tmp_path: Path) -> None:
    """Keras would make 800 GB of weights before it sees that the file holds none of them."""
    layers = [
        {"class_name": "Dense", "config": {"name": name, "units": units}}
        for name, units in (("wide", 400_000), ("wider", 500_000))
    ]
    path = with_layer(small_model, tmp_path / "half.keras", layers[0])
    path = with_layer(path, tmp_path / "huge.keras", layers[1])
    with pytest.raises(ModelError, match=r"huge\.keras: Keras cannot open it: takes more than"):
        keras_process.prove(path)


def test_weights_that_lead_out_of_their_file_are_refused(base_weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    path.write_bytes(base_weights.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["block1_conv1"]
        file["block1_conv1"] = h5py.ExternalLink("/etc/hostname", "/")
    with pytest.raises(WeightsError, match="is a link to another file"):
        load_weights(None, path)  # refused before the network is looked at
