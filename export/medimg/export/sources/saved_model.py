"""SavedModel folders: every operation checked before TensorFlow loads anything; worker side.

The checks read `saved_model.pb` as the plain message that it is.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medimg.export.errors import SourceError
from medimg.export.sources import allowed
from medimg.runtime.containers import file_sha256
from medimg.runtime.optional import require

FILE_NAME = "saved_model.pb"
SIGNATURE = "serving_default"
MAX_BYTES = 2**31 - 1
_COMPILED = "_XlaMustCompile"
"""Marks functions that stay calls in a frozen graph, as Keras 3 marks grouped convolutions."""
_CALLS = frozenset(["StatefulPartitionedCall"])
_PLUMBING = frozenset(["Const", "Identity", "NoOp", "Pack", "ReadVariableOp", "Shape", "StridedSlice"])
"""Operations that stand in scopes of their own within a layer's."""
_RANDOM = ("Random", "Rng", "Stateful", "StatelessRandom", "StatelessTruncated", "Truncated")
"""How the names of operations begin that draw random numbers; calls, which begin so too, are told apart."""
_RESAVE = "save it with TensorFlow 2: model.export(folder), or tf.saved_model.save(model, folder)"


class SignatureNetwork:
    """The serving signature of a SavedModel."""

    def __init__(self, tensorflow: Any, path: Path) -> None:  # noqa: ANN401
        self._tensorflow = tensorflow
        saved = _parse(path)
        self._layers = _checked_layers(path, saved)
        with TemporaryDirectory() as folder:
            _write_copy(saved, path, Path(folder))
            # The signature lives only as long as what it was loaded with.
            self._loaded = tensorflow.saved_model.load(folder, tags=["serve"])
        if SIGNATURE not in self._loaded.signatures:
            names = ", ".join(self._loaded.signatures) or "none"
            raise SourceError(f"{path}: has no signature {SIGNATURE} (it has: {names}): {_RESAVE}")
        self._signature = self._loaded.signatures[SIGNATURE]

    def describe(self) -> dict[str, Any]:
        """Describe the signature."""
        inputs = self._signature.structured_input_signature[1]
        return {
            "inputs": [_tensor(name, tensor) for name, tensor in inputs.items()],
            "outputs": [_tensor(name, tensor) for name, tensor in self._signature.structured_outputs.items()],
            "layers": self._layers,
            "version": self._tensorflow.__version__,
        }

    def call(self, images: Any) -> Any:  # noqa: ANN401  tensors
        """Run the signature."""
        (name,) = self._signature.structured_input_signature[1]
        answers = self._signature(**{name: self._tensorflow.convert_to_tensor(images)})
        return next(iter(answers.values()))


def folder_sha256(folder: Path) -> str:
    """Hash a folder: the hashes and names of its files, in sorted order, one a line as `sha256sum` writes."""
    digest = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        digest.update(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return digest.hexdigest()


def check_folder(folder: Path) -> None:
    """Refuse a folder with links that lead out of it.

    Raises:
        SourceError: names the first.
    """
    whole = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(whole):
            raise SourceError(f"{path}: is a link to a file outside of the folder: refused")
    if (folder / FILE_NAME).stat().st_size > MAX_BYTES:
        raise SourceError(f"{folder / FILE_NAME}: larger than such a file can be (2 GiB)")


def _write_copy(saved: Any, path: Path, folder: Path) -> None:  # noqa: ANN401  a protobuf message
    """Write the checked graph for TensorFlow to load, its functions as plain parts of it."""
    for function in saved.meta_graphs[0].graph_def.library.function:
        for owner in (function, *function.node_def):
            owner.attr.pop(_COMPILED, None)
    (folder / FILE_NAME).write_bytes(saved.SerializeToString())
    (folder / "variables").symlink_to((path / "variables").absolute())


def _checked_layers(path: Path, saved: Any) -> list[str]:  # noqa: ANN401
    """Check the graph; give the innermost scopes of its nodes, which carry the layers' names."""
    graphs = saved.meta_graphs
    if len(graphs) != 1 or not graphs[0].HasField("object_graph_def"):
        raise SourceError(f"{path}: a SavedModel of TensorFlow 1, or of several graphs: {_RESAVE}")
    (graph,) = graphs
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    savers = _saver_functions(graph, functions)
    for name, function in functions.items():
        _check_ops(path, function.node_def, allowed.CHECKPOINT_OPS if name in savers else frozenset())
    _check_ops(path, graph.graph_def.node, frozenset())
    _check_answers_are_fixed(path, graph, functions)
    nodes = [node for name, function in functions.items() if name not in savers for node in function.node_def]
    return sorted(
        {node.name.split("/")[-2] for node in nodes if "/" in node.name and node.op not in _PLUMBING}
    )


def _parse(path: Path) -> Any:  # noqa: ANN401  a protobuf message
    messages = require("tensorflow.core.protobuf.saved_model_pb2", "export")
    errors = require("google.protobuf.message", "export")
    saved = messages.SavedModel()
    try:
        saved.ParseFromString((path / FILE_NAME).read_bytes())
    except errors.DecodeError as error:
        raise SourceError(f"{path / FILE_NAME}: not a SavedModel, or a damaged one ({error})") from None
    return saved


def _check_ops(path: Path, nodes: Iterable[Any], also: frozenset[str]) -> None:
    for node in nodes:
        if node.op not in allowed.GRAPH_OPS and node.op not in also:
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


def _saver_functions(graph: Any, functions: dict[str, Any]) -> set[str]:  # noqa: ANN401
    """Name the two functions that save and restore, if nothing but the graph's own saver calls them.

    Loading in TensorFlow 2 runs neither: it reads the variables itself.
    """
    ends = {graph.saver_def.save_tensor_name.partition(":")[0], graph.saver_def.restore_op_name}
    named = {name for node in graph.graph_def.node if node.name in ends for name in _called(node)}
    called_elsewhere = {
        name for node in graph.graph_def.node if node.name not in ends for name in _called(node)
    }
    for function in functions.values():
        called_elsewhere |= {name for node in function.node_def for name in _called(node)}
    exposed = set(graph.object_graph_def.concrete_functions)
    served = {
        item.name.partition(":")[0]
        for signature in graph.signature_def.values()
        for item in signature.outputs.values()
    }
    return named - called_elsewhere - exposed if served.isdisjoint(ends) else set()


def _called(node: Any) -> Iterator[str]:  # noqa: ANN401
    """Name the functions that a node refers to."""
    yield node.op
    for value in node.attr.values():
        for function in (value.func, *value.list.func):
            if function.name:
                yield function.name


def _tensor(name: str, tensor: Any) -> dict[str, Any]:  # noqa: ANN401
    dims = tensor.shape.as_list() if tensor.shape.rank is not None else []
    return {"name": name, "dims": dims, "dtype": tensor.dtype.name}
