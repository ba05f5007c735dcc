"""Reports on their way: what each destination has, what it refused, and what it will never get."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from medimg.runtime.node.history import History
from medimg.runtime.node.records import OpenDelivery, Pending, Report

_PENDING = """
SELECT number, report_uid, tries, lines FROM deliveries JOIN reports USING (number)
    WHERE destination = ?1 AND state = 'pending' ORDER BY tries, number LIMIT ?2
"""
_REFUSED = """
SELECT number, report_uid, tries, lines FROM deliveries JOIN reports USING (number)
    WHERE destination = ?1 AND state = 'refused' AND next_at <= ?3 ORDER BY next_at LIMIT ?2
"""
_CLOSE_IMAGES = """
UPDATE instances SET state = 'delivered' WHERE report_uid = ?1 AND state = 'inferred'
    AND NOT EXISTS (SELECT 1 FROM deliveries JOIN reports USING (number)
        WHERE report_uid = ?1 AND state IN ('pending', 'refused'))
"""


_OPEN = """
SELECT number, report_uid, destination, state, tries, error, created_at FROM deliveries
    JOIN reports USING (number)
    WHERE state IN ('pending', 'refused') AND destination = ifnull(?1, destination)
    ORDER BY number
"""
_AT_ONCE = 100
"""Deliveries that are changed together, while others wait."""


class Deliveries(History):
    """The queue of reports.

    A delivery is `pending`, or `refused` (set aside: tried again by a clock of its own), until it is
    `delivered` or `closed` (given up by a person, or because its destination was removed).

    Args:
        folder: made if it is not there.
        destinations: names of those that each report is delivered to.
        is_owner: whether this process is the node, and no visitor.
    """

    def __init__(self, folder: Path, destinations: Sequence[str] = (), *, is_owner: bool = True) -> None:
        self._destinations = tuple(destinations)
        super().__init__(folder, is_owner=is_owner)

    def deliver_to(self, destinations: Sequence[str]) -> None:
        """Queue reports for these destinations from now on."""
        with self._lock:
            self._destinations = tuple(destinations)

    def add_report(self, report: Report) -> None:
        """Queue a report, whose file is durable, for every destination."""
        line = {"kind": "series", "report_uid": report.report_uid, **report.line}
        with self._transaction() as database:
            is_new = database.execute(
                "INSERT OR IGNORE INTO reports(report_uid, series_key, predecessor, lines, created_at)"
                " VALUES (?, ?, ?, ?, ?)",
                (
                    *(report.report_uid, report.series_key, report.predecessor),
                    *(json.dumps(line) + "\n", time.time()),
                ),
            ).rowcount
            database.executemany(
                "UPDATE instances SET report_uid = ?, state = 'inferred'"
                " WHERE sop_uid = ? AND series_key = ?",
                [(report.report_uid, uid, report.series_key) for uid in report.members],
            )
            if is_new:
                self._append(database, "results", line)
                self._append(
                    database,
                    "audit",
                    {"event": "reported", "report_uid": report.report_uid, "instances": len(report.members)},
                )
                database.executemany(
                    "INSERT INTO deliveries(number, destination) SELECT number, ? FROM reports"
                    " WHERE report_uid = ?",
                    [(name, report.report_uid) for name in self._destinations],
                )
            # With nowhere to go, a report has arrived where it will ever be.
            database.execute(_CLOSE_IMAGES, (report.report_uid,))

    def pending(self, destination: str, limit: int = 100) -> list[Pending]:
        """Give the oldest reports that a destination does not have, those that failed least first.

        So one at which its connection ends each time comes after the others.
        """
        return [Pending(*row) for row in self._rows(_PENDING, destination, limit)]

    def refused(self, destination: str, now: float, limit: int = 10) -> list[Pending]:
        """Give reports that a destination refused, and that are to be tried again by now."""
        return [Pending(*row) for row in self._rows(_REFUSED, destination, limit, now)]

    def delivered(self, report: Pending, destination: str, remark: str | None = None) -> None:
        """Note that a destination has a report."""
        self._settle(report, destination, "delivered", {"remark": remark} if remark else {})

    def _settle(self, report: Pending, destination: str, state: str, audited: dict[str, object]) -> None:
        with self._transaction() as database:
            database.execute(
                "UPDATE deliveries SET state = ?, changed_at = ?, tries = tries + 1, error = NULL"
                " WHERE number = ? AND destination = ?",
                (state, time.time(), report.number, destination),
            )
            database.execute(_CLOSE_IMAGES, (report.report_uid,))
            fields = {"report_uid": report.report_uid, "destination": destination, **audited}
            self._append(database, "audit", {"event": state, **fields})

    def set_aside(self, report: Pending, destination: str, reason: str, next_at: float) -> None:
        """Note that a destination refused a report, and when it is to be tried again."""
        with self._transaction() as database:
            (was,) = database.execute(
                "SELECT state FROM deliveries WHERE number = ? AND destination = ?",
                (report.number, destination),
            ).fetchone()
            database.execute(
                "UPDATE deliveries SET state = 'refused', tries = tries + 1, error = ?, next_at = ?,"
                " changed_at = ? WHERE number = ? AND destination = ? AND state IN ('pending', 'refused')",
                (reason, next_at, time.time(), report.number, destination),
            )
            if was == "pending":
                fields = {"report_uid": report.report_uid, "destination": destination, "reason": reason}
                self._append(database, "audit", {"event": "delivery set aside", **fields})

    def delivery_failed(self, report: Pending, destination: str, error: str, *, began: bool) -> None:
        """Keep why a destination could not be reached; the log gets the first failure of a report.

        Args:
            report: the one that was next.
            destination: its name.
            error: the reason.
            began: whether the report was being sent, and so may be what is wrong.
        """
        with self._transaction() as database:
            (before,) = database.execute(
                "SELECT error FROM deliveries WHERE number = ? AND destination = ?",
                (report.number, destination),
            ).fetchone()
            database.execute(
                "UPDATE deliveries SET tries = tries + ?, error = ? WHERE number = ? AND destination = ?",
                (int(began), error, report.number, destination),
            )
            if before is None:
                fields = {"report_uid": report.report_uid, "destination": destination, "reason": error}
                self._append(database, "audit", {"event": "delivery failed", **fields})

    def note_absent(self) -> dict[str, int]:
        """Remember since when destinations of open deliveries are no longer configured; count each one's."""
        with self._transaction() as database:
            database.executemany(
                "DELETE FROM absent WHERE destination = ?", [(name,) for name in self._destinations]
            )
            rows = database.execute(
                "SELECT destination, count(*) FROM deliveries WHERE state IN ('pending', 'refused')"
                " GROUP BY destination"
            ).fetchall()
            absent = {name: int(count) for name, count in rows if name not in self._destinations}
            for name, count in absent.items():
                new = database.execute("INSERT OR IGNORE INTO absent VALUES (?, ?)", (name, time.time()))
                if new.rowcount:
                    fields = {"destination": name, "reports": count}
                    self._append(database, "audit", {"event": "destination removed", **fields})
        return absent

    def close_absent(self, before: float) -> int:
        """Close what destinations should get that were removed before a time; give how many reports."""
        count = 0
        for (name,) in self._rows("SELECT destination FROM absent WHERE since < ?", before):
            count += self.close_deliveries(self.open_deliveries(name), "destination removed")
            with self._transaction() as database:
                database.execute("DELETE FROM absent WHERE destination = ?", (name,))
        return count

    def open_deliveries(self, destination: str | None = None) -> list[OpenDelivery]:
        """Give what one destination, or any, is still to get, oldest first."""
        rows = self._rows(_OPEN, destination)
        return [OpenDelivery(*row) for row in rows]

    def close_deliveries(self, deliveries: Sequence[OpenDelivery], reason: str) -> int:
        """Give deliveries up; give how many."""
        return self._change(deliveries, "state = 'closed'", {"event": "delivery closed", "reason": reason})

    def retry_deliveries(self, deliveries: Sequence[OpenDelivery]) -> int:
        """Have deliveries tried again as if for the first time; give how many."""
        return self._change(
            deliveries, "state = 'pending', tries = 0, next_at = 0", {"event": "delivery retried"}
        )

    def _change(self, deliveries: Sequence[OpenDelivery], changes: str, audited: dict[str, object]) -> int:
        count = 0
        for start in range(0, len(deliveries), _AT_ONCE):
            with self._transaction() as database:
                for one in deliveries[start : start + _AT_ONCE]:
                    changed = database.execute(
                        f"UPDATE deliveries SET {changes}, changed_at = ?"  # noqa: S608  by this class alone
                        " WHERE number = ? AND destination = ? AND state IN ('pending', 'refused')",
                        (time.time(), one.number, one.destination),
                    ).rowcount
                    if changed:
                        database.execute(_CLOSE_IMAGES, (one.report_uid,))
                        fields = {"report_uid": one.report_uid, "destination": one.destination}
                        self._append(database, "audit", {**audited, **fields})
                    count += changed
        return count
