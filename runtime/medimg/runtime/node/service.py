"""The node as one process: its threads, its signals, its end."""

import gc
import logging
import os
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from medimg.runtime.errors import CheckFailedError, MedimgError
from medimg.runtime.files.text import printable
from medimg.runtime.node import arrivals
from medimg.runtime.node.audit import Checkpoints
from medimg.runtime.node.bell import Bell
from medimg.runtime.node.certificates import earliest_end
from medimg.runtime.node.config import NodeConfig, merge_reloaded
from medimg.runtime.node.counters import Counters
from medimg.runtime.node.delivery import Deliverer, Sender, make_senders
from medimg.runtime.node.files import make_folder
from medimg.runtime.node.health import Snapshot, StatusServer, read_token
from medimg.runtime.node.journal import Journal
from medimg.runtime.node.models import Models
from medimg.runtime.node.overlay import Overlays
from medimg.runtime.node.receiver import Receiver
from medimg.runtime.node.records import Arrival
from medimg.runtime.node.series import SeriesReporter
from medimg.runtime.node.sightings import Sightings
from medimg.runtime.node.store import Store
from medimg.runtime.node.systemd import notify
from medimg.runtime.node.upkeep import Upkeep
from medimg.runtime.node.worker import Worker
from medimg.runtime.optional import require

_LOG = logging.getLogger(__name__)

_ROUND_S = 0.2
"""How often a thread without work looks for some."""
_SWITCH_S = 0.001
STALLED_S = 300.0
"""A thread that has not made its round for so long is taken to hang."""
_LONGEST_HOLD_S = 1.0
"""An image that is durable is acknowledged after so long at the latest, before its sender doubts it."""
_TIDY_S = 10.0
_LAST_S = 2.0
"""Time that threads have in any case to end what they are at."""
_LAST_RESORT_S = 30.0
"""After so long a node whose database is damaged ends, whatever its threads wait for."""
_FORGET_S = 3600.0


def _why_ended(failure: Exception) -> str:
    return f"the node ended: {printable(str(failure))}: start it again"


