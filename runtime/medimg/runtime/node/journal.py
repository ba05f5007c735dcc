"""Lines of the database copied to files, each exactly once."""

import hashlib
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.node.database import NO_HEAD, Database, Stream
from medimg.runtime.node.files import append_durable, last_line, make_folder

LINES_A_FILE = 1_000_000
_DAY_S = 86400
REMOVED = "removed"
"""Event of the line that vouches for the beginning of a log whose first files were removed."""


class Journal:
    """One stream's files, `NNNNNN.jsonl`: a new one each day (UTC), and after a million lines."""

    def __init__(self, folder: Path, stream: Stream, store: Database) -> None:
        self.folder = make_folder(folder)
        self._stream, self._store = stream, store
        self._lock = threading.Lock()
        self._written, self._head = _last(self.folder)
        self._file = _File.last(self.folder)
        store.continue_stream(stream, self._written, self._head)
        self.catch_up()

    @property
    def position(self) -> tuple[int, str]:
        """Sequence and hash of the last line in the files."""
        with self._lock:
            return self._written, self._head

    def tidy(self) -> None:
        """Remove from the database what the files hold."""
        self._store.forget_lines(self._stream, self.position[0])

    def catch_up(self) -> None:
        """Append the lines that have been committed since, and make them durable."""
        with self._lock:
            while lines := self._store.lines_after(self._stream, self._written):
                self._file = self._file.for_line(*lines[0])
                fitting = itertools.takewhile(lambda line: self._file.for_line(*line) is self._file, lines)
                part = list(fitting)
                append_durable(self.folder / self._file.name, "".join(f"{text}\n" for _, text in part))
                self._written = part[-1][0]
                self._head = hashlib.sha256(part[-1][1].encode()).hexdigest()

    def remove_before(self, before: float) -> int:
        """Remove files whose last line was written before a time; give the sequence of the last, or 0.

        First a line says so, with the hash that the next file's first line follows: the chain stays whole.
        """
        old = []
        for path in _files(self.folder)[:-1]:
            line = last_line(path)
            if line is not None and json.loads(line)["at"] >= before:
                break
            old.append((path, line))
        ends = [line for _, line in old if line is not None]
        if not ends:
            return 0
        sequence = int(json.loads(ends[-1])["sequence"])
        self._store.note_removal(self._stream, sequence, hashlib.sha256(ends[-1]).hexdigest())
        self.catch_up()
        for path, _ in old:
            path.unlink()
        return sequence


@dataclass(frozen=True)
class _File:
    """The file that is written to, and what it may hold."""

    number: int
    first: int
    """Sequence of its first line; 0 before there is one."""
    day: int
    """Days since 1970 of its first line."""

    @classmethod
    def last(cls, folder: Path) -> "_File":
        """Give the newest file of a folder."""
        for path in reversed(_files(folder)):
            with path.open("rb") as file:
                line = file.readline()
            if line.endswith(b"\n"):
                fields = json.loads(line)
                return cls(int(path.stem), int(fields["sequence"]), int(fields["at"] // _DAY_S))
            return cls(int(path.stem), 0, 0)
        return cls(0, 0, 0)

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.number:06}.jsonl"

    def for_line(self, sequence: int, text: str) -> "_File":
        """Give the file that a line belongs to: this one, or the next."""
        day = int(json.loads(text)["at"] // _DAY_S)
        if self.first == 0:
            return _File(self.number, sequence, day)
        if sequence - self.first >= LINES_A_FILE or day > self.day:
            return _File(self.number + 1, sequence, day)
        return self


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.jsonl"))


def read_lines(folder: Path) -> Iterator[str]:
    """Give every line of a stream's files, in order."""
    for path in _files(folder):
        with path.open(encoding="ascii") as file:
            for line in file:
                yield line.rstrip("\n")


def _last(folder: Path) -> tuple[int, str]:
    """Give sequence and hash of a stream's last whole line."""
    for path in reversed(_files(folder)):
        line = last_line(path)
        if line is not None:
            return int(json.loads(line)["sequence"]), hashlib.sha256(line).hexdigest()
    return 0, NO_HEAD
