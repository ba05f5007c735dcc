"""Tables from outside, read in one way: CSV in UTF-8, with or without a byte order mark."""

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import IO

from medimg.runtime.errors import DataError

_DELIMITERS = (",", ";", "\t")
"""What spreadsheets put between cells; which one it is, the header tells."""
_MAX_LINE = 2**24
"""Characters."""

Row = tuple[int, dict[str, str]]
"""Number of the line that a row ends in, from 1, and its cells by the names of their columns."""


def table_rows(
    stream: IO[bytes], where: str, wanted: Sequence[str], *, any_bytes: bool = False
) -> Iterator[Row]:
    """Read a table's rows, without those that are empty.

    Args:
        stream: the file, opened in binary.
        where: names the file in messages.
        wanted: columns that it must have; names are compared in lower case.
        any_bytes: whether what is no UTF-8 becomes surrogates, as in the names of files.

    Yields:
        The rows; cells are stripped, and those that a short row lacks are missing.

    Raises:
        DataError: it is no UTF-8 text or no CSV, a column is missing or named twice, or a row has a text
            that stands in no column.
    """
    undecodable = "surrogateescape" if any_bytes else "strict"
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors=undecodable, newline="")
    lines = _lines(text, where)
    try:
        first = next(lines, "")
        delimiter = _delimiter(first, wanted)
        reader = csv.reader(chain((first,), lines), delimiter=delimiter, strict=True)
        header = _header(next(reader, []), where, wanted)
        is_plain = all(header)
        for row in reader:
            stripped = [cell.strip() for cell in row]
            if is_plain and len(stripped) == len(header) and any(stripped):
                yield reader.line_num, dict(zip(header, stripped, strict=True))
            elif any(stripped):
                yield reader.line_num, _cells(header, stripped, f"{where}: line {reader.line_num}")
    except UnicodeDecodeError:
        raise DataError(f"{where}: is not UTF-8 text: save it as CSV UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{where}: not a CSV file ({error})") from None
    finally:
        # The stream is its owner's to close, and may have been closed already.
        with contextlib.suppress(ValueError):
            text.detach()


def _lines(text: io.TextIOWrapper, where: str) -> Iterator[str]:
    while line := text.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            raise DataError(f"{where}: has a line of more than {_MAX_LINE} characters: is it a table?")
        yield line


def _names(cells: Sequence[str]) -> list[str]:
    return [name.strip().lower() for name in cells]


def _delimiter(line: str, wanted: Sequence[str]) -> str:
    """Find what stands between the names of the header."""
    for delimiter in _DELIMITERS:
        names = _names(next(csv.reader([line], delimiter=delimiter), []))
        if all(name in names for name in wanted):
            return delimiter
    return ","


def _header(cells: Sequence[str], where: str, wanted: Sequence[str]) -> list[str]:
    header = _names(cells)
    if missing := [name for name in wanted if name not in header]:
        raise DataError(
            f"{where}: has no column {missing[0]!r}; it has {', '.join(map(repr, header[:9])) or 'none'}"
        )
    seen: set[str] = set()
    for name in header:
        if name and name in seen:
            raise DataError(f"{where}: has the column {name!r} twice")
        seen.add(name)
    return header


def _cells(header: list[str], row: Sequence[str], where: str) -> dict[str, str]:
    """Give stripped cells their names; a spreadsheet's empty ones need none, nor do pandas' row numbers."""
    if any(row[len(header) :]):
        raise DataError(
            f"{where} has {len(row)} cells where the header has {len(header)}: "
            "quote a text with a comma in it, or name the column"
        )
    cells = {}
    for place, (name, cell) in enumerate(zip(header, row, strict=False)):
        if name:
            cells[name] = cell
        elif cell and not (place == 0 and cell.isdecimal()):
            raise DataError(f"{where} has a text in column {place + 1}, which has no name: name the column")
    return cells
