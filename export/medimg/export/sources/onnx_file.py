"""Ready `.onnx` files: brought into the form that the converter gives, and their own reference."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, inliner, version_converter

from medimg.export.bounds import within_allowance
from medimg.export.errors import SourceError
from medimg.export.sources.base import (
    NOT_AN_IMAGE_MODEL,
    Origin,
    Request,
    TensorShape,
    check_one,
    classifier_shape,
    is_flat,
)
from medimg.export.sources.heads import Ending, ending_of
from medimg.export.sources.scaling import Scaling, input_scaling
from medimg.export.to_onnx import NETWORK_INPUT, NETWORK_OUTPUT, OPSET
from medimg.runtime.backends.with_onnxruntime import WITHOUT_SATURATION
from medimg.runtime.errors import NoSpecError
from medimg.runtime.files.downloads import what_it_is
from medimg.runtime.model.containers import MAX_ONNX_BYTES, file_sha256, open_onnx
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.optional import require
from medimg.runtime.tasks import task_named

NEWEST_OPSET = 18
BATCH = 8
"""Images that the reference gets at once."""
MOST_NODES, MOST_NESTED_FUNCTIONS = 100_000, 50
"""What functions may unfold to."""
_OWN = frozenset(["", "ai.onnx"])
_REPEATING = frozenset(["Loop", "Scan", "SequenceMap"])
_AGAIN = f"export it again with opset_version={OPSET}"
_TO_CHANNELS_FIRST = (0, 3, 1, 2)


class OnnxSource:
    """A classifier in an `.onnx` file, computed by ONNX Runtime in float32."""

    def __init__(self, path: Path, request: Request) -> None:
        """Check the file and bring it into the converter's form; see `load_source`."""
        if request.float64:
            raise SourceError(f"{path}: holds a graph of float32")
        content = _read(path)
        model = ModelProto.FromString(content)
        spec = _own_spec(path)
        if spec is not None:
            _take_off_our_ends(path, model, spec)
            content, spec = model.SerializeToString(), _of_probabilities(spec)
        image, channels_first = _image_input(path, model)
        if request.output_name is not None and len(model.graph.output) > 1:
            content = _with_output(path, model, request.output_name)
        if is_flat(image.dims):
            raise SourceError(f"{path}: takes {image}; {NOT_AN_IMAGE_MODEL}")
        outputs = [_tensor(path, value) for value in model.graph.output]
        self.input_shape, self.units = classifier_shape(path, [image], outputs, request)
        self.input_dtype = image.dtype
        said = ("the file is an artefact of medimg-export: what it says of itself is kept",) if spec else ()
        self.origin = Origin(path, "ONNX", file_sha256(path), spec=spec, warnings=said)
        self._axes = _TO_CHANNELS_FIRST if channels_first else (0, 1, 2, 3)
        rows, columns, _ = self.input_shape
        with within_allowance(path, rows * columns):
            self._session = _session(path, content, request.threads)
            self.predict(np.zeros((1, *self.input_shape), np.float32))
            self._model = _normalised(path, model, self.input_shape, self._axes, self.units)

    @property
    def ending(self) -> Ending:
        """What the outputs are, as far as the graph tells."""
        return ending_of(self._model)

    @property
    def scaling(self) -> Scaling | None:
        """What the first layers make of an image's values."""
        return input_scaling(self._model, self.layer_names())

    def layer_names(self) -> tuple[str, ...]:
        """Names of all scopes of the nodes."""
        scopes = {scope for node in self._model.graph.node for scope in node.name.split("/")[:-1]}
        return tuple(sorted(scopes - {""}))

    def predict(self, network_input: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the file itself; see `Source.predict`."""
        name = self._session.get_inputs()[0].name
        images = np.ascontiguousarray(network_input.transpose(self._axes), np.float32)
        try:
            parts = [
                self._session.run(None, {name: images[start : start + BATCH]})[0]
                for start in range(0, len(images), BATCH)
            ]
        except _runtime_errors(require("onnxruntime", "export")) as error:
            raise SourceError(
                f"{self.origin.path}: ONNX Runtime cannot run it: {_first_line(error)}"
            ) from None
        return np.concatenate(parts)

    def convert(self) -> ModelProto:
        """Give the network; see `Source.convert`."""
        copy = ModelProto()
        copy.CopyFrom(self._model)
        return copy

    def stop(self) -> None:
        """Let the session go."""
        self._session = None

    def close(self) -> None:
        """Let the session go."""
        self.stop()


def _read(path: Path) -> bytes:
    """Read a file, and refuse what reads other files or is not made of ONNX's own operators."""
    if path.stat().st_size > MAX_ONNX_BYTES:
        raise SourceError(f"{path}: larger than an ONNX file can be (2 GiB)")
    content, model = path.read_bytes(), ModelProto()
    try:
        model.ParseFromString(content)
    except require("google.protobuf.message", "export").DecodeError as error:
        raise SourceError(f"{path}: not an ONNX file, or a damaged one{what_it_is(path)} ({error})") from None
    if not model.graph.node:
        raise SourceError(f"{path}: not an ONNX file: it holds no graph{what_it_is(path)}")
    _check_opset(path, model)
    _check_functions(path, model)
    own = _OWN | {function.domain for function in model.functions}
    for body in (*_graphs(model.graph), *(graph for item in model.functions for graph in _graphs(item))):
        _check_nodes(path, body, own)
        _check_tensors(path, body)
    return content


def _with_output(path: Path, model: ModelProto, name: str) -> bytes:
    """Keep one of several outputs, and give the file's bytes with it alone."""
    check_one(path, [value.name for value in model.graph.output], name)
    chosen = next(value for value in model.graph.output if value.name == name)
    kept = ValueInfoProto.FromString(chosen.SerializeToString())
    del model.graph.output[:]
    model.graph.output.append(kept)
    return bytes(model.SerializeToString())


def _check_opset(path: Path, model: ModelProto) -> None:
    version = _opset(model)
    if not version:
        raise SourceError(f"{path}: does not say which version of ONNX's operators it uses")
    if version > NEWEST_OPSET:
        raise SourceError(f"{path}: uses opset {version}; up to {NEWEST_OPSET} is read: {_AGAIN}")


def _opset(model: ModelProto) -> int:
    return next((int(item.version) for item in model.opset_import if item.domain in _OWN), 0)


def _check_nodes(path: Path, body: Any, own: frozenset[str]) -> None:  # noqa: ANN401  a graph or a function
    for node in body.node:
        if node.domain not in own:
            raise SourceError(
                f"{path}: {node.op_type} ({node.name}) is an operator of {node.domain!r}: only ONNX's own "
                "are read; export it without custom operators"
            )
        if node.op_type in _REPEATING:
            raise SourceError(
                f"{path}: {node.op_type} ({node.name}) repeats a graph as often as the file says: export the "
                "network without loops"
            )
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            raise SourceError(f"{path}: is quantised already ({node.name}): export from the float32 model")


def _check_functions(path: Path, model: ModelProto) -> None:
    """Refuse functions that, put in place of their calls, would have no end or make a huge graph."""
    bodies = {(item.domain, item.name): list(_graphs(item)) for item in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], callers: frozenset[tuple[str, str]]) -> int:
        if key in callers or len(callers) > MOST_NESTED_FUNCTIONS:
            raise SourceError(f"{path}: the function {key[1]} calls itself, or calls are nested too deeply")
        if key not in sizes:
            sizes[key] = total(bodies[key], callers | {key})
        return sizes[key]

    def total(graphs: list[Any], callers: frozenset[tuple[str, str]]) -> int:
        calls = ((node.domain, node.op_type) for graph in graphs for node in graph.node)
        return sum(size(call, callers) if call in bodies else 1 for call in calls)

    if (nodes := total(list(_graphs(model.graph)), frozenset())) > MOST_NODES:
        raise SourceError(f"{path}: its functions stand for {nodes:,} operators, more than {MOST_NODES:,}")


