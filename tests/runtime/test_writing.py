"""One writer: files appear whole or not at all, and what is no file stays what it is."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from medimg.runtime.errors import UsageError
from medimg.runtime.files.writing import replaced, require_writable


def write(path: Path, content: bytes = b"new") -> None:
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with replaced(path) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.suffix == ".onnx"
        assert path.read_bytes() == b"old"
        with replaced(path) as other:
            assert other != temporary
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def fail() -> None:
        with replaced(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [b"old", None])
def test_a_link_stays_one_and_its_file_is_replaced(old: bytes | None, tmp_path: Path) -> None:
    real = tmp_path / "folder" / "real.csv"
    real.parent.mkdir()
    if old:
        real.write_bytes(old)
    (tmp_path / "second.csv").symlink_to(real)
    link = tmp_path / "link.csv"
    link.symlink_to("second.csv")
    write(link)
    assert link.is_symlink()
    assert (tmp_path / "second.csv").is_symlink()
    assert real.read_bytes() == b"new"
    assert list(real.parent.iterdir()) == [real]


def test_a_pipe_gets_the_whole_content_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write(pipe, b"x" * 200_000)
    reader.join(10)
    assert got == [b"x" * 200_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("name", ["/dev/null", "/dev/full"])
def test_a_device_stays_one(name: str, tmp_path: Path) -> None:
    # Through a link, so that a fault deletes that and not the machine's device.
    link = tmp_path / "device"
    link.symlink_to(name)
    if name == "/dev/full":
        with pytest.raises(OSError, match="No space left"):
            write(link)
    else:
        write(link)
    assert link.is_symlink()
    assert stat.S_ISCHR(Path(name).stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_an_open_file_is_written_to_and_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    program = (
        "import sys; from pathlib import Path; from medimg.runtime.files.writing import replaced\n"
        "print('before', flush=True)\n"
        f"with replaced(Path({name!r})) as temporary: temporary.write_text('new\\n')\n"
        "print('after')"
    )
    output = tmp_path / "output"
    with output.open("ab") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True, cwd=tmp_path)
    assert output.read_text() == "before\nnew\nafter\n"


@pytest.mark.parametrize("name", ["a" * 251 + ".csv", "é" * 120 + ".csv", "b." + "c" * 253])
def test_the_longest_names_can_be_written(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"new"


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (
        ("", "it is a folder"),
        ("none/x", "there is no such folder"),
        ("loop", "symbolic links"),
        ("a" * 300, "File name too long"),
    ):
        with pytest.raises(UsageError, match=reason):
            require_writable(tmp_path / name)
    for fine in (tmp_path / "x", Path("/dev/null"), Path("/dev/stdout")):
        require_writable(fine)


def test_what_shows_patients_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    path.touch(0o644)
    with replaced(path, private=True) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_bytes(b"patients")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b"patients"
