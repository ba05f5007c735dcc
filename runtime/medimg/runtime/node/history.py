"""Series that are done: folded into one row each, unfolded when an image comes late, and removed in time."""

import hashlib
import json
import logging
import shutil
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from medimg.runtime.node.identity import KEY_DIGITS
from medimg.runtime.node.state import State

_LOG = logging.getLogger(__name__)

_Content: TypeAlias = dict[str, Any]
"""A folded series: its own columns, those of its reports and of its images, and what the latter share."""

SHA256_KEPT = 16
"""Hexadecimal digits that are kept of an image's hash."""
_USUAL_NAME = "="
"""Stands for the name that `State.image_path` gives."""
_NO_ROOM_S = 10.0
"""How long nothing is looked for that could be removed after nothing was found."""
_LOOKED_AT = 20
_SERIES_AT_ONCE = 5
"""Of which rows are changed in one transaction: so few that others wait for some hundredths of a second."""
_INSTANCE = (
    *("sop_uid", "sop_class", "modality", "body_part", "photometric", "file", "sha256", "sender"),
    *("received_at", "outcome", "reason", "scores", "model", "inferred_at", "report_uid", "tries", "frames"),
)
_REPORT = ("report_uid", "predecessor", "created_at")
_SLICE = "SELECT series_key FROM series WHERE series_key > ? ORDER BY series_key LIMIT ?"
_IS_FOLDABLE = """
SELECT (SELECT max(inferred_at) FROM instances WHERE series_key = ?1) < ?2
    AND NOT EXISTS (SELECT 1 FROM instances WHERE series_key = ?1 AND state != 'delivered')
    AND NOT EXISTS (SELECT 1 FROM instances
        WHERE series_key = ?1 AND outcome IN ('unreadable', 'set aside') AND inferred_at >= ?3)
    AND NOT EXISTS (SELECT 1 FROM reports JOIN deliveries USING (number)
        WHERE series_key = ?1 AND deliveries.state IN ('pending', 'refused'))
"""
_CONTRADICTING = """
SELECT max(is_series), max(is_study) FROM (
    SELECT 1 AS is_series, 0 AS is_study FROM series WHERE series_uid = ?2 AND series_key != ?1
    UNION ALL SELECT 1, 0 FROM history WHERE series = ?5 AND series_key != ?1
    UNION ALL SELECT 0, 1 FROM series WHERE study_uid = ?3 AND patient != ?4
    UNION ALL SELECT 0, 1 FROM history WHERE study = ?6 AND patient != ?7)
"""


