"""The same FP16 graph in the form that is fastest with ONNX Runtime on CUDA; made when a session is opened.

On an H200 a third of a VGG16's time went to biases, whose kernel in cuDNN is three times as slow as ONNX
Runtime's Add. So biases become nodes. Where pooling follows, bias and ReLU come after it, on a quarter of the
pixels: rounding is monotonic, so the largest sum is the sum with the largest, bit by bit.

The session must leave the optimisers of `FUSES` out, which would put the biases back.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from medimg.runtime.files import protobuf

FUSES = ("ConvAddFusion",)
"""Optimisers of ONNX Runtime that undo this form."""
_GRAPH, _NODE, _INITIALIZER, _OUTPUT = 7, 1, 5, 12
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT16 = 10


@dataclass(frozen=True)
class _Node:
    """A node; what is not named here is kept as it is (NodeProto of onnx.proto3)."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kind: str
    rest: bytes = b""
    """Its other fields: name, attributes."""

    def encoded(self) -> bytes:
        names = [(1, name) for name in self.inputs] + [(2, name) for name in self.outputs] + [(4, self.kind)]
        return b"".join(protobuf.field(number, name.encode()) for number, name in names) + self.rest


@dataclass(frozen=True)
class _Tensor:
    """A constant of the graph with its values as raw bytes (TensorProto)."""

    name: str
    shape: tuple[int, ...]
    data_type: int
    raw: bytes

    def encoded(self) -> bytes:
        numbers = b"".join(protobuf.number_field(_DIMS, size) for size in self.shape)
        kind = protobuf.number_field(_DATA_TYPE, self.data_type)
        return (
            numbers + kind + protobuf.field(_NAME, self.name.encode()) + protobuf.field(_RAW_DATA, self.raw)
        )


@dataclass
class _Graph:
    """The parts of a graph that are rewritten."""

    nodes: list[_Node]
    tensors: dict[str, _Tensor]
    outputs: list[str] = field(default_factory=list)
    added: list[_Tensor] = field(default_factory=list)

    def uses(self) -> Counter[str]:
        return Counter([*self.outputs, *(name for node in self.nodes for name in node.inputs)])


def for_cuda(content: bytes) -> bytes:
    """Rewrite an FP16 model whose bytes have been checked.

    Args:
        content: the artefact; its entries of metadata stay as they are.

    Returns:
        A model that computes the same, with biases as nodes of their own.
    """
    model = memoryview(content)
    parts: list[bytes] = []
    for tag, start, body, end in protobuf.fields(model):
        if tag == protobuf.tag_of(_GRAPH):
            parts.append(protobuf.field(_GRAPH, _rewritten(model[body:end])))
        else:
            parts.append(bytes(model[start:end]))
    return b"".join(parts)


def _rewritten(message: memoryview) -> bytes:
    others: list[bytes] = []
    graph = _Graph([], {})
    for tag, start, body, end in protobuf.fields(message):
        if tag == protobuf.tag_of(_NODE):
            graph.nodes.append(_read_node(message[body:end]))
            continue
        if tag == protobuf.tag_of(_INITIALIZER):
            tensor = _read_tensor(message[body:end])
            graph.tensors[tensor.name] = tensor
        elif tag == protobuf.tag_of(_OUTPUT):
            graph.outputs.append(_name(message[body:end]))
        others.append(bytes(message[start:end]))
    graph.nodes = list(_with_biases_apart(graph))
    nodes = [protobuf.field(_NODE, node.encoded()) for node in graph.nodes]
    added = [protobuf.field(_INITIALIZER, tensor.encoded()) for tensor in graph.added]
    return b"".join(nodes + others + added)


def _with_biases_apart(graph: _Graph) -> Iterator[_Node]:
    """Write each convolution's bias as an Add, behind the pooling where ReLU and pooling follow."""
    uses, ahead = graph.uses(), {name: node for node in graph.nodes for name in node.inputs}
    moved: dict[str, tuple[_Node, str, str]] = {}
    """By the name of a ReLU's output: the ReLU, what the convolution gives, and its bias."""
    for node in graph.nodes:
        (output, *_) = node.outputs
        bias = graph.tensors.get(node.inputs[2]) if node.kind == "Conv" and len(node.inputs) == 3 else None
        if bias is not None and bias.data_type == _FLOAT16 and bias.raw:
            relu = ahead.get(output)
            pooled = _pooled(relu, output, uses, ahead)
            before = f"{output}/without_bias"
            yield replace(node, inputs=node.inputs[:2], outputs=(before,))
            apart = replace(bias, name=f"{output}/bias", shape=(*bias.shape, 1, 1))
            graph.added.append(apart)
            if relu is not None and pooled:
                moved[relu.outputs[0]] = (relu, before, apart.name)
            else:
                yield _Node((before, apart.name), (output,), "Add")
        elif output in moved:
            continue
        elif node.inputs and node.inputs[0] in moved:
            relu, before, bias_name = moved[node.inputs[0]]
            yield replace(node, inputs=(before,), outputs=(f"{before}/pooled",))
            yield _Node((f"{before}/pooled", bias_name), (f"{before}/sum",), "Add")
            yield replace(relu, inputs=(f"{before}/sum",), outputs=(output,))
        else:
            yield node


def _pooled(relu: _Node | None, output: str, uses: Counter[str], ahead: dict[str, _Node]) -> bool:
    """Tell whether a ReLU and a pooling follow, and nothing else takes what is between."""
    if relu is None or relu.kind != "Relu" or uses[output] != 1:
        return False
    pool = ahead.get(relu.outputs[0])
    return (
        pool is not None and pool.kind == "MaxPool" and uses[relu.outputs[0]] == 1 and len(pool.outputs) == 1
    )


def _read_node(message: memoryview) -> _Node:
    names: dict[int, list[str]] = {1: [], 2: [], 4: []}
    rest: list[bytes] = []
    for tag, start, body, end in protobuf.fields(message):
        number = tag >> 3
        if number in names:
            names[number].append(bytes(message[body:end]).decode())
        else:
            rest.append(bytes(message[start:end]))
    return _Node(tuple(names[1]), tuple(names[2]), names[4][0], b"".join(rest))


def _name(message: memoryview) -> str:
    """Read the name of an input or output (ValueInfoProto)."""
    named = (body_end for tag, _, *body_end in protobuf.fields(message) if tag == protobuf.tag_of(1))
    body, end = next(named)
    return bytes(message[body:end]).decode()


def _read_tensor(message: memoryview) -> _Tensor:
    """Read a constant; without raw bytes where its values are in a field of their type."""
    shape: list[int] = []
    name, data_type, raw = "", 0, b""
    for tag, _, body, end in protobuf.fields(message):
        if tag == protobuf.tag_of(_DIMS):
            shape += _packed(message[body:end])
        elif tag == protobuf.tag_of(_DIMS, protobuf.VARINT):
            shape.append(protobuf.varint(message, body)[0])
        elif tag == protobuf.tag_of(_DATA_TYPE, protobuf.VARINT):
            data_type = protobuf.varint(message, body)[0]
        elif tag == protobuf.tag_of(_NAME):
            name = bytes(message[body:end]).decode()
        elif tag == protobuf.tag_of(_RAW_DATA):
            raw = bytes(message[body:end])
    return _Tensor(name, tuple(shape), data_type, raw)


def _packed(message: memoryview) -> Sequence[int]:
    numbers, position = [], 0
    while position < len(message):
        number, position = protobuf.varint(message, position)
        numbers.append(number)
    return numbers
