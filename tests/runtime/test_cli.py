"""medimg-run as its users run it."""

import contextlib
import csv
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from medimg.runtime.backends import NAMES
from medimg.runtime.doctor import examine
from medimg.runtime.files.plain import json_text
from medimg.runtime.files.text import csv_cell, printable
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.streams import write_json

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good pictures among a truncated JPEG, an empty file and a text file named .png."""
    generator = np.random.default_rng(0)
    inside = tmp_path / "inputs"
    (inside / "deeper").mkdir(parents=True)
    cv2.imwrite(str(inside / "b.png"), generator.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    cv2.imwrite(str(inside / "deeper" / "d.png"), generator.integers(0, 256, (40, 50), dtype=np.uint8))
    cv2.imwrite(str(inside / "whole.jpg"), generator.integers(0, 256, (300, 300, 3), dtype=np.uint8))
    whole = (inside / "whole.jpg").read_bytes()
    (inside / "whole.jpg").unlink()
    (inside / "c.jpg").write_bytes(whole[: len(whole) * 9 // 10])
    (inside / "a.png").touch()
    (inside / "text.png").write_text("not a picture")
    return inside


@pytest.mark.long
def test_good_images_are_answered_and_each_bad_one_has_its_reason(
    run: Run, ready_artefact: Path, folder: Path
) -> None:
    done = run("medimg-run", "predict", ready_artefact, folder, "--format", "jsonl")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    names = [str(Path(line["path"]).relative_to(folder)) for line in lines]
    assert names == ["a.png", "b.png", "c.jpg", "deeper/d.png", "text.png"]
    assert [("error" in line) for line in lines] == [True, False, True, False, True]
    for line in lines:
        if "error" in line:
            assert line.keys() == {"path", "frame", "error"}
            assert line["frame"] is None
            assert line["error"]["type"] == "ImageError"
            assert "\n" not in line["error"]["message"]
        else:
            assert line.keys() == {"path", "frame", "top_k"}
            assert line["frame"] == 0
            assert [best["score"] for best in line["top_k"]] == sorted(
                (best["score"] for best in line["top_k"]), reverse=True
            )
    assert "2 answered, 3 could not be read" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_formats_agree_and_output_is_written_whole(
    run: Run, ready_artefact: Path, folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "answers.csv"
    done = run("medimg-run", "predict", ready_artefact, folder, "--format", "csv", "--output", target)
    assert done.stdout == ""
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert [row["rank"] for row in rows if row["path"].endswith("b.png")] == ["1", "2", "3"]
    assert len([row for row in rows if row["error"]]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "inputs"]

    table = run("medimg-run", "predict", ready_artefact, folder / "b.png").stdout
    assert rows[1]["label"] in table.splitlines()[1]


@pytest.mark.long
def test_paths_come_from_standard_input(run: Run, ready_artefact: Path, folder: Path) -> None:
    listed = f"{folder / 'b.png'}\n{folder / 'deeper' / 'd.png'}\n"
    done = run("medimg-run", "predict", ready_artefact, "-", "--format", "jsonl", stdin=listed)
    assert done.returncode == 0
    assert [Path(json.loads(line)["path"]).name for line in done.stdout.splitlines()] == ["b.png", "d.png"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("absent.onnx", "x.png"), "absent.onnx: No such file"),
        (("{artefact}", "{folder}", "--device", "gpu"), "device 'gpu' cannot be had"),
        (("{artefact}", "{folder}", "--output", "/proc/none/x"), "cannot be written"),
    ],
)
def test_unusable_input_is_exit_2_and_one_message(
    run: Run, ready_artefact: Path, folder: Path, arguments: tuple[str, ...], reason: str
) -> None:
    filled = [argument.format(artefact=ready_artefact, folder=folder) for argument in arguments]
    done = run("medimg-run", "predict", *filled)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.long
def test_inspect_tells_what_the_file_is(run: Run, ready_artefact: Path) -> None:
    shown = run("medimg-run", "inspect", ready_artefact).stdout
    assert "cyst, normal, solid" in shown
    assert "caffe (BGR)" in shown
    fields = json.loads(run("medimg-run", "inspect", ready_artefact, "--json", "-").stdout)
    assert fields["schema"] == 1
    assert fields["verification"]["images_from"] == "synthetic"
    assert ModelSpec.from_json(json.dumps(fields)) == ModelSpec.read(ready_artefact)


@pytest.mark.long
def test_an_exported_file_is_answered_and_inspected(run: Run, small_artefact: Path, folder: Path) -> None:
    """The other tests' file is written by themselves, so that they need no framework."""
    asked = ("medimg-run", "predict", small_artefact, folder / "b.png", "--format", "jsonl")
    answers = [json.loads(run(*asked, "--backend", name).stdout)["top_k"] for name in NAMES]
    for first, second in zip(*answers, strict=True):
        assert first["label"] == second["label"]
        assert first["score"] == pytest.approx(second["score"], abs=1e-5)
    fields = json.loads(run("medimg-run", "inspect", small_artefact, "--json", "-").stdout)
    assert ModelSpec.from_json(json.dumps(fields)) == ModelSpec.read(small_artefact)
    assert fields["verification"]["max_abs_diff"] < 1e-4


