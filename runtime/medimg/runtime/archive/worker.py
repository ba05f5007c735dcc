"""What runs in each worker: a classifier, and one partition after the other."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.archive.fetching import LocalCopies
from medimg.runtime.archive.job import Job, read_names, tries_path
from medimg.runtime.archive.partitions import Counts, read_partition, write_partition
from medimg.runtime.classifier import Classifier, Prediction
from medimg.runtime.errors import IntegrityError, MedimgError
from medimg.runtime.files.plain import from_plain, to_plain
from medimg.runtime.files.scratch import temporary_folder
from medimg.runtime.model.containers import file_sha256

MOST_TRIES = 5
"""Workers that may begin a partition and die."""


@dataclass(frozen=True)
class Work:
    """What every worker of a run is told."""

    job: Job
    output: Path
    model: Path
    threads: int
    batch_size: int | None
    backend: str
    device: str
    trusted: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one partition."""

    partition: int
    counts: Counts | None = None
    made: bool = True
    """Whether it was made now, and not found committed."""
    failure: str | None = None
    """Why it could not be made, which ends the run."""
    given_up: bool = False
    """Whether too many workers died at it; the others go on."""

    def to_row(self) -> dict[str, str]:
        """Pack it as a row of a Ray data set."""
        return {"outcome": json.dumps(to_plain(self))}

    @classmethod
    def from_row(cls, row: dict[str, str]) -> "Outcome":
        """Unpack a row."""
        return from_plain(cls, json.loads(row["outcome"]), "outcome")


class PartitionWorker:
    """An actor: makes the partitions that it is given, unless they are there already.

    What goes wrong is its answer, and not raised: Ray would try again, and print a traceback.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._classifier: Classifier | None = None

    def __call__(self, row: dict[str, int]) -> dict[str, str]:
        """Make one partition.

        Args:
            row: `partition` is its number.
        """
        partition = int(row["partition"])
        try:
            return self._outcome(partition).to_row()
        except MedimgError as error:
            failure = str(error)
        except OSError as error:
            failure = f"{self._work.output}: cannot be written ({error.strerror or error})"
        return Outcome(partition, failure=failure).to_row()

    def _outcome(self, partition: int) -> Outcome:
        work = self._work
        if found := read_partition(work.output, work.job, partition):
            return Outcome(partition, found, made=False)
        # Ray gives a dead worker's partition to the next one, without end.
        tries = tries_path(work.output, partition)
        with tries.open("ab") as file:
            file.write(b".")
        if tries.stat().st_size > MOST_TRIES:
            return Outcome(partition, given_up=True)
        self._make(partition)
        tries.unlink()
        found = read_partition(work.output, work.job, partition)
        return Outcome(partition, found, failure=None if found else f"{work.output}: loses what is written")

    def _make(self, partition: int) -> None:
        work, classifier = self._work, self._ready()
        names, numbers = read_names(work.output, partition), work.job.numbers(partition)
        used = classifier.backend
        with temporary_folder("files") as folder:
            copies = LocalCopies(names, folder)
            answers = classifier.predict(copies.paths(), top_k=work.job.top_k, batch_size=work.batch_size)
            rows = (
                (numbers[place], names[place], copies.settle(place, answer))
                for place, answer in numbered(answers)
            )
            ran_on = f"{used.name} on {used.device}, {used.precision}"
            write_partition(work.output, work.job, partition, rows, ran_on)

    def _ready(self) -> Classifier:
        """Load the model at the first partition."""
        if self._classifier is None:
            work = self._work
            if file_sha256(work.model) != work.job.model_sha256:
                raise IntegrityError(f"{work.model}: is another file on this machine than on the driver's")
            self._classifier = Classifier(
                work.model,
                backend=work.backend,
                device=work.device,
                threads=work.threads,
                dicom_window=work.job.dicom_window,
                trusted=work.trusted,
            )
        return self._classifier


def numbered(answers: Iterable[Prediction]) -> Iterator[tuple[int, Prediction]]:
    """Tell of which input, from 0, each answer is: a file gives frames from 0 on, and its error last."""
    place, before = -1, None
    for answer in answers:
        ended = before is None or (before.error and before.frame is None)
        begins = ended or before is None or answer.path != before.path or answer.frame == 0
        place += bool(begins)
        yield place, answer
        before = answer
