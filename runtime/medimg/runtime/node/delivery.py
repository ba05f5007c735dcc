"""Sends reports to their destinations until they have them."""

import logging
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medimg.runtime.errors import MedimgError
from medimg.runtime.node import overlay, sr
from medimg.runtime.node.bell import Bell
from medimg.runtime.node.config import Delivery, DicomDestination, HttpDestination, NodeConfig
from medimg.runtime.node.counters import Counters
from medimg.runtime.node.receiver import tls_context
from medimg.runtime.node.records import Pending
from medimg.runtime.node.store import Store
from medimg.runtime.optional import require
from medimg.runtime.text import printable

_LOG = logging.getLogger(__name__)

_WARNINGS = (0xB000, 0xB006, 0xB007)
"""C-STORE statuses that say: stored, with a remark (PS3.4 B.2.3)."""


class DeliveryError(MedimgError):
    """A destination did not take a report; it is tried again."""


class Sender(ABC):
    """Knows how to reach one destination."""

    name: str

    @abstractmethod
    def send(self, reports: list[Pending], done: Callable[[Pending], None]) -> None:
        """Send reports in order, and tell of each that was taken.

        Raises:
            DeliveryError: one was not.
        """


class DicomSender(Sender):
    """Sends reports, and overlays before them, by C-STORE, several over one association."""

    def __init__(self, destination: DicomDestination, config: NodeConfig, store: Store) -> None:
        self.name = destination.name
        self._destination, self._config, self._store = destination, config, store
        tls = config.receive.tls
        if destination.tls and tls is None:
            raise DeliveryError(f"destination {destination.name}: tls needs the certificate of receive.tls")
        self._tls = tls_context(tls, server=False) if destination.tls and tls else None

    def send(self, reports: list[Pending], done: Callable[[Pending], None]) -> None:
        """See `Sender.send`."""
        from medimg.runtime.node.transport import Requestor

        where, timeout_s = self._destination, self._config.deliver.timeout_s
        entity = Requestor(self._config.ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
        entity.connection_timeout = timeout_s
        entity.add_requested_context(sr.SOP_CLASS, [sr.TRANSFER_SYNTAX])
        if self._config.deliver.overlay:
            entity.add_requested_context(overlay.SOP_CLASS, [sr.TRANSFER_SYNTAX])
        tls_args = (self._tls, where.host) if self._tls else None
        association = entity.associate(where.host, where.port, ae_title=where.ae_title, tls_args=tls_args)
        if not association.is_established:
            raise DeliveryError(f"{where.ae_title} at {where.host}:{where.port} gave no association")
        try:
            for report in reports:
                drawn = self._store.overlay_path(report.report_uid)
                if self._config.deliver.overlay and drawn.exists():
                    _store_one(association, drawn)
                _store_one(association, self._store.report_path(report.report_uid))
                done(report)
        finally:
            if association.is_established:
                association.release()


def _store_one(association: Any, path: Path) -> None:  # noqa: ANN401  pynetdicom has no types
    try:
        dataset = require("pydicom", "node").dcmread(path)
        status = association.send_c_store(dataset)
    except (OSError, ValueError, RuntimeError) as error:
        raise DeliveryError(f"{path.name}: {error}") from None
    code = status.get("Status") if status else None
    if code is None:
        raise DeliveryError("no answer to C-STORE")
    if code != 0 and code not in _WARNINGS:
        raise DeliveryError(f"C-STORE was answered with status {code:04X}")


class HttpSender(Sender):
    """Posts each series' result as JSON lines; `Idempotency-Key` is the report's UID."""

    def __init__(self, destination: HttpDestination, timeout_s: float) -> None:
        self.name = destination.name
        self._url, self._timeout_s = destination.url, timeout_s

    def send(self, reports: list[Pending], done: Callable[[Pending], None]) -> None:
        """See `Sender.send`."""
        for report in reports:
            request = urllib.request.Request(  # noqa: S310  the configuration takes http and https alone
                self._url,
                report.lines.encode(),
                {"Content-Type": "application/x-ndjson", "Idempotency-Key": report.report_uid},
            )
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_s):  # noqa: S310
                    pass
            except urllib.error.HTTPError as error:
                error.close()
                raise DeliveryError(f"{self._url}: {error}") from None
            except (OSError, ValueError) as error:
                raise DeliveryError(f"{self._url}: {error}") from None
            done(report)


class Deliverer:
    """Works off what one destination does not have; waits longer after each failure.

    Args:
        sender: how it is reached.
        store: the queue.
        rules: the waits.
        counters: of deliveries and failures.
        clock: seconds that never jump.
    """

    def __init__(
        self,
        sender: Sender,
        store: Store,
        rules: Delivery,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sender, self._store, self._rules, self._counters = sender, store, rules, counters
        self._clock = clock
        self.bell = Bell()
        self._wait_s = rules.first_retry_s
        self._not_before = 0.0

    @property
    def name(self) -> str:
        """The destination's name."""
        return self._sender.name

    def work(self) -> int:
        """Send what is pending, if it is time to; give how many were taken."""
        if self._clock() < self._not_before:
            return 0
        reports = self._store.pending(self.name)
        if not reports:
            return 0
        taken: list[Pending] = []

        def done(report: Pending) -> None:
            self._store.delivered(report.report_uid, self.name)
            self._counters.add("delivered", destination=self.name)
            taken.append(report)

        try:
            self._sender.send(reports, done)
        except DeliveryError as error:
            self._failed(reports[len(taken)], str(error))
        else:
            self._wait_s = self._rules.first_retry_s
        return len(taken)

    def _failed(self, report: Pending, reason: str) -> None:
        _LOG.warning("%s: %s; again in %.0f s", self.name, printable(reason), self._wait_s)
        self._store.delivery_failed(report.report_uid, self.name, reason)
        self._counters.add("delivery_failed", destination=self.name)
        self._not_before = self._clock() + self._wait_s
        self._wait_s = min(2 * self._wait_s, self._rules.max_retry_s)


def make_senders(config: NodeConfig, store: Store) -> list[Sender]:
    """Make a sender for each destination."""
    return [
        *(DicomSender(destination, config, store) for destination in config.deliver.dicom),
        *(HttpSender(destination, config.deliver.timeout_s) for destination in config.deliver.http),
    ]
