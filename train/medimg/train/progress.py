"""How far long work has come: who wants to show it makes a `Progress` of its own."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


class Progress:
    """Shows nothing but log messages; what the functions use unless told otherwise."""

    def track(self, items: Iterable[T], label: str, length: int) -> Iterator[T]:
        """Give the items one by one."""
        del label, length
        yield from items

    @contextmanager
    def counter(self, label: str, length: int) -> Iterator[Callable[[str], None]]:
        """Give a function to call after each of `length` steps, with what is to be shown beside the bar."""
        del label, length
        yield lambda _text: None

    def note(self, line: str) -> None:
        """Say something once."""
        _LOG.info(line)
