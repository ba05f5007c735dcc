"""What systemd is told, by the protocol of sd_notify(3)."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_LOG = logging.getLogger(__name__)

_LONGEST_ADDRESS = 107


def notify(message: str) -> None:
    """Tell systemd, if it started this process."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection,
        short_address(address) as short,
    ):
        try:
            connection.connect("\0" + address[1:] if address.startswith("@") else short)
            connection.sendall(message.encode())
        except OSError as error:
            _LOG.warning("systemd cannot be told: %s", error)


@contextlib.contextmanager
def short_address(path: str) -> Iterator[str]:
    """Name a socket by its open folder where its path is too long for an address (unix(7): 107 bytes)."""
    folder, name = os.path.split(path)
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS or not Path(folder).is_dir():
        yield path
        return
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)
