"""Names of files: every one is a file, a folder, or has its reason; none ends a run."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medimg.runtime.errors import ImageError, UsageError
from medimg.runtime.files.paths import is_file, is_folder, listed_paths, walk_images
from medimg.runtime.images.load import load_frames
from medimg.runtime.images.rule import ImageRule

RULE = ImageRule(8, 8)
NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: not {10, 13, 0xEF, 0xFE, 0xFF} & {*name} and name.strip()
)


@given(names=st.lists(NAMES, max_size=5), ending=st.sampled_from([b"\n", b"\r\n"]), mark=st.booleans())
def test_a_list_of_any_system_gives_its_names(names: list[bytes], ending: bytes, mark: bool) -> None:
    content = (b"\xef\xbb\xbf" if mark else b"") + ending.join(names)
    assert list(listed_paths(io.BytesIO(content), "list")) == [Path(os.fsdecode(name)) for name in names]


@pytest.mark.parametrize(
    ("content", "reason"),
    [("a.png\n".encode("utf-16"), "UTF-16"), (b"a" * 70_000, "line of 65536 bytes")],
)
def test_what_is_no_list_of_names_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        list(listed_paths(io.BytesIO(content), "list"))


@given(
    name=st.one_of(
        st.binary(max_size=300).map(os.fsdecode), st.text("a/.\0", max_size=50).map(lambda text: text * 100)
    )
)
def test_any_name_is_a_file_a_folder_or_has_its_reason(name: str) -> None:
    path = Path("/nowhere", name.lstrip("/"))
    if name.count("..") or is_folder(path) or is_file(path):
        return
    assert list(walk_images([path])) == [path]
    with pytest.raises(ImageError):
        next(load_frames(path, RULE))


def test_folders_may_be_deeper_than_pythons_stack(tmp_path: Path) -> None:
    deepest = tmp_path
    for _ in range(1500):
        deepest = deepest / "d"
        os.mkdir(str(deepest))  # noqa: PTH102  pathlib's own is slow at such depths
    (deepest / "a.png").touch()
    (tmp_path / "z.png").touch()
    assert list(walk_images([tmp_path])) == [deepest / "a.png", tmp_path / "z.png"]
    # pytest's own removal of the folder would recurse.
    (deepest / "a.png").unlink()
    for folder in (deepest, *deepest.parents)[:1500]:
        os.rmdir(str(folder))  # noqa: PTH106


def test_pipes_and_devices_are_given_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    found = list(walk_images([tmp_path, "/dev/null"]))
    assert found == [tmp_path / "pipe.png", tmp_path / "zero.png", Path("/dev/null")]
    for path in found:
        with pytest.raises(ImageError, match="is no regular file"):
            next(load_frames(path, RULE))


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(UsageError, match="an empty name is no input"):
        list(walk_images([""]))
