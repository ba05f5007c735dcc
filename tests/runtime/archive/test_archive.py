"""An archive on this machine: what is listed, what is committed, and what goes on."""

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from medimg.runtime.archive import run as archive_run
from medimg.runtime.archive.inputs import list_paths
from medimg.runtime.archive.job import Job, only_run, open_job, partition_path
from medimg.runtime.archive.partitions import Counts, read_partition
from medimg.runtime.archive.run import most_in_flight
from medimg.runtime.archive.worker import MOST_TRIES, Outcome, PartitionWorker, Work, numbered
from medimg.runtime.classifier import InputError, Prediction
from medimg.runtime.errors import DataError, UsageError
from medimg.runtime.model.containers import file_sha256

from .conftest import assert_same, read_rows

pytestmark = pytest.mark.long

PROGRAM = Path(sys.executable).with_name("medimg-run")
Make = Callable[[int, int], Path]
Predicted = Callable[[Path], list[Prediction]]


def archive(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PROGRAM, "archive", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def make_work(model: Path, pictures: str, output: Path, files: int = 20) -> Work:
    output.mkdir(exist_ok=True)
    job = open_job(output, Job(pictures, file_sha256(model), 3, None), files)
    return Work(job, output, model, 1, None, "auto", "cpu", ())


def outcome(worker: PartitionWorker, partition: int) -> Outcome:
    return Outcome.from_row(worker({"partition": partition}))


def test_answers_are_those_of_predict_and_bad_files_are_rows(
    model: Path, make_pictures: Make, predicted: Predicted, tmp_path: Path
) -> None:
    pictures, output = make_pictures(70, 64), tmp_path / "answers"
    (pictures / "empty.png").touch()
    (pictures / "text\udcff.png").write_text("not a picture")
    pages = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    cv2.imwritemulti(str(pictures / "pages.tif"), list(pages))
    command = (model, pictures, "--output", output, "--partition-files", "32", "--json", tmp_path / "s.json")
    done = archive(*command)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    expected = [
        Prediction(
            str(item.path).replace("\udcff", "\\udcff"),
            item.frame,
            item.top_k,
            item.error and InputError(item.error.type, item.error.message.replace("\udcff", "\\udcff")),
        )
        for item in predicted(pictures)
    ]
    assert_same(read_rows(output), expected)
    counts = json.loads((tmp_path / "s.json").read_text())["counts"]
    assert (counts["files"], counts["images"], counts["errors"]) == (73, 73, {"ImageError": 2})
    assert sum(counts["classes"].values()) == sum(counts["scores"]) == 73
    assert {row["model_sha256"] for row in read_rows(output)} == {file_sha256(model)}
    assert len(list(output.glob("part-*"))) == 3

    other = archive(model, pictures, "--output", output, "--top-k", "1")
    assert other.returncode == 2
    assert "its top_k is 3, and 1 is asked for: take another --output" in other.stderr


# Ray's own settings warn of each other.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(ray|<string>).*")
def test_ray_reports_nothing_and_obeys_nobody_else(model: Path, make_pictures: Make, tmp_path: Path) -> None:
    code = """
import sys
from medimg.runtime.archive.run import classify_archive

def look(outcome, job):
    from ray._common.usage.usage_lib import usage_stats_enabled
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    print(usage_stats_enabled(), is_token_auth_enabled())

classify_archive(*sys.argv[1:], progress=look)
"""
    home, calls = tmp_path / "home", tmp_path / "calls.txt"
    home.mkdir()
    arguments = map(str, (model, make_pictures(8, 32), tmp_path / "answers"))
    # A network of its own, in which nothing but this machine is to be reached.
    alone = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "alone"]
    strace = ["strace", "--follow-forks", "--seccomp-bpf", "-qq", f"--output={calls}"]
    strace += ["--trace=connect,sendto,sendmsg,sendmmsg"]
    # Ray's sockets lie in its folder, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        done = subprocess.run(
            [*alone, *strace, sys.executable, "-c", code, *arguments],
            env=os.environ | {"HOME": str(home), "TMPDIR": temporary},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "False True\n", done.stderr
        assert not list(Path(temporary).iterdir())
    assert not list(home.iterdir())
    asked = [line for line in calls.read_text().splitlines() if "AF_INET" in line]
    assert any("127.0.0.1" in line for line in asked)
    assert not [line for line in asked if not re.search(r'"(127\.[0-9.]+|::1|::ffff:127\.[0-9.]+)"', line)]


