"""Unreadable images, sizes, duplicates: what is found before anything is trained."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from medimg.runtime.data import DataSet, Sample, read_data
from medimg.runtime.errors import DataError, NotApplicableError, UsageError
from medimg.runtime.images.rule import ImageRule
from medimg.train.cli import cli
from medimg.train.data.array_store import ArrayStore
from medimg.train.data.check import check
from medimg.train.data.decoded_images import DecodedImages, cache_images
from medimg.train.data.duplicates import NEAR_BITS, Duplicates, find_duplicates, fingerprints, picture_hash
from medimg.train.fitting.fit import fit
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.fitting.summary import data_lines
from medimg.train.intended_use import Usage
from medimg.train.progress import Progress
from medimg.train.simulation.secondary_capture import write_secondary_capture
from medimg.train.simulation.simulate import simulate_image

SIZE = 64
OPTIONS = FitOptions(image_size=SIZE)


def scan(seed: int) -> NDArray[np.uint8]:
    return simulate_image("normal", SIZE, np.random.default_rng(seed))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty images in two classes."""
    for number in range(40):
        path = tmp_path / "set" / ("cyst" if number % 2 else "normal") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), scan(number))
    return tmp_path / "set"


def cached(dataset: DataSet, job: Job, rule: ImageRule | None = None) -> DecodedImages:
    return cache_images(dataset, rule or job.options.image, job.options, job, "images")


def job(tmp_path: Path, options: FitOptions = OPTIONS) -> Job:
    store = tmp_path / "store"
    store.mkdir(exist_ok=True)
    return Job(ArrayStore(store), 2, Progress(), options)


def spoil(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (path,) = folder.rglob(f"{number:02d}.png")
        path.write_bytes(path.read_bytes()[:100])


# Unreadable images.


def test_unreadable_images_are_left_out_up_to_a_limit(folder: Path, tmp_path: Path) -> None:
    dataset = read_data(folder)
    whole = cached(dataset, job(tmp_path))
    spoil(folder, 3, 16)
    tolerant = job(tmp_path, replace(OPTIONS, max_unreadable="2"))
    made = cached(dataset, tolerant)
    found = cached(dataset, tolerant)
    kept = [not sample.name.endswith(("03.png", "16.png")) for sample in dataset.samples]
    for decoded in (made, found):
        assert decoded.unreadable == (
            "cyst/03.png: a truncated PNG",
            "normal/16.png: a truncated PNG",
        )
        np.testing.assert_array_equal(decoded.images, whole.images[kept])
        assert len(decoded.dataset) == 38
        np.testing.assert_array_equal(decoded.dataset.truth, dataset.truth[kept])
    assert made.key == found.key != whole.key


@pytest.mark.parametrize("limit", ["0", "1", "1%", "4.9%"])
def test_more_unreadable_images_than_allowed(limit: str, folder: Path, tmp_path: Path) -> None:
    spoil(folder, 3, 16)
    dataset, strict = read_data(folder), job(tmp_path, replace(OPTIONS, max_unreadable=limit))
    message = r"of 40 images cannot be read, .* \(cyst/03\.png: a truncated PNG"
    with pytest.raises(DataError, match=message):
        cached(dataset, strict)
    assert not list((tmp_path / "store").glob("*.array"))
    cached(dataset, job(tmp_path, replace(OPTIONS, max_unreadable="5%")))
    with pytest.raises(DataError, match=message):
        cached(dataset, strict)


def test_a_part_without_any_readable_image(folder: Path, tmp_path: Path) -> None:
    spoil(folder, *range(40))
    with pytest.raises(DataError, match="40 or more of 40 images cannot be read, where 39 may be left out"):
        cached(read_data(folder), job(tmp_path, replace(OPTIONS, max_unreadable="100%")))


@pytest.mark.parametrize("text", ["", "some", "-1", "0.5", "1 %", "%"])
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="is neither a number nor a share such as 1%"):
        FitOptions(max_unreadable=text)


# Keys of the cache.


def test_the_cache_knows_content_and_rule_but_not_names(folder: Path, tmp_path: Path) -> None:
    first = cached(read_data(folder), job(tmp_path))
    folder.rename(tmp_path / "moved")
    again = cached(read_data(tmp_path / "moved"), job(tmp_path))
    assert first.key == again.key
    assert len(list((tmp_path / "store").glob("*.array"))) == 1
    other_rule = cached(read_data(tmp_path / "moved"), job(tmp_path, FitOptions(image_size=32)))
    (path,) = (tmp_path / "moved").rglob("07.png")
    assert cv2.imwrite(str(path), scan(1000))
    other_content = cached(read_data(tmp_path / "moved"), job(tmp_path))
    assert len({first.key, other_rule.key, other_content.key}) == 3
    np.testing.assert_array_equal(other_content.images[3, ..., 0], scan(1000))


