"""Patients are never mixed, and what a report repeats of a header is right or absent."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import generate_uid

from medimg.runtime.node.arrivals import read_file_arrival
from medimg.runtime.node.charsets import character_sets
from medimg.runtime.node.config import Delivery
from medimg.runtime.node.journal import read_lines
from medimg.runtime.node.service import Node

from .conftest import Start, make_config, make_image, storescu, uid_of, wait_for

pytestmark = pytest.mark.long

SERIES, STUDY = "1.2.3.4.5", "1.2.3.4"
SAME = {"StudyInstanceUID": STUDY}


def sent(node: Node, folder: Path, *tags: dict[str, Any], series: str = SERIES) -> list[Path]:
    """Send one image for each set of tags, all of one series UID."""
    paths = [
        make_image(folder / f"{generate_uid()}.dcm", series=series, number=number, tags={**SAME, **one})
        for number, one in enumerate(tags)
    ]
    assert storescu(node.receiver.port, *paths).stderr.count("(Success)") == len(paths)
    return paths


def reports(node: Node, count: int) -> list[pydicom.Dataset]:
    wait_for(lambda: len(list(node.store.reports.glob("2.25.*.dcm"))) == count)
    wait_for(lambda: not node.store.unreported_series())
    return [pydicom.dcmread(path) for path in sorted(node.store.reports.glob("2.25.*.dcm"))]


def images_of(report: pydicom.Dataset) -> set[str]:
    return {
        str(image.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for image in series.ReferencedSOPSequence
    }


def texts(dataset: pydicom.Dataset) -> Iterator[str]:
    for element in dataset.iterall():
        if element.keyword == "TextValue":
            yield str(element.value)


def events(node: Node, kind: str) -> list[dict[str, Any]]:
    node._audit.catch_up()
    lines = map(json.loads, read_lines(node.store.folder / "audit"))
    return [line for line in lines if line["event"] == kind]


OTHERS = (
    {"PatientID": "P2", "PatientName": "Beta^Bert"},
    {"PatientID": "P2"},
    {"PatientName": "Beta^Bert"},
    {"PatientBirthDate": "19800101"},
    {"PatientSex": "M"},
    {"IssuerOfPatientID": "HOSPITAL_B"},
    {"StudyInstanceUID": "1.2.3.99"},
    {"PatientID": "", "PatientName": "Beta^Bert"},
    {"PatientID": "P" * 64 + "1"},
)


def test_each_patient_and_study_of_a_series_gets_a_report_of_its_own(start: Start, tmp_path: Path) -> None:
    node = start()
    paths: dict[str, list[Path]] = {}
    for number, other in enumerate(OTHERS):
        series, study = f"1.2.3.{number}", f"1.2.4.{number}"
        both = ({"StudyInstanceUID": study}, {"StudyInstanceUID": study, **other})
        paths[series] = sent(node, tmp_path, *both, *both, series=series)
    found = reports(node, 2 * len(OTHERS))
    wanted = {frozenset(map(uid_of, of_one[part::2])) for of_one in paths.values() for part in (0, 1)}
    assert {frozenset(images_of(report)) for report in found} == wanted
    assert len({report.SeriesInstanceUID for report in found}) == len(found)
    headers = {uid_of(path): pydicom.dcmread(path) for of_one in paths.values() for path in of_one}
    for report in found:
        for image in map(headers.get, images_of(report)):
            assert image is not None
            assert (report.PatientName, report.StudyInstanceUID) == (
                image.PatientName,
                image.StudyInstanceUID,
            )
            assert report.PatientID == (image.PatientID if len(image.PatientID) <= 64 else "")
        assert any("name another patient" in text for text in texts(report))
    assert node.counters.total("contradictions") == len(OTHERS)
    assert {event["series_instance_uid"] for event in events(node, "contradiction")} == set(paths)


def test_ways_to_write_one_patient_are_no_contradiction(start: Start, tmp_path: Path) -> None:
    node = start()
    spelt = {"PatientName": "DOE^JANÉ^^", "PatientID": "P1 ", "SpecificCharacterSet": "ISO_IR 100"}
    paths = sent(node, tmp_path, {}, spelt)
    (report,) = reports(node, 1)
    assert images_of(report) == set(map(uid_of, paths))
    assert node.counters.total("contradictions") == 0


def test_a_study_of_two_patients_is_flagged(start: Start, tmp_path: Path) -> None:
    node = start()
    sent(node, tmp_path, {})
    sent(node, tmp_path, {"PatientID": "P2"}, series="1.2.3.4.6")
    flagged = [report for report in reports(node, 2) if any("study UID" in text for text in texts(report))]
    assert {report.PatientID for report in flagged} >= {"P2"}
    assert node.counters.total("contradictions") == 1


def test_what_the_images_of_a_series_give_differently_is_left_out(start: Start, tmp_path: Path) -> None:
    node = start()
    sent(node, tmp_path, {"AccessionNumber": "A1"}, {"AccessionNumber": "A2"}, {"AccessionNumber": "A1"})
    (report,) = reports(node, 1)
    assert (report.AccessionNumber, report.PatientID) == ("", "P1")
    assert "AccessionNumber is left out: the images of the series differ in it" in set(texts(report))
    assert node.counters.total("contradictions") == 1


def accession_issuer() -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.LocalNamespaceEntityID, item.UniversalEntityID = "RIS", "1.2.3"
    item.UniversalEntityIDType = "ISO"
    return item


def test_numbers_keep_their_issuers(start: Start, tmp_path: Path) -> None:
    node = start(make_config(tmp_path, deliver=Delivery(overlay=True)))
    tags = {"IssuerOfPatientID": "HOSP_A", "IssuerOfAccessionNumberSequence": [accession_issuer()]}
    sent(node, tmp_path, {**tags, "AccessionNumber": "1234567890123456"})
    for written in reports(node, 2):  # the report and its overlay
        assert (written.IssuerOfPatientID, written.AccessionNumber) == ("HOSP_A", "1234567890123456")
        assert written.IssuerOfAccessionNumberSequence == [accession_issuer()]


@pytest.mark.parametrize(
    ("number", "note"), [("ACC-2026-0000000123456789", "25 characters"), (["A", "B"], "several values")]
)
def test_a_number_that_cannot_be_kept_whole_is_absent_with_a_note(
    start: Start, tmp_path: Path, number: str, note: str
) -> None:
    node = start()
    with pydicom.config.disable_value_validation():
        sent(node, tmp_path, {"AccessionNumber": number})
    (report,) = reports(node, 1)
    assert report.AccessionNumber == ""
    assert any(text.startswith("AccessionNumber is left out") and note in text for text in texts(report))


NAMES = [
    ("", "Doe^Jane"),
    ("ISO_IR 100", "Äneas^Rüdiger"),
    ("ISO_IR 101", "Wałęsa^Šťastný"),
    ("ISO_IR 109", "Ĝan^Ĥoro"),
    ("ISO_IR 110", "Ģirts^Ķiploks"),
    ("ISO_IR 144", "Люксембург^Иван"),
    ("ISO_IR 126", "Διονυσιος^Άννα"),
    ("ISO_IR 127", "قباني^لنزار"),
    ("ISO_IR 138", "שרון^דבורה"),
    ("ISO_IR 148", "Çavuşoğlu^Işıl"),
    ("ISO_IR 166", "นาม^สกุล"),
    ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
    ("ISO_IR 192", "Wang^小东=王^小東=왕"),
    ("GB18030", "Wang^XiaoDong=王^小东"),
    ("GBK", "Wang^XiaoDong=王^小东"),
    ("\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ("ISO 2022 IR 13\\ISO 2022 IR 87", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    ("\\ISO 2022 IR 159", "Kan=丂^丄"),
    ("\\ISO 2022 IR 149", "Hong^Gildong=洪^吉洞=홍^길동"),
    ("\\ISO 2022 IR 58", "Zhang^XiaoDong=张^小东"),
    ("\\ISO 2022 IR 100\\ISO 2022 IR 144", "Äneas^Иван"),
    ("ISO 2022 IR 6\\ISO 2022 IR 126\\ISO 2022 IR 101", "Άννα^Šťastný"),
]
_ESCAPES = {
    "100": ("iso8859_1", b"\x1b-A"),
    "144": ("iso8859_5", b"\x1b-L"),
    "126": ("iso8859_7", b"\x1b-F"),
    "101": ("iso8859_2", b"\x1b-B"),
    "149": ("euc_kr", b"\x1b$)C"),
    "58": ("gb2312", b"\x1b$)A"),
}
_WHOLE = {
    "ISO_IR 192": "utf-8",
    "GB18030": "gb18030",
    "GBK": "gbk",
    "ISO_IR 13": "shift_jis",
    "": "ascii",
    "ISO_IR 109": "iso8859_3",
    "ISO_IR 110": "iso8859_4",
    "ISO_IR 127": "iso8859_6",
    "ISO_IR 138": "iso8859_8",
    "ISO_IR 148": "iso8859_9",
    "ISO_IR 166": "iso8859_11",
    **{f"ISO_IR {number}": codec for number, (codec, _) in _ESCAPES.items()},
}


def encoded(sets: str, name: str) -> bytes:
    """Write a name as PS3.5 6.1.2.5 says, each component with escape sequences of its own."""
    if sets in _WHOLE:
        return name.encode(_WHOLE[sets])
    components = [
        _component(sets.split("\\"), part) for group in name.split("=") for part in group.split("^")
    ]
    delimiters = [char.encode() for char in name if char in "^="]
    return b"".join(a + b for a, b in zip(components, [*delimiters, b""], strict=True))


def _component(sets: list[str], text: str) -> bytes:
    if "ISO 2022 IR 13" in sets and text[0] in "ﾔﾀ":
        return text.encode("shift_jis")
    for name in sets[1:]:
        number = name.rpartition(" ")[2]
        try:
            if text.isascii():
                return text.encode()
            if number in ("87", "159"):
                return text.encode("iso2022_jp" if number == "87" else "iso2022_jp_1")
            codec, escape = _ESCAPES[number]
            return escape + text.encode(codec)
        except UnicodeEncodeError:
            continue
    raise AssertionError((sets, text))


@pytest.mark.parametrize(("sets", "name"), NAMES)
def test_names_are_read_as_dcmtk_or_pydicom_reads_them(tmp_path: Path, sets: str, name: str) -> None:
    raw = encoded(sets, name)
    assert character_sets(sets.split("\\")).decode(raw, is_name=True) == name
    path = make_image(tmp_path / "a.dcm", tags={"SpecificCharacterSet": ""})
    # Put into the file as it is: pydicom would write it in its own way.
    content = path.read_bytes()
    for tag, value in ((b"\x10\x00\x10\x00PN", raw), (b"\x08\x00\x05\x00CS", sets.encode())):
        start = content.index(tag) + len(tag)
        length = int.from_bytes(content[start : start + 2], "little")
        padded = value + b" " * (len(value) % 2)
        content = content[:start] + len(padded).to_bytes(2, "little") + padded + content[start + 2 + length :]
    path.write_bytes(content)
    found = read_file_arrival(path, 2**28).identity
    assert (found.header["PatientName"], found.notes) == (name, ())
    if " 87" in sets or " 159" in sets:
        # dcmtk gets no such converter from glibc.
        assert str(pydicom.dcmread(path).PatientName) == name
    else:
        dumped = subprocess.run(["dcmdump", "+U8", "+P", "0010,0010", path], capture_output=True, check=True)
        assert name in dumped.stdout.decode()


@pytest.mark.parametrize(
    ("sets", "raw"),
    [
        ("", b"M\xfcller"),
        ("ISO_IR 100", b"O\x92Neill"),
        ("ISO_IR 192", b"M\xfcller"),
        ("ISO_IR 999", b"M\xfcller"),
        ("\\ISO 2022 IR 58", b"\x1b$)C\xc8\xab"),
        ("ISO_IR 100", b"\x1b$)A\xcd\xf5"),
        ("\\ISO 2022 IR 149", b"\xc8"),
        ("\\ISO 2022 IR 87", b"\x1b$BZ"),
    ],
)
def test_text_that_is_in_no_named_character_set_is_not_guessed(sets: str, raw: bytes) -> None:
    with pytest.raises(UnicodeError):
        character_sets(sets.split("\\")).decode(raw, is_name=True)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "keyword", "value"),
    [
        ("accession-and-issuer/a.dcm", "AccessionNumber", ""),
        ("accession-and-issuer/a.dcm", "IssuerOfPatientID", "HOSP_A"),
        ("charset-ir58/ir58.dcm", "PatientName", "Wang^XiaoDong=王^小东"),
    ],
)
def test_cases_of_headers(real_data: Path, name: str, keyword: str, value: str) -> None:
    arrival = read_file_arrival(real_data.parent / "cases" / "node" / name, 2**28)
    assert arrival.identity.header.get(keyword, "") == value


@pytest.mark.real
def test_case_of_two_patients_in_one_series(start: Start, real_data: Path) -> None:
    folder = real_data.parent / "cases" / "node" / "one-series-two-patients"
    node = start()
    storescu(node.receiver.port, folder / "a.dcm", folder / "b.dcm")
    found = {report.PatientID: images_of(report) for report in reports(node, 2)}
    assert found == {"PAT-A": {uid_of(folder / "a.dcm")}, "PAT-B": {uid_of(folder / "b.dcm")}}
