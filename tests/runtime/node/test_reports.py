"""Series reports: their content, their validity, what late images and several models change."""

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.config import disable_value_validation
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.spec import Allowed, Intensity, ModelSpec, OperatingPoint
from medimg.runtime.node import sr
from medimg.runtime.node.config import Inference, LabelCode
from medimg.runtime.node.identity import HEADER, read_identity
from medimg.runtime.node.journal import read_lines
from medimg.runtime.node.overlay import Picture, write_overlay
from medimg.runtime.node.records import Member, Series

from .conftest import Start, make_config, make_image, make_series, storescu, uid_of, wait_for
from .tiny_model import LABELS, write_tiny_model

pytestmark = pytest.mark.long

SPEC = ModelSpec(
    ("naïve cyst", "x" * 100),
    ImageRule(32, 32),
    Intensity.named("raw"),
    operating_points=(OperatingPoint("naïve cyst", 0.7, "sensitivity 0.95"),),
    intended_use="Triage\nof <b>cysts</b> \\ solids",
)


def member(number: int, outcome: Any = "classified", model: str = "a" * 64) -> Member:
    scores = (0.6, 0.4) if outcome == "classified" else None
    reason = None if outcome == "classified" else "its modality is MR; the model is for CT"
    return Member(f"1.2.3.{number}", "1.2.840.10008.5.1.4.1.1.2", outcome, reason, scores, model, 1.5e9)


def with_notes(number: int, *notes: str) -> Member:
    return replace(member(number), reason="\n".join(notes))


def content(members: Sequence[Member], predecessor: str | None = None) -> sr.ReportContent:
    groups = []
    for model in sorted({one.model for one in members}):
        for outcome in sorted({one.outcome for one in members}):
            part = tuple(one for one in members if (one.model, one.outcome) == (model, outcome))
            if part:
                scores = (0.6, 0.4) if outcome == "classified" else None
                groups.append(sr.Group("model.int8.onnx", model, SPEC, part, scores, "mean"))
    header = {
        "PatientName": "Müller^Jané",
        "PatientID": "P1",
        "PatientBirthDate": "19700101",
        "PatientSex": "F",
        "StudyID": "1",
        "StudyDate": "20260101",
        "StudyTime": "101500",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "Roe^Richard",
    }
    codes = {"naïve cyst": LabelCode("367643001", "SCT", "Cyst")}
    series = Series("key", "1.2.3", "1.3", header, ("AccessionNumber is left out",), ("two patients",))
    return sr.ReportContent(series, tuple(groups), predecessor, codes)


def written(content: sr.ReportContent) -> bytes:
    return sr.write_report(content, {})[1]


ODD = r"\A([12][09]\d{2}[0-3]\d[0-3]\d|[0-2]\d[0-9]{4}(\.\d{1,7})?|[A-Z=^]{1,70})\Z"
"""What looks like dates, times and names."""

CASES = {
    "one image": content([member(1)]),
    "forty images": content([member(number) for number in range(40)]),
    "nothing applicable": content([member(1, "not applicable")]),
    "all outcomes": content(
        [member(1), member(2, "not applicable"), member(3, "unreadable"), member(4, "set aside")]
    ),
    "two models": content([member(1), member(2, model="b" * 64)]),
    "notes on images": content([with_notes(1, "a", "ö" * 2000), with_notes(2, "a"), member(3)]),
    "a successor": content([member(1), member(2)], predecessor="1.2.3.4.5"),
}


