"""Measure how a node starts and cleans with all that a year of work leaves in its folder.

    python benchmarks/node_year.py --model model.onnx [--series-per-hour 1200] [--folder DIR]

After a year the folder holds what the default retention leaves: a row and a report for each series of the
last 90 days, the images of the last day, and a file of lines a day. Every series has 40 images, and one
destination has its report. Images and reports are empty files; rows are written straight into the database,
in the order of time, a thousand different ones again and again, since only number and size count.

The start is that of the whole command, until its port answers. Then, with the node's own upkeep, an hour's
series are folded, an hour's images removed, and an hour's series forgotten; of the store's lock the longest
hold counts, since images that come wait for it.
"""

import argparse
import hashlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medimg.runtime.node.config import NodeConfig, Retention
from medimg.runtime.node.history import _short, _unpacked
from medimg.runtime.node.identity import digest
from medimg.runtime.node.journal import Journal
from medimg.runtime.node.state import State
from medimg.runtime.node.store import Store
from medimg.runtime.node.upkeep import Upkeep

IMAGES = 40
KINDS = 1000
"""Different contents of rows."""
HOUR_S, DAY_S = 3600.0, 86400.0
DONE_S = 600.0
"""As old are the newest series that are folded."""
MISSING_S = 300.0
"""A node that has not started after so long is taken to hang."""
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
CONFIG = """
folder = "state"
address = "127.0.0.1"
port = {port}
status_port = 0
[[deliver.dicom]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 1
"""


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


@dataclass(frozen=True)
class Year:
    """What is there after a year, as the default retention leaves it."""

    now: float
    """Seconds since 1970 when the newest series was folded."""
    series_per_hour: float

    @property
    def interval_s(self) -> float:
        """Between two series."""
        return HOUR_S / self.series_per_hour

    @property
    def folded(self) -> int:
        """Series of which there is a row, an hour's more than the retention leaves."""
        return round(Retention().results_days * DAY_S / self.interval_s + self.series_per_hour)

    @property
    def with_images(self) -> int:
        """Series whose images are there, an hour's more than the retention leaves."""
        return round(Retention().images_h * self.series_per_hour + self.series_per_hour)

    @property
    def under_way(self) -> int:
        """Series of the last hour, which a node would have folded after ten minutes."""
        return round(self.series_per_hour)


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


def contents_of_rows(store: Store, now: float) -> list[bytes]:
    """Have the node fold some series; give what it puts into their rows, and forget them."""
    with store._transaction() as database:
        for series in range(KINDS):
            add_series(database, series, now - 1e9, store)
    store.fold(now, now, KINDS)
    contents = [row for (row,) in store._rows("SELECT content FROM history")]
    assert len(contents) == KINDS, "every one of them is done"
    with store._transaction() as database:
        database.execute("DELETE FROM history")
    return contents


def fill(folder: Path, year: Year) -> None:
    """Make the folder's content."""
    store = Store(folder, ["pacs"])
    contents = contents_of_rows(store, year.now)
    store.close()

    def rows() -> Iterator[tuple[object, ...]]:
        for number in range(year.folded):
            closed_at = year.now - DONE_S - (year.folded - number) * year.interval_s
            has_images = number >= year.folded - year.with_images
            key = digest(number)
            yield (
                *(key, _short(f"s{number}"), _short(f"t{number // 3}"), _short("patient")),
                *(closed_at, "kept" if has_images else "gone", contents[number % KINDS]),
            )
            touch([folder / "reports" / f"{uid('file', number)}.dcm"])
            if has_images:
                touch(image_files(folder, key, contents[number % KINDS]))

    database = sqlite3.connect(folder / "node.db")
    for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000"):
        database.execute(f"PRAGMA {setting}")
    database.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?)", rows())
    database.commit()
    database.close()


def image_files(folder: Path, key: str, packed: bytes) -> list[Path]:
    """Name the files of a folded series' images."""
    content = _unpacked(packed)
    assert content is not None, "it was packed just now"
    store = State.__new__(State)
    store.images = folder / "images"
    return [store.image_path(key, sop_uid) for sop_uid in content["instances"][0]]


def rows_of(state: Path) -> tuple[int, int]:
    """Count the folded series, and give the size of their content."""
    database = sqlite3.connect(state / "node.db")
    ((count,),) = database.execute("SELECT count(*) FROM history")
    ((size,),) = database.execute("SELECT avg(length(content)) FROM (SELECT * FROM history LIMIT 1000)")
    database.close()
    return int(count), round(float(size))


def touch(paths: Iterator[Path] | list[Path]) -> None:
    """Make empty files."""
    for path in paths:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def add_lines(folder: Path, year: Year) -> None:
    """Make a file of lines for each day that the retention leaves, one line in each."""
    for stream in ("results", "audit"):
        days = min(365, round({"results": Retention().lines_days, "audit": Retention().audit_days}[stream]))
        (folder / stream).mkdir()
        for day in range(days):
            line = {"sequence": day + 1, "previous": "0" * 64, "at": year.now - (days - day) * DAY_S}
            (folder / stream / f"{day:06}.jsonl").write_text(json.dumps(line) + "\n")


