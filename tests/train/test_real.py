"""VGG16 fine-tuned on the brain-MRI set, against logistic regression on the same base's frozen features.

The figure `vgg16-real-sets` measures the regression, and compares it with default settings on every set.
"""

import json
from pathlib import Path

import pytest

from figures import RESULTS
from medimg.runtime.data import read_data
from medimg.runtime.metrics import Evaluation
from medimg.runtime.spec import ModelSpec
from medimg.train import evaluate

pytestmark = pytest.mark.real
LARGEST_SHORTFALL = 0.03


@pytest.fixture(scope="module")
def figures(brain_model: Path, brain_mri: Path) -> Evaluation:
    return evaluate(brain_model, brain_mri).evaluation


def test_every_published_test_image_counts(figures: Evaluation) -> None:
    assert figures.images == 394


def test_accuracy_is_near_that_of_logistic_regression_on_frozen_features(
    figures: Evaluation,
) -> None:
    measured = json.loads((RESULTS / "vgg16-real-sets.json").read_text())["sets"]["brain-mri"]
    reference = measured["logistic_regression_on_frozen_features"]
    assert figures.accuracy >= reference - LARGEST_SHORTFALL, f"reference {reference:.4f}"


def test_the_file_carries_the_published_classes(brain_model: Path, brain_mri: Path) -> None:
    spec = ModelSpec.read(brain_model)
    assert spec.labels == read_data(brain_mri).labels
    assert (spec.image.rows, spec.image.columns) == (224, 224)
    assert spec.intensity.rule == "caffe"
    assert not spec.simulated_data
