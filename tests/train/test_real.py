"""VGG16 fine-tuned on the brain-MRI set, against logistic regression on the same base's frozen features.

The figure `vgg16-real-sets` measures the regression, and compares it with default settings on every set.
"""

import json
from pathlib import Path

import pytest

from figures import RESULTS
from medimg.runtime.data import read_data
from medimg.runtime.spec import ModelSpec

pytestmark = pytest.mark.real
LARGEST_SHORTFALL = 0.03


def test_accuracy_is_near_that_of_logistic_regression_on_frozen_features(
    brain_artefacts: dict[str, Path],
) -> None:
    """Export has asked Keras about every published test image."""
    found = json.loads(brain_artefacts["json"].read_text())["artefacts"][0]["verification"]
    assert found["images"] == 394
    measured = json.loads((RESULTS / "vgg16-real-sets.json").read_text())["sets"]["brain-mri"]
    reference = measured["logistic_regression_on_frozen_features"]
    assert found["accuracy_reference"] >= reference - LARGEST_SHORTFALL, f"reference {reference:.4f}"


def test_the_file_carries_the_published_classes(brain_model: Path, brain_mri: Path) -> None:
    spec = ModelSpec.read(brain_model)
    assert spec.labels == read_data(brain_mri).labels
    assert (spec.image.rows, spec.image.columns) == (224, 224)
    assert spec.intensity.rule == "caffe"
    assert not spec.simulated_data
