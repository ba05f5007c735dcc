"""Pickles read as data: no unpickler runs, so nothing that a file names is ever called.

A pickle is a program for a machine with a stack (`pickletools`). The few opcodes that plain values need are
carried out here, in a bounded number of steps; a dictionary's keys are texts, whose hash takes no time, and
what a file calls becomes a `Called`, which says what was to be called.
"""

import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

MAX_STEPS = 2**20
"""Opcodes; a CIFAR-10 batch has some 40,000."""


@dataclass(eq=False)
class Called:
    """What a pickle says to call, and with what."""

    name: str
    """Module and name, with a point between."""
    arguments: tuple[Any, ...]
    state: Any = None
    """What it says to set the result's state to."""


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names."""

    name: str


def read_pickle(content: bytes, allowed: Collection[str]) -> Any:  # noqa: ANN401  what a file holds
    """Read a pickle's value: texts, bytes, whole numbers, lists, tuples, dictionaries, and what it calls.

    Args:
        content: the whole file.
        allowed: names that it may call.

    Raises:
        ValueError: it is damaged, too long, or does something else.
    """
    machine = _Machine(allowed, len(content))
    try:
        for step, (code, argument, _) in enumerate(pickletools.genops(content)):
            if step == MAX_STEPS:
                raise ValueError(f"it has more than {MAX_STEPS} steps")
            machine.do(code.name, argument)
        (value,) = machine.stack
    except (AttributeError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__} in its structure") from None
    return value


class _Machine:
    """The stack and the memo, and the opcodes that work on them."""

    def __init__(self, allowed: Collection[str], most_bytes: int) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._allowed = allowed
        self._bytes_left = most_bytes

    def do(self, name: str, argument: Any) -> None:  # noqa: ANN401  as pickletools gives it
        """Carry out one opcode."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name](argument))
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _WITHOUT_EFFECT:
            raise ValueError(f"it holds what no data do ({name})")

    def remember(self, index: int | None) -> None:
        """Keep the last value under a number, or under the next one."""
        self._memo[len(self._memo) if index is None else index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Give a kept value once more."""
        self.stack.append(self._memo[index])

    def mark(self) -> None:
        """Mark the end of the stack."""
        self._marks.append(len(self.stack))

    def pop_marked(self) -> list[Any]:
        """Take off what has come since the last mark."""
        place = self._marks.pop()
        items = self.stack[place:]
        del self.stack[place:]
        return items

    def pop(self, count: int) -> tuple[Any, ...]:
        """Take off the last values."""
        place = len(self.stack) - count
        if place < (self._marks[-1] if self._marks else 0):
            raise ValueError("it takes more than it has")
        items = tuple(self.stack[place:])
        del self.stack[place:]
        return items

    def drop(self) -> None:
        """Take off the last value."""
        self.pop(1)

    def append(self, items: list[Any]) -> None:
        """Put values at the end of the list below them."""
        if type(self.stack[-1]) is not list:
            raise ValueError("it appends to what is no list")
        self.stack[-1].extend(items)

    def dictionary(self, items: list[Any]) -> None:
        """Put a dictionary of keys and values there."""
        self.stack.append({})
        self.set_items(items)

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values into the dictionary below them."""
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(target) is not dict or type(key) not in (str, bytes):
                raise ValueError("it has a key that is no text")
            target[key] = value

    def name(self, module: object, name: object) -> None:
        """Name a function or class."""
        full = f"{module}.{name}"
        if full not in self._allowed:
            raise ValueError(f"it names {full[:100]}")
        self.stack.append(_Name(full))

    def call(self) -> None:
        """Note a call; the one by which Python 3 writes bytes in an old protocol is carried out."""
        function, arguments = self.pop(2)
        if type(function) is not _Name or type(arguments) is not tuple:
            raise ValueError("it calls what is no function")
        if function.name == "_codecs.encode":
            text, encoding = arguments
            if type(text) is not str or encoding not in ("latin1", b"latin1"):
                raise ValueError("an unknown encoding")
            self._bytes_left -= len(text)
            if self._bytes_left < 0:
                raise ValueError("it makes more bytes than it has")
            self.stack.append(text.encode("latin-1"))
        else:
            self.stack.append(Called(function.name, arguments))

    def set_state(self) -> None:
        """Note the state of what has been called."""
        (state,) = self.pop(1)
        if type(self.stack[-1]) is not Called:
            raise ValueError("it sets the state of what was not called")
        self.stack[-1].state = state


def _whole(value: int) -> int:
    if abs(value) >= 2**64:
        raise ValueError("a number of more than 64 bits")
    return value


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


_WITHOUT_EFFECT = {"PROTO", "FRAME", "STOP"}
_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1"), _whole),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _bytes),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), str),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), bytes),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.drop(),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_marked())),
    "TUPLE1": lambda machine, _: machine.stack.append(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.stack.append(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.stack.append(machine.pop(3)),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_marked()),
    "DICT": lambda machine, _: machine.dictionary(machine.pop_marked()),
    "APPEND": lambda machine, _: machine.append(list(machine.pop(1))),
    "APPENDS": lambda machine, _: machine.append(machine.pop_marked()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.pop(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_marked()),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.set_state(),
}
