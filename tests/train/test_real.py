"""VGG16 fine-tuned on the brain-MRI set, against logistic regression on the same base's frozen features.

The figure `vgg16-real-sets` measures the regression, and compares it with default settings on every set. Here
is its short form, a fit of a quarter of an hour on two cores.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from figures import RESULTS
from medimg.runtime.data import read_data
from medimg.runtime.model.spec import ModelSpec

pytestmark = [pytest.mark.real, pytest.mark.soak]
LARGEST_SHORTFALL = 0.03


@pytest.fixture(scope="module")
def brain_model(
    tmp_path_factory: pytest.TempPathFactory, brain_mri: Path, imagenet_weights: Path, run: Any
) -> Path:
    model = tmp_path_factory.mktemp("brain") / "model.h5"
    done = run("medimg-train", "fit", brain_mri, "--output", model, "--weights", imagenet_weights)
    assert done.returncode == 0, done.stderr
    return model


def test_accuracy_is_near_that_of_logistic_regression_on_frozen_features(
    brain_model: Path, brain_mri: Path, run: Any
) -> None:
    done = run("medimg-train", "evaluate", brain_model, brain_mri, "--json", "-")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["images"] == 394
    measured = json.loads((RESULTS / "vgg16-real-sets.json").read_text())["sets"]["brain-mri"]
    reference = measured["logistic_regression_on_frozen_features"]
    assert found["accuracy"]["value"] >= reference - LARGEST_SHORTFALL, f"reference {reference:.4f}"


def test_the_file_carries_the_published_classes(brain_model: Path, brain_mri: Path) -> None:
    spec = ModelSpec.read(brain_model)
    assert spec.labels == read_data(brain_mri).labels
    assert (spec.image.rows, spec.image.columns) == (224, 224)
    assert spec.intensity.rule == "caffe"
    assert not spec.simulated_data
