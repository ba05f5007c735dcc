"""VGG16 fine-tuned on the brain-MRI set, against logistic regression on the same base's frozen features.

`make bench` compares the same figures on the other sets.
"""

from pathlib import Path

import pytest

from frozen_features import logistic_regression
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
    figures: Evaluation, brain_mri: Path, imagenet_weights: Path
) -> None:
    reference = logistic_regression(brain_mri, imagenet_weights).mean()
    assert figures.accuracy >= reference - LARGEST_SHORTFALL, f"reference {reference:.4f}"


def test_the_file_carries_the_published_classes(brain_model: Path, brain_mri: Path) -> None:
    spec = ModelSpec.read(brain_model)
    assert spec.labels == read_data(brain_mri).labels
    assert (spec.image.rows, spec.image.columns) == (224, 224)
    assert spec.intensity.rule == "caffe"
    assert not spec.simulated_data
