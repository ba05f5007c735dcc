"""Patients, parts, unlisted files, and what is done about classes of different sizes."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medimg.runtime.data import DataSet, Sample, Split, read_data
from medimg.runtime.data.patients import with_patients
from medimg.runtime.errors import DataError, UsageError
from medimg.train.data.balance import balanced_order, class_weights, image_weights
from medimg.train.data.division import divide, read_division, read_labelled
from medimg.train.fitting.options import FitOptions
from medimg.train.simulation.secondary_capture import write_secondary_capture


def picture(path: Path, level: int = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((32, 32), level, np.uint8))
    return path


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two classes, six patients in each with four images each; the folder of a patient is in the path."""
    for kind in ("cyst", "normal"):
        for patient in range(6):
            for number in range(4):
                picture(tmp_path / "set" / kind / f"{kind}-p{patient}" / f"{number}.png")
    return tmp_path / "set"


def patients_of(dataset: DataSet) -> set[str | None]:
    return {sample.patient for sample in dataset.samples}


@pytest.mark.parametrize("pattern", [r"/([a-z]+-p\d)/", r"(?P<number>x)?/(?P<patient>\w+-p\d)/"])
@pytest.mark.parametrize("seed", range(3))
def test_a_pattern_keeps_patients_together(pattern: str, seed: int, studies: Path) -> None:
    division = read_division(studies, FitOptions(group_by=pattern, seed=seed), 2)
    train, validation = patients_of(division.train), patients_of(division.validation)
    assert train | validation == {f"{kind}-p{n}" for kind in ("cyst", "normal") for n in range(6)}
    assert not train & validation
    assert np.bincount(division.validation.truth).tolist() == [8, 8]


def test_without_a_pattern_images_of_a_patient_part(studies: Path) -> None:
    division = read_division(studies, FitOptions(), 2)
    folders = [{Path(s.name).parent for s in part.samples} for part in (division.train, division.validation)]
    assert folders[0] & folders[1]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("p[0-9]", "has no group"),
        ("(p", "is no regular expression"),
        ("(?P<who>p", "is no regular expression"),
    ],
)
def test_patterns_that_are_wrong(pattern: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"{re.escape(repr(pattern))} {reason}"):
        FitOptions(group_by=pattern)


@pytest.mark.parametrize(
    ("pattern", "missed"), [("(nobody)", 48), (r"(cyst)", 24), (r"cyst-p(\d)|normal", 24), ("(x?)", 48)]
)
def test_a_pattern_must_find_a_patient_in_every_path(pattern: str, missed: int, studies: Path) -> None:
    with pytest.raises(DataError, match=rf"finds no patient in {missed} of 48 paths \((cyst|normal)/"):
        read_division(studies, FitOptions(group_by=pattern), 2)


def test_a_patient_in_two_named_parts(tmp_path: Path) -> None:
    for name in ("train/a/p1-1.png", "train/b/p2-1.png", "test/a/p3-1.png", "test/b/p2-2.png"):
        picture(tmp_path / name)
    with pytest.raises(
        DataError, match=r"b/p2-\d\.png \(in \w+\) and .*b/p2-\d\.png .* one patient"
    ) as caught:
        read_labelled(tmp_path, FitOptions(group_by=r"/(p\d)-"), 1)
    assert "put all images of a patient into one part" in str(caught.value)
    assert len(read_labelled(tmp_path, FitOptions(group_by=r"/(p\d-\d)"), 1)) == 4


def test_a_pattern_overrules_the_table(tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "b1.png", "b2.png"):
        picture(tmp_path / name)
    table = tmp_path / "set.csv"
    table.write_text("path,label,patient\na1.png,x,P\na2.png,x,P\nb1.png,y,Q\nb2.png,y,R\n")
    assert patients_of(read_labelled(table, FitOptions(), 1)) == {"P", "Q", "R"}
    assert patients_of(read_labelled(table, FitOptions(group_by="^(.)"), 1)) == {"a", "b"}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """DICOM files of two classes: three patients in each, with three images each."""
    for kind in ("cyst", "normal"):
        (tmp_path / "scans" / kind).mkdir(parents=True)
        for number in range(9):
            path = tmp_path / "scans" / kind / f"IM{number:04d}"
            write_secondary_capture(path, np.full((8, 8), 9, np.uint8), f"{kind} patient {number // 3}")
    return tmp_path / "scans"


def test_dicom_names_the_patient(scans: Path) -> None:
    division = read_division(scans, FitOptions(), 2)
    sides = [patients_of(part) for part in (division.train, division.validation)]
    assert sides[0] | sides[1] == {f"{kind} patient {n}" for kind in ("cyst", "normal") for n in range(3)}
    assert not sides[0] & sides[1]
    assert np.bincount(division.validation.truth).tolist() == [3, 3]


