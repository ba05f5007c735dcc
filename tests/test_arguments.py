"""Arguments of all commands: an empty one, as of a variable that is not set, is never the current folder."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from medimg.benchmarks.cli import cli as bench
from medimg.export.cli import cli as export
from medimg.runtime.cli import cli as run
from medimg.runtime.commandline import NameType
from medimg.train.cli import cli as train

UIDS = ("reports", "images")
NAMES = {"FILE", "DIR", "DATA", "FILE.toml", "FILE.html", "FILE.npz", "FILE.svg", "FILE|A,B,C"}
FOLDERS_AND_FILES = {"--output", "--report", "--json", "--spec", "--calibration", "--validation", "--data"}


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for inner, item in command.commands.items():
            yield from commands(item, f"{name} {inner}")
    else:
        yield name, command


ALL = [
    found
    for command, name in ((bench, "bench"), (export, "export"), (run, "run"), (train, "train"))
    for found in commands(command, name)
]


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_every_name_of_a_file_or_folder_is_checked(name: str, command: click.Command) -> None:
    for parameter in command.params:
        options = FOLDERS_AND_FILES & {*parameter.opts}
        is_name = isinstance(parameter, click.Argument) and parameter.name not in UIDS
        if is_name or parameter.metavar in NAMES or options:
            assert isinstance(parameter.type, NameType), f"{name} {parameter.opts}"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (run, ["predict", "m.onnx", ""]),
        (run, ["archive", "m.onnx", "x", "--output", ""]),
        (run, ["listen", "m.onnx", "--config", ""]),
        (train, ["check", ""]),
        (train, ["fit", "x", "--output", ""]),
        (train, ["evaluate", "m.onnx", ""]),
        (export, ["m.keras", "--labels", ""]),
        (export, ["m.keras", "--validation", ""]),
        (bench, ["run", "m.onnx", "--data", ""]),
    ],
)
def test_an_empty_argument_is_refused(
    command: click.Command, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert "an empty name is no input and no output" in done.output