def _check_tensors(path: Path, body: Any) -> None:  # noqa: ANN401
    for tensor in _tensors(body):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise SourceError(
                f"{path}: {tensor.name} keeps its values in another file: refused; save the model as one "
                "file with onnx.save_model(..., save_as_external_data=False)"
            )
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            raise SourceError(f"{path}: {tensor.name} is in half precision: export from the float32 model")


def _graphs(body: Any) -> Iterator[Any]:  # noqa: ANN401
    """Give a graph or function, and the graphs inside of its nodes."""
    yield body
    for node in body.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _tensors(body: Any) -> Iterator[TensorProto]:  # noqa: ANN401
    yield from getattr(body, "initializer", ())
    for sparse in getattr(body, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in body.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _own_spec(path: Path) -> ModelSpec | None:
    try:
        return open_onnx(path).spec
    except NoSpecError:
        return None


def _of_probabilities(spec: ModelSpec) -> ModelSpec:
    """Say of an artefact's spec what holds for its graph: it ends in probabilities, temperature folded in."""
    return spec.with_(
        head=task_named(spec.task).finished, temperature=1.0, verification=None, artefact_sha256=None
    )


def _take_off_our_ends(path: Path, model: ModelProto, spec: ModelSpec) -> None:
    """Take the preprocessing and outputs beside the probabilities off one of our own artefacts."""
    if spec.precision != "fp32":
        raise SourceError(
            f"{path}: is an artefact in {spec.precision}: export from the fp32 one or the Keras file"
        )
    graph = model.graph
    del graph.output[1:]
    if spec.intensity.rule == "unspecified":
        return
    producers = {name: node for node in graph.node for name in node.output}
    kept, waiting = [], [graph.output[0].name]
    seen = {NETWORK_INPUT}
    while waiting:
        name = waiting.pop()
        if name in producers and name not in seen:
            kept.append(id(producers[name]))
            waiting += producers[name].input
        seen.add(name)
    if graph.input[0].name in seen or NETWORK_INPUT not in producers:
        raise SourceError(f"{path}: its preprocessing cannot be taken off again: export from the Keras file")
    _keep(graph, [node for node in graph.node if id(node) in kept])
    shape: list[str | int | None] = ["batch", spec.image.rows, spec.image.columns, spec.intensity.channels]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(NETWORK_INPUT, TensorProto.FLOAT, shape))