def test_what_could_not_be_read_under_other_limits_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cv2.imwrite(str(folder / "normal" / "20.png"), np.zeros((100, 100), np.uint8))
    tolerant = job(tmp_path, replace(OPTIONS, max_unreadable="1"))
    monkeypatch.setenv("MEDIMG_MAX_PIXELS", "5000")
    assert len(cached(read_data(folder), tolerant).unreadable) == 1
    monkeypatch.delenv("MEDIMG_MAX_PIXELS")
    assert cached(read_data(folder), tolerant).unreadable == ()


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """120 MB of decoded images, hashed and compared; what the process holds of its own stays small."""
    generator = np.random.default_rng(0)
    samples = tuple(Sample(str(n), generator.integers(0, 256, (8, 8), np.uint8), n % 2) for n in range(800))
    before = own_memory()
    decoded = cached(DataSet(("a", "b"), samples), job(tmp_path, FitOptions()))
    prints = fingerprints(decoded, Progress(), "images")
    assert find_duplicates(prints, prints, ("train", "train")).images == 0
    assert decoded.images.nbytes > 1.2e8
    assert own_memory() - before < 5e7


def own_memory() -> int:
    """Bytes that belong to this process alone, without the mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(kib) * 1024


# Sizes.


def test_no_resize_refuses_other_sizes(folder: Path, tmp_path: Path) -> None:
    strict = replace(OPTIONS, resize=False)
    decoded = cached(read_data(folder), job(tmp_path, strict))
    np.testing.assert_array_equal(decoded.images[0, ..., 0], scan(1))
    cv2.imwrite(str(folder / "normal" / "20.png"), np.zeros((32, 48), np.uint8))
    cv2.imwrite(str(folder / "normal" / "30.png"), np.zeros((32, 32), np.uint8))
    with pytest.raises(DataError, match=r"20\.png: is 48x32 pixels, .* takes 64x64 \(2 of 40 images have"):
        cached(read_data(folder), job(tmp_path, strict))


def test_no_resize_of_arrays(tmp_path: Path) -> None:
    samples = tuple(Sample(f"train[{n}]", np.zeros((28, 28), np.uint8), n) for n in range(2))
    dataset = DataSet(("a", "b"), samples)
    with pytest.raises(DataError, match=r"train\[0\]: is 28x28 pixels, and the network takes 64x64"):
        cached(dataset, job(tmp_path, replace(OPTIONS, resize=False)))


# Duplicates.


def compressed(image: NDArray[Any], quality: int) -> NDArray[Any]:
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    pixels = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    return pixels


COPIES: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "JPEG at quality 50": lambda image: compressed(image, 50),
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1, beta=20),
    "less contrast": lambda image: cv2.convertScaleAbs(image, alpha=0.8, beta=10),
    "another gamma": lambda image: (255 * (image / 255) ** 0.8).astype(np.uint8),
}


def decoded(images: list[NDArray[np.uint8]], labels: list[int], prefix: str) -> DecodedImages:
    samples = tuple(
        Sample(f"{prefix}{n}", image, label)
        for n, (image, label) in enumerate(zip(images, labels, strict=True))
    )
    dataset = DataSet(("a", "b"), samples)
    arrays = np.stack([sample.load(OPTIONS.image) for sample in samples])
    return DecodedImages(dataset, arrays, "")


def between(first: DecodedImages, second: DecodedImages) -> Duplicates:
    prints = [fingerprints(part, Progress(), "images") for part in (second, first)]
    return find_duplicates(prints[0], prints[1], ("val", "train"))


def test_exact_and_near_duplicates_are_told_apart_and_contradictions_come_first() -> None:
    train = decoded([scan(n) for n in range(6)], [0, 1, 0, 1, 0, 1], "t")
    near = COPIES["brighter"](scan(3))
    found = between(train, decoded([scan(50), scan(1), near, scan(4)], [0, 1, 0, 0], "v"))
    assert (found.exact, found.near, found.contradictory, found.images) == (2, 1, 1, 3)
    pairs = [(pair.image, pair.label, pair.repeats, pair.its_label, pair.exact) for pair in found.listed]
    assert pairs == [
        ("v2", "a", "t3", "b", False),
        ("v1", "b", "t1", "b", True),
        ("v3", "a", "t4", "a", True),
    ]


def test_of_several_copies_one_with_another_label_is_named() -> None:
    train = decoded([scan(0), scan(0), scan(0)], [0, 1, 0], "t")
    (pair,) = between(train, decoded([scan(0)], [0], "v")).listed
    assert (pair.repeats, pair.its_label) == ("t1", "b")


def test_the_list_of_duplicates_is_bounded() -> None:
    same = [scan(0)] * 60
    found = between(decoded(same[:1], [0], "t"), decoded(same, [0] * 60, "v"))
    assert (found.exact, len(found.listed)) == (60, 50)


def test_within_a_part_earlier_images_are_repeated() -> None:
    prints = fingerprints(decoded([scan(0), scan(1), scan(0)], [0, 1, 0], "t"), Progress(), "images")
    (pair,) = find_duplicates(prints, prints, ("train", "train")).listed
    assert (pair.image, pair.repeats) == ("t2", "t0")


@pytest.mark.real
@pytest.mark.parametrize("copy", COPIES)
def test_copies_of_real_slices_are_found(copy: str, brain_mri: Path) -> None:
    paths = sorted((brain_mri / "train").rglob("*.jpg"))[::40]
    for path in paths:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        pair = [Sample("", pixels).load(FitOptions().image) for pixels in (image, COPIES[copy](image))]
        bits = np.bitwise_count(picture_hash(pair[0]) ^ picture_hash(pair[1])).sum()
        assert bits <= NEAR_BITS


@pytest.mark.real
def test_chest_x_rays_are_not_taken_for_copies(real_data: Path, tmp_path: Path) -> None:
    """They are much alike; the published parts share eight images, and no other two are near duplicates."""
    report = check(real_data / "images/pneumoniamnist-subset.npz", rule=ImageRule(56, 56))
    counts = {(found.part, found.other): (found.exact, found.near) for found in report.duplicates}
    assert counts["val", "train"] == (8, 0)
    assert counts["test", "train"] == counts["test", "val"] == (0, 0)
    assert [part.images for part in report.parts] == [3882, 524, 624]
    assert report.parts[2].per_class == (234, 390)
    assert not report.clean


@pytest.mark.real
def test_the_published_brain_set_shares_images_between_its_parts(brain_mri: Path) -> None:
    report = check(brain_mri)
    found = {(found.part, found.other): found for found in report.duplicates}["test", "train"]
    assert (found.exact, found.near, found.contradictory) == (0, 162, 2)


# The command.


def test_check_prints_and_fails(folder: Path, tmp_path: Path) -> None:
    for path in sorted(folder.rglob("*.png")):
        target = folder / ("train" if int(path.stem) < 30 else "test") / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        path.rename(target / path.name)
    for kind in ("cyst", "normal"):
        (folder / kind).rmdir()
    report = check(folder, OPTIONS, rule=OPTIONS.image)
    assert report.clean
    assert data_lines(report)[-1] == "no unreadable image, and no picture twice"
    spoil(folder, 2)
    (folder / "test" / "cyst" / "31.png").write_bytes((folder / "train" / "normal" / "04.png").read_bytes())
    report_file = tmp_path / "report.json"
    done = CliRunner().invoke(cli, ["check", str(folder), "--image-size", "64", "--json", str(report_file)])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["part", "images", "unreadable", "patients", "cyst", "normal"]
    assert lines[1].split() == ["train", "29", "1", "-", "15", "14"]
    said = "1 image(s) of test repeat an image of train (1 to the pixel, 0 nearly)"
    assert f"{said}, 1 of them with another label:" in lines
    assert "  test/cyst/31.png (cyst) repeats train/normal/04.png (normal)" in lines
    content = json.loads(report_file.read_text())
    assert content["parts"][0]["unreadable"] == ["train/normal/02.png: a truncated PNG"]
    assert [found["exact"] for found in content["duplicates"]] == [0, 0, 1]


def test_data_that_are_not_divided_are_one_part(folder: Path) -> None:
    report = check(folder, replace(OPTIONS, group_by=r"(\d)\.png"), rule=OPTIONS.image)
    assert [(part.name, part.images, part.patients) for part in report.parts] == [("all", 40, 10)]
    assert [(found.part, found.other) for found in report.duplicates] == [("all", "all")]


def test_files_that_were_left_out_stand_in_the_json(folder: Path) -> None:
    (folder / "cyst" / "film.avi").write_bytes(bytes(range(256)))
    (folder / "cyst" / "film.mp4").write_bytes(b"\x00" * 99)
    (folder / "normal" / "more.avi").write_bytes(bytes(range(256)))
    found = CliRunner().invoke(cli, ["check", str(folder), "--image-size", str(SIZE), "--json", "-"])
    assert json.loads(found.stdout)["left_out"] == {".avi": 2, ".mp4": 1}


def test_fit_takes_no_image_that_its_model_is_not_for(tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / "set" / ("cyst" if number % 2 else "normal") / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_secondary_capture(path, scan(number), f"patient {number}")
    with pytest.raises(NotApplicableError, match=r"\.dcm: its modality is US; the model is for DX, CR"):
        fit(tmp_path / "set", tmp_path / "model.keras", OPTIONS, usage=Usage(modality=("DX", "CR")))
    assert not (tmp_path / "model.keras").exists()
