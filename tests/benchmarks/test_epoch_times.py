from pathlib import Path

import pytest

from epoch_times import measure
from medimg.train import simulate


@pytest.mark.real
@pytest.mark.soak
def test_epochs_are_timed_on_the_same_images(tmp_path: Path, imagenet_weights: Path) -> None:
    simulate(tmp_path / "data", train=8, test=1, size=48)
    times = measure(tmp_path / "data", imagenet_weights, "float32", images=16, image_size=32)
    assert (times["policy"], times["training_images"], times["validation_images"]) == ("float32", 16, 5)
    assert min(value for value in times.values() if isinstance(value, float)) > 0
    assert len(times) == 7
