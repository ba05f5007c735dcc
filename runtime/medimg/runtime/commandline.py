"""What the four commands share: errors as one message, exit status, logging, threads, JSON results."""

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from medimg.runtime.codec import to_plain
from medimg.runtime.containers import replaced
from medimg.runtime.cpus import usable_cpus
from medimg.runtime.errors import MedimgError, UsageError
from medimg.runtime.text import printable

Command = TypeVar("Command", bound=Callable[..., Any])
PathArgument = click.Path(path_type=Path)
JSON_HELP = "Write the result as JSON to FILE, or to standard output for -."
BACKENDS = ("auto", "openvino", "onnxruntime", "tensorrt")
TRUST = click.option(
    "--trust",
    "trusted",
    metavar="SHA256",
    multiple=True,
    help="Run this TensorRT engine, which was not built here.",
)


def run(command: click.Command) -> NoReturn:
    """Run a command and leave with its exit status: 0 done, 1 a check failed, 2 unusable input."""
    try:
        status = command.main(standalone_mode=False)
    except MedimgError as error:
        _fail(str(error), error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader has gone.
        abandon_standard_output()
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def abandon_standard_output() -> None:
    """Send what is left to nowhere, so that the interpreter's last flush does not complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> NoReturn:
    lines = [printable(line) for line in message.splitlines()]
    click.echo("error: " + "\n       ".join(lines), err=True)
    sys.exit(status)


def standard_options(command: Command) -> Command:
    """Add `-v` and `--threads`, which every verb takes; the verb receives `threads` as a number."""
    threads = click.option(
        "--threads",
        type=click.IntRange(min=1),
        callback=lambda _context, _option, value: value or usable_cpus(),
        help="Processor threads to use.  [default: those this process may use]",
    )
    verbose = click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=lambda _context, _option, value: _configure_logging(value),
        help="Log more; twice for debugging.",
    )
    return threads(verbose(command))


def version_option(command: Command) -> Command:
    """Add `--version`."""
    return click.version_option(version("medimg"), prog_name="medimg")(command)


def write_json(result: object, destination: str | None, **head: object) -> None:
    """Write a result dataclass as JSON.

    Args:
        result: the dataclass.
        destination: a file, `-` for standard output, or None for nowhere.
        head: fields that stand before the result's own, such as `schema`.
    """
    if destination is None:
        return
    text = json.dumps(_nan_as_null({**head, **to_plain(result)}), indent=1, ensure_ascii=False) + "\n"
    if destination == "-":
        click.echo(text, nl=False)
        return
    with written_whole(Path(destination)) as path:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")


def _nan_as_null(value: Any) -> Any:  # noqa: ANN401  plain values, at any depth
    """Replace what is no number: JSON has no word for it."""
    if isinstance(value, dict):
        return {key: _nan_as_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_as_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name for an output file, which takes its place only when it is complete."""
    try:
        with replaced(path) as temporary:
            yield temporary
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def progress_hidden() -> bool:
    """Whether progress bars are off, as they are when standard error is no terminal."""
    return not sys.stderr.isatty()


def _configure_logging(verbosity: int) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
