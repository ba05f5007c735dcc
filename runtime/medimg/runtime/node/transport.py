"""pynetdicom's server with bounds: on who connects, how many and how slowly, on PDUs and on data sets.

Imports pynetdicom, and is therefore imported where a server is started.
"""

import contextlib
import math
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NoReturn

from pynetdicom import AE, evt
from pynetdicom.acse import ACSE
from pynetdicom.fsm import StateMachine
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from medimg.runtime.node.sightings import Event

MAX_PDU_BYTES = 2**17
"""What peers are asked to keep to; an association's first PDU may be larger."""
_MAX_FIRST_PDU_BYTES = 2**20
_MAX_COMMAND_BYTES = 2**16
_RECEIVE_BYTES = 2**16
_COPIES = 3
"""Of a data set are made while it comes, is checked and is written."""
_HEAD_BYTES = 6
_CLOSED = "Evt17"
"""The event of a closed connection (PS3.8 9.2.2)."""
_TLS_HANDSHAKE = b"\x16"
"""A TLS record's first byte (RFC 8446 5.1)."""


@dataclass(frozen=True)
class Bounds:
    """What a server lets in."""

    is_known_address: Callable[[str], bool]
    """Whether anyone may connect from an address."""
    data_set_bytes: int
    memory_bytes: int
    """What all data sets that are coming in may take, each with the copies that are made of it."""
    timeout_s: float
    """A connection that is silent for so long is closed."""
    slowest_bytes_per_s: float
    """PDUs and messages that come more slowly close it too, from `timeout_s` after their begin on; 0: by
    `timeout_s` alone for a PDU, never for a message."""
    associations: int
    """More are rejected."""
    pending: int
    """Connections without association; with more, the oldest of them is closed."""
    tls: ssl.SSLContext | None
    note: Callable[[Event, str, str, str], None]
    """Is told of what is refused; see `Sightings.note`."""


class Dropped(BytesIO):
    """Stands for a data set that exceeds a limit: the rest of it is dropped as it comes."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def write(self, data: Any, /) -> int:  # noqa: ANN401  any buffer
        """Drop what is written."""
        return len(data)


class _ClosingSocket(AssociationSocket):  # type: ignore[misc]  # mypy does not follow pynetdicom
    def _shutdown_socket(self) -> None:
        """Close the connection also where there is none (any more), when pynetdicom's own leaves it open."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


class Requestor(AE):  # type: ignore[misc]
    """Asks others for associations."""

    def _create_socket(self, assoc: Any, address: Any, tls_args: Any) -> AssociationSocket:  # noqa: ANN401
        made = _ClosingSocket(assoc, address=address)
        made.tls_args = tls_args
        return made


class _BoundedSocket(_ClosingSocket):
    bounds: Bounds
    refusal: tuple[str, str] | None = None
    """Why this side closed the connection: cause and reason."""
    heard_at = 0.0
    """When something came last, by the monotonic clock."""
    _begun_at = 0.0
    message_bytes = 0
    """What has come of the message that is under way."""

    @property
    def ready(self) -> bool:
        """Whether there is something to read; unlike pynetdicom's own, with any number of open files."""
        connection = self.socket
        if connection is None or not self._is_connected:
            return False
        try:
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            return bool(poll.poll(0)) or bool(getattr(connection, "pending", int)())
        except (OSError, ValueError):
            self.event_queue.put(_CLOSED)
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Read a PDU's head or body; an OSError closes the connection."""
        if nr_bytes > (MAX_PDU_BYTES if self.assoc.is_established else _MAX_FIRST_PDU_BYTES):
            self._refuse("protocol", f"a PDU of {nr_bytes:,} bytes")
        message = self.assoc.dimse.message
        if message is not None:
            if message.encoded_command_set.tell() > _MAX_COMMAND_BYTES:
                self._refuse("protocol", "a command set without end")
            if message.data_set.tell() > self.bounds.data_set_bytes:
                message.data_set = Dropped(f"larger than {self.bounds.data_set_bytes:,} bytes")
            elif self._is_one_too_many(message.data_set.tell()):
                message.data_set = Dropped("there is no memory for all images that come at the same time")
        try:
            content = self._read(nr_bytes, self._deadline(nr_bytes, is_new_message=message is None))
        except TimeoutError:
            self._refuse("slow", f"a PDU of {nr_bytes:,} bytes did not come in time")
        except ssl.SSLError as error:
            self._refuse("tls", f"TLS: {error.reason or error}")
        self.message_bytes += len(content)
        self.heard_at = time.monotonic()
        if content[:1] == _TLS_HANDSHAKE and not self.assoc.is_established and nr_bytes == _HEAD_BYTES:
            self._refuse("tls", "it speaks TLS, and receive.tls is not configured")
        return content

    def _deadline(self, nr_bytes: int, *, is_new_message: bool) -> float:
        """Give the time by which what is read next must be here."""
        now, bounds = time.monotonic(), self.bounds
        rate = bounds.slowest_bytes_per_s or math.inf
        if is_new_message:
            self._begun_at, self.message_bytes = now, 0
        elif (
            bounds.slowest_bytes_per_s and now > self._begun_at + bounds.timeout_s + self.message_bytes / rate
        ):
            found = self.message_bytes / (now - self._begun_at) / 1e3
            self._refuse("slow", f"its message comes at {found:.1f} kB/s (receive.min_kb_per_s)")
        return now + bounds.timeout_s + nr_bytes / rate

    def _read(self, nr_bytes: int, deadline: float) -> bytearray:
        content = bytearray(nr_bytes)
        view, filled = memoryview(content), 0
        while filled < nr_bytes:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.socket.settimeout(left_s)
            count = self.socket.recv_into(view[filled : filled + _RECEIVE_BYTES])
            if not count:
                break
            filled += count
            # Else it would count as idle until the whole PDU is here.
            self.assoc.dul._idle_timer.restart()
        view.release()
        self.socket.settimeout(self.bounds.timeout_s)
        return content[:filled]

    def _is_one_too_many(self, size: int) -> bool:
        """Whether all together take too much, and this one most of it, so that the others may go on."""
        messages = [other.dimse.message for other in self.assoc._server.active_associations]
        sizes = [message.data_set.tell() for message in messages if message is not None]
        return _COPIES * sum(sizes) > self.bounds.memory_bytes and size >= max(sizes, default=0)

    def _refuse(self, cause: str, reason: str) -> NoReturn:
        self.refusal = cause, reason
        self.close()
        raise OSError(reason)


