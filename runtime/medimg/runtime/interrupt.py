"""Ctrl-C before and after a command has a place to end it: one line, and no traceback."""

import os
import signal
from types import FrameType
from typing import NoReturn

STATUS = 128 + signal.SIGINT
"""Exit status of what Ctrl-C ended."""


def leave_at_once() -> None:
    """End the process at Ctrl-C from here on, wherever it is; an ignored Ctrl-C stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_as_usual() -> None:
    """Have Ctrl-C raise `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    # Neither imports nor threads that are under way matter any more.
    try:
        os.write(2, b"error: interrupted\n")
    finally:
        os._exit(STATUS)
