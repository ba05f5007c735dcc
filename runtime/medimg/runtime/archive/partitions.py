"""One partition's file: written whole, held against its SHA-256 when it is read, and counted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from medimg.runtime.archive.job import Job, partition_path, sum_path
from medimg.runtime.classifier import Prediction
from medimg.runtime.files.writing import replaced
from medimg.runtime.model.containers import file_sha256

_ROWS_AT_ONCE = 1024
_RAN_ON = b"medimg.ran_on"
SCORE_BINS = 10


@dataclass(frozen=True)
class Counts:
    """What one or more partitions hold."""

    files: int = 0
    images: int = 0
    """Images and frames that have an answer."""
    errors: dict[str, int] = field(default_factory=dict)
    """Rows without one, by the error's type."""
    classes: dict[str, int] = field(default_factory=dict)
    """Images by their most likely class."""
    scores: tuple[int, ...] = (0,) * SCORE_BINS
    """Images by the probability of that class, in tenths."""
    ran_on: tuple[str, ...] = ()
    """Back end, device and precision that gave the answers; several if machines differ."""

    @property
    def failed(self) -> int:
        """Rows without an answer."""
        return sum(self.errors.values())

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.files + other.files,
            self.images + other.images,
            _added(self.errors, other.errors),
            _added(self.classes, other.classes),
            tuple(a + b for a, b in zip(self.scores, other.scores, strict=True)),
            tuple(sorted({*self.ran_on, *other.ran_on})),
        )


def write_partition(
    output: Path, job: Job, partition: int, rows: Iterable[tuple[int, str, Prediction]], ran_on: str
) -> None:
    """Write one partition; its file takes its name when it is complete.

    Args:
        output: the archive's folder.
        job: what is being done.
        partition: its number.
        rows: place in the list, path as listed, and answer, in order.
        ran_on: what gave the answers.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    import pyarrow
    from pyarrow import parquet

    schema = _schema().with_metadata({_RAN_ON: ran_on})
    columns = _columns(rows, job.model_sha256)
    with replaced(partition_path(output, partition)) as temporary:
        with parquet.ParquetWriter(temporary, schema) as writer:
            while piece := list(islice(columns, _ROWS_AT_ONCE)):
                writer.write_table(pyarrow.Table.from_pylist(piece, schema))
        digest = file_sha256(temporary)
    # A worker that dies before this line leaves a partition that is made once more.
    sum_file = sum_path(output, partition)
    sum_file.parent.mkdir(exist_ok=True)
    with replaced(sum_file) as temporary:
        temporary.write_text(digest)


def read_partition(output: Path, job: Job, partition: int) -> Counts | None:
    """Read a committed partition and count what it holds.

    Returns:
        None if there is none, or it is damaged or not this job's; it is to be made anew.
    """
    import pyarrow
    from pyarrow import parquet

    path = partition_path(output, partition)
    try:
        if file_sha256(path) != sum_path(output, partition).read_text():
            return None
        table = parquet.ParquetFile(path).read()
    except (OSError, UnicodeError, pyarrow.ArrowException):
        return None
    if not table.schema.equals(_schema()) or not _is_whole(table, job, partition):
        return None
    return _count(table, len(job.numbers(partition)))


def _schema() -> Any:  # noqa: ANN401  a pyarrow.Schema, which has no types
    import pyarrow

    best = pyarrow.struct(
        [("index", pyarrow.int32()), ("label", pyarrow.string()), ("score", pyarrow.float32())]
    )
    return pyarrow.schema(
        [
            ("number", pyarrow.int64()),
            ("path", pyarrow.string()),
            ("frame", pyarrow.int32()),
            ("top_k", pyarrow.list_(best)),
            ("error_type", pyarrow.string()),
            ("error", pyarrow.string()),
            ("notes", pyarrow.list_(pyarrow.string())),
            ("model_sha256", pyarrow.string()),
        ]
    )


def _columns(rows: Iterable[tuple[int, str, Prediction]], model_sha256: str) -> Iterator[dict[str, Any]]:
    for number, path, prediction in rows:
        error = prediction.error
        yield {
            "number": number,
            "path": _unicode(path),
            "frame": prediction.frame,
            "top_k": None if error else [vars(best) for best in prediction.top_k],
            "error_type": error and error.type,
            "error": error and _unicode(error.message),
            "notes": list(prediction.notes),
            "model_sha256": model_sha256,
        }


def _unicode(text: str) -> str:
    """Escape what a file name may hold and Parquet's text may not."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_whole(table: Any, job: Job, partition: int) -> bool:  # noqa: ANN401  a pyarrow.Table
    numbers, wanted = np.unique(table["number"].to_numpy()), job.numbers(partition)
    models = table["model_sha256"].unique().to_pylist()
    return bool(np.array_equal(numbers, wanted)) and models == [job.model_sha256]


def _count(table: Any, files: int) -> Counts:  # noqa: ANN401  a pyarrow.Table
    from pyarrow import compute

    answered = table.filter(compute.is_null(table["error_type"]))
    first = compute.list_element(answered["top_k"], 0)
    scores = compute.struct_field(first, "score").to_numpy()
    bins, _ = np.histogram(scores, SCORE_BINS, (0.0, 1.0))
    return Counts(
        files,
        answered.num_rows,
        _value_counts(table["error_type"].drop_null()),
        _value_counts(compute.struct_field(first, "label")),
        tuple(bins.tolist()),
        ((table.schema.metadata or {}).get(_RAN_ON, b"").decode(),),
    )


def _value_counts(column: Any) -> dict[str, int]:  # noqa: ANN401  a pyarrow.ChunkedArray
    return {item["values"]: item["counts"] for item in column.value_counts().to_pylist()}


def _added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}
