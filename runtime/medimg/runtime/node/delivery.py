"""Sends reports to their destinations until they have them."""

import base64
import http.client
import logging
import ssl
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from medimg.runtime.errors import MedimgError, UsageError
from medimg.runtime.files.text import printable
from medimg.runtime.images import dicom
from medimg.runtime.node import overlay, sr
from medimg.runtime.node.bell import Bell
from medimg.runtime.node.config import Delivery, DicomDestination, HttpDestination, NodeConfig
from medimg.runtime.node.counters import Counters
from medimg.runtime.node.receiver import tls_context
from medimg.runtime.node.records import Pending
from medimg.runtime.node.store import Store
from medimg.runtime.optional import require

_LOG = logging.getLogger(__name__)

_TRANSFER_SYNTAXES = (sr.TRANSFER_SYNTAX, "1.2.840.10008.1.2")
"""Explicit and Implicit VR Little Endian; the latter must be offered (PS3.5 10.1)."""
_DUPLICATE = 0x0111
"""The archive has this UID, which only the same content ever had (PS3.7 C.5.7)."""
_STORED = (0x0000, 0xB000, 0xB006, 0xB007, _DUPLICATE)
"""C-STORE statuses that say: it is there, some with a remark (PS3.4 B.2.3)."""
_NOT_NOW = (0x0124, *range(0xA700, 0xA800))
"""Not authorized, and out of resources: what another report would be answered as well."""
_REFUSED_BY_HTTP = (400, 409, 410, 411, 413, 415, 422, 431)
"""HTTP statuses that are about what was posted; others are about the service."""

Note: TypeAlias = Callable[[Pending, str | None, str | None], None]
"""Told of each report that was answered: why it was refused, if it was, and a remark."""


class DeliveryError(MedimgError):
    """A destination could not be reached, or takes nothing now; it is tried again.

    Args:
        message: why.
        began: whether a report was being sent.
    """

    def __init__(self, message: str, *, began: bool = True) -> None:
        super().__init__(message)
        self.began = began


class RefusedError(MedimgError):
    """A destination does not take one report."""


class Sender(ABC):
    """Knows how to reach one destination."""

    name: str

    @abstractmethod
    def send(self, reports: Iterable[Pending], note: Note) -> None:
        """Send reports in order, and tell of each that was answered.

        Raises:
            DeliveryError: the next one was not.
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

    def send(self, reports: Iterable[Pending], note: Note) -> None:
        """See `Sender.send`."""
        association = self._associate()
        try:
            for report in reports:
                try:
                    note(report, None, self._send_one(association, report))
                except RefusedError as error:
                    note(report, str(error), None)
        finally:
            if association.is_established:
                association.release()

    def _associate(self) -> Any:  # noqa: ANN401  pynetdicom has no types
        from medimg.runtime.node.transport import Requestor

        where, timeout_s = self._destination, self._config.deliver.timeout_s
        entity = Requestor(self._config.ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
        entity.connection_timeout = timeout_s
        entity.add_requested_context(sr.SOP_CLASS, list(_TRANSFER_SYNTAXES))
        if self._config.deliver.overlay:
            entity.add_requested_context(overlay.SOP_CLASS, list(_TRANSFER_SYNTAXES))
        tls_args = (self._tls, where.host) if self._tls else None
        association = entity.associate(where.host, where.port, ae_title=where.ae_title, tls_args=tls_args)
        if not association.is_established:
            message = f"{where.ae_title} at {where.host}:{where.port} gave no association"
            raise DeliveryError(message, began=False)
        return association

    def _send_one(self, association: Any, report: Pending) -> str | None:  # noqa: ANN401
        """Send a report and its overlay; give a remark of the archive."""
        drawn = self._store.overlay_path(report.report_uid)
        if self._config.deliver.overlay and drawn.exists():
            _store_one(association, drawn)
        return _store_one(association, self._store.report_path(report.report_uid))


def _store_one(association: Any, path: Path) -> str | None:  # noqa: ANN401  pynetdicom has no types
    try:
        dataset = require("pydicom", "node").dcmread(path)
    except (*dicom.DAMAGED, require("pydicom.errors", "node").InvalidDicomError) as error:
        raise RefusedError(f"{path.name} cannot be read ({type(error).__name__})") from None
    if dataset.SOPClassUID not in {context.abstract_syntax for context in association.accepted_contexts}:
        raise RefusedError(f"the archive takes no {dataset.SOPClassUID.name}")
    try:
        status = association.send_c_store(dataset)
    except (OSError, ValueError, RuntimeError) as error:
        raise DeliveryError(f"{path.name}: {error}") from None
    code = status.get("Status") if status else None
    if code is None:
        raise DeliveryError("no answer to C-STORE")
    if code in _NOT_NOW:
        raise DeliveryError(f"C-STORE was answered with status {code:04X}")
    if code not in _STORED:
        raise RefusedError(f"C-STORE was answered with status {code:04X}")
    return f"status {code:04X}" if code else None


class HttpSender(Sender):
    """Posts each series' result as JSON lines; `Idempotency-Key` is the report's UID.

    Raises:
        UsageError: a file of the destination cannot be used.
    """

    def __init__(self, destination: HttpDestination, timeout_s: float) -> None:
        self.name = destination.name
        self._destination, self._timeout_s = destination, timeout_s
        context = _client_context(destination)
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))
        self._authorization()

    def send(self, reports: Iterable[Pending], note: Note) -> None:
        """See `Sender.send`."""
        for report in reports:
            try:
                self._post(report)
            except RefusedError as error:
                note(report, str(error), None)
            else:
                note(report, None, None)

    def _post(self, report: Pending) -> None:
        url = self._destination.url
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": report.report_uid}
        # Read each time, since passwords and tokens change.
        try:
            headers |= self._authorization()
        except UsageError as error:
            raise DeliveryError(str(error), began=False) from None
        request = urllib.request.Request(url, report.lines.encode(), headers)  # noqa: S310  http and https alone
        try:
            with self._opener.open(request, timeout=self._timeout_s):
                pass
        except urllib.error.HTTPError as error:
            error.close()
            message = f"{url}: answered with {error.code}"
            if error.code in _REFUSED_BY_HTTP:
                raise RefusedError(message) from None
            raise DeliveryError(message) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DeliveryError(f"{url}: {error or type(error).__name__}") from None

    def _authorization(self) -> dict[str, str]:
        where = self._destination
        if where.token_file:
            return {"Authorization": f"Bearer {_secret(where.token_file)}"}
        if where.user is not None and where.password_file:
            pair = f"{where.user}:{_secret(where.password_file)}".encode()
            return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        return {}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for what it is to a POST: a failure, since the other place would be asked by GET."""

    def redirect_request(self, *_: object) -> None:
        """Follow nothing."""


