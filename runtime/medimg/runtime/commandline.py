"""What the four commands share: errors as one message, exit status, logging, threads, JSON results."""

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

import click
from click.shell_completion import CompletionItem

from medimg.runtime.errors import MedimgError, UsageError
from medimg.runtime.files.plain import json_text, to_plain
from medimg.runtime.files.text import printable
from medimg.runtime.files.writing import replaced
from medimg.runtime.interrupt import STATUS, leave_at_once, raise_as_usual
from medimg.runtime.machine.cpus import usable_cpus

Command = TypeVar("Command", bound=Callable[..., Any])
_LOG = logging.getLogger(__name__)


class NameType(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click alone
    """A name of a file, a folder or something else; an empty one is a variable that was not set."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Refuse an empty name."""
        if not str(value):
            self.fail("an empty name is no input and no output: is a variable not set?", param, ctx)
        return value


class PathType(NameType):
    """A path; unless the verb has a row for it, one that no file can have is refused here, once for all."""

    name = "path"

    def __init__(self, *, own_row: bool = False) -> None:
        self._own_row = own_row

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401
        """Make a Path."""
        path = Path(super().convert(value, param, ctx))
        try:
            path.stat()
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) and not self._own_row:
                self.fail(f"{str(path)[:200]}: {error.strerror}", param, ctx)
        return path

    def shell_complete(
        self, _context: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Have the shell complete names of files."""
        return [CompletionItem(incomplete, type="file")]


NameArgument = NameType()
PathArgument = PathType()
InputArgument = PathType(own_row=True)
JSON_OPTION = click.option(
    "--json",
    "json_file",
    type=NameArgument,
    metavar="FILE",
    help="Write the result as JSON to FILE, or to standard output for -.",
)
BACKENDS = ("auto", "openvino", "onnxruntime", "tensorrt")
TRUST = click.option(
    "--trust",
    "trusted",
    metavar="SHA256",
    multiple=True,
    help="Run the TensorRT engine whose record (.plan.json) has this SHA-256, though it was not built here.",
)


def run(command: click.Command) -> NoReturn:
    """Run a command and leave with its exit status: 0 done, 1 a check failed, 2 unusable input."""
    _prepare_streams()
    try:
        raise_as_usual()
        try:
            status = command.main(standalone_mode=False)
            _finish_output()
        finally:
            leave_at_once()
    except MedimgError as error:
        _fail(str(error), error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", STATUS)
    except BrokenPipeError:
        # The reader has gone.
        abandon_standard_output()
        sys.exit(1)
    except OSError as error:
        # A full disk, a limit on open files: the machine's, wherever it was met.
        _LOG.debug("ended by", exc_info=True)
        _fail(_blame(error), UsageError.exit_status)
    sys.exit(status if isinstance(status, int) else 0)


def _prepare_streams() -> None:
    """Put something in the place of closed streams, and let text out that a terminal has no letters for.

    Left closed, the next file that is opened would become standard output. What takes their place fails when
    it is used, as gnulib's `stdopen` does; nobody reads standard error then.
    """
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def standard_output() -> Iterator[TextIO]:
    """Give standard output, and write what is in memory while there is somebody to tell that it fails.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_standard_output()
        raise UsageError(f"standard output cannot be written ({error.strerror})") from None


def _finish_output() -> None:
    with standard_output():
        pass


def _blame(error: OSError) -> str:
    """Say what the system refused, as far as it tells."""
    reason = error.strerror or str(error)
    if isinstance(error.filename, (str, bytes)):
        return f"{os.fsdecode(error.filename)}: {reason}"
    return f"standard output, or a file, cannot be read or written ({reason})"


def abandon_standard_output() -> None:
    """Send what is left to nowhere, so that the interpreter's last flush does not complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(message: str, status: int) -> NoReturn:
    lines = [printable(line) for line in message.splitlines()]
    click.echo("error: " + "\n       ".join(lines), err=True)
    with contextlib.suppress(UsageError, BrokenPipeError):
        _finish_output()
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
    text = json_text({**head, **to_plain(result)}, indent=1) + "\n"
    if destination == "-":
        click.echo(text, nl=False)
    else:
        write_text(Path(destination), text)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a text file whole, in UTF-8; bytes of names that are none are escaped.

    Args:
        path: the file.
        text: its content.
        private: whether its owner alone may read it.

    Raises:
        UsageError: it cannot be written.
    """
    with written_whole(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def written_whole(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a temporary name for an output file, which takes its place only when it is complete."""
    try:
        with replaced(path, private=private) as temporary:
            yield temporary
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def progress_hidden() -> bool:
    """Whether progress bars are off, as they are when standard error is no terminal."""
    return not sys.stderr.isatty()


def _configure_logging(verbosity: int) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