class _LastingStateMachine(StateMachine):  # type: ignore[misc]
    """Ends the association where pynetdicom's own would end its thread alone, and leave the rest waiting."""

    def do_action(self, event: str) -> None:
        try:
            super().do_action(event)
        except Exception as error:  # noqa: BLE001  whatever a peer's bytes have led to
            end(self.dul.assoc, error)
        if event == _CLOSED:
            _wake(self.dul.assoc)


class _LastingNegotiation(ACSE):  # type: ignore[misc]
    """Ends the association where pynetdicom's own would end its other thread, and keep the connection."""

    def negotiate_association(self) -> None:
        server = self.assoc._server
        try:
            if not server.admit(self.assoc):
                # Transient, presentation related, local limit exceeded (PS3.8 9.3.4).
                self.requestor.ae_title = self.requestor.primitive.calling_ae_title
                self.send_reject(0x02, 0x03, 0x02)
                evt.trigger(self.assoc, evt.EVT_REJECTED, {})
                self.assoc.kill()
                return
            super().negotiate_association()
        except Exception as error:  # noqa: BLE001  whatever a peer's bytes have led to
            end(self.assoc, error)
        finally:
            if not self.assoc.is_established:
                server.dismiss(self.assoc)


def end(association: Any, reason: object, cause: str = "protocol") -> None:  # noqa: ANN401
    """End both threads of an association, and its connection, as pynetdicom's own reactor does."""
    blame(association, cause, reason)
    association.is_aborted, association.is_established = True, False
    association._kill = association.dul._kill_thread = True
    association.dul.socket.close()
    _wake(association)


def _wake(association: Any) -> None:  # noqa: ANN401
    """Have a thread that waits for a request of association go on as after its time limit."""
    if not association.is_established:
        association.dul.to_user_queue.put(None)


def _kill(association: Any) -> None:  # noqa: ANN401
    """Wait for the end of a connection as pynetdicom does, and end it where its request came too late.

    Then nobody answers the request, and nothing else would end the connection (PS3.8 9.2.3, state 3).
    """
    association._reactor_checkpoint.set()
    association._kill, association.is_established, association._is_paused = True, False, True
    while association.dul.is_alive() and not association.dul.stop_dul():
        if association.requestor.primitive is None and association.dul.state_machine.current_state == "Sta3":
            end(association, "its request of association came too late", "slow")
            return
        time.sleep(0.001)


def blame(association: Any, cause: str, reason: object) -> None:  # noqa: ANN401
    """Note why this side ends an association, unless it has a reason already."""
    connection = association.dul.socket
    connection.refusal = connection.refusal or (cause, str(reason))


