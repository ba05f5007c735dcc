"""Passes that leave a graph of plain operators, every shape in it a constant.

CUDA sessions with strict placement refuse shape arithmetic, and each back end has operators that it lacks.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from medimg.export.errors import SourceError

BATCHES = (2, 3)
"""Batch sizes that shapes are inferred for."""
_SPREADING = frozenset(["Add", "Div", "Mul", "Sub"])
"""Operators that spread an axis of length 1 over the other operand's."""
SHAPE_ELEMENTS = 1024
"""Most elements of a constant that takes part in shape arithmetic."""

Dims = dict[str, list[int | None]]
Values = dict[str, NDArray[np.generic]]


def drop_inert(model: ModelProto) -> None:
    """Take out nodes that change nothing at inference; make constants of `Constant` nodes.

    Claim: no Identity, Dropout or Constant is left, except an Identity from the input to the output.
    """
    graph = model.graph
    for node in list(graph.node):
        if node.op_type == "Constant":
            _keep_constant(graph, node.output[0], _constant_value(node))
            graph.node.remove(node)
    made = {name: node for node in graph.node for name in node.output}
    ends = {value.name for value in graph.output}
    for node in list(graph.node):
        if node.op_type not in {"Identity", "Dropout"} or (len(node.output) > 1 and node.output[1]):
            continue
        before, after = node.input[0], node.output[0]
        if after not in ends:
            _rename_input(graph, after, before)
        elif before in made and before not in ends:
            made[before].output[:] = [after if name == before else name for name in made[before].output]
            _rename_input(graph, before, after)
        else:
            continue
        graph.node.remove(node)


def constant_shapes(model: ModelProto) -> None:
    """Compute what depends on shapes alone, and put constants in its place, the batch as -1.

    Shapes are inferred for two batch sizes; the parts that are equal do not depend on the batch.
    """
    while _fold_shapes(model) or _take_branches(model.graph):
        drop_unused(model.graph)
    drop_unused(model.graph)


def without_whole_number_casts(model: ModelProto, image: str) -> None:
    """Take out the casts of an input of whole numbers, which leave whole pixel values as they are.

    Raises:
        SourceError: the network computes with whole numbers, which begin again at 0 where they end.
    """
    graph = model.graph
    for cast in [node for node in graph.node if node.op_type == "Cast" and node.input[0] == image]:
        for taker in [node for node in graph.node if cast.output[0] in node.input]:
            if taker.op_type != "Cast" or _cast_type(taker) != TensorProto.FLOAT:
                raise SourceError(
                    f"the network computes with whole numbers ({taker.name}), which in Keras begin again "
                    "at 0 where they end: put keras.layers.Rescaling, or a cast to float32, first"
                )
            _rename_input(graph, taker.output[0], image)
    drop_unused(graph)


def _cast_type(node: NodeProto) -> int:
    return next(int(item.i) for item in node.attribute if item.name == "to")


def without_erfc(model: ModelProto) -> None:
    """Write erfc(x), which ONNX lacks, as 1 - erf(x)."""
    graph = model.graph
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Erfc":
            one, erf = f"{node.output[0]}/one", f"{node.output[0]}/erf"
            _keep_constant(graph, one, np.array(1, np.float32))
            graph.node.insert(place + 1, helper.make_node("Sub", [one, erf], node.output, name=node.name))
            node.op_type, node.domain = "Erf", ""
            node.output[:] = [erf]


def nearest_as_gather(model: ModelProto) -> None:
    """Pick rows and columns where TensorFlow resizes to the nearest pixel, which back ends round otherwise.

    TensorFlow takes pixel `floor((place + 0.5) * scale)`, computed in float32.

    Source:
        `HalfPixelScalerForNN` of TensorFlow's `image_resizer_state.h`.
    """
    graph, dims = model.graph, known_dims(model)
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Resize" and _is_tensorflow_nearest(node):
            picks = _picks(graph, node, dims)
            for item in reversed(picks):
                graph.node.insert(place + 1, item)
            if picks:
                del graph.node[place]
    drop_unused(graph)