@pytest.mark.long
def test_doctor_finds_both_back_ends(run: Run) -> None:
    done = run("medimg-run", "doctor", "--json", "-")
    assert done.returncode == 0
    plain = json.loads(done.stdout)
    found = {backend["name"]: backend for backend in plain["backends"]}
    assert found.keys() == {"openvino", "onnxruntime", "tensorrt"}
    assert all("cpu" in found[name]["devices"] for name in ("openvino", "onnxruntime"))
    assert plain["division"] == {"decoding": plain["threads"], "inference": plain["threads"]}


@pytest.mark.long
def test_doctor_says_how_threads_are_divided(run: Run) -> None:
    done = run("medimg-run", "doctor", "--threads", "1")
    assert "1 threads decode beside 1 of inference" in done.stdout


@pytest.mark.long
def test_predict_says_what_it_picked_and_why(ready_artefact: Path, folder: Path, run: Run) -> None:
    left = run("medimg-run", "predict", ready_artefact, folder / "b.png")
    assert "openvino on cpu, fp32 (auto: " in left.stderr
    assert "openvino is faster)" in left.stderr
    named = run(
        *("medimg-run", "predict", ready_artefact, folder / "b.png"),
        *("--backend", "onnxruntime", "--device", "cpu"),
    )
    assert named.stderr.splitlines()[0] == "onnxruntime on cpu, fp32"