def _keep(graph: GraphProto, nodes: list[Any]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(copies)


def _image_input(path: Path, model: ModelProto) -> tuple[TensorShape, bool]:
    """Find the image input, told as if channels came last, and whether they come first."""
    constants = {item.name for item in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        named = ", ".join(str(_tensor(path, value)) for value in inputs)
        raise SourceError(f"{path}: takes {len(inputs)} tensors ({named}): a classifier takes one")
    image = _tensor(path, inputs[0])
    if image.dtype != "float32":
        raise SourceError(f"{path}: takes {image} of {image.dtype}: only float32 images are read")
    dims = image.dims
    if len(dims) == 4 and dims[0] is not None:
        raise SourceError(
            f"{path}: takes {image}, a batch of {dims[0]} only: export it with a batch axis of any length "
            "(dynamic_axes or dynamic_shapes in torch.onnx.export)"
        )
    first, last = (len(dims) == 4 and dims[place] in (1, 3) for place in (1, 3))
    if first and last:
        raise SourceError(
            f"{path}: takes {image}: channels could come first or last; export it channels last"
        )
    return (TensorShape(image.name, (dims[0], *dims[2:], dims[1])), True) if first else (image, False)


def _tensor(path: Path, value: ValueInfoProto) -> TensorShape:
    kind = value.type.tensor_type
    if kind.elem_type not in TensorProto.DataType.values() or kind.elem_type == TensorProto.UNDEFINED:
        raise SourceError(
            f"{path}: {value.name} is no tensor of a known type: a classifier has tensors alone"
        )
    dims = tuple(dim.dim_value or None for dim in kind.shape.dim)
    return TensorShape(value.name, dims, helper.tensor_dtype_to_np_dtype(kind.elem_type).name)


def _session(path: Path, content: bytes, threads: int | None) -> Any:  # noqa: ANN401
    onnxruntime = require("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    for name, value in WITHOUT_SATURATION.items():
        options.add_session_config_entry(name, value)
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    except _runtime_errors(onnxruntime) as error:
        raise SourceError(f"{path}: ONNX Runtime cannot load it: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300]


def _runtime_errors(onnxruntime: Any) -> tuple[type[Exception], ...]:  # noqa: ANN401
    state = onnxruntime.capi.onnxruntime_pybind11_state
    names = (
        "Fail",
        "InvalidGraph",
        "InvalidArgument",
        "InvalidProtobuf",
        "NotImplemented",
        "RuntimeException",
    )
    return (RuntimeError, ValueError, *(getattr(state, name) for name in names))


def _normalised(
    path: Path, model: ModelProto, shape: tuple[int, int, int], axes: tuple[int, ...], units: int
) -> ModelProto:
    """Give the model the converter's form: its opset, no functions, channels last, and the usual names."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    if _opset(model) < OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except (RuntimeError, ValueError) as error:
            raise SourceError(f"{path}: cannot be brought to opset {OPSET} ({error}): {_AGAIN}") from None
    graph = model.graph
    for name in (NETWORK_INPUT, NETWORK_OUTPUT):
        _rename(graph, name, f"{name}/own")
    constants = {item.name for item in graph.initializer}
    old = next(value.name for value in graph.input if value.name not in constants)
    new = f"{NETWORK_INPUT}/channels_first" if axes == _TO_CHANNELS_FIRST else NETWORK_INPUT
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    if new != NETWORK_INPUT:
        graph.node.insert(
            0, helper.make_node("Transpose", [NETWORK_INPUT], [new], name="Transpose", perm=axes)
        )
    # Any other name may be one that the preprocessing or the head takes.
    _rename(graph, graph.output[0].name, NETWORK_OUTPUT)
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(NETWORK_INPUT, TensorProto.FLOAT, ["batch", *shape]))
    graph.output.append(helper.make_tensor_value_info(NETWORK_OUTPUT, TensorProto.FLOAT, ["batch", units]))
    return model


def _rename(graph: GraphProto, old: str, new: str) -> None:
    """Give a tensor another name wherever it is made, taken or kept."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for item in (*graph.input, *graph.output, *graph.initializer):
        if item.name == old:
            item.name = new
