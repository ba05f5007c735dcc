"""What the graph of an artefact may hold, read from its bytes before a back end sees them.

An entry with the right hashes proves nothing about who made a file, so the graph is held to what
medimg-export writes: one graph of ONNX's own operators in the order of computation, without functions,
branches or loops, and with all of its values in the file itself. Numbers of fields are those of onnx.proto3.
"""

from collections.abc import Iterator
from pathlib import Path

from medimg.runtime.errors import ModelError
from medimg.runtime.files.protobuf import VARINT, fields, tag_of, varint

_GRAPH, _TRAINING, _FUNCTIONS = tag_of(7), tag_of(20), tag_of(25)
_NODE, _INITIALIZER, _GRAPH_INPUT, _SPARSE_INITIALIZER = tag_of(1), tag_of(5), tag_of(11), tag_of(15)
_INPUT, _OUTPUT, _NODE_NAME, _OP_TYPE, _ATTRIBUTE, _DOMAIN = map(tag_of, (1, 2, 3, 4, 5, 7))
_TENSOR_ATTRIBUTES, _GRAPH_ATTRIBUTES = {tag_of(5), tag_of(10)}, {tag_of(6), tag_of(11)}
_SPARSE_ATTRIBUTES = {tag_of(22), tag_of(23)}
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = tag_of(8), tag_of(13), tag_of(14, VARINT)
_OWN_DOMAINS = frozenset([b"", b"ai.onnx"])


def check_graph(content: bytes, path: Path) -> None:
    """Check what an artefact's graph holds.

    Args:
        content: the serialised ModelProto.
        path: names the file in messages.

    Raises:
        ModelError: it holds what medimg-export never writes.
    """
    try:
        reason = next(_wrongs(memoryview(content)), None)
    except (IndexError, ValueError):
        reason = "its graph is damaged"
    if reason:
        raise ModelError(
            f"{path}: refused: {reason}; medimg-export writes no such file: export the model again"
        )


def _wrongs(model: memoryview) -> Iterator[str]:
    known = {b""}
    nodes: list[memoryview] = []
    for tag, value in _values(model):
        if tag == _GRAPH:
            nodes += (item for inner, item in _values(value) if inner == _NODE)
            yield from _wrong_constants(value, known)
        elif tag == _TRAINING:
            yield "it holds a graph for training"
        elif tag == _FUNCTIONS:
            yield "it defines functions of its own"
    for node in nodes:
        yield from _wrong_node(node, known)


def _wrong_constants(graph: memoryview, known: set[bytes]) -> Iterator[str]:
    """Check a graph's constants, and add their names and the inputs' to those that are known."""
    for tag, value in _values(graph):
        if tag == _GRAPH_INPUT:
            known.add(_text(value, tag_of(1)))
        elif tag == _INITIALIZER:
            known.add(_text(value, _TENSOR_NAME))
            yield from _wrong_tensor(value)
        elif tag == _SPARSE_INITIALIZER:
            yield "it holds sparse constants"


def _wrong_node(node: memoryview, known: set[bytes]) -> Iterator[str]:
    """Check a node, and add its outputs to the names that are known."""
    values = list(_values(node))
    operator = f"{_shown(_text(node, _OP_TYPE))} ({_shown(_text(node, _NODE_NAME))})"
    if (domain := _text(node, _DOMAIN)) not in _OWN_DOMAINS:
        yield f"{operator} is an operator of {_shown(domain)!r}, not of ONNX's own"
    if late := {bytes(value) for tag, value in values if tag == _INPUT} - known:
        yield f"{operator} takes {_shown(min(late))}, which nothing before it gives"
    known.update(bytes(value) for tag, value in values if tag == _OUTPUT)
    for tag, attribute in values:
        for inner, value in _values(attribute) if tag == _ATTRIBUTE else ():
            if inner in _TENSOR_ATTRIBUTES:
                yield from _wrong_tensor(value)
            elif inner in _GRAPH_ATTRIBUTES:
                yield f"{operator} holds a graph, as branches and loops do"
            elif inner in _SPARSE_ATTRIBUTES:
                yield f"{operator} holds sparse constants"


def _wrong_tensor(tensor: memoryview) -> Iterator[str]:
    for tag, _, start, _ in fields(tensor):
        if tag == _EXTERNAL_DATA or (tag == _DATA_LOCATION and varint(tensor, start)[0] != 0):
            yield f"{_shown(_text(tensor, _TENSOR_NAME))} takes its values from another file"


def _values(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    for tag, _, start, end in fields(message):
        yield tag, message[start:end]


def _text(message: memoryview, tag: int) -> bytes:
    """Return a field's bytes; of several the last, as parsers do."""
    return next((bytes(value) for found, value in reversed([*_values(message)]) if found == tag), b"")


def _shown(text: bytes) -> str:
    return text[:80].decode("utf-8", "replace")
