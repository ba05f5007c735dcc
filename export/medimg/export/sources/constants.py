"""The constants of a graph, wherever it keeps them."""

from onnx import GraphProto, TensorProto


def constants_of(graph: GraphProto) -> dict[str, TensorProto]:
    """Give initialisers, and what `Constant` nodes hold, by name."""
    found = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
    return found
