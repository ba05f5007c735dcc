"""A model of a few nodes, pictures under many names, and the answers that `predict` gives to them."""

import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from medimg.runtime.classifier import Classifier, Prediction
from medimg.runtime.files.paths import walk_images

Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The node's tests are no package that these could import from.
    node = runpy.run_path(str(Path(__file__).parents[1] / "node" / "tiny_model.py"))
    made: Path = node["write_tiny_model"](tmp_path_factory.mktemp("archive") / "tiny.onnx")
    return made


@pytest.fixture
def make_pictures(tmp_path: Path) -> Callable[[int, int], Path]:
    """Make a folder of so many pictures of so many pixels a side; eight differ, the others link to them."""

    def make(count: int, side: int) -> Path:
        folder = tmp_path / "pictures"
        (folder / "deeper").mkdir(parents=True)
        generator = np.random.default_rng(0)
        for number in range(count):
            path = folder / ("deeper" if number % 2 else "") / f"{number:05}.png"
            if number < 8:
                pixels = generator.integers(0, 32 * (number + 1), (side, side, 3), dtype=np.uint8)
                cv2.imwrite(str(path), pixels)
            else:
                os.link(path.parent / f"{number % 8:05}.png", path)
        return folder

    return make


@pytest.fixture
def predicted(model: Path) -> Callable[[Path], list[Prediction]]:
    """What `predict` answers to a folder."""

    def predict(folder: Path) -> list[Prediction]:
        with Classifier(model) as classifier:
            return list(classifier.predict(walk_images([folder])))

    return predict


def read_rows(output: Path) -> Rows:
    """Read an archive with pyarrow alone, as others will."""
    from pyarrow import dataset

    found: Rows = dataset.dataset(output, format="parquet").to_table().sort_by("number").to_pylist()
    return found


def assert_same(rows: Rows, predictions: list[Prediction]) -> None:
    """One row for each prediction, in the same order, with the same answer."""
    assert [(row["path"], row["frame"]) for row in rows] == [(p.path, p.frame) for p in predictions]
    for row, prediction in zip(rows, predictions, strict=True):
        assert row["error"] == (prediction.error and prediction.error.message)
        assert row["error_type"] == (prediction.error and prediction.error.type)
        best = row["top_k"] or []
        assert [(item["index"], item["label"]) for item in best] == [
            (item.index, item.label) for item in prediction.top_k
        ]
        for item, expected in zip(best, prediction.top_k, strict=True):
            assert abs(item["score"] - expected.score) <= 1e-6
