"""The three precisions of a VGG16 fine-tuned on real images, from image file to probabilities."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime.backends import NAMES
from medimg.runtime.classifier import Classifier
from medimg.runtime.data import DataSet, load_batches, read_data
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.statistics import metrics

pytestmark = pytest.mark.real
AGREEMENT_OF_INT8 = 0.94
"""Of the images, with float32: four of 68 may differ, where 0.980 of all 394 test images agree."""


@pytest.fixture(scope="module")
def test_images(brain_artefacts: dict[str, Path]) -> DataSet:
    return read_data(brain_artefacts["json"].with_name("validation"))


def open_classifier(artefact: Path, backend: str) -> Classifier:
    """Give one batch after the other all threads."""
    return Classifier(artefact, backend=backend, device="cpu", tuned_for="latency")


@pytest.fixture(scope="module")
def probabilities(
    brain_artefacts: dict[str, Path], test_images: DataSet
) -> dict[tuple[str, str], NDArray[np.float32]]:
    """What each precision answers on each back end, for every test image."""
    found = {}
    for precision in ("fp32", "fp16", "int8"):
        for backend in NAMES:
            with open_classifier(brain_artefacts[precision], backend) as classifier:
                batches = load_batches(test_images.samples, classifier.spec.image, 16, 2)
                found[precision, backend] = np.concatenate(
                    [classifier.probabilities(batch) for batch in batches]
                )
    return found


def test_figures_against_keras(brain_artefacts: dict[str, Path], test_images: DataSet) -> None:
    artefacts = {
        item["precision"]: item for item in json.loads(brain_artefacts["json"].read_text())["artefacts"]
    }
    found = {precision: item["verification"] for precision, item in artefacts.items()}
    assert all(item["images_from"] == "validation" for item in found.values())
    assert {item["images"] for item in found.values()} == {len(test_images.samples)}
    assert found["fp32"]["max_abs_diff"] <= 1e-5
    assert found["fp32"]["top1_agreement"] == 1
    assert found["fp16"]["top1_agreement"] >= 1 - 1 / len(test_images.samples)
    assert ModelSpec.read(brain_artefacts["int8"]).labels == (
        *("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor"),
    )


def test_int8_figures_against_keras(brain_artefacts: dict[str, Path]) -> None:
    artefacts = json.loads(brain_artefacts["json"].read_text())["artefacts"]
    (found,) = (item["verification"] for item in artefacts if item["precision"] == "int8")
    assert found["accuracy_drop"] <= 0.01
    assert found["top1_agreement"] >= AGREEMENT_OF_INT8


def test_fp16_flips_only_where_two_classes_tie(
    probabilities: dict[tuple[str, str], NDArray[np.float32]],
) -> None:
    for backend in NAMES:
        full, half = probabilities["fp32", backend], probabilities["fp16", backend]
        flipped = full.argmax(axis=1) != half.argmax(axis=1)
        top_two = np.sort(full[flipped], axis=1)[:, -2:]
        assert flipped.sum() <= 1
        assert np.all(top_two[:, 1] - top_two[:, 0] < 0.01)


@pytest.mark.parametrize(
    ("precision", "agreement"),
    [("fp32", 1.0), ("fp16", 0.98), ("int8", AGREEMENT_OF_INT8)],
)
def test_back_ends_agree(
    probabilities: dict[tuple[str, str], NDArray[np.float32]], precision: str, agreement: float
) -> None:
    first, second = (probabilities[precision, backend] for backend in NAMES)
    assert metrics.top1_agreement(first, second) >= agreement
    if precision == "fp32":
        assert np.abs(first - second).max() <= 1e-5


def test_int8_really_runs_in_int8(brain_artefacts: dict[str, Path]) -> None:
    with Classifier(brain_artefacts["int8"], backend="openvino") as classifier:
        assert classifier.backend.precision == "int8"


@pytest.mark.parametrize("backend", NAMES)
def test_an_answer_depends_neither_on_batch_nor_on_place(
    brain_artefacts: dict[str, Path], test_images: DataSet, backend: str
) -> None:
    with open_classifier(brain_artefacts["fp32"], backend) as classifier:
        (images,) = load_batches(test_images.samples[:16], classifier.spec.image, 16, 2)
        alone = np.concatenate([classifier.probabilities(image[None]) for image in images])
        for size in (3, 8, 16):
            together = np.concatenate(
                [classifier.probabilities(images[start : start + size]) for start in range(0, 16, size)]
            )
            backwards = classifier.probabilities(images[:size][::-1].copy())[::-1]
            assert np.abs(together - alone).max() <= 1e-6
            assert np.abs(backwards - alone[:size]).max() <= 1e-6
            assert (together.argmax(axis=1) == alone.argmax(axis=1)).all()
