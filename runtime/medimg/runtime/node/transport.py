"""pynetdicom's server with bounds: on who connects, on the length of PDUs and on the size of data sets.

Imports pynetdicom, and is therefore imported where a server is started.
"""

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NoReturn

from pynetdicom import AE
from pynetdicom.acse import ACSE
from pynetdicom.fsm import StateMachine
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

_LOG = logging.getLogger(__name__)

MAX_PDU_BYTES = 2**17
"""What peers are asked to keep to; an association's first PDU may be larger."""
_MAX_FIRST_PDU_BYTES = 2**20
_MAX_COMMAND_BYTES = 2**16
_RECEIVE_BYTES = 2**16
_COPIES = 3
"""Of a data set are made while it comes, is checked and is written."""


@dataclass(frozen=True)
class Bounds:
    """What a server lets in."""

    is_known_address: Callable[[str], bool]
    """Whether anyone may connect from an address."""
    data_set_bytes: int
    memory_bytes: int
    """What all data sets that are coming in may take, each with the copies that are made of it."""
    timeout_s: float
    """A connection that is silent for so long, even within a PDU, is closed."""
    tls: ssl.SSLContext | None


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

    def recv(self, nr_bytes: int) -> bytearray:
        """Read a PDU's head or body; an OSError closes the connection."""
        if nr_bytes > (MAX_PDU_BYTES if self.assoc.is_established else _MAX_FIRST_PDU_BYTES):
            self._refuse(f"a PDU of {nr_bytes:,} bytes")
        message = self.assoc.dimse.message
        if message is not None:
            if message.encoded_command_set.tell() > _MAX_COMMAND_BYTES:
                self._refuse("a command set without end")
            if message.data_set.tell() > self.bounds.data_set_bytes:
                message.data_set = Dropped(f"larger than {self.bounds.data_set_bytes:,} bytes")
            elif self._is_one_too_many(message.data_set.tell()):
                message.data_set = Dropped("there is no memory for all images that come at the same time")
        content = bytearray(nr_bytes)
        view, filled = memoryview(content), 0
        while filled < nr_bytes:
            count = self.socket.recv_into(view[filled : filled + _RECEIVE_BYTES])
            if not count:
                break
            filled += count
        view.release()
        return content[:filled]

    def _is_one_too_many(self, size: int) -> bool:
        """Whether all together take too much, and this one most of it, so that the others may go on."""
        messages = [other.dimse.message for other in self.assoc.ae.active_associations]
        sizes = [message.data_set.tell() for message in messages if message is not None]
        return _COPIES * sum(sizes) > self.bounds.memory_bytes and size >= max(sizes, default=0)

    def _refuse(self, reason: str) -> NoReturn:
        self.close()
        raise OSError(reason)


class _LastingStateMachine(StateMachine):  # type: ignore[misc]
    """Ends the association where pynetdicom's own would end its thread alone, and leave the rest waiting."""

    def do_action(self, event: str) -> None:
        try:
            super().do_action(event)
        except Exception as error:  # noqa: BLE001  whatever a peer's bytes have led to
            end(self.dul.assoc, error)


class _LastingNegotiation(ACSE):  # type: ignore[misc]
    """Ends the association where pynetdicom's own would end its other thread, and keep the connection."""

    def negotiate_association(self) -> None:
        try:
            super().negotiate_association()
        except Exception as error:  # noqa: BLE001  whatever a peer's bytes have led to
            end(self.assoc, error)


def end(association: Any, reason: object) -> None:  # noqa: ANN401
    """End both threads of an association, and its connection, as pynetdicom's own reactor does."""
    _LOG.info("an association ends: %s", reason)
    association.is_aborted, association.is_established = True, False
    association._kill = association.dul._kill_thread = True
    if association.dul.socket:
        association.dul.socket.close()


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
        return association


class _Server(ThreadedAssociationServer):  # type: ignore[misc]
    daemon_threads = True
    request_queue_size = 128
    bounds: Bounds

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
        return self.bounds.is_known_address(client_address[0])


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
    server.bounds = bounds
    entity._servers.append(server)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    return server
