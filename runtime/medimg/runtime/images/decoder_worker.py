"""The child's side of `decoder_pool`: a process that answers requests until its parent is gone.

It imports nothing but the standard library and what its task needs. The request comes over a socket, which is
its standard input, together with a file in memory, as large as the answer, that the answer is written into.
"""

import importlib
import mmap
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable
from typing import TypeAlias

Decode: TypeAlias = Callable[[bytes, mmap.mmap], None]
"""Turns a request into an answer of the size that was asked for; any exception is the answer's reason."""

READY = b"!"
HEAD = struct.Struct("<QQdd")
"""Bytes of the request and of the answer, and the seconds, by processor and by clock, after which the
process ends itself."""
REPLY = struct.Struct("<?H")
"""Whether the answer is there; otherwise, how long the reason is that follows."""
_MAX_REASON_BYTES = 1000


def serve(task: str) -> None:
    """Answer requests by `start()` of a module, which prepares and returns a `Decode`."""
    # A crash is expected, and its memory holds a patient's image.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    decode: Decode = importlib.import_module(task).start()
    with socket.socket(fileno=0) as parent:
        parent.sendall(READY)
        while _answer(parent, decode):
            pass


def read_exactly(connection: socket.socket, size_bytes: int) -> bytes:
    """Read so many bytes, or fewer where the other side is gone."""
    found = bytearray()
    while len(found) < size_bytes:
        piece = connection.recv(min(size_bytes - len(found), 2**20))
        if not piece:
            break
        found += piece
    return bytes(found)


def _answer(parent: socket.socket, decode: Decode) -> bool:
    """Answer one request; False once the parent is gone."""
    head, descriptors, _, _ = socket.recv_fds(parent, HEAD.size, 1)
    if len(head) < HEAD.size:
        return False
    request_bytes, answer_bytes, processor_s, clock_s = HEAD.unpack(head)
    # The system ends a decoder that hangs in native code, even where nobody is left to do it.
    signal.setitimer(signal.ITIMER_PROF, processor_s)
    signal.setitimer(signal.ITIMER_REAL, clock_s)
    request = read_exactly(parent, request_bytes)
    with mmap.mmap(descriptors[0], answer_bytes) as answer:
        os.close(descriptors[0])
        reason = _reason(decode, request, answer)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    parent.sendall(REPLY.pack(not reason, len(reason)) + reason)
    return True


def _reason(decode: Decode, request: bytes, answer: mmap.mmap) -> bytes:
    try:
        decode(request, answer)
    except Exception as error:  # noqa: BLE001  foreign code; its words are passed on
        return (str(error) or type(error).__name__).encode()[:_MAX_REASON_BYTES]
    return b""
