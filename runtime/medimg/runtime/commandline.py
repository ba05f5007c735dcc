"""What the four commands share: errors as one message, exit status, logging, threads."""

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from medimg.runtime.errors import MedimgError, UsageError
from medimg.runtime.files.text import printable
from medimg.runtime.interrupt import STATUS, leave_at_once, raise_as_usual
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.streams import abandon_standard_output, standard_output

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


def _finish_output() -> None:
    with standard_output():
        pass


def _blame(error: OSError) -> str:
    """Say what the system refused, as far as it tells."""
    reason = error.strerror or str(error)
    if isinstance(error.filename, (str, bytes)):
        return f"{os.fsdecode(error.filename)}: {reason}"
    return f"standard output, or a file, cannot be read or written ({reason})"


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


def _configure_logging(verbosity: int) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
