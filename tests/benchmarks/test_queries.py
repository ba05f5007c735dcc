from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_images

from medimg.benchmarks.queries import MAX_IMAGES, make_queries, read_queries
from medimg.runtime.errors import DataError
from medimg.runtime.images.rule import ImageRule

RULE = ImageRule(24, 32)


def test_made_images_are_seeded_of_the_networks_size_and_differ() -> None:
    first, again, other = (make_queries(RULE, seed) for seed in (0, 0, 1))
    pixels = [sample.load(RULE) for sample in first.samples]
    assert {image.shape for image in pixels} == {(24, 32, 3)}
    assert len({image.tobytes() for image in pixels}) == len(pixels)
    for sample, image in zip(again.samples, pixels, strict=True):
        np.testing.assert_array_equal(sample.load(RULE), image)
    assert not np.array_equal(other.samples[0].load(RULE), pixels[0])


def test_decoded_images_are_arrays_of_the_networks_size(image_folder: Path) -> None:
    queries = read_queries(image_folder, RULE, 1)
    arrays = queries.decoded(RULE)
    assert (queries.images_from, arrays.images_from) == ("files", "arrays")
    for file, array in zip(queries.samples, arrays.samples, strict=True):
        assert isinstance(array.source, np.ndarray)
        np.testing.assert_array_equal(array.load(RULE), file.load(RULE))


def test_accuracy_takes_all_of_the_part_test_with_the_models_labels(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for label in ("b", "a"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            write_images(folder, count)
    queries = read_queries(tmp_path, RULE, 1, labels=("b", "c", "a"))
    assert sorted(sample.name for sample in queries.samples) == [
        f"test/{label}/{number}.png" for label in "ab" for number in range(2)
    ]
    assert {sample.label for sample in queries.samples} == {0, 2}
    with pytest.raises(DataError, match="'a' of the data is not one of the model's"):
        read_queries(tmp_path, RULE, 1, labels=("b", "c"))


def test_of_a_large_set_a_seeded_choice_is_used(tmp_path: Path) -> None:
    images = np.zeros((MAX_IMAGES + 50, 8, 8), np.uint8)
    labels = np.zeros((len(images), 1), np.uint8)
    archive = tmp_path / "set.npz"
    empty: Any = {
        f"{part}_{kind}": array[:0]
        for part in ("val", "test")
        for kind, array in (("images", images), ("labels", labels))
    }
    np.savez(archive, train_images=images, train_labels=labels, **empty)
    queries = read_queries(archive, RULE, 2)
    assert queries.images_from == "arrays"
    assert len({sample.name for sample in queries.samples}) == MAX_IMAGES
    assert queries.samples == read_queries(archive, RULE, 2).samples


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        read_queries(tmp_path / "nowhere", RULE, 1)
