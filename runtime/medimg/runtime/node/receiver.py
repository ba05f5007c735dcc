"""C-STORE and C-ECHO provider: an image is acknowledged only once it is durable."""

import logging
import shutil
import sqlite3
import ssl
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medimg.runtime.errors import CheckFailedError, UsageError
from medimg.runtime.files.text import printable
from medimg.runtime.images import dicom
from medimg.runtime.node import arrivals
from medimg.runtime.node.certificates import require_valid
from medimg.runtime.node.config import NodeConfig, Peer, Tls
from medimg.runtime.node.counters import Counters
from medimg.runtime.node.files import write_temporary
from medimg.runtime.node.memory import reception_bytes
from medimg.runtime.node.records import Arrival
from medimg.runtime.node.sightings import Sightings
from medimg.runtime.node.store import Store
from medimg.runtime.optional import require

if TYPE_CHECKING:
    from medimg.runtime.node.transport import Bounds

_LOG = logging.getLogger(__name__)

SUCCESS, DUPLICATE, NOT_AUTHORIZED = 0x0000, 0x0111, 0x0124
OUT_OF_RESOURCES, DOES_NOT_MATCH, CANNOT_UNDERSTAND = 0xA700, 0xA900, 0xC000
"""C-STORE statuses (PS3.4 B.2.3, PS3.7 C)."""

_NO_LIMIT = 2**31
_ABORT_S = 0.2
"""Time in which an A-ABORT goes out."""