class Node:
    """Receives, classifies, reports and delivers until it is stopped.

    Args:
        model: an artefact or a bundle.
        config: the whole configuration.
        threads: processor threads for inference.
        reread: reads the configuration anew when SIGHUP comes; None keeps this one.

    Raises:
        MedimgError: the model, a key, a certificate or a port cannot be had.
    """

    def __init__(
        self,
        model: Path,
        config: NodeConfig,
        threads: int,
        reread: Callable[[], NodeConfig] | None = None,
    ) -> None:
        # Here, since imports by several threads at once can meet modules that are half made.
        for module in ("pydicom.pixels", "pynetdicom", "highdicom.sr", "highdicom.sc"):
            require(module, "node")
        folder = Path(config.folder)
        self._config, self._reread = config, reread
        self._lock_file = _sole_user(make_folder(folder))
        self.counters = Counters()
        self.store = Store(folder, config.deliver.names())
        self._results = Journal(folder / "results", "results", self.store)
        self._audit = Journal(folder / "audit", "audit", self.store)
        self._checkpoints = _checkpoints(config)
        self._upkeep = Upkeep(self.store, self._results, self._audit, self._checkpoints, config)
        public_key = Path(config.public_key) if config.public_key else None
        self.models = Models(model, public_key, self.store, threads)
        self._adopt_files()
        self._answered = Bell()
        self._worker = Worker(self.store, self.models, config.inference, self.counters, self._answered.ring)
        self._series = SeriesReporter(
            self.store, config.inference, config.codes, self._overlays(config), self._on_reported
        )
        self._deliverers: dict[str, Deliverer] = {}
        self._deliver(config, make_senders(config, self.store))
        self._sightings = Sightings(self.store, self.counters)
        self.receiver = Receiver(config, self.store, self.counters, self._sightings, self._on_stored)
        token = read_token(Path(config.status_token)) if config.status_token else None
        where = config.status_address, config.status_port
        self._status = StatusServer(*where, token, self.snapshot, self.counters)
        self._certificate = earliest_end(config)
        self._ended, self._is_ending = threading.Event(), False
        self._signals: list[Callable[[], object]] = []
        self._rounds: dict[str, float] = {}
        self._next_tidy = self._next_forget = 0.0
        self._threads: list[threading.Thread] = []
        self._failure: Exception | None = None

    def start(self) -> None:
        """Begin all work, receiving last."""
        self.store.audit("started", model_sha256=self.models.current.sha256)
        self._begin("classify", self._worker.work, self._worker.bell.wait)
        self._begin("lines", self._copy_lines, self._answered.wait)
        self._begin("series", self._series.work, self._pause)
        for deliverer in self._deliverers.values():
            self._begin_delivery(deliverer)
        self._begin("keep", self._keep, self._pause)
        self._begin("check", self._upkeep.check, self._pause, is_watched=False)
        self.receiver.start()
        self._status.start()
        _LOG.info("%s listens on %s:%d", self._config.ae_title, self._config.address, self.receiver.port)

    def run(self) -> None:
        """Work until a signal asks for the end, then finish what is under way.

        Raises:
            CheckFailedError: the node cannot go on; a new start repairs it.
        """
        for number, action in (
            (signal.SIGTERM, self._end),
            (signal.SIGINT, self._end),
            (signal.SIGHUP, self._reload),
            (signal.SIGUSR2, self.models.rollback),
        ):
            # A handler may find this thread within any lock, so it takes none, not even an event's.
            signal.signal(number, lambda *_, act=action: self._signals.append(act))
        # A thread that computes, as one that writes a long report, holds up the others so long each time.
        sys.setswitchinterval(_SWITCH_S)
        self.start()
        # What is there now stays; looking through all of it for garbage would stop every thread each time.
        gc.collect()
        gc.freeze()
        notify("READY=1")
        while not self._is_ending and not self.failure:
            if self.problem() is None:
                notify("WATCHDOG=1")
            time.sleep(_ROUND_S)
            while self._signals:
                self._obey(self._signals.pop(0))
        notify("STOPPING=1")
        last = self._end_at_last(self.failure) if self.failure else None
        self.stop()
        if last:
            last.cancel()
        if self.failure:
            self.store.suspect()
            raise CheckFailedError(_why_ended(self.failure))

    def _end_at_last(self, failure: Exception) -> threading.Timer:
        """End in any case: SQLite may hold threads for long that read a damaged file."""
        self.store.suspect()

        def end() -> None:
            sys.stderr.write(f"error: {_why_ended(failure)}\n")
            sys.stderr.flush()
            os._exit(1)

        timer = threading.Timer(_LAST_RESORT_S, end)
        timer.daemon = True
        timer.start()
        return timer

    def stop(self) -> None:
        """Receive nothing more, work off the queue within the limit, and end."""
        end = time.monotonic() + self._config.drain_s
        self.receiver.stop(self._config.drain_s)
        self._worker.bell.ring()
        while time.monotonic() < end and not self.failure and self.store.counts()["received"]:
            time.sleep(0.02)
        self._ended.set()
        # Together, since each may wait for a database that is damaged; then there is nothing to work off.
        last = time.monotonic() + _LAST_S
        end = last if self.failure else max(end, last)
        for thread in self._threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))
        if not self.failure:
            self.store.audit("stopped")
            self._catch_up()
            self._sign(now=True)
        _LOG.info("stopped")
        self._status.stop()
        self.models.close()
        self.store.close()
        os.close(self._lock_file)

    @property
    def failure(self) -> Exception | None:
        """A damaged database, which a new start sets aside; None if there is none."""
        return self._failure or self.receiver.failure

    @property
    def is_stopped(self) -> bool:
        """Whether it has been told to end."""
        return self._ended.is_set()

    def problem(self) -> str | None:
        """Say what is wrong; nothing while every thread makes its rounds."""
        now = time.monotonic()
        late = [name for name, at in self._rounds.items() if now - at > STALLED_S]
        if late:
            return f"no sign of life from: {', '.join(late)}"
        return str(self.failure) if self.failure else None

    def snapshot(self) -> Snapshot:
        """Say how things are, for the status page."""
        model = self.models.current
        return Snapshot(
            problem=self.problem() or self._expired() or self.receiver.refusing(),
            counts=self.store.counts(),
            gauges=self._gauges(),
            associations=self.receiver.associations,
            last_results=tuple(self.store.last_results(20)),
            model_name=model.name,
            model_sha256=model.sha256,
            precision=model.classifier.backend.precision,
            backend=f"{model.classifier.backend.name} on {model.classifier.backend.device}",
            intended_use=model.classifier.spec.intended_use,
            ae_title=self._config.ae_title,
        )

    def _expired(self) -> str | None:
        return self._certificate.problem() if self._certificate else None

    def _gauges(self) -> dict[str, float]:
        oldest = self.store.oldest_waiting()
        found = {
            "disk_free_bytes": float(shutil.disk_usage(self.store.folder).free),
            "oldest_waiting_seconds": max(0.0, time.time() - oldest) if oldest is not None else 0.0,
        }
        if self._certificate:
            found["certificate_days_left"] = round(self._certificate.days_left, 3)
        return found

    def _begin(
        self,
        name: str,
        work: Callable[[], int],
        wait: Callable[[float], object],
        *,
        is_watched: bool = True,
    ) -> None:
        """Start a thread that works while there is work, and waits otherwise."""

        def rounds() -> None:
            while not self._ended.is_set():
                if is_watched:
                    self._rounds[name] = time.monotonic()
                try:
                    if work() == 0:
                        wait(_ROUND_S)
                except sqlite3.DatabaseError as error:
                    if not isinstance(error, sqlite3.OperationalError):
                        self._failure = error
                        return
                    self._retry_later(name, error)
                except Exception as error:  # noqa: BLE001  the work stays queued, and the cause may pass
                    self._retry_later(name, error)

        thread = threading.Thread(target=rounds, name=f"medimg-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _retry_later(self, name: str, error: Exception) -> None:
        _LOG.error("%s: %s: %s; again in 1 s", name, type(error).__name__, printable(str(error)))
        self.counters.add("errors", thread=name)
        self._ended.wait(1.0)

    def _pause(self, timeout_s: float) -> None:
        self._ended.wait(timeout_s)

    def _on_stored(self, arrival: Arrival) -> None:
        self._series.touch(arrival.series_key)
        self._worker.note_arrival(arrival.frames)
        self._worker.hold_back(_LONGEST_HOLD_S)

    def _on_reported(self) -> None:
        self._catch_up()
        # A copy, since a reload may add some.
        for deliverer in list(self._deliverers.values()):
            deliverer.bell.ring()

    def _catch_up(self) -> None:
        self._results.catch_up()
        self._audit.catch_up()

    def _copy_lines(self) -> int:
        """Write results down as soon as they are committed, apart from all that could delay it."""
        self._results.catch_up()
        return 0

    def _keep(self) -> int:
        """Keep the audit log up to date and the disk free."""
        self._audit.catch_up()
        self._sign()
        self._sightings.work()
        now = time.monotonic()
        if now >= self._next_tidy:
            self._results.tidy()
            self._audit.tidy()
            self._upkeep.tidy()
            self._next_tidy = now + _TIDY_S
        if now >= self._next_forget:
            self._upkeep.forget()
            self._next_forget = now + _FORGET_S
        return 0

    def _sign(self, *, now: bool = False) -> None:
        if self._checkpoints:
            self._checkpoints.work(*self._audit.position, now=now)

    def _obey(self, action: Callable[[], object]) -> None:
        """Do what a signal asks for; a full disk is no reason to end."""
        try:
            action()
        except (OSError, sqlite3.OperationalError) as error:
            _LOG.error("a signal could not be obeyed: %s", printable(str(error)))

    def _end(self) -> None:
        self._is_ending = True

    def _reload(self) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self.models.reload()
        if self._reread:
            self._reconfigure(self._reread)
        notify("READY=1")

    def _reconfigure(self, reread: Callable[[], NodeConfig]) -> None:
        """Go on with what the configuration and its certificates say now; if they are wrong, as before."""
        try:
            config, later = merge_reloaded(self._config, reread())
            token = read_token(Path(config.status_token)) if config.status_token else None
            certificate, senders = earliest_end(config), make_senders(config, self.store)
            self.receiver.configure(config)
        except MedimgError as error:
            _LOG.error("the configuration stays: %s", printable(str(error)))
            self.store.audit("configuration refused", reason=str(error))
            return
        self._config, self._status.token, self._certificate = config, token, certificate
        self._worker.rules = config.inference
        self._series.follow(config.inference, config.codes, self._overlays(config))
        self.store.deliver_to(config.deliver.names())
        self._upkeep.follow(config)
        for deliverer in self._deliver(config, senders):
            self._begin_delivery(deliverer)
        self.store.audit("configuration read")
        if later:
            _LOG.warning("changed, but used from the next start on: %s", ", ".join(later))

    def _overlays(self, config: NodeConfig) -> Overlays | None:
        return Overlays(self.models) if config.deliver.overlay else None

    def _deliver(self, config: NodeConfig, senders: Sequence[Sender]) -> list[Deliverer]:
        """Reach destinations as a configuration says; give the deliverers of those that are new.

        One of a destination that was removed stays, without work: should the name come back, no second one
        sends the same reports beside it.
        """
        by_name = {sender.name: sender for sender in senders}
        for name, deliverer in self._deliverers.items():
            deliverer.use(by_name.pop(name, None), config.deliver)
        new = [Deliverer(sender, self.store, config.deliver, self.counters) for sender in by_name.values()]
        self._deliverers |= {deliverer.name: deliverer for deliverer in new}
        return new

    def _begin_delivery(self, deliverer: Deliverer) -> None:
        # It waits for others, within limits of its own.
        self._begin(f"deliver to {deliverer.name}", deliverer.work, deliverer.bell.wait, is_watched=False)

    def _adopt_files(self) -> None:
        """Queue images whose files are in place and whose rows were lost."""
        with os.scandir(self.store.images) as entries:
            unknown = self.store.unknown_files(entry.name for entry in entries if entry.name.endswith(".dcm"))
        for path in map(self.store.images.joinpath, unknown):
            try:
                arrival = arrivals.read_file_arrival(path, int(self._config.receive.max_instance_mb * 1e6))
            except arrivals.UnusableError as error:
                _LOG.error("%s: %s", path, printable(str(error)))
                continue
            self.store.adopt(arrival, path)
            self.counters.add("recovered")


def _sole_user(folder: Path) -> int:
    """Lock the state against a second process."""
    import fcntl

    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise CheckFailedError(
            f"{folder}: another node works there: stop it, or use another folder"
        ) from None
    return descriptor


def _checkpoints(config: NodeConfig) -> Checkpoints | None:
    rule = config.audit
    if rule.key is None:
        return None
    folder = Path(rule.checkpoints) if rule.checkpoints else Path(config.folder) / "checkpoints"
    return Checkpoints(folder, Path(rule.key), rule.every_s)