class History(State):
    """What is kept of series whose reports are delivered, and how long.

    While a series is under way, each of its images has a row. Once it is done, all of them become one row.
    """

    _folded_to = ""
    _no_room_until = 0.0

    def fold(self, before: float, failed_before: float, limit: int = 1000) -> int:
        """Fold series that were answered before a time and delivered; give how many.

        Args:
            before: seconds since 1970.
            failed_before: the same for series with images that may be tried again.
            limit: of the series that are looked at; the next call goes on with the others.
        """
        count = 0
        for _ in range(0, limit, _LOOKED_AT):
            keys = [key for (key,) in self._rows(_SLICE, self._folded_to, _LOOKED_AT)]
            for key in keys:
                count += self._fold_if_done(key, before, failed_before)
            self.put_in_place()
            self._folded_to = keys[-1] if len(keys) == _LOOKED_AT else ""
            if not self._folded_to:
                break
        return count

    def _fold_if_done(self, series_key: str, before: float, failed_before: float) -> bool:
        values = (series_key, before, failed_before)
        if not self._rows(_IS_FOLDABLE, *values)[0][0]:
            return False
        with self._transaction(durable=False) as database:
            # An image may have come meanwhile.
            is_done = bool(database.execute(_IS_FOLDABLE, values).fetchone()[0])
            if is_done:
                self._fold(database, series_key)
        return is_done

    def _unfold(self, database: sqlite3.Connection, series_key: str) -> None:
        """Give a series its rows back, if it is folded."""
        row = database.execute(
            "DELETE FROM history WHERE series_key = ? RETURNING files, content", (series_key,)
        ).fetchone()
        if row is None:
            return
        content = _unpacked(row[1])
        if content is None:
            _LOG.error("the row of a series that was done is damaged; the series begins anew")
            return
        database.execute("INSERT INTO series VALUES (?, ?, ?, ?, ?, ?)", (series_key, *content["series"]))
        series_uid, study_uid = content["series"][:2]
        for fields in self._instances(series_key, content):
            fields |= {"series_key": series_key, "series_uid": series_uid, "study_uid": study_uid}
            fields |= {"state": "delivered", "file": fields["file"] if row[0] in ("kept", "old") else None}
            _insert(database, "instances", fields)
        for values in content["reports"]:
            fields = {**dict(zip(_REPORT, values, strict=True)), "series_key": series_key, "lines": ""}
            _insert(database, "reports", fields)

    def folded_series(self, series_uid: str) -> list[str]:
        """Give the keys of series that are done, by their UID."""
        rows = self._rows("SELECT series_key, content FROM history WHERE series = ?", _short(series_uid))
        contents = [(key, _unpacked(packed)) for key, packed in rows]
        return [key for key, content in contents if content and content["series"][0] == series_uid]

    def contradictions(self, series_key: str, series_uid: str, study_uid: str, patient: str) -> list[str]:
        """Say what else is here that a series cannot be true beside."""
        values = (series_key, series_uid, study_uid, patient, *map(_short, (series_uid, study_uid, patient)))
        ((is_series, is_study),) = self._rows(_CONTRADICTING, *values)
        found = ["other images with this series UID name another patient or study"] if is_series else []
        return found + (["other images with this study UID name another patient"] if is_study else [])

    def unknown_files(self, names: Iterable[str]) -> list[str]:
        """Give those names of image files that belong to nothing that is known."""
        known = {name for (name,) in self._rows("SELECT file FROM instances WHERE file IS NOT NULL")}
        keys = {key for (key,) in self._rows("SELECT series_key FROM history WHERE files != 'gone'")}
        for key, packed in self._rows(
            "SELECT series_key, content FROM history WHERE files != 'gone' AND files = 'old'"
        ):
            known |= {path.name for path in self._image_files(key, packed)}
        return sorted(name for name in names if name not in known and name[:KEY_DIGITS] not in keys)

    def _image_files(self, series_key: str, packed: bytes) -> list[Path]:
        content = _unpacked(packed)
        instances = self._instances(series_key, content) if content else []
        return [self.images / str(fields["file"]) for fields in instances if fields["file"]]

    def _instances(self, series_key: str, content: _Content) -> list[dict[str, object]]:
        """Give the columns of a folded series' images."""
        instances = []
        for values in zip(*content["instances"], strict=True):
            fields = dict(zip(_INSTANCE, values, strict=True))
            if fields["file"] == _USUAL_NAME:
                fields["file"] = self.image_path(series_key, str(fields["sop_uid"])).name
            fields["received_at"] = (content["from_us"] + fields["received_at"]) / 1e6
            fields["inferred_at"], fields["scores"] = content["closed_at"], json.dumps(fields["scores"])
            instances.append(fields)
        return instances

    def _report_files(self, packed: bytes) -> list[Path]:
        content = _unpacked(packed)
        uids = [values[0] for values in content["reports"]] if content else []
        return [path for uid in uids for path in (self.report_path(uid), self.overlay_path(uid))]

    def clean_files(self, before: float, limit: int = 100) -> int:
        """Remove images of series that were done before a time, and their overlays; give how many series."""
        rows = self._rows(
            "SELECT series_key, content, files FROM history WHERE files != 'gone' AND closed_at < ?"
            " ORDER BY closed_at LIMIT ?",
            before,
            limit,
        )
        keys = [(key,) for key, *_ in rows]
        # First, so that a late image does not count on them; those that a crash leaves are still known.
        self._set_files("going", [(key,) for key, _, files in rows if files == "kept"])
        for key, packed, _ in rows:
            for path in self._image_files(key, packed):
                path.unlink(missing_ok=True)
            for path in self._report_files(packed)[1::2]:
                path.unlink(missing_ok=True)
        self._set_files("gone", keys)
        return len(rows)

    def _set_files(self, word: str, keys: Sequence[tuple[str]]) -> None:
        for start in range(0, len(keys), _SERIES_AT_ONCE):
            with self._transaction(durable=False) as database:
                rows = [(word, key) for (key,) in keys[start : start + _SERIES_AT_ONCE]]
                database.executemany("UPDATE history SET files = ? WHERE series_key = ?", rows)

    def clean_rows(self, before: float, limit: int = 2000) -> int:
        """Forget series that were done before a time, with all their files; give how many."""
        count = 0
        while count < limit:
            rows = self._rows(
                "SELECT series_key, content FROM history WHERE closed_at < ? ORDER BY closed_at LIMIT ?",
                before,
                _SERIES_AT_ONCE,
            )
            for key, packed in rows:
                for path in (*self._image_files(key, packed), *self._report_files(packed)):
                    path.unlink(missing_ok=True)
            if not rows:
                break
            with self._transaction(durable=False) as database:
                database.executemany("DELETE FROM history WHERE series_key = ?", [(key,) for key, _ in rows])
            self.put_in_place()
            count += len(rows)
        return count

    def make_room(self, wanted_bytes: float, now: float, free: Callable[[Path], int] | None = None) -> int:
        """Remove images of series that are done, oldest first, until so much of the disk is free.

        Returns:
            Bytes that are free.
        """
        free = free or (lambda folder: shutil.disk_usage(folder).free)
        while (left := free(self.folder)) < wanted_bytes and time.monotonic() >= self._no_room_until:
            if self.clean_files(now, _SERIES_AT_ONCE):
                continue
            self._folded_to = ""
            if not self.fold(now, now, 10**9):
                # Not for each image anew: it means to look at everything that is under way.
                self._no_room_until = time.monotonic() + _NO_ROOM_S
        return left

    def _fold(self, database: sqlite3.Connection, series_key: str) -> None:
        """Put a series' rows into one."""
        series, instances, reports = (
            database.execute(
                f"SELECT {columns} FROM {table} WHERE series_key = ? ORDER BY {order}",  # noqa: S608  of below
                (series_key,),
            ).fetchall()
            for table, columns, order in (
                ("series", "series_uid, study_uid, patient, header, notes", "1"),
                ("instances", ", ".join(_INSTANCE), "arrival"),
                ("reports", ", ".join(_REPORT), "number"),
            )
        )
        images = [dict(zip(_INSTANCE, row, strict=True)) for row in instances]
        content = {
            "series": series[0],
            "reports": reports,
            "closed_at": max(fields["inferred_at"] for fields in images),
            "from_us": min(round(1e6 * fields["received_at"]) for fields in images),
        }
        names = {fields["file"] for fields in images} - {None}
        is_usual = all(name.startswith(series_key) for name in names)
        rows = [_short_row(series_key, fields, content["from_us"]) for fields in images]
        # By columns, whose values are alike and so take less space.
        content["instances"] = list(zip(*rows, strict=True))
        database.execute(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *(series_key, *map(_short, series[0][:3]), content["closed_at"]),
                *(("kept" if is_usual else "old") if names else "gone", _packed(content)),
            ),
        )
        database.execute(
            "DELETE FROM deliveries WHERE number IN (SELECT number FROM reports WHERE series_key = ?)",
            (series_key,),
        )
        for table in ("instances", "reports", "series"):
            database.execute(f"DELETE FROM {table} WHERE series_key = ?", (series_key,))  # noqa: S608


