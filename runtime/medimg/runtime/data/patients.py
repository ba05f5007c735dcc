"""Whose image each is: from the data set itself, from the path, or from the DICOM header."""

from dataclasses import replace
from pathlib import Path

from medimg.runtime.data.dataset import DataSet, Sample
from medimg.runtime.errors import DataError, ImageError
from medimg.runtime.files.patterns import find_parts
from medimg.runtime.images.load import read_patient
from medimg.runtime.ordered import in_order, worker_threads

_SHOWN = 3


def with_patients(dataset: DataSet, group_by: str | None, threads: int) -> DataSet:
    """Say of every image whose it is, as far as that can be known.

    Args:
        dataset: it may name patients itself.
        group_by: a regular expression that finds the patient in an image's path, its group `patient` or first
            group; it overrules the data set. Without it, and where the data set names no patient, DICOM
            files are asked for their PatientID (0010,0020).
        threads: files opened at a time.

    Raises:
        DataError: the pattern is none, takes too long or does not fit every path, all headers name one
            patient, or one patient has images in two parts.
    """
    if group_by is not None:
        found = _by_path(dataset, group_by)
    elif any(sample.patient for sample in dataset.samples):
        found = dataset
    else:
        found = _by_header(dataset, threads)
    _require_one_part_each(found)
    return found


def _by_path(dataset: DataSet, pattern: str) -> DataSet:
    names = [sample.name for sample in dataset.samples]
    patients = find_parts(pattern, names)
    if missed := [name for name, patient in zip(names, patients, strict=True) if not patient]:
        raise DataError(
            f"--group-by {pattern!r} finds no patient in {len(missed)} of {len(dataset)} paths "
            f"({', '.join(missed[:_SHOWN])})"
        )
    return _named(dataset, patients)


def _by_header(dataset: DataSet, threads: int) -> DataSet:
    with worker_threads(threads, "patients") as pool:
        patients = list(in_order(pool, _from_header, dataset.samples, 4 * threads))
    if len(set(patients)) == 1 and patients[0] and len(patients) > 1:
        raise DataError(
            "all DICOM files name the same patient, as some do after names were removed: tell patients apart "
            "by --group-by, or take every file for a patient by --group-by '(.+)'"
        )
    return _named(dataset, patients)


def _from_header(sample: Sample) -> str | None:
    try:
        return read_patient(sample.source) if isinstance(sample.source, Path) else None
    except ImageError:
        # The image itself is read later, and counts as unreadable then.
        return None


def _named(dataset: DataSet, patients: list[str | None]) -> DataSet:
    return dataset.with_samples(
        replace(sample, patient=patient) for sample, patient in zip(dataset.samples, patients, strict=True)
    )


def _require_one_part_each(dataset: DataSet) -> None:
    first_of: dict[str, Sample] = {}
    for sample in dataset.samples:
        if sample.patient is None:
            continue
        first = first_of.setdefault(sample.patient, sample)
        if first.split != sample.split:
            # Paths are named and not the patient, whose identifier does not belong in a log.
            raise DataError(
                f"{_place(first)} and {_place(sample)} are of one patient, which would flatter any result: "
                "put all images of a patient into one part; if they are of two, tell them apart by --group-by"
            )


def _place(sample: Sample) -> str:
    return f"{sample.name} (in {sample.split})"