def listen_anew(association: Any) -> None:  # noqa: ANN401
    """Let a peer's silence begin now: while it waited for an answer it had nothing to say."""
    association.dul.socket.heard_at = time.monotonic()
    association.dul._idle_timer.restart()


class _Handler(RequestHandler):  # type: ignore[misc]
    def _create_association(self) -> Any:  # noqa: ANN401
        association = super()._create_association()
        # The plain socket has announced itself; the bounded one that takes its place does so again.
        association.dul.event_queue.get_nowait()
        bounded = _BoundedSocket(association, client_socket=self.request)
        bounded.bounds = self.server.bounds
        association.dul.socket = bounded
        association.dul.state_machine = _LastingStateMachine(association.dul)
        association.acse = _LastingNegotiation(association)
        plain_run = association.run

        def run() -> None:
            try:
                plain_run()
            finally:
                self.server.ended(association, bounded)

        association.run = run
        association.kill = lambda: _kill(association)
        self.server.connected(association)
        return association


class _Server(ThreadedAssociationServer):  # type: ignore[misc]
    ae: AE
    daemon_threads = True
    request_queue_size = 128
    bounds: Bounds

    def prepare(self, bounds: Bounds) -> None:
        """Set the bounds, before anyone is served."""
        self.bounds = bounds
        self._lock = threading.Lock()
        self._pending: dict[Any, None] = {}
        self._admitted: set[Any] = set()

    def configure(self, entity: AE, bounds: Bounds) -> None:
        """Serve those that connect from now on otherwise."""
        self.ae._servers.remove(self)
        entity._servers.append(self)
        self.ae, self.ae_title, self.contexts = entity, entity.ae_title, entity.supported_contexts
        self.bounds = bounds

    def connected(self, association: Any) -> None:  # noqa: ANN401
        """Keep a new connection; if too many have no association, close the one that has waited longest."""
        with self._lock:
            self._pending[association] = None
            oldest = next(iter(self._pending)) if len(self._pending) > self.bounds.pending else None
            if oldest is not None:
                del self._pending[oldest]
        if oldest is not None:
            end(oldest, f"{self.bounds.pending} later ones wait for an association", "too many")

    def admit(self, association: Any) -> bool:  # noqa: ANN401
        """Count an association in, if there is room."""
        with self._lock:
            self._pending.pop(association, None)
            if len(self._admitted) >= self.bounds.associations:
                return False
            self._admitted.add(association)
            return True

    def dismiss(self, association: Any) -> None:  # noqa: ANN401
        """Count an association out."""
        with self._lock:
            self._pending.pop(association, None)
            self._admitted.discard(association)

    def ended(self, association: Any, connection: _BoundedSocket) -> None:  # noqa: ANN401
        """Tell how a connection ended, unless all was well."""
        with self._lock:
            was_established = association in self._admitted
        self.dismiss(association)
        address = str(association.requestor.address)
        if association.is_released or association.is_rejected:
            return
        if not was_established:
            if connection.refusal:
                self.bounds.note("connection refused", address, *connection.refusal)
            return
        sender = f"{association.requestor.ae_title}@{address}"
        cause, reason = connection.refusal or ("peer", "the peer broke off")
        if not connection.refusal and time.monotonic() - connection.heard_at >= self.bounds.timeout_s:
            cause, reason = "silent", f"nothing came for {self.bounds.timeout_s:g} s"
        message = association.dimse.message
        if message is None:
            self.bounds.note("association aborted", sender, cause, reason)
        else:
            told = f"{reason}, after {connection.message_bytes:,} bytes of a message"
            self.bounds.note("transfer aborted", sender, cause, told)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = self.socket.accept()
        connection.settimeout(self.bounds.timeout_s)
        if self.bounds.tls:
            # The handshake is the association's own, so that a silent client holds up nobody else.
            connection = self.bounds.tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def service_actions(self) -> None:
        """Leave cycles to Python: pynetdicom would collect them, and stop everything, every 60 polls."""

    def verify_request(self, _request: Any, client_address: Any) -> bool:  # noqa: ANN401
        address = client_address[0]
        if self.bounds.is_known_address(address):
            return True
        self.bounds.note("connection refused", address, "unknown address", "no peer has this address")
        return False


def start_server(
    entity: AE, address: tuple[str, int], bounds: Bounds, handlers: list[tuple[Any, Any]]
) -> _Server:
    """Listen in a thread of its own.

    Raises:
        OSError: the port cannot be had.
    """
    server = _Server(
        entity,
        address,
        entity.ae_title,
        entity.supported_contexts,
        evt_handlers=handlers,
        request_handler=_Handler,
    )
    server.prepare(bounds)
    entity._servers.append(server)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    return server