def _short_row(series_key: str, fields: dict[str, Any], from_us: int) -> list[object]:
    """Give an image's columns without what can be derived, and digits that say nothing."""
    if (fields["file"] or "").startswith(series_key):
        fields["file"] = _USUAL_NAME
    # Nine digits are all that single precision has.
    scores = json.loads(fields["scores"] or "null")
    fields["scores"] = scores and [float(f"{score:.9g}") for score in scores]
    fields["received_at"] = round(1e6 * fields["received_at"]) - from_us
    fields["sha256"] = fields["sha256"][:SHA256_KEPT]
    fields["inferred_at"] = None
    return [fields[name] for name in _INSTANCE]


def _packed(content: Mapping[str, object]) -> bytes:
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode())


def _unpacked(packed: bytes) -> _Content | None:
    """Read a row's content; None where the disk has damaged it, as its checksum tells."""
    try:
        return dict(json.loads(zlib.decompress(packed)))
    except (zlib.error, ValueError):
        return None


def _insert(database: sqlite3.Connection, table: str, fields: dict[str, object]) -> None:
    places = ", ".join("?" * len(fields))
    columns = ", ".join(fields)
    # Names are this module's own.
    database.execute(f"INSERT INTO {table}({columns}) VALUES ({places})", tuple(fields.values()))  # noqa: S608


def _short(text: str) -> int:
    """Give a number of 8 bytes for a text, which an index holds in a sixth of the space."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
