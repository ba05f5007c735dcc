"""ONNX Runtime's CUDA provider without the machine code that one GPU and one kind of network never run.

The library is 284 MB, three quarters of it machine code for six generations of GPUs, and of that most for
attention and mixtures of experts. What is left out becomes zeros in place: nothing moves, and packed zeros
take no room. CUDA loads a kernel's code when it is first launched, so what is not needed is not missed.

Layout of the section `.nv_fatbin`: a container (16 bytes: magic, version, its header's size, its content's
size) holds entries, each with a header of its own that tells kind, size, compute capability and compression.
Found by reading such libraries; NVIDIA documents its tools (cuobjdump), not the format.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow

_MAGIC = 0xBA55ED50
_SECTION_HEADER = "<IIQQQQIIQQ"
NOT_FOR_CHAINS = re.compile(rb"cutlass|flash|moe|MoE|Moe|fpA_intB|ttention|beam|llm")
"""In the names of kernels that networks of convolutions and dense layers never launch."""


@dataclass(frozen=True)
class Entry:
    """Machine code of one source file for one compute capability."""

    start: int
    """Offset of its code in the library."""
    size: int
    """Bytes in the library."""
    packed: int
    """Bytes of these that are compressed code."""
    unpacked: int
    """Bytes of the code once it is unpacked."""
    compute: int
    """Compute capability: 90 for Hopper."""


def cut_library(content: bytes, compute: int) -> bytes:
    """Zero what a GPU of this compute capability does not need.

    Args:
        content: `libonnxruntime_providers_cuda.so`.
        compute: such as 90.

    Raises:
        ValueError: the library has no code for that compute capability.
    """
    result = bytearray(content)
    kept = 0
    for entry in entries(content):
        if entry.compute == compute and _needed(content, entry):
            kept += 1
        else:
            result[entry.start : entry.start + entry.size] = bytes(entry.size)
    if not kept:
        raise ValueError(f"the library has no code for compute capability {compute}")
    return bytes(result)


def entries(content: bytes) -> Iterator[Entry]:
    """List the machine code in a library's fat binary."""
    for offset, size in _fat_sections(content):
        place, end = offset, offset + size
        while place < end:
            magic, _, header, held = struct.unpack_from("<IHHQ", content, place)
            if magic != _MAGIC:
                place += 8  # padding between containers
                continue
            yield from _of_container(content, place + header, place + header + held)
            place += header + held


def _of_container(content: bytes, place: int, end: int) -> Iterator[Entry]:
    while place < end:
        _, _, header, size, packed = struct.unpack_from("<HHIQI", content, place)
        (compute,) = struct.unpack_from("<I", content, place + 28)
        (unpacked,) = struct.unpack_from("<Q", content, place + 56)
        yield Entry(place + header, size, packed, unpacked, compute)
        place += header + size


def _needed(content: bytes, entry: Entry) -> bool:
    code = content[entry.start : entry.start + (entry.packed or entry.size)]
    if entry.packed:
        code = pyarrow.decompress(code, entry.unpacked, codec="zstd", asbytes=True)
    kernels = set(re.findall(rb"\.text\.(\w+)", code))
    return not kernels or not all(NOT_FOR_CHAINS.search(name) for name in kernels)


def _fat_sections(content: bytes) -> Iterator[tuple[int, int]]:
    """Give offset and size of each section that holds machine code (ELF-64, little endian)."""
    (table,) = struct.unpack_from("<Q", content, 0x28)
    entry_size, count, names = struct.unpack_from("<HHH", content, 0x3A)
    sections = [
        struct.unpack_from(_SECTION_HEADER, content, table + number * entry_size) for number in range(count)
    ]
    for section in sections:
        name = content[sections[names][4] + section[0] :][:11]
        if name == b".nv_fatbin\0":
            yield section[4], section[5]
