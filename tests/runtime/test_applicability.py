"""What a model is for: DICOM files of other kinds are refused by name, other files state nothing."""

from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset

from medimg.benchmarks.queries import read_queries
from medimg.runtime.classifier import Classifier
from medimg.runtime.errors import DataError, ImageError, ModelError, NotApplicableError
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.applicability import require_applicable
from medimg.runtime.model.spec import Allowed


def scan(path: Path, modality: str | None = "CT", body_part: str | None = "CHEST") -> Path:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    if modality is not None:
        dataset.Modality = modality
    if body_part is not None:
        dataset.BodyPartExamined = body_part
    dataset.Rows = dataset.Columns = 8
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = bytes(64)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    ("allowed", "reason"),
    [
        (Allowed(), None),
        (Allowed(modality=("ct", "MR")), None),
        (Allowed(modality=("DX",)), "its modality is CT; the model is for DX"),
        (Allowed(modality=("CT",), body_part=("BREAST",)), "its body part is CHEST; the model is for BREAST"),
        (Allowed(photometric_interpretation=("RGB",)), "its photometric interpretation is MONOCHROME2"),
    ],
)
def test_a_header_is_held_against_what_the_model_is_for(
    allowed: Allowed, reason: str | None, tmp_path: Path
) -> None:
    for name in ("scan.dcm", "scan", "scan.IMA"):
        path = scan(tmp_path / name)
        if reason is None:
            require_applicable(path, allowed)
        else:
            with pytest.raises(NotApplicableError, match=reason):
                require_applicable(path, allowed)


def test_what_is_not_stated_is_not_allowed_and_pictures_state_nothing(tmp_path: Path) -> None:
    allowed = Allowed(modality=("CT",), body_part=("CHEST",))
    for missing, name in ((("", "CHEST"), "modality"), (("CT", None), "body part")):
        with pytest.raises(NotApplicableError, match=f"its {name} is not stated"):
            require_applicable(scan(tmp_path / "a.dcm", *missing), allowed)
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((8, 8), np.uint8))
    require_applicable(tmp_path / "b.png", allowed)
    (tmp_path / "c.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    with pytest.raises(ImageError, match=r"c\.dcm: "):
        require_applicable(tmp_path / "c.dcm", allowed)


def test_a_classifier_answers_for_the_others(ready_artefact: Path, tmp_path: Path) -> None:
    paths = [scan(tmp_path / "ct.dcm"), scan(tmp_path / "dx.dcm", "DX"), tmp_path / "a.png"]
    cv2.imwrite(str(paths[2]), np.zeros((8, 8), np.uint8))
    with Classifier(ready_artefact) as classifier:
        classifier.spec = classifier.spec.with_(allowed=Allowed(modality=("DX",)))
        refused, *answered = classifier.predict(paths)
        assert refused.error
        assert refused.error.type == "NotApplicableError"
        assert refused.error.message == f"{paths[0]}: its modality is CT; the model is for DX"
        assert all(answer.top_k for answer in answered)
        classifier.spec = classifier.spec.with_(labels=("a", "b"))
        with pytest.raises(ModelError, match="names 2 classes: export it again"):
            list(classifier.predict(paths[2:]))


def test_a_benchmark_leaves_out_what_the_model_is_not_for(tmp_path: Path) -> None:
    scan(tmp_path / "ct.dcm")
    with pytest.raises(DataError, match="its modality is CT; the model is for DX"):
        read_queries(tmp_path, ImageRule(8, 8), 1, allowed=Allowed(modality=("DX",)))
    scan(tmp_path / "dx.dcm", "DX")
    found = read_queries(tmp_path, ImageRule(8, 8), 1, allowed=Allowed(modality=("DX",)))
    assert [sample.name for sample in found.samples] == ["dx.dcm"]
    assert "1 images are left out" in found.warnings[0]