@pytest.mark.parametrize("place", ["header", "page", "footer", "cut", "empty", "foreign", "gone"])
def test_a_damaged_partition_is_made_anew(
    place: str, model: Path, make_pictures: Make, tmp_path: Path
) -> None:
    worker = PartitionWorker(make_work(model, str(make_pictures(40, 32)), tmp_path / "out"))
    assert [outcome(worker, number).made for number in (0, 1, 1)] == [True, True, False]
    path, other = (partition_path(tmp_path / "out", number) for number in (1, 0))
    whole = path.read_bytes()
    flipped = {"header": 0, "page": 150, "footer": len(whole) - 4}
    if place in flipped:
        position = flipped[place]
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
    elif place == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": whole[:-20], "empty": b"", "foreign": other.read_bytes()}[place])
    assert outcome(worker, 1).made
    assert path.read_bytes() == whole


def test_any_flipped_bit_of_a_partition_is_found(model: Path, make_pictures: Make, tmp_path: Path) -> None:
    work = make_work(model, str(make_pictures(20, 32)), tmp_path / "out")
    made = outcome(PartitionWorker(work), 0).counts
    path = partition_path(work.output, 0)
    whole = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(whole), 200):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        assert read_partition(work.output, work.job, 0) is None
    path.write_bytes(whole)
    assert read_partition(work.output, work.job, 0) == made


