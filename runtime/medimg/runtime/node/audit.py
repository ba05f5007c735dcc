"""The audit log: a chain of hashed lines, and signed checkpoints of its length and head."""

import hashlib
import json
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from medimg.runtime.errors import CheckFailedError
from medimg.runtime.node.bundle import read_private_key, read_public_key
from medimg.runtime.node.database import NO_HEAD
from medimg.runtime.node.files import append_durable, last_line, make_folder, write_durable
from medimg.runtime.node.journal import REMOVED, read_lines
from medimg.runtime.optional import require

CHECKPOINTS = "checkpoints.jsonl"


@dataclass(frozen=True)
class Verified:
    """What was found to be whole."""

    entries: int
    """Lines of the log, with those that were removed."""
    checkpoints: int
    """Signed checkpoints, all of which the log agrees with."""
    signed_entries: int
    """Lines that the last checkpoint vouches for."""
    removed_entries: int = 0
    """The first lines, of which a later one says that they were removed when it was their time."""


class Checkpoints:
    """Signs how long the log is, and its head, into a folder of its own.

    Args:
        folder: where checkpoints go.
        key: Ed25519 private key in PEM.
        every_s: least time between two.
    """

    def __init__(self, folder: Path, key: Path, every_s: float) -> None:
        self._path = make_folder(folder) / CHECKPOINTS
        self._key, self._every_s = read_private_key(key), every_s
        self._signed = 0
        self._next = time.monotonic()
        if self._path.exists():
            last_line(self._path)

    def forget(self, before: int) -> None:
        """Remove checkpoints of entries that were removed."""
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="ascii").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(json.loads(line)["checkpoint"])["count"] >= before]
        if len(kept) < len(lines):
            write_durable(self._path, "".join(kept).encode())

    def work(self, count: int, head: str, *, now: bool = False) -> bool:
        """Write a checkpoint if there are new entries and it is time.

        Args:
            count: entries that are durable in the log's files.
            head: hash of the last one.
            now: whether it is time in any case.
        """
        if count == self._signed or not (now or time.monotonic() >= self._next):
            return False
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        text = json.dumps({"at": at, "count": count, "head": head})
        line = json.dumps({"checkpoint": text, "signature": self._key.sign(text.encode()).hex()})
        append_durable(self._path, line + "\n")
        self._signed, self._next = count, time.monotonic() + self._every_s
        return True


def verify_log(log: Path, checkpoints: Path | None = None, public_key: Path | None = None) -> Verified:
    """Check every link of the chain, and that the log is not shorter than its checkpoints say.

    Args:
        log: the folder of the log's files.
        checkpoints: the folder of the checkpoints; without it, a log cut off at its end is not found.
        public_key: Ed25519 public key in PEM.

    Raises:
        CheckFailedError: an entry was changed, removed or added.
    """
    signed = _read_checkpoints(checkpoints, public_key) if checkpoints and public_key else {}
    beginning = _beginning(log)
    removals: set[tuple[object, object]] = {(0, NO_HEAD)}
    entries, head = beginning
    for line in read_lines(log):
        entries += 1
        entry = _entry(log, entries, line)
        if (entry["sequence"], entry["previous"]) != (entries, head):
            raise CheckFailedError(f"{log}: entry {entries} does not follow the one before it")
        head = hashlib.sha256(line.encode()).hexdigest()
        if signed.get(entries, head) != head:
            raise CheckFailedError(f"{log}: entry {entries} is not the one that was signed")
        if REMOVED in (entry.get("event"), entry.get("kind")):
            removals.add((entry.get("up_to"), entry.get("head")))
    if beginning not in removals or signed.get(*beginning) != beginning[1]:
        raise CheckFailedError(
            f"{log}: begins with entry {beginning[0] + 1}, and no entry says that those before were removed"
        )
    last = max(signed, default=0)
    if last > entries:
        raise CheckFailedError(
            f"{log}: has {entries} entries, where a checkpoint has {last}: its end is missing"
        )
    return Verified(entries, sum(count >= beginning[0] for count in signed), last, beginning[0])


def _beginning(log: Path) -> tuple[int, str]:
    """Give sequence and hash of the entry before the first that is there."""
    for line in read_lines(log):
        entry = _entry(log, 1, line)
        return entry["sequence"] - 1, entry["previous"]
    return 0, NO_HEAD


def _entry(log: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = dict(json.loads(line))
        if isinstance(entry["sequence"], int) and isinstance(entry["previous"], str):
            return entry
    except (ValueError, LookupError, TypeError):
        pass
    raise CheckFailedError(f"{log}: entry {number} is no entry")


def _read_checkpoints(folder: Path, public_key: Path) -> dict[int, str]:
    """Read count and head of every checkpoint, each with its signature checked."""
    key, path = read_public_key(public_key), folder / CHECKPOINTS
    invalid = require("cryptography.exceptions", "node").InvalidSignature
    signed: dict[int, str] = {}
    try:
        text = path.read_text(encoding="ascii")
        # What power loss cut short was never a checkpoint.
        for line in text[: text.rfind("\n") + 1].splitlines():
            fields = json.loads(line)
            key.verify(bytes.fromhex(fields["signature"]), fields["checkpoint"].encode())
            body = json.loads(fields["checkpoint"])
            if signed.setdefault(int(body["count"]), str(body["head"])) != body["head"]:
                raise CheckFailedError(f"{path}: entry {body['count']} was signed with two contents")
    except invalid:
        raise CheckFailedError(f"{path}: a checkpoint was not signed by {public_key.name}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckFailedError(f"{path}: cannot be read ({error})") from None
    if not signed:
        raise CheckFailedError(f"{path}: holds no checkpoint")
    return signed