def test_a_dicom_patient_in_two_parts_is_not_named(scans: Path) -> None:
    for part in ("train", "val"):
        for kind in ("cyst", "normal"):
            (scans / part / kind).mkdir(parents=True)
    for kind in ("cyst", "normal"):
        for number, path in enumerate(sorted((scans / kind).glob("IM*"))):
            path.rename(scans / ("train" if number < 7 else "val") / kind / path.name)
        (scans / kind).rmdir()
    with pytest.raises(
        DataError, match=r"cyst/IM000\d \(in train\) and val/cyst/IM0007 \(in val\)"
    ) as caught:
        read_division(scans, FitOptions(), 2)
    assert "patient 2" not in str(caught.value)
    apart = read_division(scans, FitOptions(group_by="(.+)"), 2)
    assert (len(apart.train), len(apart.validation)) == (14, 4)


def test_dicom_files_of_one_patient_and_damaged_ones(scans: Path) -> None:
    """Files without a PatientID, and those that cannot be read, count as patients of their own."""
    from pydicom import dcmread

    for number, path in enumerate(sorted(scans.rglob("IM*"))):
        file = dcmread(path)
        file.PatientID = "" if number % 2 else "one"
        file.save_as(path)
    (scans / "cyst" / "IM0000").write_bytes(b"\0" * 128 + b"DICM damaged")
    patients = [sample.patient for sample in with_patients(read_data(scans), None, 2).samples]
    assert set(patients) == {None, "one"}
    assert patients.count("one") == 8


def test_dicom_files_that_all_name_one_patient(scans: Path) -> None:
    from pydicom import dcmread

    for path in scans.rglob("IM*"):
        file = dcmread(path)
        file.PatientID = "ANONYMOUS"
        file.save_as(path)
    with pytest.raises(DataError, match="all DICOM files name the same patient") as caught:
        read_division(scans, FitOptions(), 2)
    assert "ANONYMOUS" not in str(caught.value)
    assert len(read_division(scans, FitOptions(group_by="(.+)"), 2).train) == 12


def test_images_that_a_table_leaves_out(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.JPG", "more/d.png", "elsewhere/e.png"):
        picture(tmp_path / name)
    (tmp_path / "README").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.png").touch()
    table = tmp_path / "set.csv"
    table.write_text("path,label\na.png,x\nmore/../b.png,y\n")
    with pytest.raises(DataError, match=r"no row for 1 images beside those it lists \(c\.JPG\)"):
        read_division(table, FitOptions(), 1)
    table.write_text("path,label\nc.JPG,x\nmore/d.png,y\n")
    with pytest.raises(DataError, match=r"no row for 2 images .* \(a\.png, b\.png\): .* --allow-unlisted"):
        read_division(table, FitOptions(), 1)
    assert len(read_labelled(table, FitOptions(allow_unlisted=True), 1)) == 2


def test_images_beside_a_table_are_told_by_content(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "scan.image", "bare"):
        picture(tmp_path / "drawn.png").rename(tmp_path / name)
    (tmp_path / "notes.image").write_text("no image")
    table = tmp_path / "set.csv"
    table.write_text("path,label\na.png,x\nb.png,y\n")
    with pytest.raises(DataError, match=r"no row for 2 images beside those it lists \(bare, scan\.image\)"):
        read_division(table, FitOptions(), 1)


def test_multi_label_parts_need_every_class() -> None:
    shown: list[tuple[Split, tuple[int, ...]]] = [
        ("train", (0, 1)),
        ("train", ()),
        ("val", (0,)),
        ("val", (1,)),
        ("val", ()),
    ]
    samples = tuple(
        Sample(str(number), Path(str(number)), split=split, classes=classes)
        for number, (split, classes) in enumerate(shown)
    )
    division = divide(DataSet(("a", "b"), samples, "multilabel"), FitOptions(head="multilabel"))
    assert (len(division.train), len(division.validation)) == (2, 3)
    with pytest.raises(DataError, match="class 'b' has no image in the part val"):
        divide(DataSet(("a", "b"), samples[:3], "multilabel"), FitOptions(head="multilabel"))


@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=5), seed=st.integers(0, 2**32))
def test_balanced_sampling_shows_every_class_alike_often(counts: list[int], seed: int) -> None:
    truth = np.repeat(np.arange(len(counts)), counts)
    order = balanced_order(truth, np.random.default_rng(seed))
    assert len(order) == len(truth)
    shown = np.bincount(truth[order], minlength=len(counts))
    assert shown.max() - shown.min() <= 1
    times = np.bincount(order, minlength=len(truth))
    for label in range(len(counts)):
        assert np.ptp(times[truth == label]) <= 1
    np.testing.assert_array_equal(order, balanced_order(truth, np.random.default_rng(seed)))


def test_class_weights_give_every_class_the_same_sum() -> None:
    truth = np.repeat(np.arange(3), (1, 20, 300))
    weights = class_weights(truth, 3, "weights")
    np.testing.assert_allclose(weights * np.bincount(truth), len(truth) / 3, rtol=1e-6)
    assert (
        class_weights(truth, 3, "none").tolist() == class_weights(truth, 3, "sampling").tolist() == [1, 1, 1]
    )
    several = np.array([[1, 1], [0, 1]])
    assert image_weights(several, several, 2, "weights").tolist() == [1, 1]


def test_balance_by_sampling_needs_one_class_an_image() -> None:
    with pytest.raises(UsageError, match="of which multilabel has several"):
        FitOptions(head="multilabel", balance="sampling")
