from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from medimg.runtime.errors import UsageError
from medimg.runtime.model.preprocess import Images
from medimg.train.data.augmentation import (
    NO_AUGMENTATION,
    PRESETS,
    Augmentation,
    Copies,
    augment,
    read_augmentation,
)
from medimg.train.data.contact_sheet import write_contact_sheet


@pytest.fixture(scope="module")
def image() -> Images:
    """A blurred blob left of the centre and above it, on grey."""
    pixels = np.full((96, 96, 3), 60, np.uint8)
    cv2.circle(pixels, (30, 36), 12, (180, 180, 180), -1)
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 2)[None], np.uint8)


def copies(image: Images, count: int = 40, **settings: float | bool) -> Images:
    seeds = [(7, copy) for copy in range(count)]
    return augment(image.repeat(count, axis=0), Augmentation(**settings), seeds)  # type: ignore[arg-type]


def blob(image: Images) -> tuple[float, float]:
    """Where the bright blob is, `(column, row)`."""
    rows, columns = np.nonzero(image[..., 0] > 120)
    return float(columns.mean()), float(rows.mean())


def test_nothing_changes_unless_asked(image: Images) -> None:
    assert not NO_AUGMENTATION.changes
    np.testing.assert_array_equal(copies(image, 3), image.repeat(3, axis=0))


def test_flips_are_exact_and_half_of_the_copies(image: Images) -> None:
    for setting, flipped in (("flip_horizontal", image[0, :, ::-1]), ("flip_vertical", image[0, ::-1])):
        made = copies(image, 100, **{setting: True})
        same = [np.array_equal(copy, image[0]) for copy in made]
        assert all(same[n] or np.array_equal(copy, flipped) for n, copy in enumerate(made))
        assert 30 < sum(same) < 70


def test_translation_moves_within_its_share(image: Images) -> None:
    shifts = np.array([blob(copy) for copy in copies(image, translation=0.1)]) - blob(image[0])
    assert 5 < np.abs(shifts).max() <= 0.1 * 96 + 0.5


def test_rotation_is_about_the_centre_and_within_its_degrees(image: Images) -> None:
    centre = 47.5
    places = np.array([blob(copy) for copy in copies(image, rotation=20)]) - centre
    column, row = np.array(blob(image[0])) - centre
    angles = np.rad2deg(np.arctan2(places[:, 1], places[:, 0]) - np.arctan2(row, column))
    angles = (angles + 180) % 360 - 180
    assert 10 < np.abs(angles).max() <= 20.5
    np.testing.assert_allclose(np.hypot(*places.T), np.hypot(column, row), atol=0.5)


@pytest.mark.parametrize(("setting", "smallest", "largest"), [("zoom", 0.68, 1.33), ("crop", 0.99, 1.45)])
def test_scale_is_within_its_share(image: Images, setting: str, smallest: float, largest: float) -> None:
    area = (image[0, ..., 0] > 120).sum()
    sides = [np.sqrt((copy[..., 0] > 120).sum() / area) for copy in copies(image, 40, **{setting: 0.3})]
    assert smallest <= min(sides)
    assert 1.1 < max(sides) <= largest


def test_a_crop_shows_nothing_from_outside_the_image(image: Images) -> None:
    assert copies(image, crop=0.4).min() >= 55


def test_brightness_and_contrast_keep_within_the_range(image: Images) -> None:
    brighter = copies(image, brightness=0.2).mean(axis=(1, 2, 3)) - image.mean()
    assert 25 < np.abs(brighter).max() <= 51.5
    contrast = copies(image, contrast=0.3).std(axis=(1, 2, 3)) / image.std()
    assert 0.69 < contrast.min() < 0.9
    assert 1.1 < contrast.max() < 1.31


def test_noise_keeps_grey_images_grey(image: Images) -> None:
    noisy = copies(image, noise=0.05)
    assert (noisy == noisy[..., :1]).all()
    deviations = (noisy.astype(float) - image).std(axis=(1, 2, 3))
    assert 5 < deviations.max() < 13.5


def test_a_copy_can_be_made_again_and_alone(image: Images) -> None:
    preset = read_augmentation("ultrasound")
    seeds = [(0, copy) for copy in range(4)]
    four = augment(image.repeat(4, axis=0), preset, seeds)
    np.testing.assert_array_equal(augment(image, preset, seeds[2:3])[0], four[2])
    assert not np.array_equal(four[1], four[2])


def test_the_fixed_set_begins_with_the_images(image: Images) -> None:
    images = np.concatenate([image, 255 - image, image // 2])
    whole = np.concatenate(list(Copies(read_augmentation("microscopy"), 3, 0).batches(images, 2)))
    assert len(whole) == 9
    np.testing.assert_array_equal(whole[:3], images)
    again = np.concatenate(list(Copies(read_augmentation("microscopy"), 3, 0).batches(images, 3)))
    np.testing.assert_array_equal(whole, again)
    other = np.concatenate(list(Copies(read_augmentation("microscopy"), 3, 1).batches(images, 3)))
    assert not np.array_equal(whole, other)


def test_presets() -> None:
    assert {name: read_augmentation(name).changes for name in PRESETS} == {
        "none": False,
        "xray": True,
        "microscopy": True,
        "ultrasound": True,
    }
    assert not read_augmentation("xray").flip_horizontal
    assert not read_augmentation("xray").flip_vertical


def test_settings_change_a_preset() -> None:
    expected = replace(read_augmentation("xray"), rotation=3.0, flip_vertical=True)
    assert read_augmentation("rotation=3, xray,flip_vertical=yes") == expected


@pytest.mark.parametrize("name", PRESETS)
def test_an_augmentation_is_written_as_it_is_read(name: str) -> None:
    augmentation = read_augmentation(name)
    assert read_augmentation(str(augmentation)) == augmentation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("xrays", "'xrays' is neither a preset"),
        ("xray,microscopy", "name one preset"),
        ("turn=3", "there is no 'turn'"),
        ("flip_vertical=1", "flip_vertical=yes"),
        ("rotation=much", "'much' is no number"),
        ("rotation=200", "rotation 200 is not within 0 to 180"),
        ("noise=-1", "noise -1 is not within"),
        ("zoom=nan", "zoom nan is not within"),
    ],
)
def test_words_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_augmentation(text)


def test_a_contact_sheet_says_what_it_holds(simulated: Path, tmp_path: Path) -> None:
    shown = write_contact_sheet(
        simulated,
        tmp_path / "sheet.png",
        read_augmentation("ultrasound"),
        images=5,
        copies=3,
        image_size=64,
    )
    assert (tmp_path / "sheet.png").stat().st_mode & 0o777 == 0o600
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert shown == 5
    assert sheet is not None
    assert sheet.shape == (28 + 5 * 164, 4 * 164, 3)
    assert sheet[:28].max() == 255


@pytest.mark.parametrize("name", ["sheet.jpg", "absent/sheet.png"])
def test_a_contact_sheet_that_cannot_be_written(name: str, simulated: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sheet"):
        write_contact_sheet(simulated, tmp_path / name, NO_AUGMENTATION)
