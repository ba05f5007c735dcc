"""Standard output and error, and results on them: what commands and library share, without a command line."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from medimg.runtime.errors import UsageError
from medimg.runtime.files.plain import json_text, to_plain
from medimg.runtime.files.writing import write_text


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


def abandon_standard_output() -> None:
    """Send what is left to nowhere, so that the interpreter's last flush does not complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


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
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text(Path(destination), text)


def progress_hidden() -> bool:
    """Whether progress bars are off, as they are when standard error is no terminal."""
    return not sys.stderr.isatty()
