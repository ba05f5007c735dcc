"""A table of images: `path,label[,patient][,split]`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from medimg.runtime.data.dataset import DataSet, Split
from medimg.runtime.data.found import SPLITS, Found, is_image
from medimg.runtime.errors import DataError
from medimg.runtime.files.paths import is_file, visible
from medimg.runtime.files.tables import table_rows
from medimg.runtime.images.load import may_hold_image
from medimg.runtime.tasks import TaskName, task_named

_COLUMNS = ("path", "label", "patient", "split")


class _Row(NamedTuple):
    """What a row says; of a million rows, each is made and held quickly."""

    name: str
    label: str | None
    patient: str | None
    split: Split | None
    attributes: Mapping[str, str]


_NO_ATTRIBUTES: Mapping[str, str] = {}


def read_table(path: Path, *, labelled: bool, task: TaskName) -> list[Found]:
    """Read the rows of a CSV file, in its order; paths are relative to the file.

    Rows that say the same twice count once. Other columns are kept as attributes. In multi-label data
    an empty label says that the image shows no class.

    Raises:
        DataError: a column or a value is missing, files do not exist, one file has two labels, or a patient
            has images in two parts.
    """
    folder = path.parent
    rows: dict[str, tuple[int, _Row]] = {}
    for line, row in _rows(path, labelled=labelled, task=task):
        key = os.path.normpath(_place(folder, row.name))
        first_line, first = rows.setdefault(key, (line, row))
        if first is not row and first[1:4] != row[1:4]:
            raise DataError(f"{path}: lines {first_line} and {line} say different things of {row.name}")
    table = [row for _, row in rows.values()]
    _require_files(path, table)
    _require_whole_split(path, table)
    return [Found(folder / row.name, *row) for row in table]


def unlisted_images(path: Path, dataset: DataSet) -> list[str]:
    """Find images without a row: files beside listed ones that a folder would be read with.

    Args:
        path: the CSV file.
        dataset: what was read from it.

    Returns:
        Their paths relative to the file, sorted.
    """
    # Absolute, since a table may name one folder in two ways.
    listed = {
        os.path.normpath(sample.source.absolute())
        for sample in dataset.samples
        if isinstance(sample.source, Path)
    }
    # A name without a suffix says nothing: its content does, or that listed images have none either.
    bare = any(not Path(name).suffix for name in listed)
    return sorted(
        os.path.relpath(entry, path.parent)
        for folder in {Path(name).parent for name in listed}
        for entry in visible(folder)
        if str(entry) not in listed
        and entry.is_file()
        and is_image(entry)
        and (entry.suffix or bare or may_hold_image(entry))
    )


def _rows(path: Path, *, labelled: bool, task: TaskName) -> Iterator[tuple[int, _Row]]:
    wanted = _COLUMNS[:2] if labelled else _COLUMNS[:1]
    needed = wanted if task_named(task).needs_label else _COLUMNS[:1]
    with path.open("rb") as file:
        for line, cells in table_rows(file, str(path), wanted):
            for name in needed:
                if not cells.get(name):
                    raise DataError(f"{path}: line {line} has no {name}")
            yield line, _row(path, line, cells, task, labelled=labelled)


def _row(path: Path, line: int, cells: dict[str, str], task: TaskName, *, labelled: bool) -> _Row:
    name = cells["path"]
    if "\0" in name:
        raise DataError(f"{path}: line {line} has a path with a zero byte")
    label = task_named(task).written(cells.get("label", ""))
    split = cells.get("split") or None
    return _Row(
        name,
        label or ("" if labelled else None),
        cells.get("patient") or None,
        None if split is None else _split(path, line, split),
        {column: value for column, value in cells.items() if column not in _COLUMNS} or _NO_ATTRIBUTES,
    )


def _place(folder: Path, name: str) -> str:
    """Say where a file lies, as `folder / name` does in ten times the time."""
    return name if name.startswith("/") else f"{folder}/{name}"


def _split(path: Path, line: int, value: str) -> Split:
    if value.lower() not in SPLITS:
        raise DataError(f"{path}: line {line} has the split {value!r}; train, val and test are known")
    return SPLITS[value.lower()]


def _require_files(path: Path, table: Sequence[_Row]) -> None:
    missing = [row.name for row in table if not is_file(_place(path.parent, row.name))]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{path}: {len(missing)} of {len(table)} files do not exist: {', '.join(missing[:5])}{more}"
        )


def _require_whole_split(path: Path, table: Sequence[_Row]) -> None:
    without = [found.name for found in table if found.split is None]
    if without and len(without) < len(table):
        raise DataError(
            f"{path}: {len(without)} of {len(table)} rows have no split ({', '.join(without[:3])})"
        )
    first_of: dict[str, _Row] = {}
    for found in table:
        first = first_of.setdefault(found.patient, found) if found.patient else found
        if first.split != found.split:
            # Images are named and not the patient, whose name does not belong in a log.
            raise DataError(
                f"{path}: {first.name} (in {first.split}) and {found.name} (in {found.split}) are of one "
                "patient, which would flatter any result: put all images of a patient into one part"
            )
