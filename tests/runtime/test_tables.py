"""Tables from outside: what spreadsheets and people write, read alike; what could be misread is refused."""

import contextlib
import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medimg.runtime.errors import DataError
from medimg.runtime.files.tables import table_rows

_CELL = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)


def rows(content: bytes, *wanted: str) -> list[dict[str, str]]:
    return [cells for _, cells in table_rows(io.BytesIO(content), "t.csv", wanted)]


@given(
    table=st.lists(st.tuples(_CELL, _CELL), max_size=6),
    delimiter=st.sampled_from(",;\t"),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.booleans(),
    padding=st.integers(0, 3),
)
def test_what_a_csv_writer_writes_is_read_back(
    table: list[tuple[str, str]], delimiter: str, ending: str, mark: bool, padding: int
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=ending)
    writer.writerows([("Path", " label", *[""] * padding), *((*row, *[""] * padding) for row in table)])
    content = file.getvalue().encode("utf-8-sig" if mark else "utf-8")
    expected = [(path.strip(), label.strip()) for path, label in table]
    assert [(cells["path"], cells["label"]) for cells in rows(content, "path")] == [
        row for row in expected if any(row)
    ]


@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_table_or_have_their_reason(content: bytes) -> None:
    for head in (b"", b"path,label\n"):
        with contextlib.suppress(DataError):
            assert all(isinstance(name, str) for cells in rows(head + content, "path") for name in cells)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("path,label\na.png,Pneumonia, viral\n", "line 2 has 3 cells where the header has 2: quote a text"),
        ("path,label\na.png,x,train\n", "line 2 has 3 cells where the header has 2"),
        ("path;label\na.png;x;train\n", "line 2 has 3 cells where the header has 2"),
        ("path,label,\na.png,x,train\n", "line 2 has a text in column 3, which has no name"),
        (",path,label\ntrain,a.png,x\n", "line 2 has a text in column 1, which has no name"),
        ("path,sex,SEX\na.png,f,m\n", "has the column 'sex' twice"),
        ("label\nx\n", "has no column 'path'; it has 'label'"),
        ("", "has no column 'path'; it has none"),
        ('path,label\n"a.png,x\n', "not a CSV file"),
    ],
)
def test_what_could_be_misread_is_refused(content: str, reason: str) -> None:
    with pytest.raises(DataError, match=r"^t\.csv") as raised:
        rows(content.encode(), "path")
    assert reason in str(raised.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_other_encodings_are_named(encoding: str) -> None:
    with pytest.raises(DataError, match=r"not UTF-8|has no column"):
        rows("path,label\naé.png,Müller\n".encode(encoding), "path")


def test_the_row_numbers_of_pandas_and_empty_cells_need_no_name() -> None:
    assert rows(b",path,label\n0,a.png,x,,\n1,b.png,y\n", "path") == [
        {"path": "a.png", "label": "x"},
        {"path": "b.png", "label": "y"},
    ]


def test_an_endless_line_is_refused() -> None:
    with pytest.raises(DataError, match="line of more than"):
        rows(b"path," + b"\0" * 2**24, "path")
