"""How far long work has come: bars and lines on a terminal's standard error, nothing anywhere else."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import click

from medimg.runtime.streams import progress_hidden
from medimg.train.progress import Progress, T


class TerminalProgress(Progress):
    """Shows bars and lines on standard error."""

    def track(self, items: Iterable[T], label: str, length: int) -> Iterator[T]:
        """Give the items one by one, with a bar that shows how many have gone."""
        with click.progressbar(items, length=length, label=label, file=sys.stderr, show_pos=True) as bar:
            yield from bar

    @contextmanager
    def counter(self, label: str, length: int) -> Iterator[Callable[[str], None]]:
        """Show a bar with the time left at most, and a text behind it."""
        with click.progressbar(
            length=length, label=label, file=sys.stderr, item_show_func=lambda text: text
        ) as bar:
            yield lambda text: bar.update(1, text)

    def note(self, line: str) -> None:
        """Say something once."""
        click.echo(line, err=True)


def terminal_progress() -> Progress:
    """Progress for a command: shown where standard error is a terminal."""
    return Progress() if progress_hidden() else TerminalProgress()
