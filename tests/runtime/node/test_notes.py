"""What must be known of an image that has its answer all the same, and why another has none."""

import json
import runpy
import time
from pathlib import Path

import pydicom

from .conftest import ROOT, Start, make_image, storescu, uid_of, wait_for

PASSED_OVER = "its window 1 has a width of 0 and was passed over"


def test_a_note_stands_in_every_report_of_the_series(start: Start, tmp_path: Path) -> None:
    node = start()
    widths = {"WindowCenter": [5, 2048], "WindowWidth": [0, 4096]}
    paths = [
        make_image(tmp_path / f"{n}.dcm", series="1.2.3", number=n, tags=tags)
        for n, tags in enumerate((widths, {}, {}))
    ]
    assert storescu(node.receiver.port, *paths[:2]).returncode == 0
    (first,) = wait_for(lambda: list(node.store.reports.glob("*.dcm")))
    assert notes_in(first) == {f"Note on 1 of 2 images: {PASSED_OVER}": [uid_of(paths[0])]}
    # Nor is it forgotten once the series is done.
    wait_for(lambda: node.store.fold(time.time() + 1, time.time() + 1) == 1)
    assert storescu(node.receiver.port, paths[2]).returncode == 0
    wait_for(lambda: len(list(node.store.reports.glob("*.dcm"))) == 2)
    (second,) = set(node.store.reports.glob("*.dcm")) - {first}
    assert notes_in(second) == {f"Note on 1 of 3 images: {PASSED_OVER}": [uid_of(paths[0])]}
    lines = [
        json.loads(text) for (text,) in node.store._rows("SELECT text FROM lines WHERE stream = 'results'")
    ]
    (answer,) = next(line for line in lines if line["kind"] == "series")["answers"]
    assert answer["notes"] == [{"note": PASSED_OVER, "instances": [uid_of(paths[0])]}]


def test_an_image_without_a_number_is_answered_with_its_reason(start: Start, tmp_path: Path) -> None:
    # The tests of all doors are no package that these could import from.
    write_model = runpy.run_path(str(ROOT / "tests" / "test_no_number.py"))["write_model"]
    node = start(model=write_model(tmp_path / "nan.onnx", "nan"))
    black = make_image(tmp_path / "black.dcm", series="1.2.3", tags={"PixelData": bytes(2 * 64 * 64)})
    other = make_image(tmp_path / "other.dcm", series="1.2.3", number=2)
    assert storescu(node.receiver.port, black, other).returncode == 0
    wait_for(lambda: node.store.counts()["series"] == 0 and list(node.store.reports.glob("*.dcm")))
    rows = node.store._rows("SELECT sop_uid, outcome, reason FROM instances")
    outcomes = {uid: (outcome, reason) for uid, outcome, reason in rows}
    assert outcomes[uid_of(other)] == ("classified", None)
    outcome, reason = outcomes[uid_of(black)]
    assert outcome == "unreadable"
    assert reason.startswith("the model gives no number for it")


def notes_in(report: Path) -> dict[str, list[str]]:
    """Give a report's comments, each with the images that it names."""
    found = {}
    to_read = [pydicom.dcmread(report)]
    while to_read:
        item = to_read.pop()
        children = item.get("ContentSequence", [])
        to_read += children
        if item.get("ValueType") == "TEXT" and item.ConceptNameCodeSequence[0].CodeMeaning == "Comment":
            found[item.TextValue] = [
                child.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for child in children
            ]
    return found
