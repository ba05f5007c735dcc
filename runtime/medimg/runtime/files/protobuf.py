"""Reading of Protocol Buffers' wire format, without the schema's library.

Source:
    https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types. Groups (3 and 4), which ONNX has none of, are refused."""


def tag_of(field: int, wire_type: int = LENGTH_DELIMITED) -> int:
    """Return the tag of a field: its number and its wire type."""
    return field << 3 | wire_type


def fields(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Walk a message's top level: (tag, start of field, start of value, end of field).

    Raises:
        ValueError: it is no message.
        IndexError: it ends inside a field.
    """
    position, size = 0, len(message)
    while position < size:
        start = position
        tag, position = varint(message, position)
        wire_type = tag & 7
        body = position
        if wire_type == VARINT:
            _, position = varint(message, position)
        elif wire_type == FIXED64:
            position += 8
        elif wire_type == LENGTH_DELIMITED:
            length, body = varint(message, position)
            position = body + length
        elif wire_type == FIXED32:
            position += 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if position > size or tag >> 3 == 0:
            raise ValueError("a field ends beyond the message")
        yield tag, start, body, position


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """Read a number; return it and the position after it."""
    value = 0
    for shift in range(0, 64, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a varint is longer than 10 bytes")


def field(number: int, value: bytes) -> bytes:
    """Write a length-delimited field."""
    return bytes([tag_of(number)]) + _varint(len(value)) + value


def number_field(number: int, value: int) -> bytes:
    """Write a field that holds a number, not negative."""
    return bytes([tag_of(number, VARINT)]) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