def test_doctor_sees_two_distributions_of_one_module(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = {"onnxruntime": ["onnxruntime", "onnxruntime-gpu"], "cv2": ["opencv-python-headless"]}
    monkeypatch.setattr("medimg.runtime.doctor.packages_distributions", lambda: providers)
    (conflict,) = examine(1).conflicts
    assert conflict.startswith("onnxruntime and onnxruntime-gpu provide onnxruntime: pip uninstall")


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "status", "seen", "told"),
    [
        ("predict MODEL - <&-", 2, "", "the list on standard input cannot be read (Bad file descriptor)"),
        ("predict MODEL b.png >&-", 2, "", "standard output cannot be written (Bad file descriptor)"),
        ("inspect MODEL >&-", 2, "", "cannot be"),
        ("predict MODEL b.png --format csv 2>&-", 0, "b.png,0,1,", ""),
        ("predict MODEL b.png 日本語.png >&- 2>&- <&-", 2, "", ""),
        ("predict MODEL ''", 2, "", "an empty name is no input"),
        ("predict MODEL b.png --output ''", 2, "", "an empty name is no input"),
        ("inspect MODEL --json ''", 2, "", "an empty name is no input"),
        ("inspect ''", 2, "", "an empty name is no input"),
        ("inspect $(printf 'm%.0s' {1..300}).onnx", 2, "", "File name too long"),
        ("predict MODEL b.png $(printf 'a%.0s' {1..300}).png", 1, "b.png", "1 could not be read"),
        (
            "predict MODEL - < <(printf '\\xef\\xbb\\xbfb.png\\r\\n\\r\\ncaf\\xe9.png\\r\\n')",
            0,
            "b.png\n",
            "2 answered",
        ),
        ("predict MODEL 日本語.png", 0, "日本語.png\n", ""),
        ("PYTHONIOENCODING=ascii predict MODEL 日本語.png", 0, "\\u65e5\\u672c\\u8a9e.png\n", ""),
        (
            "PYTHONIOENCODING=latin-1 predict MODEL 日本語.png --format jsonl",
            0,
            r'"\u65e5\u672c\u8a9e.png"',
            "",
        ),
    ],
)
def test_streams_and_names_of_any_kind(
    ready_artefact: Path, folder: Path, command: str, status: int, seen: str, told: str
) -> None:
    picture = (folder / "b.png").read_bytes()
    for name in (b"caf\xe9.png", "日本語.png".encode()):
        (folder / os.fsdecode(name)).write_bytes(picture)
    program = Path(sys.executable).with_name("medimg-run")
    line = re.sub("(predict|inspect)", rf"{program} \1", command).replace("MODEL", str(ready_artefact))
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False)
    assert seen in done.stdout
    assert told in done.stderr


def test_json_is_taken_by_any_reader() -> None:
    text = json_text({"a\udcff": [math.nan, math.inf, -math.inf, 1.5, "b\ud800"]})
    assert text.isascii()
    assert json.loads(text) == {"a\\udcff": [None, None, None, 1.5, "b\\ud800"]}


@pytest.mark.long
def test_a_closed_pipe_ends_without_a_complaint(ready_artefact: Path, folder: Path) -> None:
    program = Path(sys.executable).with_name("medimg-run")
    command = f"{program} predict {ready_artefact} {folder}/b.png {folder}/b.png | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("é", "é"),
        ("a\u202eb", "a\\u202eb"),
        ("a\udcffb", "a\\udcffb"),
        ("a\nb", "a\\nb"),
    ],
)
def test_text_from_files_cannot_drive_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@A1"])
def test_text_from_files_is_no_formula(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


def in_terminal(*command: str | Path) -> str:
    """Run an installed command in a terminal of its own; give all that appears there."""
    ours, theirs = pty.openpty()
    program = Path(sys.executable).with_name(str(command[0]))
    seen = b""
    with subprocess.Popen(
        [program, *map(str, command[1:])], stdin=theirs, stdout=theirs, stderr=theirs
    ) as running:
        os.close(theirs)
        with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123  a descriptor
            # Reading fails once the command has closed its side.
            while piece := terminal.read(1024):
                seen += piece
    assert running.returncode in (0, 1)
    return seen.decode()


@pytest.mark.long
def test_a_terminal_shows_answers_without_a_bar_between_them(ready_artefact: Path, folder: Path) -> None:
    seen = in_terminal("medimg-run", "predict", ready_artefact, folder)
    lines = seen.splitlines()
    assert str(folder / "b.png") in lines
    assert "%" not in seen
    assert "\x1b" not in seen


@pytest.mark.long
def test_a_terminal_shows_progress_beside_a_file(ready_artefact: Path, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "answers.csv"
    options = ("--output", target, "--format", "csv")
    seen = in_terminal("medimg-run", "predict", ready_artefact, folder, *options)
    assert "5/5" in seen
    assert "100%" in seen
    assert "files/s" in seen
    assert target.read_text().startswith("path,")


def test_what_is_no_number_is_null_in_json(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Result:
        shares: tuple[float, ...]
        largest: float

    write_json(Result((0.5, float("nan")), float("nan")), str(tmp_path / "result.json"), schema=1)
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text) == {"schema": 1, "shares": [0.5, None], "largest": None}
