"""Lines of the database copied to files, each exactly once."""

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from medimg.runtime.node.database import NO_HEAD, Database, Stream
from medimg.runtime.node.files import append_durable, last_line, make_folder

LINES_A_FILE = 1_000_000


class Journal:
    """One stream's files: `NNNNNN.jsonl`, a million lines each, numbered by the lines' sequence."""

    def __init__(self, folder: Path, stream: Stream, store: Database) -> None:
        self.folder = make_folder(folder)
        self._stream, self._store = stream, store
        self._lock = threading.Lock()
        self._written, self._head = _last(self.folder)
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
                number = (lines[0][0] - 1) // LINES_A_FILE
                end = (number + 1) * LINES_A_FILE
                part = [(sequence, text) for sequence, text in lines if sequence <= end]
                append_durable(self.folder / f"{number:06}.jsonl", "".join(f"{text}\n" for _, text in part))
                self._written = part[-1][0]
                self._head = hashlib.sha256(part[-1][1].encode()).hexdigest()


def read_lines(folder: Path) -> Iterator[str]:
    """Give every line of a stream's files, in order."""
    for path in sorted(folder.glob("[0-9]*.jsonl")):
        with path.open(encoding="ascii") as file:
            for line in file:
                yield line.rstrip("\n")


def _last(folder: Path) -> tuple[int, str]:
    """Give sequence and hash of a stream's last whole line."""
    for path in sorted(folder.glob("[0-9]*.jsonl"), reverse=True):
        line = last_line(path)
        if line is not None:
            return int(json.loads(line)["sequence"]), hashlib.sha256(line).hexdigest()
    return 0, NO_HEAD
