"""Lists of labels and TOML from outside: read whatever system wrote them, or refused by name."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medimg.runtime.errors import UsageError
from medimg.runtime.files.text_files import read_labels, read_text, read_toml
from medimg.runtime.node.config import read_config

NAME = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(NAME, min_size=1, max_size=9),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
    last=st.booleans(),
)
def test_a_name_a_line(names: list[str], ending: str, encoding: str, last: bool, tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes((ending.join(names) + (ending if last else "")).encode(encoding))
    assert read_labels(str(file)) == tuple(names)


def test_a_long_list_is_a_list() -> None:
    names = tuple(f"plant disease {number}" for number in range(300))
    assert read_labels(", ".join(names)) == names


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("é\nb\n".encode("latin-1"), "labels.txt: not UTF-8 text: save it as UTF-8"),
        ("a\nb\n".encode("utf-16"), "labels.txt: not UTF-8 text: save it as UTF-8"),
        ("a\nb\n".encode("utf-16-le"), "cannot be shown"),
        (b"a\n\nb\n", "a class has no name"),
        (b"a\n\x1b[31mb\n", "cannot be shown"),
        (b"\n\n", "no names"),
        (bytes(2**22 + 1), "is larger than"),
    ],
)
def test_lists_of_labels_that_are_wrong(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(UsageError) as raised:
        read_labels(str(tmp_path / "labels.txt"))
    assert reason in str(raised.value)


@pytest.mark.parametrize("value", ["gone.txt", "a;b;c", "a" * 300, "a,,b", "a,\ufeffb", ","])
def test_what_is_no_list_of_labels(value: str) -> None:
    with pytest.raises(UsageError, match=r"no such file, and no list|has no name|cannot be shown"):
        read_labels(value)


def test_toml_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_toml(tmp_path / "a.toml") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("é = 1".encode("latin-1"), "not UTF-8"),
        (b"a = " + b"[" * 5000, "not a readable TOML file"),
        (b"a = " + b"9" * 5000, "not a readable TOML file"),
        (b"a =", "not a readable TOML file"),
    ],
)
def test_toml_that_is_wrong(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        read_toml(tmp_path / "a.toml")


def test_no_text_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UsageError, match="is no regular file"):
            read_text(name)


def test_an_empty_path_in_a_configuration_is_not_its_folder(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('folder = ""\n')
    with pytest.raises(UsageError, match="folder is empty"):
        read_config(tmp_path / "node.toml")


@pytest.mark.real
@pytest.mark.parametrize("name", ["bom.txt", "latin1.txt", "utf16.txt"])
def test_cases(name: str, real_data: Path) -> None:
    file = real_data.parent / "cases" / "data" / "labels-file-encoding" / name
    if name == "bom.txt":
        assert not any("\ufeff" in label for label in read_labels(str(file)))
    else:
        with pytest.raises(UsageError, match=f"{name}: not UTF-8 text: save it as UTF-8"):
            read_labels(str(file))
