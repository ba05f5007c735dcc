"""What a user must know about an image reaches every output."""

import csv
import json
import logging
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medimg.runtime.archive.partitions import _columns
from medimg.runtime.classifier import Classifier, Prediction
from medimg.runtime.images.load import load_frames, load_image
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.output import write_predictions

from .recipes import EXPLICIT, Bits, add_pixels, empty, written

NOTE = "its window 1 has a width of 0 and was passed over"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The node's tests are no package that these could import from.
    node = runpy.run_path(str(Path(__file__).parents[1] / "node" / "tiny_model.py"))
    made: Path = node["write_tiny_model"](tmp_path_factory.mktemp("notes") / "tiny.onnx")
    return made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    dataset, bits = empty(EXPLICIT, 8, 8, 1), Bits(8, 8, 7, False, "zero")
    bits.describe(dataset)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.WindowCenter, dataset.WindowWidth = [0, 128], [0, 256]
    add_pixels(dataset, EXPLICIT, np.arange(64, dtype=np.uint8).reshape(1, 8, 8), bits)
    path = tmp_path / "a.dcm"
    path.write_bytes(written(dataset))
    return path


@pytest.fixture
def predictions(model: Path, image: Path) -> list[Prediction]:
    with Classifier(model) as classifier:
        return list(classifier.predict([image, np.zeros((8, 8), np.uint8), image.with_name("absent.dcm")]))


def test_a_prediction_has_its_notes(predictions: list[Prediction]) -> None:
    assert [prediction.notes for prediction in predictions] == [(NOTE,), (), ()]


def test_json_lines_have_notes_where_there_are_any(predictions: list[Prediction], tmp_path: Path) -> None:
    write_predictions(predictions, "jsonl", tmp_path / "a.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line.get("notes") for line in lines] == [[NOTE], None, None]


def test_tables_say_notes_below_the_scores(predictions: list[Prediction], tmp_path: Path) -> None:
    write_predictions(predictions, "table", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text().splitlines().count(f"    note: {NOTE}") == 1


def test_spreadsheets_have_a_column_of_notes(predictions: list[Prediction], tmp_path: Path) -> None:
    write_predictions(predictions, "csv", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["notes"] for row in rows if row["path"].endswith("a.dcm")} == {NOTE}
    assert {row["notes"] for row in rows if not row["path"].endswith("a.dcm")} == {""}


def test_archives_have_a_column_of_notes(predictions: list[Prediction]) -> None:
    rows = ((number, str(item.path), item) for number, item in enumerate(predictions))
    assert [row["notes"] for row in _columns(rows, "00")] == [[NOTE], [], []]


def test_notes_that_nobody_takes_are_logged(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="medimg"):
        load_image(image, ImageRule(8, 8))
    assert caplog.messages == [f"{image}: {NOTE}"]
    taken: list[str] = []
    list(load_frames(image, replace(ImageRule(8, 8), dicom_window="min-max"), note=taken.append))
    assert not taken
