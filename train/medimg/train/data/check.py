"""`check`: what a data set holds, and what is wrong with it, before anything is trained on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from medimg.runtime.data import DataSet, Split
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.tasks import TaskName
from medimg.train.data.array_store import open_store
from medimg.train.data.decoded_images import cache_images
from medimg.train.data.division import read_labelled
from medimg.train.data.duplicates import Duplicates, Fingerprints, find_duplicates, fingerprints
from medimg.train.data.options import DataOptions
from medimg.train.data.work import Work
from medimg.train.progress import Progress

PARTS: tuple[Split, ...] = ("train", "val", "test")
FITTED = ImageRule(224, 224)
"""How `fit` reads images unless told otherwise."""


@dataclass(frozen=True)
class PartReport:
    """What one part of a data set holds."""

    name: str
    """`train`, `val` or `test`, or `all` where the data are not divided."""
    images: int
    """Those that can be read."""
    per_class: tuple[int, ...]
    """Images that show each class."""
    patients: int | None
    """Different patients; None where an image's patient is not known."""
    unreadable: tuple[str, ...]
    """Images that cannot be read, each with the reason."""


@dataclass(frozen=True)
class DataReport:
    """What a data set holds."""

    data: str
    task: TaskName
    labels: tuple[str, ...]
    parts: tuple[PartReport, ...]
    duplicates: tuple[Duplicates, ...]
    """Of each later part in each earlier one, and of each part within itself."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Files of a folder that are neither images that can be read nor texts, counted by suffix."""

    @property
    def clean(self) -> bool:
        """Whether every image can be read and none stands in two parts."""
        apart = (found for found in self.duplicates if found.part != found.other)
        return not any(part.unreadable for part in self.parts) and not any(found.images for found in apart)


def check(
    data: str | Path,
    options: DataOptions | None = None,
    *,
    rule: ImageRule = FITTED,
    task: TaskName = "multiclass",
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> DataReport:
    """Read every image of a data set, the test part's too, and look for what would spoil a result.

    Args:
        data: in any layout that `medimg.runtime.data.read_data` knows.
        options: patients and what may be left out, as they would be for `fit`.
        rule: how images become arrays, as it would be for `fit`.
        task: whether an image shows one class or any number.
        threads: processor threads; by default those this process may use.
        cache_dir: keeps decoded images for later runs; by default they are removed.
        progress: shows how far it has come.

    Raises:
        DataError: the data cannot be understood, a patient has images in two parts, or a part has no image
            that can be read.
        UsageError: the images do not fit on the disk.
    """
    options, threads, progress = options or DataOptions(), threads or usable_cpus(), progress or Progress()
    options = replace(options, max_unreadable="100%")
    dataset = read_labelled(Path(data), options, threads, task)
    named: list[tuple[str, DataSet]] = [(name, dataset.part(name)) for name in PARTS]
    parts = [(name, part) for name, part in named if len(part)] or [("all", dataset)]
    with open_store(Path(cache_dir) if cache_dir else None) as store:
        work = Work(store, threads, progress)
        looked_at = [_look_at(name, part, rule, options, work) for name, part in parts]
    prints = [(report.name, found) for report, found in looked_at]
    pairs = [*((part, part) for part in prints), *((later, part) for part, later in combinations(prints, 2))]
    duplicates = [
        find_duplicates(part, other, (name, other_name)) for (name, part), (other_name, other) in pairs
    ]
    return DataReport(
        str(data),
        dataset.task,
        dataset.labels,
        tuple(report for report, _ in looked_at),
        tuple(duplicates),
        dict(dataset.left_out),
    )


def _look_at(
    name: str, part: DataSet, rule: ImageRule, options: DataOptions, work: Work
) -> tuple[PartReport, Fingerprints]:
    decoded = cache_images(part, rule, options, work, f"{name} images")
    per_class = decoded.dataset.targets.sum(axis=0).astype(int).tolist()
    patients = {sample.patient for sample in part.samples}
    report = PartReport(
        name,
        len(decoded.dataset),
        tuple(per_class),
        None if None in patients else len(patients),
        decoded.unreadable,
    )
    return report, fingerprints(decoded, work.progress, f"{name} images")