def start(folder: Path, model: Path) -> dict[str, float]:
    """Run the command until its port answers, and kill it; give the time, and that of the processor."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    config = folder / "node.toml"
    config.write_text(CONFIG.format(port=port))
    if (folder / "state").exists():
        forget_pages(folder / "state" / "node.db")
    command = [Path(sys.executable).with_name("medimg-run"), "listen", model, "--config", config]
    began = time.perf_counter()
    node = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL)
    while not answers(port):
        if node.poll() is not None or time.perf_counter() - began > MISSING_S:
            raise SystemExit("the node did not start")
        time.sleep(0.01)
    took_s = time.perf_counter() - began
    node.kill()
    _, _, used = os.wait4(node.pid, 0)
    return {"s": took_s, "processor_s": used.ru_utime + used.ru_stime, "memory_mb": used.ru_maxrss / 1e3}


def answers(port: int) -> bool:
    """Whether something listens."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def forget_pages(path: Path) -> None:
    """Have the system forget what it keeps of a file in memory, as after a start of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def clean(folder: Path, year: Year) -> dict[str, Any]:
    """Do what the node does in an hour to keep its folder small, and time the lock."""
    store, lock, now = Store(folder, ["pacs"]), TimedLock(), time.time()
    with store._transaction() as database:
        for series in range(year.under_way):
            add_series(database, round(now) * 10**5 + series, now - DONE_S - series, store)
    store._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    forget_pages(folder / "node.db")
    store = Store(folder, ["pacs"])
    ((oldest,),) = store._rows("SELECT min(closed_at) FROM history")
    ((oldest_images,),) = store._rows("SELECT min(closed_at) FROM history WHERE files != 'gone'")
    # So that the oldest hour of each is due, whenever the folder was filled.
    keep = Retention(
        images_h=(now - oldest_images) / HOUR_S - 1, results_days=(now - oldest - HOUR_S) / DAY_S
    )
    store._lock = lock  # type: ignore[assignment]
    results = Journal(folder / "results", "results", store)
    audit = Journal(folder / "audit", "audit", store)
    upkeep = Upkeep(store, results, audit, None, NodeConfig(str(folder), retention=keep))

    def tidy_all() -> None:
        for _ in range(round(HOUR_S / 10)):
            upkeep.tidy()

    found = {}
    steps: dict[str, Callable[[], object]] = {
        "rows_forgotten": upkeep.forget,
        "folded_and_images_removed": tidy_all,
        "status": store.counts,
    }
    for name, step in steps.items():
        series, began = len_of_history(store), time.perf_counter()
        lock.forget()
        step()
        held = {
            "s": time.perf_counter() - began,
            "longest_lock_s": lock.longest_s,
            "of_it_processor_s": lock.longest_processor_s,
            "locked_s": lock.total_s,
        }
        found[name] = {"rows_fewer": series - len_of_history(store), **held}
    store.close()
    return found


def len_of_history(store: Store) -> int:
    """Count the series that are done."""
    return int(store._rows("SELECT count(*) FROM history")[0][0])


def measure(folder: Path, model: Path, series_per_hour: float) -> dict[str, Any]:
    """Fill a folder, and measure."""
    state, empty, filled = folder / "state", folder / "empty", folder / "filled.json"
    if filled.exists():
        year = Year(**json.loads(filled.read_text()))
    else:
        year = Year(time.time(), series_per_hour)
        fill(state, year)
        add_lines(state, year)
        filled.write_text(json.dumps(vars(year)))
    rows, row_bytes = rows_of(state)
    shutil.rmtree(empty, ignore_errors=True)
    empty.mkdir()
    return {
        "series_per_hour": year.series_per_hour,
        "images_a_series": IMAGES,
        "days_of_rows": Retention().results_days,
        "rows_of_series": rows,
        "images": sum(1 for _ in (state / "images").iterdir()),
        "bytes_a_row": row_bytes,
        "database_mb": (state / "node.db").stat().st_size / 1e6,
        "start": start(folder, model),
        "start_with_an_empty_folder": start(empty, model),
        "start_limit_s": 10,
        "lock_limit_s": 0.2,
        "hourly": clean(state, year),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--series-per-hour", type=float, default=1200.0)
    parser.add_argument(
        "--folder", type=Path, help="Where the state is made; a temporary folder unless given."
    )
    parser.add_argument(
        "--keep", action="store_true", help="Leave what was made in --folder, and use what is there."
    )
    options = parser.parse_args()
    if options.keep:
        print(json.dumps(measure(options.folder, options.model.resolve(), options.series_per_hour)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        print(json.dumps(measure(Path(name), options.model.resolve(), options.series_per_hour)))
        # Quicker than what TemporaryDirectory does.
        shutil.rmtree(Path(name) / "state")


if __name__ == "__main__":
    main()