def test_a_full_disk_ends_the_run_with_one_message_and_no_part(
    model: Path, make_pictures: Make, tmp_path: Path
) -> None:
    work = make_work(model, str(make_pictures(300, 32)), tmp_path / "out", files=300)
    worker = PartitionWorker(work)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        failed = outcome(worker, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.failure is not None
    assert failed.failure.startswith(f"{work.output}: cannot be written (")
    assert "File too large" in failed.failure
    assert [path.name for path in work.output.iterdir() if path.suffix == ".parquet"] == ["_list.parquet"]
    assert outcome(worker, 0).counts is not None


def test_a_partition_at_which_workers_die_is_given_up(
    model: Path, make_pictures: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    work = make_work(model, str(make_pictures(40, 32)), tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(PartitionWorker, "_make", killed)
        for _ in range(MOST_TRIES):
            with pytest.raises(KilledError):
                PartitionWorker(work)({"partition": 0})
    worker = PartitionWorker(work)
    assert outcome(worker, 0).given_up
    assert outcome(worker, 1).counts is not None
    with only_run(work.output):
        assert outcome(worker, 0).counts is not None


def test_a_worker_with_another_model_says_so(model: Path, make_pictures: Make, tmp_path: Path) -> None:
    work = make_work(model, str(make_pictures(8, 32)), tmp_path / "out")
    other = tmp_path / "other.onnx"
    other.write_bytes(model.read_bytes() + b" ")
    found = outcome(PartitionWorker(Work(**{**vars(work), "model": other})), 0)
    assert found.failure == f"{other}: is another file on this machine than on the driver's"


def test_lists_and_stores_name_the_same_files(make_pictures: Make, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    folder = make_pictures(12, 16)
    (folder / ".hidden.png").touch()
    paths = list(list_paths(str(folder)))
    assert len(paths) == 12
    relative = [os.path.relpath(path, tmp_path) for path in paths]
    (tmp_path / "list.csv").write_text("label,path\n" + "".join(f"x,{name}\n" for name in relative))
    parquet.write_table(pyarrow.table({"path": relative}), tmp_path / "list.parquet")
    for name in ("list.csv", "list.parquet"):
        assert list(list_paths(str(tmp_path / name))) == paths
        assert sorted(list_paths(f"file://{tmp_path / name}")) == sorted(f"file://{path}" for path in paths)
    assert sorted(list_paths(f"file://{folder}")) == sorted(f"file://{path}" for path in paths)


def test_files_of_a_store_are_answered_under_their_own_names(
    model: Path, make_pictures: Make, predicted: Predicted, tmp_path: Path
) -> None:
    folder = make_pictures(9, 32)
    (folder / "bad.png").write_text("no")
    uris = [f"file://{path}" for path in list_paths(str(folder))]
    (tmp_path / "list.csv").write_text("path\n" + "\n".join([*uris, "file:///gone.png"]))
    work = make_work(model, str(tmp_path / "list.csv"), tmp_path / "out")
    counts = outcome(PartitionWorker(work), 0).counts
    assert counts is not None
    assert (counts.files, counts.images, counts.failed) == (11, 9, 2)
    rows = read_rows(work.output)
    for row in rows:
        row["path"] = row["path"].removeprefix("file://")
        row["error"] = row["error"] and row["error"].removeprefix("file://")
    assert_same(rows[:10], predicted(folder))
    assert rows[10]["error"].startswith("/gone.png: cannot be fetched (")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "file\nx.png\n", "has no column 'path'"),
        ("a.csv", 'path,b\n"",1\n', "row 1 has no usable path"),
        ("a.csv", "path\na\0b.png\n", "row 1 has no usable path"),
        ("a.csv", "path,label\nx.png,a,b\n", "line 2 has 3 cells where the header has 2"),
        (
            "a.csv",
            "path\ns3://bucket/x.png\n",
            "row 1 is a file of s3, and the list is not: --allow-scheme s3",
        ),
        ("a.csv", "path\nfile://x::reference://y\n", "row 1: :: chains file systems"),
        ("a.csv", "path\nreference://::file:///tmp/x.json\n", "row 1: :: chains file systems"),
        ("simplecache::file:///x", None, ":: chains file systems"),
        ("a.parquet", "PAR1", "no list with a column 'path'"),
        ("gone.csv", None, "cannot be read"),
        ("gone", None, "no such file or folder"),
        ("a" * 300, None, "no such file or folder"),
        ("nothing://a/b", None, "cannot be opened"),
    ],
)
def test_an_unusable_input_has_its_reason(
    name: str, content: str | None, reason: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    source = name if "://" in name else str(tmp_path / name)
    with pytest.raises((UsageError, DataError)) as raised:
        list(list_paths(source))
    assert str(raised.value).startswith(source)
    assert reason in str(raised.value)


def test_a_list_names_files_of_its_own_scheme_and_of_those_that_are_allowed(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbfpath;label\r\na::b.png;x\r\nHTTP://host/c.png;y\r\n")
    source = str(tmp_path / "list.csv")
    names = [str(tmp_path / "a::b.png"), "HTTP://host/c.png"]
    assert list(list_paths(source, ["http"])) == names
    with pytest.raises(DataError, match="row 2 is a file of http"):
        list(list_paths(source))
    # In a list of a store, the path of a file of this machine is no file of the store.
    with fsspec.open("memory://lists/list.csv", "w") as file:
        file.write("path\na.png\nmemory://b.png\n/etc/hostname\n")
    found = list_paths("memory://lists/list.csv")
    assert [next(found), next(found)] == ["memory://lists/a.png", "memory://b.png"]
    with pytest.raises(DataError, match="row 3 is a file of file, and the list is not"):
        next(found)


def test_odd_names_are_rows_of_the_list(tmp_path: Path) -> None:
    """Names that are not UTF-8, pipes and names too long are listed; reading each tells its reason."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.png")).touch()
    os.mkfifo(folder / "pipe.png")
    listed = tmp_path / "list.csv"
    listed.write_bytes(b"path\nset/caf\xe9.png\nset/pipe.png\n" + b"a" * 300 + b".png\n")
    names = [str(folder / os.fsdecode(b"caf\xe9.png")), str(folder / "pipe.png")]
    assert list(list_paths(str(folder))) == names
    assert list(list_paths(str(listed))) == [*names, str(tmp_path / ("a" * 300 + ".png"))]


def test_an_output_has_one_run_at_a_time_and_belongs_to_one_job(
    model: Path, make_pictures: Make, tmp_path: Path
) -> None:
    output, pictures = tmp_path / "out", str(make_pictures(8, 16))
    with only_run(output), pytest.raises(UsageError, match="another run is writing here"), only_run(output):
        pass
    work = make_work(model, pictures, output)
    shutil.rmtree(pictures)
    assert make_work(model, pictures, output).job == work.job, "the list is that of the first start"
    with pytest.raises(UsageError, match=r"its model_sha256 is .* take another --output"):
        open_job(output, Job(pictures, "0" * 64, 3, None), None)
    (output / "_job.json").write_text("{")
    with pytest.raises(DataError, match="take another --output"):
        make_work(model, pictures, output)
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="holds no files"):
        make_work(model, str(tmp_path / "none"), tmp_path / "out2")


@pytest.mark.parametrize(
    ("output", "reason"),
    [("s3://bucket/answers", "the output is a folder"), ("pictures/answers", "lies in the archive")],
)
def test_an_output_that_cannot_be_is_refused(
    output: str, reason: str, model: Path, make_pictures: Make, tmp_path: Path
) -> None:
    done = archive(model, make_pictures(1, 16), "--output", output if ":" in output else tmp_path / output)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("partitions", "workers", "each"), [(1, 4, 1), (2, 2, 1), (3, 2, 1), (4, 2, 2), (79, 2, 2)]
)
def test_no_worker_gets_two_partitions_where_another_would_get_none(
    partitions: int, workers: int, each: int
) -> None:
    assert most_in_flight(partitions, workers) == each


def test_each_answer_belongs_to_its_input() -> None:
    error = InputError("ImageError", "")
    answers = [
        *(Prediction("a", 0), Prediction("a", 1), Prediction("a", None, error=error)),
        *(Prediction("b", None, error=error), Prediction("b", None, error=error)),
        *(Prediction("c", 0), Prediction("c", 0), Prediction("d", None, error=error)),
    ]
    assert [place for place, _ in numbered(answers)] == [0, 0, 0, 1, 2, 3, 4, 5]


def test_counts_add_up() -> None:
    one = Counts(2, 1, {"ImageError": 1}, {"a": 1}, (0,) * 9 + (1,), ("x",))
    other = Counts(1, 1, {}, {"b": 1}, (1,) + (0,) * 9, ("y",))
    both = one + other + Counts()
    assert both == Counts(3, 2, {"ImageError": 1}, {"a": 1, "b": 1}, (1,) + (0,) * 8 + (1,), ("x", "y"))
    assert both.failed == 1


def test_a_folder_whose_sockets_would_have_too_long_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own limit is what `bind` says."""
    most = archive_run._MOST_FOLDER_BYTES
    session = "/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
    for size, fits in ((most, True), (most + 1, False)):
        with socket.socket(socket.AF_UNIX) as made, contextlib.suppress(FileNotFoundError):
            outcome = contextlib.nullcontext() if fits else pytest.raises(OSError, match="too long")
            with outcome:
                made.bind("/" + "x" * (size - 1) + session)
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with (
        pytest.raises(UsageError, match="name a folder with a shorter path in TMPDIR"),
        archive_run._ray(None, 1),
    ):
        pass
    assert list(folder.iterdir()) == []
