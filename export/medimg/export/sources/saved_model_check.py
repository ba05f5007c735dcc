"""SavedModel folders, checked before TensorFlow is started; runs in a bounded process.

`saved_model.pb` is read as the plain message that it is. The copy that TensorFlow loads holds no more than
loading and answering can reach: the object graph, the functions that it names, and the functions that those
call. Each of them is checked, whatever names it: an object, a saver of an object, an initialiser of a
resource, a signature. The savers of the whole model, whose operations write files, are not among them.
"""

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from medimg.export.errors import SourceError
from medimg.runtime.files.downloads import what_it_is
from medimg.runtime.model.keras_files import allowed
from medimg.runtime.optional import require

FILE_NAME = "saved_model.pb"
SIGNATURE = "serving_default"
RESAVE = "save it with TensorFlow 2: model.export(folder), or tf.saved_model.save(model, folder)"
_COMPILED = "_XlaMustCompile"
"""Marks functions that stay calls in a frozen graph, as Keras 3 marks grouped convolutions."""
_CALLS = frozenset(["StatefulPartitionedCall"])
_PLUMBING = frozenset(["Const", "Identity", "NoOp", "Pack", "ReadVariableOp", "Shape", "StridedSlice"])
"""Operations that stand in scopes of their own within a layer's."""
_RANDOM = ("Random", "Rng", "Stateful", "StatelessRandom", "StatelessTruncated", "Truncated")
"""How the names of operations begin that draw random numbers; calls, which begin so too, are told apart."""


def write_copy(folder: str, copy: str) -> dict[str, Any]:
    """Check a SavedModel, and write the checked graph for TensorFlow to load.

    Args:
        folder: the user's.
        copy: an empty folder.

    Returns:
        `layers`, the innermost scopes of the nodes, which carry the layers' names; `inputs` and `outputs` of
        the serving signature, each with name, dims and dtype.

    Raises:
        SourceError: it is damaged, of another kind, or does more than compute.
    """
    path = Path(folder)
    saved = _parse(path)
    if len(saved.meta_graphs) != 1 or not saved.meta_graphs[0].HasField("object_graph_def"):
        raise SourceError(f"{path}: a SavedModel of TensorFlow 1, or of several graphs: {RESAVE}")
    (graph,) = saved.meta_graphs
    if SIGNATURE not in graph.signature_def:
        names = ", ".join(sorted(graph.signature_def)) or "none"
        raise SourceError(f"{path}: has no signature {SIGNATURE} (it has: {names}): {RESAVE}")
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    _check_answers_are_fixed(path, graph, functions)
    _keep_reachable(graph, functions)
    kept = graph.graph_def.library.function
    for function in kept:
        _check_ops(path, function.node_def)
        for owner in (function, *function.node_def):
            owner.attr.pop(_COMPILED, None)
    (Path(copy) / FILE_NAME).write_bytes(saved.SerializeToString())
    nodes = [node for function in kept for node in function.node_def]
    layers = {node.name.split("/")[-2] for node in nodes if "/" in node.name and node.op not in _PLUMBING}
    signature = graph.signature_def[SIGNATURE]
    return {
        "layers": sorted(layers),
        "inputs": [_described(*item) for item in sorted(signature.inputs.items())],
        "outputs": [_described(*item) for item in sorted(signature.outputs.items())],
    }


def _parse(path: Path) -> Any:  # noqa: ANN401  a protobuf message
    messages = _messages("saved_model_pb2")
    errors = require("google.protobuf.message", "export")
    saved, file = messages.SavedModel(), path / FILE_NAME
    try:
        saved.ParseFromString(file.read_bytes())
    except errors.DecodeError as error:
        raise SourceError(f"{file}: not a SavedModel, or a damaged one{what_it_is(file)} ({error})") from None
    return saved