TRANSFER_SYNTAXES = (
    *("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"),
    *(f"1.2.840.10008.1.2.4.{part}" for part in (50, 51, 53, 55, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
    "1.2.840.10008.1.2.5",
)


class Refusal(Exception):  # noqa: N818  not an error: an answer
    """A C-STORE request is answered with a failure."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Receiver:
    """Listens for associations; each has threads of its own.

    Args:
        config: the whole configuration.
        store: where images are queued.
        counters: of what came and what was refused.
        sightings: is told of what was refused before it was an image.
        on_stored: called after an image has been queued.
    """

    def __init__(
        self,
        config: NodeConfig,
        store: Store,
        counters: Counters,
        sightings: Sightings,
        on_stored: Callable[[Arrival], None],
    ) -> None:
        self._config, self._store, self._counters, self._on_stored = config, store, counters, on_stored
        self._sightings = sightings
        self._server: Any = None
        self._refusing: str | None = None
        self._lacking_mb = 0.0  # what the last image that found no room needed
        self.failure: Exception | None = None
        """A damaged database: only a new start repairs it."""

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    @property
    def associations(self) -> int:
        """How many connections are open."""
        return len(self._server.active_associations) if self._server else 0

    def refusing(self) -> str | None:
        """Say why every image is refused; None while they are not."""
        free_mb, reserve_mb = (
            shutil.disk_usage(self._store.folder).free / 1e6,
            self._config.receive.reserve_mb,
        )
        if free_mb < reserve_mb + self._lacking_mb:
            return f"every image is refused: {_no_space(free_mb, reserve_mb)}"
        return self._refusing

    @property
    def _max_bytes(self) -> int:
        return int(self._config.receive.max_instance_mb * 1e6)

    def start(self) -> None:
        """Begin to listen.

        Raises:
            CheckFailedError: the port cannot be had.
            UsageError: a certificate cannot be used.
        """
        pynetdicom = require("pynetdicom", "node")
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
        dicom.quiet_pydicom()
        pynetdicom._config.LOG_HANDLER_LEVEL = "none"
        from medimg.runtime.node import transport

        address = (self._config.address, self._config.port)
        try:
            self._server = transport.start_server(
                self._entity(), address, self._bounds(), self._handlers(pynetdicom.evt)
            )
        except OSError as error:
            # No fault of the configuration: whoever has it may go.
            raise CheckFailedError(
                f"port {self._config.port} of {self._config.address} cannot be had ({error.strerror})"
            ) from None

    def configure(self, config: NodeConfig) -> None:
        """Take another configuration but for address and port; open associations keep what they began with.

        Raises:
            UsageError: a certificate cannot be used; then nothing has changed.
        """
        before, self._config = self._config, config
        try:
            bounds, entity = self._bounds(), self._entity()
        except UsageError:
            self._config = before
            raise
        self._server.configure(entity, bounds)

    def _bounds(self) -> "Bounds":
        from medimg.runtime.node.transport import Bounds

        receive = self._config.receive
        return Bounds(
            is_known_address=self._is_known_address,
            data_set_bytes=self._max_bytes,
            memory_bytes=reception_bytes(receive.memory_mb),
            timeout_s=receive.network_timeout_s,
            slowest_bytes_per_s=receive.min_kb_per_s * 1e3,
            associations=receive.max_associations,
            pending=receive.max_pending,
            tls=tls_context(receive.tls, server=True) if receive.tls else None,
            note=self._sightings.note,
        )

    def stop(self, grace_s: float) -> None:
        """Accept nothing more; wait for established associations and their release, then end all."""
        if self._server is None:
            return
        from medimg.runtime.node import transport

        server, self._server = self._server, None
        server.shutdown()
        end = time.monotonic() + grace_s
        while _unfinished(server) and time.monotonic() < end:
            time.sleep(0.02)
        if left := _unfinished(server):
            for association in left:
                transport.blame(association, "stop", "the node stops")
                association.abort(block=False)
            time.sleep(_ABORT_S)
        # Not pynetdicom's own end, which waits for peers that say nothing.
        for association in server.active_associations:
            transport.end(association, "the node stops", "stop")

    def _entity(self) -> Any:  # noqa: ANN401
        from medimg.runtime.node.transport import MAX_PDU_BYTES

        receive = self._config.receive
        entity = require("pynetdicom", "node").AE(self._config.ae_title)
        entity.implementation_class_uid = arrivals.IMPLEMENTATION_UID
        entity.implementation_version_name = f"MEDIMG_{version('medimg')}"[:16]
        # The server counts them itself: pynetdicom would count connections without association too.
        entity.maximum_associations = _NO_LIMIT
        entity.maximum_pdu_size = MAX_PDU_BYTES
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = receive.network_timeout_s
        entity.require_called_aet = True
        entity.require_calling_aet = [peer.ae_title for peer in self._config.peers]
        for sop_class in receive.sop_classes:
            entity.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        entity.add_supported_context("1.2.840.10008.1.1")
        return entity

    def _handlers(self, events: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401
        return [
            (events.EVT_C_ECHO, self._on_echo),
            (events.EVT_C_STORE, self._on_store),
            (events.EVT_REJECTED, self._on_rejected),
        ]

    def _on_rejected(self, event: Any) -> None:  # noqa: ANN401
        answer, requestor = event.assoc.acceptor.primitive, event.assoc.requestor
        asked = getattr(requestor.primitive, "called_ae_title", "")
        cause, reason = {
            (1, 3): ("calling title", f"no peer has the AE title {requestor.ae_title}"),
            (1, 7): ("called title", f"it asked for {asked}, and this is {self._config.ae_title}"),
            (3, 2): ("too many", f"{self._config.receive.max_associations} associations are open"),
        }.get((answer.result_source, answer.diagnostic), ("other", "as pynetdicom decided"))
        self._sightings.note("association rejected", _sender(event.assoc), cause, reason)

    def _on_echo(self, event: Any) -> int:  # noqa: ANN401
        return SUCCESS if self._is_accepted(event.assoc) else NOT_AUTHORIZED

    def _on_store(self, event: Any) -> int:  # noqa: ANN401
        from medimg.runtime.node import transport

        received_at, started = time.time(), time.monotonic()
        try:
            self._receive(event, received_at)
        except Refusal as refusal:
            self._refused(event, refusal)
            return refusal.status
        else:
            self._slow_down(started)
            return SUCCESS
        finally:
            transport.listen_anew(event.assoc)

    def _refused(self, event: Any, refusal: Refusal) -> None:  # noqa: ANN401
        self._counters.add("refused", reason=f"{refusal.status:04X}")
        uid = str(event.request.AffectedSOPInstanceUID)[:64]
        fields = {"sop_instance_uid": uid, "status": f"{refusal.status:04X}"}
        self._audit_refusal(_sender(event.assoc), refusal.reason, fields)

    def _receive(self, event: Any, received_at: float) -> None:  # noqa: ANN401
        """Make one image durable."""
        from medimg.runtime.node import transport

        if not self._is_accepted(event.assoc):
            raise Refusal(NOT_AUTHORIZED, "this AE title is not accepted from this address")
        content = event.request.DataSet.getvalue()
        if isinstance(event.request.DataSet, transport.Dropped):
            raise Refusal(OUT_OF_RESOURCES, event.request.DataSet.reason)
        if len(content) > self._max_bytes:
            raise Refusal(OUT_OF_RESOURCES, f"larger than {self._max_bytes:,} bytes")
        self._require_space(len(content))
        arrival = self._arrival(event, content, received_at)
        meta = arrivals.file_meta(arrival, event.context.transfer_syntax, event.assoc.requestor.ae_title)
        try:
            temporary = write_temporary(self._store.folder, meta, content)
            audited = arrivals.describe(arrival, patient_names=self._config.audit.patient_names)
            added = self._store.add(arrival, temporary, audited)
        except (OSError, sqlite3.OperationalError) as error:
            self._refusing = f"the last image could not be stored ({error})"
            raise Refusal(OUT_OF_RESOURCES, f"cannot be stored ({error})") from None
        except sqlite3.Error as error:
            self.failure = error
            raise Refusal(OUT_OF_RESOURCES, f"the queue is damaged ({error})") from None
        self._refusing, self._lacking_mb = None, 0.0
        if added == "other content":
            raise Refusal(DUPLICATE, "its SOP instance UID is here with another data set")
        self._counters.add("received_again" if added == "known" else "received")
        if added == "flagged":
            self._counters.add("contradictions")
        if added != "known":
            self._on_stored(arrival)

    def _arrival(self, event: Any, content: bytes, received_at: float) -> Arrival:  # noqa: ANN401
        try:
            arrival = arrivals.read_arrival(
                content,
                event.context.transfer_syntax,
                sender=_sender(event.assoc),
                received_at=received_at,
                max_bytes=self._max_bytes,
            )
        except arrivals.UnusableError as error:
            raise Refusal(CANNOT_UNDERSTAND, str(error)) from None
        request = event.request
        if (arrival.sop_uid, arrival.sop_class) != (
            str(request.AffectedSOPInstanceUID),
            str(request.AffectedSOPClassUID),
        ):
            raise Refusal(DOES_NOT_MATCH, "its UIDs are not those of the request")
        return arrival

    def _require_space(self, needed_bytes: int) -> None:
        reserve_mb = self._config.receive.reserve_mb
        wanted_bytes = needed_bytes + reserve_mb * 1e6
        free_bytes = self._store.make_room(wanted_bytes, time.time())
        if free_bytes < wanted_bytes:
            self._lacking_mb = needed_bytes / 1e6
            raise Refusal(OUT_OF_RESOURCES, _no_space(free_bytes / 1e6, reserve_mb))

    def _slow_down(self, started: float) -> None:
        rate = self._config.receive.images_per_s
        if rate:
            time.sleep(max(0.0, started + 1 / rate - time.monotonic()))

    def _is_accepted(self, association: Any) -> bool:  # noqa: ANN401
        requestor = association.requestor
        return is_accepted(self._config.peers, str(requestor.ae_title), str(requestor.address))

    def _is_known_address(self, address: str) -> bool:
        titles = {peer.ae_title for peer in self._config.peers} or {""}
        return any(is_accepted(self._config.peers, title, address) for title in titles)

    def _audit_refusal(self, sender: str, reason: str, fields: Mapping[str, object]) -> None:
        _LOG.warning("%s: %s", printable(sender), printable(reason))
        try:
            self._store.audit("refused", sender=sender, reason=reason, **fields)
        except sqlite3.Error as error:
            _LOG.error("the audit log cannot be written: %s", error)


def is_accepted(peers: tuple[Peer, ...], ae_title: str, address: str) -> bool:
    """Whether a sender may send: by title and address, or from this machine if no peers are configured."""
    found = ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    if not peers:
        return found.is_loopback
    return any(
        peer.ae_title == ae_title.strip() and any(found in ip_network(network) for network in peer.addresses)
        for peer in peers
    )


def tls_context(tls: Tls, *, server: bool) -> ssl.SSLContext:
    """Make a TLS context in which both sides show certificates of the same authorities.

    Raises:
        UsageError: one of the files cannot be used, or the certificate has expired.
    """
    require_valid(Path(tls.certificate))
    require_valid(Path(tls.authorities), any_is_enough=True)
    try:
        # OpenSSL would not name what is missing.
        Path(tls.key).read_bytes()
        purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
        context = ssl.create_default_context(purpose, cafile=tls.authorities)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        files = ", ".join(Path(name).name for name in (tls.certificate, tls.key, tls.authorities))
        raise UsageError(f"TLS with {files}: {error}") from None
    return context


def _no_space(free_mb: float, reserve_mb: float) -> str:
    return f"{free_mb:,.0f} MB are free on the disk, and receive.reserve_mb is {reserve_mb:,.0f}"


def _unfinished(server: Any) -> list[Any]:  # noqa: ANN401  pynetdicom has no types
    # One that is released may still have to say so, or its peer would take it for broken off.
    return [each for each in server.active_associations if each.is_established or each.is_released]


def _sender(association: Any) -> str:  # noqa: ANN401
    requestor = association.requestor
    return printable(f"{requestor.ae_title}@{requestor.address}")
