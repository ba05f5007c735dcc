"""What goes over the pipes between a command and a framework's process: JSON and NumPy's own format.

Lengths come first. A message is a JSON object and, after it, as many blobs as its field `blobs` says. Nothing
is ever pickled.
"""

import io
import json
import struct
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 2**32
_LENGTH = struct.Struct(">Q")


def send(stream: IO[bytes], message: dict[str, Any], *blobs: bytes) -> None:
    """Write a message and its blobs."""
    for part in (json.dumps({**message, "blobs": len(blobs)}).encode(), *blobs):
        stream.write(_LENGTH.pack(len(part)))
        stream.write(part)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[bytes]] | None:
    """Read a message and its blobs; None at the end of the stream.

    Raises:
        EOFError: the stream ends within a message, or holds something else.
    """
    head = stream.read(_LENGTH.size)
    if not head:
        return None
    message: dict[str, Any] = json.loads(_rest(stream, head))
    return message, [_rest(stream, stream.read(_LENGTH.size)) for _ in range(message["blobs"])]


def array_bytes(array: NDArray[np.float32] | NDArray[np.uint8]) -> bytes:
    """Serialise an array."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def bytes_array(blob: bytes) -> NDArray[np.float32]:
    """Read an array back."""
    return np.asarray(np.load(io.BytesIO(blob), allow_pickle=False), np.float32)


def bytes_pixels(blob: bytes) -> NDArray[np.uint8]:
    """Read an array of pixels back."""
    return np.asarray(np.load(io.BytesIO(blob), allow_pickle=False), np.uint8)


def _rest(stream: IO[bytes], head: bytes) -> bytes:
    length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else MAX_BYTES + 1
    part = stream.read(length) if length <= MAX_BYTES else b""
    if len(part) != length:
        raise EOFError("the stream breaks off within a message")
    return part