@pytest.mark.parametrize("name", CASES)
def test_reports_are_valid(name: str, tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(written(CASES[name]))
    validated = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
    assert "Error" not in validated.stderr + validated.stdout, validated.stderr
    dumped = subprocess.run(["dsrdump", path], capture_output=True, text=True, check=False)
    assert dumped.returncode == 0
    assert not re.search("^[EF]:", dumped.stderr, re.MULTILINE)
    assert "Imaging Measurement Report" in dumped.stdout
    assert {str(one.sop_uid) for group in CASES[name].groups for one in group.members} == references(path)


def references(path: Path) -> set[str]:
    """Images that a report refers to, read back by highdicom."""
    report = hd.sr.srread(path)
    groups = report.content.get_image_measurement_groups()
    return {image.referenced_sop_instance_uid for group in groups for image in group.source_images}


def test_a_report_says_model_use_scores_and_operating_point(tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(written(CASES["one image"]))
    report = hd.sr.srread(path)
    (group,) = report.content.get_image_measurement_groups()
    texts = {item.name.meaning: item.value for item in group[0].ContentSequence if item.ValueType == "TEXT"}
    parameters = [item.value for item in group[0].ContentSequence if item.ValueType == "TEXT"]
    assert texts["Algorithm Version"] == f"SHA-256 {'a' * 64}"
    assert "Not for diagnostic use" in parameters
    assert "Intended use: Triageof <b>cysts</b>  solids" in parameters
    values = [(item.name.meaning, item.value) for item in group.get_measurements()]
    assert values == [("Cyst", 0.6), ("x" * 64, 0.4)]
    evaluations = {item.name.meaning: item.value for item in group.get_qualitative_evaluations()}
    assert group.finding_type == hd.sr.CodedConcept("367643001", "SCT", "Cyst")
    assert evaluations["Operating point: naïve cyst"].meaning == "Not reached (0.7)"
    assert report.PatientName == "Müller^Jané"
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")


def test_a_report_says_what_must_be_known_of_images(tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(written(CASES["notes on images"]))
    (group,) = hd.sr.srread(path).content.get_image_measurement_groups()
    comments = {
        item.TextValue: [
            image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for image in item.ContentSequence
        ]
        for item in group[0].ContentSequence
        if item.ValueType == "TEXT" and item.name.meaning == "Comment"
    }
    long = f"Note on 1 of 3 images: {'ö' * 2000}"[:1024]
    assert comments == {"Note on 2 of 3 images: a": ["1.2.3.1", "1.2.3.2"], long: ["1.2.3.1"]}
    dumped = subprocess.run(["dsrdump", "+U8", path], capture_output=True, text=True, check=False).stdout
    assert '<contains TEXT:(,,"Comment")="Note on 2 of 3 images: a">' in dumped


def test_images_of_any_class_are_reported() -> None:
    """Of private ones too, which the configuration may accept."""
    private = content([replace(member(1), sop_class="1.2.826.0.1.3680043.99.1"), member(2)])
    report = pydicom.dcmread(BytesIO(written(private)))
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    images = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    classes = {image.ReferencedSOPInstanceUID: image.ReferencedSOPClassUID for image in images}
    assert classes == {one.sop_uid: one.sop_class for one in private.groups[0].members}


def test_the_same_content_gives_the_same_bytes() -> None:
    assert written(CASES["forty images"]) == written(CASES["forty images"])


@given(st.fixed_dictionaries(dict.fromkeys(HEADER, st.one_of(st.text(max_size=90), st.from_regex(ODD)))))
@example(dict.fromkeys(HEADER, "") | {"StudyID": "000000000¡¡¡¡¡¡¡"})
@settings(max_examples=30, deadline=None)
def test_no_text_of_a_peer_keeps_a_series_from_its_report(header: dict[str, str]) -> None:
    """Impossible dates, too many name components and control characters are all in real files."""
    dataset = pydicom.Dataset()
    with disable_value_validation():
        for name, value in header.items():
            tag = Tag(name)
            dataset[tag] = RawDataElement(
                tag, dictionary_VR(tag), len(value), value.encode(errors="replace"), 0, False, True
            )
        dataset.SpecificCharacterSet = "ISO_IR 192"
    identity = read_identity(dataset)
    base = CASES["one image"]
    odd = replace(base, series=replace(base.series, header=identity.header, notes=identity.notes))
    picture = Picture(np.zeros((2, 2, 3), np.uint8), odd.groups[0].members[0])
    for file in (written(odd), write_overlay(picture, odd, "1.2.3")):
        document = pydicom.dcmread(BytesIO(file))
        # Its check of lengths counts the pad to an even number of bytes too.
        with disable_value_validation():
            read = {name: str(document.get(name) or "") for name in HEADER}
        for name, value in read.items():
            kept = identity.header.get(name, "")
            assert value == kept
            is_empty = all(char in "^=\0" or char.isspace() for char in header[name])
            assert kept or is_empty or any(name in note for note in identity.notes)


def test_a_uid_stands_for_all_that_a_report_says() -> None:
    base = CASES["one image"]
    changes = [
        base,
        replace(base, series=replace(base.series, series_key="other")),
        replace(base, series=replace(base.series, header={**base.series.header, "PatientID": "P2"})),
        replace(base, predecessor="1.2.3.4"),
        replace(base, codes={}),
        content([member(1), member(2)]),
        content([replace(member(1), received_at=1.6e9)]),
        content([member(1, model="c" * 64)]),
    ]
    uids = [sr.write_report(change, {})[0] for change in changes]
    uids.append(sr.write_report(base, {"line": 1})[0])
    assert len(set(uids)) == len(uids)
    assert all(re.fullmatch(r"2\.25\.[1-9][0-9]{,38}", uid) for uid in uids)


def lines_of(node: Any, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, read_lines(node.store.folder / "results"))
    return [line for line in lines if line["kind"] == kind]


def test_a_late_image_makes_a_report_that_names_its_predecessor(start: Start, tmp_path: Path) -> None:
    node = start()
    images = make_series(tmp_path / "series", 3)
    storescu(node.receiver.port, *images[:2])
    wait_for(lambda: len(lines_of(node, "series")) == 1)
    storescu(node.receiver.port, images[2])
    wait_for(lambda: len(lines_of(node, "series")) == 2)
    first, second = (line["report_uid"] for line in lines_of(node, "series"))
    assert lines_of(node, "series")[1]["predecessor"] == first
    report = pydicom.dcmread(node.store.report_path(second))
    (study,) = report.PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first
    assert references(node.store.report_path(second)) == {uid_of(image) for image in images}
    assert len(lines_of(node, "instance")) == 3


def test_results_tell_scores_operating_points_and_use(start: Start, tmp_path: Path) -> None:
    node = start(make_config(tmp_path, inference=Inference(series_idle_s=1.0, combine="max")))
    images = make_series(tmp_path / "series", 3)
    storescu(node.receiver.port, *images)
    (series,) = wait_for(lambda: lines_of(node, "series"))
    instances = lines_of(node, "instance")
    assert {line["sop_instance_uid"] for line in instances} == {uid_of(image) for image in images}
    for line in instances:
        assert {best["label"] for best in line["top_k"]} == set(LABELS)
        assert line["notice"] == "Not for diagnostic use"
        assert line["operating_points"][0]["reached"] is False
    (answer,) = series["answers"]
    assert answer["combined_by"] == "max"
    for best in answer["top_k"]:
        scores = [
            one["score"] for line in instances for one in line["top_k"] if one["label"] == best["label"]
        ]
        assert best["score"] == max(scores)


@pytest.mark.parametrize(
    ("allowed", "reason"),
    [
        (Allowed(modality=("MR",)), "its modality is CT; the model is for MR"),
        (Allowed(body_part=("CHEST", "ABDOMEN")), "its body part is HEAD; the model is for CHEST, ABDOMEN"),
        (
            Allowed(photometric_interpretation=("RGB",)),
            "its photometric interpretation is MONOCHROME2; the model is for RGB",
        ),
        (Allowed(("ct",), ("Head",), ("MONOCHROME2",)), None),
    ],
)
def test_what_the_model_is_not_for_is_not_classified(
    start: Start, tmp_path: Path, allowed: Allowed, reason: str | None
) -> None:
    model = write_tiny_model(tmp_path / "narrow.onnx", allowed=allowed)
    node = start(model=model)
    storescu(node.receiver.port, make_image(tmp_path / "a.dcm"))
    (line,) = wait_for(lambda: lines_of(node, "instance"))
    assert line.get("reason") == reason
    assert line["outcome"] == ("classified" if reason is None else "not applicable")
    assert ("top_k" in line) == (reason is None)


def test_an_unreadable_image_is_answered_with_its_reason(start: Start, tmp_path: Path) -> None:
    node = start()
    bad = make_image(tmp_path / "bad.dcm", tags={"PixelData": b"short"})
    good = make_image(tmp_path / "good.dcm")
    storescu(node.receiver.port, bad, good)
    wait_for(lambda: len(lines_of(node, "instance")) == 2)
    outcomes = {line["sop_instance_uid"]: line for line in lines_of(node, "instance")}
    assert outcomes[uid_of(good)]["outcome"] == "classified"
    assert outcomes[uid_of(bad)]["outcome"] == "unreadable"
    assert "a truncated DICOM file (6 of 8,192 bytes of pixels)" in outcomes[uid_of(bad)]["reason"]
    assert node.store._rows("SELECT tries FROM instances WHERE sop_uid = ?", uid_of(bad)) == [(3,)]


def test_what_ends_each_try_is_set_aside(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as broken:
        broken.setattr(node.models.current.classifier, "predict", fail)
        storescu(node.receiver.port, make_image(tmp_path / "a.dcm"))
        (line,) = wait_for(lambda: lines_of(node, "instance"))
    assert line["outcome"] == "set aside"
    assert line["reason"] == "RuntimeError: the device is gone"
    storescu(node.receiver.port, make_image(tmp_path / "b.dcm"))
    wait_for(lambda: len(lines_of(node, "instance")) == 2)
    assert lines_of(node, "instance")[1]["outcome"] == "classified"


def test_images_of_several_associations_share_batches(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    sizes: list[int] = []
    take = node.store.take
    monkeypatch.setattr(node.store, "take", lambda limit: noted(take(limit), sizes))
    monkeypatch.setattr(node._worker, "_fitting", lambda _: 64)
    with node.models.in_use():  # holds the worker at its first batch
        images = [make_image(tmp_path / f"{n}.dcm", number=n) for n in range(6)]
        for image in images:
            assert storescu(node.receiver.port, image).returncode == 0
    wait_for(lambda: node.counters.total("answered") == 6)
    assert max(sizes) >= 5


def noted(taken: list[Any], sizes: list[int]) -> list[Any]:
    sizes.append(len(taken))
    return taken


def has_more_series(node: Any, before: int) -> bool:
    return len(lines_of(node, "series")) > before


def test_clock_jumps_change_nothing(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Series are idle by the monotonic clock; the wall clock is only written down."""
    import time

    node = start()
    wall = time.time
    for shift in (-86400.0, 86400.0):
        monkeypatch.setattr("medimg.runtime.node.store.time.time", lambda shift=shift: wall() + shift)
        before = len(lines_of(node, "series"))
        storescu(node.receiver.port, make_image(tmp_path / f"{shift}.dcm"))
        wait_for(partial(has_more_series, node, before))
    assert len(lines_of(node, "instance")) == 2
