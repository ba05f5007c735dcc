"""Measure how a node starts and cleans with the rows of many days in its database.

    python benchmarks/node_year.py [--days 365] [--series-per-hour 1200] [--files] [--folder DIR]

Every series has 40 images, and its report is delivered to one destination. Series are folded; a day's
images are there (with --files, as empty files). Rows are written straight into the database, a thousand
different ones again and again, since only their number and size count. The lock's longest hold is measured
while an hour's series are folded, an hour's images are removed and an hour's rows are forgotten.
"""

import argparse
import hashlib
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from medimg.runtime.node.history import _short
from medimg.runtime.node.identity import digest
from medimg.runtime.node.store import Store

IMAGES = 40
HEADER = {
    "PatientName": "Test^One",
    "PatientID": "P1",
    "PatientBirthDate": "19700101",
    "PatientSex": "F",
    "StudyID": "1",
    "StudyDate": "20260101",
    "StudyTime": "1200",
    "AccessionNumber": "ACC1",
    "ReferringPhysicianName": "Ref^Doc",
}


class TimedLock:
    """The store's lock, with its longest hold."""

    def __init__(self) -> None:
        self._lock, self._depth, self._since, self._used = threading.RLock(), 0, 0.0, 0.0
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.longest_s = self.longest_processor_s = self.total_s = 0.0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1:
            self._since, self._used = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            held_s = time.perf_counter() - self._since
            self.longest_processor_s = max(self.longest_processor_s, time.thread_time() - self._used)
            self.longest_s, self.total_s = max(self.longest_s, held_s), self.total_s + held_s
        self._lock.release()


def uid(*parts: object) -> str:
    """Make a UID as long as those of scanners."""
    return f"1.2.826.0.1.3680043.8.498.{int(hashlib.sha256(repr(parts).encode()).hexdigest()[:32], 16)}"


def image_row(series: int, number: int, at: float, report: str) -> tuple[object, ...]:
    """Make the columns of an image that was answered."""
    sop_uid = uid(series, number)
    scores = [int(digest(series, number, part)[:8], 16) / 2**32 for part in range(4)]
    return (
        *(sop_uid, "1.2.840.10008.5.1.4.1.1.4", "MR", "HEAD", "MONOCHROME2"),
        *(hashlib.sha256(sop_uid.encode()).hexdigest(), "CT1@127.0.0.1", at + number / 10),
        *("classified", json.dumps(scores), "d" * 64, at + number / 10, report),
    )


def add_series(database: Any, series: int, at: float, store: Store) -> str:  # noqa: ANN401
    """Add a series that is done and not folded."""
    series_uid, study_uid, report = uid("series", series), uid("study", series // 3), uid("report", series)
    key = digest("patient", study_uid, series_uid)
    for number in range(IMAGES):
        sop_uid, sop_class, *rest = image_row(series, number, at, report)
        database.execute(
            "INSERT INTO instances(sop_uid, sop_class, series_key, series_uid, study_uid, file, state, tries,"
            " frames, modality, body_part, photometric, sha256, sender, received_at, outcome, scores, model,"
            " inferred_at, report_uid)"
            " VALUES (?, ?, ?, ?, ?, ?, 'delivered', 1, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(sop_uid, sop_class, key, series_uid, study_uid),
                *(store.image_path(key, str(sop_uid)).name, *rest),
            ),
        )
    database.execute(
        "INSERT INTO series VALUES (?, ?, ?, 'patient', ?, '[]')",
        (key, series_uid, study_uid, json.dumps(HEADER)),
    )
    number = database.execute(
        "INSERT INTO reports(report_uid, series_key, lines, created_at) VALUES (?, ?, ?, ?)",
        (report, key, "x" * (250 + 66 * IMAGES), at),
    ).lastrowid
    database.execute(
        "INSERT INTO deliveries(number, destination, state, tries, changed_at)"
        " VALUES (?, 'pacs', 'delivered', 1, ?)",
        (number, at),
    )
    return key