def drop_unused(graph: GraphProto) -> None:
    """Remove nodes and constants that no output needs."""
    needed = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [initializer for initializer in graph.initializer if initializer.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def in_fixed_order(graph: GraphProto) -> None:
    """Order nodes as a walk from the output finds them, and constants as the nodes take them.

    Claim: the order follows from the graph alone; every node stands after those that it takes from.
    """
    producers = {name: node for node in graph.node for name in node.output if name}
    ordered: list[NodeProto] = []
    done: set[int] = set()
    waiting = [(producers[value.name], False) for value in reversed(graph.output) if value.name in producers]
    while waiting:
        node, inputs_done = waiting.pop()
        if id(node) in done:
            continue
        if inputs_done:
            done.add(id(node))
            ordered.append(node)
            continue
        waiting.append((node, True))
        waiting += [(producers[name], False) for name in reversed(node.input) if name in producers]
    constants = {item.name: item for item in graph.initializer}
    names = dict.fromkeys(name for node in ordered for name in node.input if name in constants)
    kept = [constants[name] for name in names]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
    constants_kept = [TensorProto.FromString(item.SerializeToString()) for item in kept]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants_kept)


def known_dims(model: ModelProto, batch: int = BATCHES[0]) -> Dims:
    """Infer the shape of every tensor for one batch size; None is an axis of unknown length."""
    sized = ModelProto()
    sized.CopyFrom(model)
    sized.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    sized.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    constants: Dims = {item.name: list(item.dims) for item in graph.initializer}
    return constants | {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _fold_shapes(model: ModelProto) -> bool:
    """Put a constant in place of every operand that follows from shapes, as far as they are known."""
    graph = model.graph
    dims = [known_dims(model, batch) for batch in BATCHES]
    values = [_shape_values(model, found) for found in dims]
    changed = False
    for node in graph.node:
        if node.output[0] in values[0]:
            continue
        for place, name in enumerate(node.input):
            if all(name in known for known in values):
                found = tuple(known[name] for known in values)
                data = tuple(known.get(node.input[0]) for known in dims)
                changed |= _put_constant(graph, node, place, found, data)
    return changed


def _take_branches(graph: GraphProto) -> bool:
    """Put the branch that is taken in place of each If whose condition is a constant."""
    constants = {item.name: item for item in graph.initializer}
    for place, node in enumerate(graph.node):
        if node.op_type == "If" and node.input[0] in constants:
            taken = "then_branch" if numpy_helper.to_array(constants[node.input[0]]).all() else "else_branch"
            branch = next(attribute.g for attribute in node.attribute if attribute.name == taken)
            ends = [
                helper.make_node("Identity", [value.name], [name], name=node.name)
                for value, name in zip(branch.output, node.output, strict=True)
            ]
            graph.initializer.extend(branch.initializer)
            inner = [*branch.node, *ends]
            del graph.node[place]
            for item in reversed(inner):
                graph.node.insert(place, item)
            return True
    return False


def _shape_values(model: ModelProto, dims: Dims) -> Values:
    """Compute every tensor that follows from shapes and small constants alone."""
    small = {
        item.name: item for item in model.graph.initializer if np.prod(item.dims, initial=1) <= SHAPE_ELEMENTS
    }
    values: Values = {}
    followers: list[NodeProto] = []
    known: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Shape" and None not in dims.get(node.input[0], [None]):
            limits = {attribute.name: attribute.i for attribute in node.attribute}
            sizes = np.array(dims[node.input[0]], np.int64)
            values[node.output[0]] = sizes[limits.get("start", 0) : limits.get("end", len(sizes))]
            known.add(node.output[0])
        elif (
            any(node.input)
            and all(name in known or name in small or not name for name in node.input)
            and not any(attribute.HasField("g") for attribute in node.attribute)
        ):
            followers.append(node)
            known.update(node.output)
    return values | _evaluated(model, followers, values, small) if followers else values


def _evaluated(
    model: ModelProto, nodes: list[NodeProto], values: Values, constants: dict[str, TensorProto]
) -> Values:
    """Run nodes with onnx's own evaluator."""
    needed = sorted({name for node in nodes for name in node.input if name in constants})
    given = [constants[name] for name in needed]
    given += [numpy_helper.from_array(value, name) for name, value in values.items()]
    names = [name for node in nodes for name in node.output if name]
    outputs = [helper.make_empty_tensor_value_info(name) for name in names]
    graph = helper.make_graph(nodes, "shapes", [], outputs, given)
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import))
    return dict(zip(names, evaluator.run(None, {}), strict=True))