def _secret(path: str) -> str:
    """Read a token or password: the only line of a file."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip("\r\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    if not text or not text.isprintable():
        raise UsageError(f"{path}: is not one line of text")
    return text


def _client_context(destination: HttpDestination) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=destination.authorities)
        if destination.certificate and destination.key:
            context.load_cert_chain(destination.certificate, destination.key)
    except OSError as error:
        files = (destination.authorities, destination.certificate, destination.key)
        names = ", ".join(Path(name).name for name in files if name)
        raise UsageError(f"destination {destination.name}: TLS with {names}: {error}") from None
    return context


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
        self.name = sender.name
        self._sender: Sender | None = sender
        self._store, self._rules, self._counters = store, rules, counters
        self._clock = clock
        self.bell = Bell()
        self._wait_s = rules.first_retry_s
        self._not_before = 0.0

    def use(self, sender: Sender | None, rules: Delivery) -> None:
        """Reach the destination otherwise from now on, and try at once.

        Args:
            sender: how it is reached; None where it was removed, and gets nothing.
            rules: the waits.
        """
        self._sender, self._rules = sender, rules
        self._wait_s, self._not_before = rules.first_retry_s, 0.0
        self.bell.ring()

    def work(self) -> int:
        """Send what is pending, then what was refused and is due; give how many were taken."""
        sender = self._sender
        if sender is None or self._clock() < self._not_before:
            return 0
        reports = self._store.pending(self.name) + self._store.refused(self.name, time.time())
        if not reports:
            return 0
        answered: list[Pending] = []
        taken: list[Pending] = []

        def note(report: Pending, refusal: str | None, remark: str | None) -> None:
            answered.append(report)
            if refusal is not None:
                self._set_aside(report, refusal)
                return
            self._store.delivered(report, self.name, remark)
            self._counters.add("delivered", destination=self.name)
            self._wait_s = self._rules.first_retry_s
            taken.append(report)

        def wanted() -> Iterator[Pending]:
            for report in reports:
                if self._sender is not sender:
                    return
                yield report

        try:
            sender.send(wanted(), note)
        except DeliveryError as error:
            self._failed(reports[len(answered)], error)
        return len(taken)

    def _failed(self, report: Pending, error: DeliveryError) -> None:
        _LOG.warning("%s: %s; again in %.0f s", self.name, printable(str(error)), self._wait_s)
        self._store.delivery_failed(report, self.name, str(error), began=error.began)
        self._counters.add("delivery_failed", destination=self.name)
        self._not_before = self._clock() + self._wait_s
        self._wait_s = min(2 * self._wait_s, self._rules.max_retry_s)

    def _set_aside(self, report: Pending, reason: str) -> None:
        """Put a report that was refused behind all others, to be tried by a clock of its own."""
        wait_s = min(self._rules.first_retry_s * 2 ** min(report.tries, 30), self._rules.max_retry_s)
        uid = report.report_uid
        _LOG.error("%s refuses report %s: %s; again in %.0f s", self.name, uid, printable(reason), wait_s)
        self._store.set_aside(report, self.name, reason, time.time() + wait_s)
        self._counters.add("delivery_refused", destination=self.name)


def make_senders(config: NodeConfig, store: Store) -> list[Sender]:
    """Make a sender for each destination."""
    return [
        *(DicomSender(destination, config, store) for destination in config.deliver.dicom),
        *(HttpSender(destination, config.deliver.timeout_s) for destination in config.deliver.http),
    ]
