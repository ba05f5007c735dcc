"""The image that training sees is, byte for byte, the array that the back end is given."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime.classifier import Classifier
from medimg.runtime.data import DataSet, Sample
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.tasks import Arrays
from medimg.train.data.array_store import ArrayStore
from medimg.train.data.decoded_images import cache_images
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.progress import Progress

SIZE = 32


class Recorder:
    """A back end that keeps what it is given."""

    name, device, precision = "recorder", "cpu", "fp32"
    parallel, batch_size = 1, 1

    def __init__(self) -> None:
        self.images: list[NDArray[Any]] = []

    def infer(self, images: NDArray[Any], outputs: Sequence[str] = ("probabilities",)) -> Arrays:
        self.images.append(images)
        return dict.fromkeys(outputs, np.full((len(images), 3), 1 / 3, np.float32))

    def close(self) -> None:
        pass


def written(folder: Path) -> list[Path]:
    """Write a picture of each kind that OpenCV writes: grey, colour, alpha, 16 bits, in each format."""
    generator = np.random.default_rng(0)
    colour = cv2.GaussianBlur(generator.integers(0, 256, (90, 70, 4), dtype=np.uint8), (0, 0), 2)
    deep = cv2.GaussianBlur(generator.integers(0, 65536, (90, 70, 3), dtype=np.uint16), (0, 0), 2)
    kinds = {
        "grey": (colour[..., 0], ".png .jpg .tiff .bmp"),
        "colour": (colour[..., :3], ".png .jpg .tiff .bmp"),
        "alpha": (colour, ".png"),
        "deep": (deep, ".png"),
        "deep-grey": (deep[..., 0], ".png .tiff"),
    }
    paths = [
        folder / f"{kind}{suffix}" for kind, (_, suffixes) in kinds.items() for suffix in suffixes.split()
    ]
    for path in paths:
        assert cv2.imwrite(str(path), kinds[path.stem][0])
    return paths


def check(paths: list[Path], small_artefact: Path, folder: Path) -> None:
    samples = tuple(Sample(path.name, path, label=0) for path in paths)
    job = Job(ArrayStore(folder), 2, Progress(), FitOptions(image_size=SIZE))
    trained = cache_images(DataSet(("one",), samples), job.options.image, job.options, job, "images").images
    with Classifier(small_artefact) as classifier:
        assert classifier.spec.image == ImageRule(SIZE, SIZE) == job.options.image
        recorder = Recorder()
        classifier.backend.close()
        classifier.backend = recorder
        assert all(answer.error is None for answer in classifier.predict(paths, batch_size=4))
    np.testing.assert_array_equal(np.concatenate(recorder.images), trained)
    assert trained.std() > 5


def test_written_pictures(small_artefact: Path, tmp_path: Path) -> None:
    check(written(tmp_path), small_artefact, tmp_path)


@pytest.mark.real
def test_real_files(small_artefact: Path, tmp_path: Path, real_data: Path, brain_mri: Path) -> None:
    scans = sorted((brain_mri / "test" / "no_tumor").iterdir())[:20]
    dicom = [
        real_data / "dicom" / "cornerstone" / name
        for name in (
            "CTImage.dcm",
            "CTImage.dcm_RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm",
            "CTImage.dcm_JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm",
            "CTImage.dcm_JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90.dcm",
            "US-YBR_FULL_422-EVRLE.dcm",
        )
    ]
    check([*scans, *dicom], small_artefact, tmp_path)


@pytest.mark.real
def test_a_folder_with_bad_files_among_real_ones(
    small_artefact: Path, tmp_path: Path, real_data: Path, brain_mri: Path
) -> None:
    good = sorted((brain_mri / "test" / "no_tumor").iterdir())[0]
    whole = good.read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole)
    (tmp_path / "b-truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "c-empty.png").touch()
    (tmp_path / "d-text.png").write_text("not a picture")
    nothing = real_data / "dicom" / "cornerstone" / "no-pixel-data.dcm"
    (tmp_path / "e-no-pixels.dcm").write_bytes(nothing.read_bytes())
    (tmp_path / "f.jpg").write_bytes(whole)
    with Classifier(small_artefact) as classifier:
        answers = list(classifier.predict(sorted(tmp_path.iterdir())))
    assert [answer.error is None for answer in answers] == [True, False, False, False, False, True]
    reasons = [answer.error.message for answer in answers if answer.error]
    assert len({reason.partition(": ")[2] for reason in reasons}) == 4
