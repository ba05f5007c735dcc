"""How far long work has come: bars and lines on a terminal's standard error, nothing anywhere else."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import click

from medimg.runtime.commandline import progress_hidden

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


class Progress:
    """Shows nothing but log messages; what the functions use unless told otherwise."""

    def track(self, items: Iterable[T], label: str, length: int) -> Iterator[T]:
        """Give the items one by one."""
        del label, length
        yield from items

    def note(self, line: str) -> None:
        """Say something once."""
        _LOG.info(line)


class TerminalProgress(Progress):
    """Shows bars and lines on standard error."""

    def track(self, items: Iterable[T], label: str, length: int) -> Iterator[T]:
        """Give the items one by one, with a bar that shows how many have gone."""
        with click.progressbar(items, length=length, label=label, file=sys.stderr, show_pos=True) as bar:
            yield from bar

    def note(self, line: str) -> None:
        """Say something once."""
        click.echo(line, err=True)


def terminal_progress() -> Progress:
    """Progress for a command: shown where standard error is a terminal."""
    return Progress() if progress_hidden() else TerminalProgress()
