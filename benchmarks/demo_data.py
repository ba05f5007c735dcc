"""The demo's images: which are held out, and which are shown to `predict`."""

import csv
import os
from pathlib import Path

import cv2

from medimg.runtime.data import DataSet, Sample, Split, read_data, stratified_split

HELD_OUT = 0.3


def with_test_part(data: Path, output: Path) -> Path:
    """Give a data set with a test part: the user's own, or a table that divides theirs.

    Args:
        data: any kind of labelled DATA.
        output: folder for the table.
    """
    dataset = read_data(data)
    if len(dataset.part("test")):
        return data
    rest, held_out = stratified_split(dataset, HELD_OUT)
    table = output / "split.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "patient", "split"))
        rows.writerows(_row(sample, dataset, table, sample.split or "train") for sample in rest.samples)
        rows.writerows(_row(sample, dataset, table, "test") for sample in held_out.samples)
    print(f"{data} has no test part: {len(held_out)} of its {len(dataset)} images are held out ({table})")
    return table


def one_of_each_class(data: Path, output: Path) -> list[Path]:
    """Give a test image of each class, as a file: images inside archives are written as PNG."""
    dataset = read_data(data).part("test")
    first: dict[int | None, Sample] = {}
    for sample in dataset.samples:
        first.setdefault(sample.label, sample)
    return [
        _as_file(sample, dataset, output)
        for _, sample in sorted(first.items(), key=lambda pair: pair[0] or 0)
    ]


def _row(sample: Sample, dataset: DataSet, table: Path, split: Split) -> tuple[str, str, str, str]:
    assert isinstance(sample.source, Path), "the archives that hold images have a test part"
    assert sample.label is not None, "the data set was read as labelled"
    path = os.path.relpath(sample.source, table.parent)
    return path, dataset.labels[sample.label], sample.patient or "", split


def _as_file(sample: Sample, dataset: DataSet, output: Path) -> Path:
    if isinstance(sample.source, Path):
        return sample.source
    folder = output / "predict"
    folder.mkdir(exist_ok=True)
    path = folder / f"{dataset.labels[sample.label or 0]}.png"
    pixels = sample.source if sample.source.ndim == 2 else sample.source[..., ::-1]
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"{path}: cannot be written")
    return path
