"""INT8 that fails its proof: a model made hard on purpose is mended, and the layer to blame is named."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from medimg.export import ExportOptions, export_model, repair
from medimg.export.repair import LayerEffect
from medimg.runtime.classifier import Classifier
from medimg.runtime.data import load_batches, read_data
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import write_spec
from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import Intensity, ModelSpec

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("kept_workers")]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
SIZE = ImageRule(32, 32)
INTENSITY = Intensity.named("tf")
SPREAD = 2.0**20
"""Beyond what equalisation takes back; a power of two, so that in float32 nothing changes."""


@pytest.fixture(scope="module")
def trained(pictures: Path) -> Any:
    """A small network that tells the textures apart."""
    data = read_data(pictures)
    images = np.concatenate(list(load_batches(data.samples, SIZE, 8, 1)))
    keras.utils.set_random_seed(0)
    layers = keras.layers
    names = ("first", "second", "third", "fourth", "fifth")
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            *(layers.Conv2D(12, 3, padding="same", activation="relu", name=name) for name in names),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax", name="classes"),
        ]
    )
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(to_network_input(images, INTENSITY), data.truth, batch_size=8, epochs=70, verbose=0)
    predicted = model.predict(to_network_input(images, INTENSITY), verbose=0).argmax(axis=1)
    assert (predicted == data.truth).all()
    return model


@pytest.fixture(scope="module")
def hard_model(trained: Any, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function, with one channel between the second and the third layer far above the others."""
    producer, consumer = trained.get_layer("second"), trained.get_layer("third")
    (weights, bias), (after, after_bias) = producer.get_weights(), consumer.get_weights()
    scale = np.full(len(bias), 1 / SPREAD, np.float32)
    scale[0] = 1
    producer.set_weights([weights * scale, bias * scale])
    consumer.set_weights([after / scale[:, None], after_bias])
    path = tmp_path_factory.mktemp("hard") / "hard.keras"
    trained.save(path)
    write_spec(path, ModelSpec(read_data(pictures).labels, SIZE, INTENSITY))
    return path


def exported(run: Run, model: Path, pictures: Path, output: Path, *options: str) -> tuple[int, Any]:
    done = run(
        *("medimg-export", model, "--precision", "int8", "--output", output, *options),
        *("--calibration", pictures, "--validation", pictures, "--json", output.with_suffix(".json")),
        *("--report", output.with_suffix(".html")),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(output.with_suffix(".json").read_text())


def test_a_model_made_hard_is_repaired_and_the_culprit_is_named(
    run_here: Run, hard_model: Path, pictures: Path, tmp_path: Path
) -> None:
    status, found = exported(run_here, hard_model, pictures, tmp_path / "out")
    assert status == 0
    (item,) = found["artefacts"]
    assert item["verification"]["verdict"] == "not proven"
    assert item["verification"]["accuracy"] == item["verification"]["accuracy_reference"] == 1
    layers = found["quantization"]["layers"]
    assert [layer["layer"] for layer in layers if layer["restored"]] == ["third/Conv"]
    assert layers[0]["layer"] == "third/Conv"
    assert layers[0]["mean_abs_diff"] > 10 * layers[1]["mean_abs_diff"]
    assert {layer["layer"] for layer in layers[1:]} == {"second/Conv", "fourth/Conv", "fifth/Conv"}
    assert item["float_layers"] == ["first/Conv", "classes/Gemm", "third/Conv"]
    assert found["warnings"][-1] == "int8: third/Conv lost too much and stays in float32"
    page = (tmp_path / "out.html").read_text()
    assert f"<td>third/Conv</td><td>{layers[0]['mean_abs_diff']:.2e}</td>" in page
    assert 'alt="Effect of quantising one layer alone"' in page
    artefact = tmp_path / "out" / "hard.int8.onnx"
    assert ModelSpec.read(artefact).float_layers == tuple(item["float_layers"])
    with Classifier(artefact, backend="onnxruntime") as classifier:
        images = next(load_batches(read_data(pictures).samples, SIZE, 24, 1))
        assert (classifier.probabilities(images).argmax(axis=1) == read_data(pictures).truth).all()


def test_without_a_budget_it_fails_and_is_not_written(
    run_here: Run, hard_model: Path, pictures: Path, tmp_path: Path
) -> None:
    status, found = exported(run_here, hard_model, pictures, tmp_path / "out", "--repair-budget", "0")
    assert status == 1
    (item,) = found["artefacts"]
    assert item["verification"]["verdict"] == "failed"
    assert item["verification"]["accuracy_drop"] > 0.1
    assert not item["written"]
    assert list((tmp_path / "out").iterdir()) == []


def test_force_writes_what_failed_and_marks_it(
    run_here: Run, hard_model: Path, pictures: Path, tmp_path: Path
) -> None:
    status, found = exported(
        run_here, hard_model, pictures, tmp_path / "out", "--repair-budget", "0", "--force"
    )
    assert status == 1
    assert found["artefacts"][0]["written"]
    verification = ModelSpec.read(tmp_path / "out" / "hard.int8.onnx").verification
    assert verification is not None
    assert verification.verdict == "failed"


def test_what_no_minority_of_layers_mends_is_not_written(
    hard_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranking = [LayerEffect(f"{name}/Conv", 0.0) for name in ("fifth", "fourth", "second", "third")]
    monkeypatch.setattr(repair, "rank_layers", lambda *_: ranking)
    result = export_model(
        hard_model,
        ExportOptions(output=tmp_path, precisions=("int8",), calibration=pictures, validation=pictures),
    )
    (item,) = result.artefacts
    assert item.verification.verdict == "failed"
    assert not item.written
    assert result.quantization is not None
    assert [layer.restored for layer in result.quantization.layers] == [True, True, False, False]
    assert list(tmp_path.iterdir()) == []