def _messages(name: str) -> ModuleType:
    """Import messages of TensorFlow without it, which takes seconds: its package is but a place here."""
    found = importlib.util.find_spec("tensorflow")
    if found is None or found.submodule_search_locations is None:
        return require("tensorflow", "export")
    place = ModuleType("tensorflow")
    place.__path__ = list(found.submodule_search_locations)
    sys.modules.setdefault("tensorflow", place)
    return require(f"tensorflow.core.protobuf.{name}", "export")


def _keep_reachable(graph: Any, functions: dict[str, Any]) -> None:  # noqa: ANN401
    """Drop the functions that nothing of the object graph reaches, the savers, and all nodes but constants.

    Loading in TensorFlow 2 reads the object graph, functions by their names, and the constants; it runs no
    other node, and reads the variables itself.
    """
    waiting, kept = _named(graph.object_graph_def), set()
    while waiting:
        name = waiting.pop()
        if name in functions and name not in kept:
            kept.add(name)
            waiting |= set(_referred(functions[name]))
    library = graph.graph_def.library
    reachable = [function for function in library.function if function.signature.name in kept]
    copies = [type(function).FromString(function.SerializeToString()) for function in reachable]
    constants = [node for node in graph.graph_def.node if node.op == "Const"]
    copied = [type(node).FromString(node.SerializeToString()) for node in constants]
    del library.function[:], library.gradient[:], graph.graph_def.node[:]
    library.function.extend(copies)
    graph.graph_def.node.extend(copied)
    graph.ClearField("saver_def")
    graph.ClearField("collection_def")


def _named(objects: Any) -> set[str]:  # noqa: ANN401
    """Name all functions that an object graph names."""
    names = set(objects.concrete_functions)
    for node in objects.nodes:
        names |= {*node.function.concrete_functions, node.bare_concrete_function.concrete_function_name}
        names.add(node.captured_tensor.concrete_function)
    return names


def _referred(function: Any) -> Iterator[str]:  # noqa: ANN401
    """Name all that a function may refer to, functions among it: called ones, and those of its gradient."""
    for owner in (function, *function.node_def):
        for value in owner.attr.values():
            yield value.s.decode("utf-8", "replace")
    for node in function.node_def:
        yield from _called(node)


def _check_ops(path: Path, nodes: Iterable[Any]) -> None:
    for node in nodes:
        if node.op not in allowed.GRAPH_OPS:
            raise SourceError(
                f"{path}: its graph holds the operation {node.op} ({node.name}), which is not on the list of "
                "those that only compute: refused"
            )


def _check_answers_are_fixed(path: Path, graph: Any, functions: dict[str, Any]) -> None:  # noqa: ANN401
    """Refuse a signature that draws random numbers, as one does that was traced with training switched on."""
    ends = {item.name.partition(":")[0] for item in graph.signature_def[SIGNATURE].outputs.values()}
    waiting = [name for node in graph.graph_def.node if node.name in ends for name in _called(node)]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        for node in functions[name].node_def:
            if node.op.startswith(_RANDOM) and node.op not in _CALLS:
                raise SourceError(
                    f"{path}: its signature {SIGNATURE} draws random numbers ({node.name}), as in training: "
                    "save it with model.save(folder, save_format='tf'), or as .h5 or .keras"
                )
            waiting += _called(node)


def _called(node: Any) -> Iterator[str]:  # noqa: ANN401
    """Name the functions that a node refers to."""
    yield node.op
    for value in node.attr.values():
        for function in (value.func, *value.list.func):
            if function.name:
                yield function.name


def _described(name: str, tensor: Any) -> dict[str, Any]:  # noqa: ANN401
    types = require("tensorflow.core.framework.types_pb2", "export")
    dims = [None if dim.size < 0 else dim.size for dim in tensor.tensor_shape.dim]
    known = types.DataType.Name(tensor.dtype) if tensor.dtype in types.DataType.values() else "unknown"
    dtype = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_HALF": "float16"}.get(
        known, known.removeprefix("DT_").lower()
    )
    return {"name": name, "dims": dims, "dtype": dtype}
