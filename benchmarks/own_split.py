"""A set of images divided anew, without those that repeat others."""

import csv
from pathlib import Path

from medimg.runtime.data import DataSet, Sample, read_data, stratified_split
from medimg.runtime.images.rule import ImageRule

TEST_SHARE = 1 / 2


def write_split(data: Path, table: Path, seed: int) -> None:
    """List the images of a set that are no copies of others, divided into training and test."""
    found = read_data(data)
    published = found.with_samples(
        sample for part in ("train", "test") for sample in found.part(part).samples
    )
    train, test = stratified_split(without_copies(published), TEST_SHARE, seed)
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for name, chosen in (("train", train), ("test", test)):
            rows.writerows([data / item.name, found.labels[item.label or 0], name] for item in chosen.samples)


def without_copies(dataset: DataSet) -> DataSet:
    """Leave out every image whose picture, nearly so, stands earlier."""
    import numpy as np

    from medimg.train.data.duplicates import NEAR_BITS, picture_hash

    kept: list[Sample] = []
    hashes = np.empty((0, 4), np.uint64)
    for sample in dataset.samples:
        own = picture_hash(sample.load(ImageRule(224, 224)))
        if (np.bitwise_count(hashes ^ own).sum(axis=1) > NEAR_BITS).all():
            kept.append(sample)
            hashes = np.vstack([hashes, own])
    return dataset.with_samples(kept)
