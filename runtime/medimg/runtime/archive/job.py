"""What an archive's run is, written into its output once: which files, in which partitions, by which model.

    OUTPUT/_list.parquet     every path in order, a row group a partition
    OUTPUT/_job.json         the Job; it is written last, so what has it has the whole list
    OUTPUT/part-00000.parquet …
    OUTPUT/_sums/00000 …     the SHA-256 of each

Partition n holds the answers to row group n alone. Its file appears whole, by a rename: the commit.
"""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from medimg.runtime.archive.inputs import list_paths
from medimg.runtime.errors import DataError, UsageError
from medimg.runtime.files.plain import from_plain, to_plain
from medimg.runtime.files.writing import written_whole
from medimg.runtime.optional import require

SCHEMA = 1
LEAST_FILES = 256
"""Files a partition, unless there are so many that it must be more: what a dead worker loses at most."""
MOST_PARTITIONS = 4096
"""What the driver must keep in mind, however large the archive."""
_LIST, _JOB, _LOCK = "_list.parquet", "_job.json", "_lock"


@dataclass(frozen=True)
class Job:
    """One archive, one model, and how the answers are divided."""

    source: str
    """INPUT, absolute."""
    model_sha256: str
    top_k: int
    dicom_window: str | None
    """In place of the model's own."""
    files: int = 0
    """How many the list holds."""
    partition_files: int = LEAST_FILES
    """How many each partition but the last holds."""

    @property
    def partitions(self) -> int:
        """How many there are."""
        return math.ceil(self.files / self.partition_files)

    def numbers(self, partition: int) -> range:
        """Places in the list, from 0, of a partition's files."""
        first = partition * self.partition_files
        return range(first, min(first + self.partition_files, self.files))


def partition_path(output: Path, partition: int) -> Path:
    """Name a partition's file."""
    return output / f"part-{partition:05d}.parquet"


def sum_path(output: Path, partition: int) -> Path:
    """Name the file that has the SHA-256 of a partition's."""
    return output / "_sums" / f"{partition:05d}"


def tries_path(output: Path, partition: int) -> Path:
    """Name the file that has a byte for each time that a partition was begun."""
    return output / f".part-{partition:05d}.tries"


@contextlib.contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Make the output folder, and keep other runs out of it; what a killed worker left is removed.

    Raises:
        UsageError: another run is at work there, or it cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            output.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((output / _LOCK).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_drafts(output)
        except BlockingIOError:
            raise UsageError(f"{output}: another run is writing here") from None
        except OSError as error:
            raise UsageError(f"{output}: cannot be written ({error.strerror})") from None
        try:
            yield
        finally:
            _remove_drafts(output)


def _remove_drafts(output: Path) -> None:
    for left in output.glob(".part-*"):
        left.unlink(missing_ok=True)


def open_job(output: Path, wanted: Job, partition_files: int | None, schemes: Sequence[str] = ()) -> Job:
    """Read the job that this output was begun with, or list the files and begin it.

    Args:
        output: the folder.
        wanted: what is asked for now; number and division of the files are found here.
        partition_files: how many files a partition holds; by their number unless given.
        schemes: of the URIs that a list may name, beside its own.

    Raises:
        UsageError: the folder belongs to another job, or there are no files.
    """
    file = output / _JOB
    if not file.exists():
        return _begin(output, wanted, partition_files, schemes)
    try:
        fields = json.loads(file.read_bytes())
        if fields.pop("schema") != SCHEMA:
            raise DataError(f"{file}: written by another version of medimg: take another --output")
        found = from_plain(Job, fields, str(file))
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}): take another --output") from None
    asked = replace(wanted, files=found.files, partition_files=partition_files or found.partition_files)
    if asked != found:
        name = next(name for name, value in to_plain(found).items() if to_plain(asked)[name] != value)
        raise UsageError(
            f"{output}: holds the answers of another run: its {name} is {getattr(found, name)}, "
            f"and {getattr(asked, name)} is asked for: take another --output"
        )
    return found


def read_names(output: Path, partition: int) -> list[str]:
    """Read the paths of one partition.

    Raises:
        DataError: the list is damaged.
    """
    from pyarrow import ArrowInvalid, parquet

    try:
        with parquet.ParquetFile(output / _LIST, page_checksum_verification=True) as table:
            return [os.fsdecode(name) for name in table.read_row_group(partition).column(0).to_pylist()]
    except (OSError, ArrowInvalid) as error:
        raise DataError(f"{output / _LIST}: damaged ({error}): take another --output") from None


def _begin(output: Path, wanted: Job, partition_files: int | None, schemes: Sequence[str]) -> Job:
    """Write the list twice, since the size of its parts follows from its length; never hold it in memory."""
    pyarrow = require("pyarrow", "ray")
    from pyarrow import parquet

    schema = pyarrow.schema([("path", pyarrow.binary())])

    def write(file: Path, names: Iterator[bytes], rows: int) -> int:
        count = 0
        with parquet.ParquetWriter(file, schema, write_page_checksum=True) as writer:
            while piece := list(islice(names, rows)):
                writer.write_table(pyarrow.table([pyarrow.array(piece, pyarrow.binary())], schema), rows)
                count += len(piece)
        return count

    with written_whole(output / _LIST) as target:
        draft = target.with_suffix(".draft")
        try:
            files = write(draft, (os.fsencode(name) for name in list_paths(wanted.source, schemes)), 65536)
            if not files:
                raise UsageError(f"{wanted.source}: holds no files")
            size = partition_files or max(LEAST_FILES, math.ceil(files / MOST_PARTITIONS))
            with parquet.ParquetFile(draft) as table:
                write(target, chain.from_iterable(map(_column, table.iter_batches(8192))), size)
        finally:
            draft.unlink(missing_ok=True)
    job = replace(wanted, files=files, partition_files=size)
    with written_whole(output / _JOB) as target:
        target.write_text(json.dumps({"schema": SCHEMA, **to_plain(job)}, indent=1) + "\n", encoding="utf-8")
    return job


def _column(batch: Any) -> list[bytes]:  # noqa: ANN401  a pyarrow.RecordBatch, which has no types
    names: list[bytes] = batch.column(0).to_pylist()
    return names
