"""Every model file in the data folder: exported without a flag and verified, or refused for its own reason.

`MEDIMG_WRITE_DOCS=1` writes the table in docs/models.md anew from what these tests found.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medimg.export import ExportOptions, export_model
from medimg.export.errors import SourceError
from medimg.runtime.errors import UsageError
from medimg.runtime.model.spec import ModelSpec

pytestmark = pytest.mark.real
DOCS = Path(__file__).parents[2] / "docs" / "models.md"
NO_DATA = "no data"
REFUSED = {
    "k1_mnist_28_softmax10.h5": r"written by Keras 1\.2\.1.*load_model",
    "k2_cifar10_32_relu10.h5": r"neither probabilities nor logits.*--head",
    "k2_head_only_2048.h5": r"takes .*2048.*an image classifier takes",
    "k2_lambda_regressor.h5": r"the Lambda layer 'lambda_1'.*--allow-code",
    "mangled.h5": r"not an HDF5 file.*transfer in text mode",
    "weights_only_head.h5": r"holds weights only.*--architecture model\.json$",
}
REASONS = {
    "k1_mnist_28_softmax10.h5": "Keras 1: convert it first",
    "k2_cifar10_32_relu10.h5": "ends in ReLU: needs `--head`",
    "k2_head_only_2048.h5": "not an image model",
    "k2_lambda_regressor.h5": "Lambda layer: code in the file",
    "mangled.h5": "damaged by a transfer in text mode",
    "weights_only_head.h5": "weights only, no architecture",
}


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    file: str
    kind: str
    version: str
    outcome: str
    max_abs_diff: float | None

    def row(self) -> str:
        difference = "" if self.max_abs_diff is None else f"{self.max_abs_diff:.1e}"
        return f"| {self.file} | {self.kind} | {self.version} | {self.outcome} | {difference} |"


def listed() -> list[dict[str, Any]]:
    folder = os.environ.get("MEDIMG_TEST_DATA")
    if folder is None:
        return [{"file": NO_DATA, "expect": ""}]
    models: list[dict[str, Any]] = json.loads((Path(folder) / "models" / "MODELS.json").read_text())
    return models


def source_head(path: str) -> str:
    return ModelSpec.read(path).head


MODELS = listed()
MULTIPLIES_ROUNDING = ("k2_teachable_machine_softmax3.h5",)
"""MobileNet whose batch normalisations multiply rounding by up to 74: Keras itself is 2.2e-5 from float64."""


@pytest.fixture(scope="module")
def models(real_data: Path) -> Path:
    return real_data / "models"


@pytest.fixture(scope="module")
def found() -> dict[str, Outcome]:
    """What the tests of this file found, by file."""
    return {}


@pytest.mark.parametrize("model", MODELS, ids=[model["file"] for model in MODELS])
def test_each_model_is_exported_and_verified_or_refused_for_its_reason(
    models: Path, model: dict[str, Any], tmp_path: Path, found: dict[str, Outcome]
) -> None:
    name, path = model["file"], models / model["file"]
    version = model["keras_version"] or "not said"
    if model["expect"] == "refuse":
        with pytest.raises(SourceError) as raised:
            export_model(path, ExportOptions(output=tmp_path))
        assert str(raised.value).startswith(str(path))
        assert re.search(REFUSED[name], str(raised.value), re.DOTALL)
        assert list(tmp_path.iterdir()) == []
        found[name] = Outcome(name, path.suffix, version, f"refused: {REASONS[name]}", None)
        return
    result = export_model(path, ExportOptions(output=tmp_path))
    (item,) = result.artefacts
    difference = item.verification.max_abs_diff
    outcome = f"exported: {source_head(item.path)}" if item.written else "failed its verification"
    found[name] = Outcome(name, result.source.kind, version, outcome, difference)
    if name in MULTIPLIES_ROUNDING:
        assert 1e-5 < difference <= 4 * (item.reference_rounding or 0)
        assert sum("multiplies rounding" in warning for warning in result.warnings) == 1
    else:
        assert difference <= 1e-5
        assert item.reference_rounding is None
    assert item.verification.top1_agreement == 1
    assert item.written
    spec = ModelSpec.read(item.path)
    if model["input"]:
        assert [None, spec.image.rows, spec.image.columns, spec.intensity.channels] == model["input"]
    if model["keras_version"]:
        assert result.source.keras_version == model["keras_version"]


def test_heads_are_those_that_the_files_are_known_for(found: dict[str, Outcome]) -> None:
    for name, outcome in found.items():
        if outcome.outcome.startswith("exported"):
            head = "multilabel" if "multilabel" in name else "sigmoid" if "sigmoid" in name else "softmax"
            assert outcome.outcome == f"exported: {head}", name


def test_a_head_that_was_told_exports_what_was_refused(models: Path, tmp_path: Path) -> None:
    result = export_model(models / "k2_cifar10_32_relu10.h5", ExportOptions(output=tmp_path, head="logits"))
    assert result.artefacts[0].verification.max_abs_diff <= 1e-5


def test_two_labels_for_three_outputs_name_both_counts(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"names 2 classes \(a, b\); the model has 3"):
        export_model(
            models / "k2_teachable_machine_softmax3.h5", ExportOptions(output=tmp_path, labels=("a", "b"))
        )
    assert list(tmp_path.iterdir()) == []


def test_weights_without_a_vgg16_are_not_taken_for_one(models: Path, real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not those of a VGG16"):
        export_model(models / "weights_only_head.h5", ExportOptions(output=tmp_path, arch="vgg16", classes=1))
    base_only = real_data / "weights" / "vgg16_imagenet_notop.h5"
    with pytest.raises(SourceError, match="without a head"):
        export_model(base_only, ExportOptions(output=tmp_path, arch="vgg16", classes=4))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("k3_malaria_64_sigmoid.keras", marks=pytest.mark.soak),
        "k2_mini_xception_48_gray_softmax7.hdf5",
    ],
)
def test_the_same_file_gives_the_same_bytes(models: Path, tmp_path: Path, name: str) -> None:
    written = [
        export_model(models / name, ExportOptions(output=tmp_path / part)).artefacts[0] for part in ("a", "b")
    ]
    assert written[0].sha256 == written[1].sha256


def test_the_table_in_the_docs_is_true(found: dict[str, Outcome]) -> None:
    if len(found) != len(MODELS):
        pytest.fail("the table is compared after the tests of every model: run this file whole")
    if os.environ.get("MEDIMG_WRITE_DOCS"):
        start = DOCS.read_text(encoding="utf-8").partition("| File |")[0]
        head = "| File | Kind | Keras | Outcome | max \\|Δp\\| |\n|---|---|---|---|---|\n"
        DOCS.write_text(
            start + head + "\n".join(item.row() for item in found.values()) + "\n", encoding="utf-8"
        )
    table = DOCS.read_text(encoding="utf-8").partition("| File |")[2].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in table if line]
    said = {name: rest for name, *rest in cells}
    assert said == {item.file: [item.kind, item.version, item.outcome] for item in found.values()}
