from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medimg.benchmarks.queries import MAX_IMAGES, make_queries, read_queries
from medimg.runtime.errors import DataError
from medimg.runtime.spec import ImageRule

RULE = ImageRule(24, 32)


def test_made_images_are_seeded_of_the_networks_size_and_differ() -> None:
    first, again, other = (make_queries(RULE, seed) for seed in (0, 0, 1))
    pixels = [sample.load(RULE) for sample in first.samples]
    assert {image.shape for image in pixels} == {(24, 32, 3)}
    assert len({image.tobytes() for image in pixels}) == len(pixels)
    for sample, image in zip(again.samples, pixels, strict=True):
        np.testing.assert_array_equal(sample.load(RULE), image)
    assert not np.array_equal(other.samples[0].load(RULE), pixels[0])


def test_samples_come_again_in_the_same_order() -> None:
    queries = make_queries(RULE)
    endless = queries.endless()
    names = [next(endless).name for _ in range(2 * len(queries.samples))]
    assert names == [sample.name for sample in queries.samples] * 2


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
