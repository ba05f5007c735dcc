"""DATA as people and spreadsheets leave it: read rightly, or refused; nothing is dropped in silence."""

import logging
import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medimg.runtime.data import DataSet, read_data
from medimg.runtime.errors import DataError, ModelError
from medimg.runtime.files.class_names import ambiguity_of, fault_of, same_class
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.spec import Intensity, ModelSpec

PICTURE = cv2.imencode(".png", np.full((8, 8, 3), 50, np.uint8))[1].tobytes()


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PICTURE)
    return folder


def table(folder: Path, *labels: str, header: str = "path,label") -> DataSet:
    pictures(folder, *(f"{number}.png" for number in range(len(labels))))
    rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    (folder / "t.csv").write_text(f"{header}\n{rows}", encoding="utf-8")
    return read_data(folder / "t.csv")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("0", "1", "1.0"), ("0", "1")),
        (("0.0", "1.0", "10.0", "2.0"), ("0", "1", "2", "10")),
        (("1.5", "1.0", "1"), ("1", "1.0", "1.5")),
        (("01", "02"), ("01", "02")),
        (("1.0", "x"), ("1.0", "x")),
        ((unicodedata.normalize("NFD", "é"), "é", "e"), ("e", "é")),
    ],
)
def test_one_class_has_one_name(labels: tuple[str, ...], classes: tuple[str, ...], tmp_path: Path) -> None:
    found = table(tmp_path, *labels)
    assert set(found.labels) == set(classes)
    forms = same_class(labels)
    assert [found.labels[int(label)] for label in found.truth] == [forms[label] for label in labels]


def test_names_that_are_one_number_or_differ_in_case(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match="'01' and '1' are the same number"):
        table(tmp_path, "01", "1", "2")
    with caplog.at_level(logging.WARNING):
        table(tmp_path, "Benign", "benign")
    assert "the classes 'Benign' and 'benign' differ in nothing but case" in caplog.text


@given(names=st.sets(st.text(max_size=6), max_size=5))
def test_any_names_have_one_form_each_or_a_fault(names: set[str]) -> None:
    forms = same_class(names)
    assert forms.keys() == names
    assert same_class(set(forms.values())) == {form: form for form in forms.values()}
    ambiguity_of(set(forms.values()))
    if fault_of(names) is None:
        assert all(name.strip() and name.isprintable() for name in names)


def test_the_models_own_form_of_a_name_counts(tmp_path: Path) -> None:
    found = table(tmp_path, "0", "1", "1.0")
    assert found.relabelled(("1.0", "0.0")).truth.tolist() == [1, 0, 0]
    assert found.relabelled(("1", "0")).truth.tolist() == [1, 0, 0]
    with pytest.raises(DataError, match="class '1' of the data is not one"):
        found.relabelled(("0", "one"))


@pytest.mark.parametrize("name", ["\ufeffnormal", "a\x1b[31m", "a\nb", "\ud800", "", "  "])
def test_no_model_has_a_class_that_cannot_be_shown(name: str) -> None:
    with pytest.raises(ModelError, match=r"cannot be shown|has no name"):
        ModelSpec(("x", name), ImageRule(8, 8), Intensity("raw"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{}.png,Pneumonia, viral\n", "line 2 has 3 cells where the header has 2"),
        ("{}.png,x,train\n", "line 2 has 3 cells where the header has 2"),
    ],
)
def test_cells_beyond_the_header_are_not_dropped(row: str, reason: str, tmp_path: Path) -> None:
    pictures(tmp_path, "0.png", "1.png")
    (tmp_path / "t.csv").write_text("path,label\n" + row.format(0) + row.format(1))
    with pytest.raises(DataError, match=reason):
        read_data(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "a/" * 2500, "no\udcff.png"])
def test_a_table_may_name_what_no_file_can_have(name: str, tmp_path: Path) -> None:
    content = f"path,label\n{name},x\n".encode("utf-8", "backslashreplace")
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match="1 of 1 files do not exist"):
        read_data(tmp_path / "t.csv")


def test_a_folder_is_read_by_content_and_says_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = pictures(tmp_path / "set", "a/1.png", "a/2.IMA", "b/1.png", "b/2.xyz", "b/DICOMDIR")
    (root / "a" / "3.webp").write_bytes(b"RIFF\0\0\0\0WEBPVP8 ")
    (root / "b" / "4.WEBP").write_bytes(b"RIFF\0\0\0\0WEBPVP8 ")
    (root / "b" / "5.gif").write_bytes(b"GIF89a")
    (root / "b" / "table.csv").write_bytes(b"BMI,age\n")
    (root / "b" / "scan.raw").write_bytes(bytes(128) + b"DICM" + bytes(8))
    os.mkfifo(root / "b" / "pipe.fifo")
    with caplog.at_level(logging.WARNING):
        found = read_data(root)
    assert [sample.name for sample in found.samples] == [
        "a/1.png",
        "a/2.IMA",
        "b/1.png",
        "b/2.xyz",
        "b/scan.raw",
    ]
    assert found.left_out == {".webp": 2, ".gif": 1, ".fifo": 1}
    assert "4 files left out (.webp 2, " in caplog.text
    caplog.clear()
    assert read_data(root / "b", labelled=False).left_out == {".webp": 1, ".gif": 1, ".fifo": 1}
    parts = pictures(tmp_path / "parts", "train/a/1.png", "train/b/1.png", "test/a/1.png")
    (parts / "test" / "a" / "2.gif").write_bytes(b"GIF89a")
    (parts / "readme.txt").write_text("of what these are")
    assert read_data(parts).left_out == {".gif": 1}


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(DataError, match="an empty name is no data set"):
        read_data("")


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".csv", "/dev/null", "no\0name.csv"])
def test_what_is_no_data_set_has_its_reason(name: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_data(name)


@pytest.mark.real
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("csv-extra-cells/unquoted-comma.csv", "line 2 has 3 cells where the header has 2"),
        ("csv-extra-cells/split-without-header.csv", "line 2 has 3 cells where the header has 2"),
        ("folder-skips-images/mixed", {".webp": 12, ".gif": 4}),
        ("folder-skips-images/ima", {}),
    ],
)
def test_cases(case: str, expected: str | dict[str, int], real_data: Path) -> None:
    path = real_data.parent / "cases" / "data" / case
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read_data(path)
    else:
        found = read_data(path)
        assert found.left_out == expected
        assert len(found) == (12 if expected else 4)
