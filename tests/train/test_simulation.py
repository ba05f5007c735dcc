from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from medimg.runtime.data import read_data
from medimg.runtime.errors import UsageError
from medimg.runtime.images.load import load_image
from medimg.runtime.images.rule import ImageRule
from medimg.train import simulate
from medimg.train.simulation.simulate import LESIONS, is_simulated, simulate_image

RULE = ImageRule(64, 64)


def test_folders_are_a_data_set_with_both_parts(simulated: Path) -> None:
    data = read_data(simulated)
    assert data.labels == tuple(sorted(LESIONS))
    assert (len(data.part("train")), len(data.part("test"))) == (4 * 8, 4 * 2)


def test_images_do_not_depend_on_how_many_are_made(simulated: Path, tmp_path: Path) -> None:
    simulate(tmp_path, train=2, test=1, size=64)
    for path in tmp_path.rglob("*.png"):
        assert path.read_bytes() == (simulated / path.relative_to(tmp_path)).read_bytes()


def test_no_image_is_there_twice(simulated: Path) -> None:
    contents = {path.read_bytes() for path in simulated.rglob("*.png")}
    assert len(contents) == 4 * 10


def test_seeds_differ(tmp_path: Path) -> None:
    simulate(tmp_path / "a", train=1, test=0, size=64)
    simulate(tmp_path / "b", train=1, test=0, size=64, seed=1)
    name = Path("train/cyst/cyst-0000.png")
    assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "b" / name).read_bytes()


def test_dicom_holds_the_same_pixels_and_says_what_it_is(simulated: Path, tmp_path: Path) -> None:
    simulate(tmp_path, train=1, test=0, size=64, file_format="dicom")
    for path in tmp_path.rglob("*.dcm"):
        png = (simulated / path.relative_to(tmp_path)).with_suffix(".png")
        np.testing.assert_array_equal(load_image(path, RULE), load_image(png, RULE))
        dataset = pydicom.dcmread(path)
        assert dataset.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
        assert dataset.ConversionType == "SYN"
        assert "Simulated" in dataset.ImageComments
        assert str(dataset.PatientName) == "SIMULATED^IMAGE"


def test_dicom_of_odd_size_and_distinct_identifiers(tmp_path: Path) -> None:
    simulate(tmp_path, train=2, test=0, size=33, file_format="dicom")
    files = [pydicom.dcmread(path) for path in tmp_path.rglob("*.dcm")]
    assert len({file.SOPInstanceUID for file in files}) == len(files) == 8
    assert all(file.pixel_array.shape == (33, 33) for file in files)


@pytest.mark.parametrize(
    ("kind", "brighter_below"), [("cyst", True), ("calcification", False), ("solid", False)]
)
def test_lesions_enhance_or_shadow_what_lies_below(kind: str, brighter_below: bool) -> None:
    """Near the bottom, the column that stands out most lies below the lesion."""
    extremes = []
    for seed in range(40):
        image = simulate_image(kind, 160, np.random.default_rng(seed)).astype(np.float32)
        bottom = cv2.blur(image[120:], (9, 1)).mean(axis=0)
        contrast = bottom - np.median(bottom)
        extremes.append(contrast[np.abs(contrast).argmax()])
    standard_errors = np.mean(extremes) / (np.std(extremes) / np.sqrt(len(extremes)))
    assert (standard_errors if brighter_below else -standard_errors) > 3


def test_raw_pixels_do_not_give_the_class_away(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    def pixels(kind: str, seeds: range) -> list[np.ndarray]:
        images = (simulate_image(kind, 160, np.random.default_rng([seed, len(kind)])) for seed in seeds)
        return [cv2.resize(image, (64, 64)).ravel() / 255 - 0.5 for image in images]

    train, test = ([pixels(kind, seeds) for kind in LESIONS] for seeds in (range(100), range(1000, 1050)))
    truth = [np.repeat(range(4), len(part[0])) for part in (train, test)]
    model = LogisticRegression(C=0.1, tol=1e-2).fit(np.concatenate(train), truth[0])
    assert model.score(np.concatenate(test), truth[1]) < 0.70


def test_marker_is_found_from_the_set_and_its_parts(simulated: Path, tmp_path: Path) -> None:
    assert is_simulated(simulated)
    assert is_simulated(simulated / "train")
    assert not is_simulated(tmp_path)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        simulate(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"test": -1}, {"size": 16}, {"size": 4096}])
def test_senseless_numbers_are_refused_before_anything_is_written(
    wrong: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="cannot simulate"):
        simulate(tmp_path / "new", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be used as a folder"):
        simulate(tmp_path / "file" / "data")