def add_folded(store: Store, count: int, now: float, interval_s: float) -> int:
    """Add series that are folded, oldest first; give the bytes of one's content."""
    with store._transaction() as database:
        for series in range(1000):
            add_series(database, series, now - 1e9, store)
    store.fold(now, now, 1000)
    contents = [row for (row,) in store._rows("SELECT content FROM history")]
    with store._transaction() as database:
        database.execute("DELETE FROM history")
    day = round(86400 / interval_s)

    def rows() -> Any:  # noqa: ANN401
        # By key, since SQLite puts rows in order much faster than it sorts them in.
        for key, number in sorted((digest(number), number) for number in range(count)):
            age = count - number
            yield (
                *(key, _short(f"s{number}"), _short(f"t{number // 3}"), _short("patient")),
                *(now - 600 - age * interval_s, "kept" if age < day else "gone", contents[number % 1000]),
            )

    with store._transaction() as database:
        database.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?)", rows())
    return sum(map(len, contents)) // len(contents)


def timed(step: Any) -> float:  # noqa: ANN401
    """Give how long a step takes, in seconds."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def start(folder: Path) -> Store:
    """Do with the state what a node does when it starts."""
    store = Store(folder, ["pacs"])
    store.note_absent()
    store.unreported_series()
    store.unknown_files(path.name for path in store.images.glob("*.dcm"))
    store.counts()
    return store


def measure(folder: Path, count: int, series_per_hour: float, *, with_files: bool) -> dict[str, object]:
    """Fill a state folder, and measure."""
    now, interval_s = time.time(), 3600 / series_per_hour
    store = Store(folder, ["pacs"])
    began = time.perf_counter()
    content_bytes = add_folded(store, count, now, interval_s)
    hot, day = round(3600 / interval_s), round(86400 / interval_s)
    with store._transaction() as database:
        for series in range(hot):
            add_series(database, 10**9 + series, now - series * interval_s / 6, store)
    if with_files:
        for (key,) in store._rows("SELECT series_key FROM history WHERE files = 'kept'"):
            for number in range(IMAGES):
                (store.images / f"{key}{digest(number)}.dcm").touch()
    store._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    filled_s, opened = time.perf_counter() - began, []
    start_s = timed(lambda: opened.append(start(folder)))
    (store,) = opened
    lock = TimedLock()
    store._lock = lock  # type: ignore[assignment]
    steps = {
        "fold_an_hour": lambda: store.fold(now + 1e6, now + 1e6, hot),
        "images_of_an_hour": lambda: [
            store.clean_files(now - 600 - (day - hot) * interval_s) for _ in range(0, hot, 100)
        ],
        "log_put_in_place": store.put_in_place,
        "rows_of_an_hour": lambda: store.clean_rows(now - 600 - (count - hot) * interval_s),
        "status": store.counts,
    }
    cleaning = {}
    for name, step in steps.items():
        lock.forget()
        cleaning[name] = {
            "s": timed(step),
            "longest_lock_s": lock.longest_s,
            "of_it_processor_s": lock.longest_processor_s,
            "locked_s": lock.total_s,
        }
    check_s = timed(store.check)
    store.close()
    return {
        "days": count * interval_s / 86400,
        "series": count,
        "images": count * IMAGES,
        "content_bytes_a_series": content_bytes,
        "database_mb": (folder / "node.db").stat().st_size / 1e6,
        "filled_s": filled_s,
        "start_s": start_s,
        "cleaning": cleaning,
        "check_beside_the_work_s": check_s,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=float, default=365.0)
    parser.add_argument("--series", type=int, help="How many are folded, in place of those of --days.")
    parser.add_argument("--series-per-hour", type=float, default=1200.0)
    parser.add_argument("--files", action="store_true", help="Make a day's images as empty files.")
    parser.add_argument(
        "--folder", type=Path, help="Where the state is made; a temporary folder unless given."
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        count = options.series or round(options.days * 24 * options.series_per_hour)
        found = measure(Path(name), count, options.series_per_hour, with_files=options.files)
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