def _put_constant(
    graph: GraphProto,
    node: NodeProto,
    place: int,
    found: tuple[NDArray[np.generic], ...],
    data: tuple[list[int | None] | None, ...],
) -> bool:
    """Put a constant in place of an operand.

    Args:
        graph: where the constant is kept.
        node: whose operand it is.
        place: which operand.
        found: its value at each batch size.
        data: shape of the node's first operand at each batch size.
    """
    if node.op_type == "Reshape":
        found = tuple(_resolved(sizes, dims) for sizes, dims in zip(found, data, strict=True))
    if found[0].shape != found[1].shape:
        found = _without_batch(node, found)
    if found[0].shape != found[1].shape:
        return False
    value = np.asarray(found[0])
    differs = np.asarray(value != found[1])
    if differs.any():
        if node.op_type == "Reshape" and differs.sum() == 1:
            value = np.where(differs, -1, value)
        elif node.op_type == "Expand" and all(
            dims is not None and len(dims) == len(sizes) and dims[0] == sizes[0] and not differs[1:].any()
            for dims, sizes in zip(data, found, strict=True)
        ):
            value = np.where(differs, 1, value)
        elif node.op_type == "Slice" and place == 2 and _to_the_end(data, found, differs):
            value = np.where(differs, np.iinfo(np.int64).max, value.astype(np.int64))
        elif node.op_type == "Resize" and place == 3 and data[0] is not None and None not in data[0]:
            _give_scales(graph, node, value, np.array(data[0]))
            return True
        else:
            return False
    name = f"{node.output[0]}/{place}"
    _keep_constant(graph, name, value)
    node.input[place] = name
    return True


def _without_batch(
    node: NodeProto, found: tuple[NDArray[np.generic], ...]
) -> tuple[NDArray[np.generic], ...]:
    """Take one image's part of a value that is the same for each, where the operator spreads it again."""
    spread = node.op_type in _SPREADING and found[0].shape[1:] == found[1].shape[1:]
    if spread and all((value == value[:1]).all() for value in found):
        return tuple(value[:1] for value in found)
    return found


def _resolved(sizes: NDArray[np.generic], dims: list[int | None] | None) -> NDArray[np.generic]:
    """Compute the -1 among a Reshape's sizes, where the shape of what it takes is known."""
    if dims is None or None in dims or (sizes == 0).any() or not (sizes == -1).any():
        return sizes
    rest = int(np.prod(np.array(dims)) // np.prod(sizes[sizes != -1]))
    return np.where(sizes == -1, rest, sizes)


def _to_the_end(
    data: tuple[list[int | None] | None, ...],
    ends: tuple[NDArray[np.generic], ...],
    differs: NDArray[np.bool_],
) -> bool:
    """Whether a Slice, given whole rows of axes from the first on, takes all of the batch."""
    return not differs[1:].any() and all(
        dims is not None and len(dims) == len(end) and dims[0] == end[0]
        for dims, end in zip(data, ends, strict=True)
    )


def _give_scales(
    graph: GraphProto, node: NodeProto, after: NDArray[np.generic], before: NDArray[np.int64]
) -> None:
    """Give a Resize the scales that lead to its sizes, since sizes would name the batch."""
    scales = np.asarray(after, np.float32) / before.astype(np.float32)
    short = (before * scales).astype(np.int64) != after
    scales[short] = np.nextafter(scales[short], np.float32(np.inf))
    name = f"{node.output[0]}/scales"
    _keep_constant(graph, name, scales)
    node.input[:] = [node.input[0], "", name]


def _is_tensorflow_nearest(node: NodeProto) -> bool:
    said = {attribute.name: attribute.s for attribute in node.attribute}
    return said.get("coordinate_transformation_mode") == b"tf_half_pixel_for_nn"


def _picks(graph: GraphProto, node: NodeProto, dims: Dims) -> list[NodeProto]:
    before, after = dims.get(node.input[0], []), dims.get(node.output[0], [])
    if len(before) != 4 or len(after) != 4 or None in (*before, *after):
        return []
    nodes: list[NodeProto] = []
    last = node.input[0]
    for axis in (axis for axis in range(1, 4) if before[axis] != after[axis]):
        old, new = int(before[axis] or 0), int(after[axis] or 0)
        scale = np.float32(old) / np.float32(new)
        places = np.floor((np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int64)
        indices, picked = f"{node.output[0]}/places_{axis}", f"{node.output[0]}/picked_{axis}"
        _keep_constant(graph, indices, np.minimum(places, old - 1))
        nodes.append(helper.make_node("Gather", [last, indices], [picked], name=node.name, axis=axis))
        last = picked
    if nodes:
        nodes[-1].output[0] = node.output[0]
    return nodes


def _constant_value(node: NodeProto) -> NDArray[np.generic]:
    (attribute,) = node.attribute
    if attribute.name == "value":
        return numpy_helper.to_array(attribute.t)
    value = helper.get_attribute_value(attribute)
    kinds = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    return np.array(value, kinds[attribute.name])


def _keep_constant(graph: GraphProto, name: str, value: NDArray[np.generic]) -> None:
    graph.initializer.append(numpy_helper.from_array(value, name))


def _rename_input(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
