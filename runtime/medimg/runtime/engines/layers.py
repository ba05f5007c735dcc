"""In what the convolutions of an engine really run, as its inspector tells it.

Other tools have built float32 where half precision was asked for, and said nothing. The inspector's JSON has
two layouts: layers of TensorRT itself (`Weights.Type`, `Format/Datatype`), and kernels of its graph compiler
(`Constants` and `Inputs` with `Datatype`, `Metadata` with the names of ONNX nodes).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medimg.runtime.engines.library import TensorRt
from medimg.runtime.model.spec import Precision

if TYPE_CHECKING:
    import tensorrt as trt

_TYPES = (("int8", "int8"), ("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16"), ("half", "fp16"))
_FLOATS = ("fp32", "float")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_NO_MATRIX = ("reformat", "quantize", "noop", "shuffle", "signal", "wait", "constant")


@dataclass(frozen=True)
class Executed:
    """The outcome of comparing an engine with what it was to be."""

    precision: str
    """What most convolutions run in."""
    others: tuple[str, ...]
    """Convolutions that run in something else than asked for: `conv1 (fp32 instead of fp16)`."""
    unknown: tuple[str, ...]
    """Convolutions of which the inspector does not tell it."""


def inspect_engine(
    api: TensorRt, engine: "trt.ICudaEngine", context: "trt.IExecutionContext"
) -> list[dict[str, Any]]:
    """List an engine's layers.

    Args:
        api: TensorRT.
        engine: built with detailed profiling information.
        context: with the input's shape set; without one the types of dynamic shapes are not told.
    """
    inspector: trt.EngineInspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return read_layers(inspector.get_engine_information(api.LayerInformationFormat.JSON))


def read_layers(text: str) -> list[dict[str, Any]]:
    """Read the inspector's JSON; layers of which it tells the name alone are left out."""
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    return [layer for layer in layers if isinstance(layer, dict)]


def compare(wanted: Mapping[str, Precision], layers: list[dict[str, Any]]) -> Executed:
    """Hold what runs against what was asked for.

    Args:
        wanted: the precision of each convolution by its name in the ONNX file.
        layers: of the engine.
    """
    found = {name: _precision_of(name, layers) for name in wanted}
    known = [precision for precision in found.values() if precision]
    return Executed(
        precision=max(set(known), key=known.count) if known else "unknown",
        others=tuple(
            f"{name} ({precision} instead of {wanted[name]})"
            for name, precision in found.items()
            if precision and precision != wanted[name]
        ),
        unknown=tuple(name for name, precision in found.items() if not precision),
    )


def _precision_of(name: str, layers: list[dict[str, Any]]) -> str | None:
    """Tell in what a convolution runs; None if no layer that computes it says so."""
    parts = [
        layer
        for layer in layers
        if name in _nodes(layer)
        and not any(word in str(layer.get("LayerType")).lower() for word in _NO_MATRIX)
    ]
    # Its bias and activation may be kernels of their own; the one with the weights is the convolution.
    for layer in sorted(parts, key=_weights_count, reverse=True):
        if precision := _by_weights(layer) or _by_input(layer):
            return "tf32" if precision == "fp32" and "tf32" in str(layer.get("TacticName")) else precision
    return None


def _nodes(layer: dict[str, Any]) -> set[str]:
    """Name the ONNX nodes that a layer computes, from its metadata or its own name, `a + b`."""
    named = _ONNX_NODE.findall(str(layer.get("Metadata", "")))
    return set(named or re.split(r" \+ |,|\(|\)", str(layer.get("Name", ""))))


def _largest_constant(layer: dict[str, Any]) -> dict[str, Any]:
    constants = [item for item in layer.get("Constants") or [] if isinstance(item, dict)]
    return max(constants, key=lambda item: math.prod(item.get("Dimensions") or [0]), default={})


def _weights_count(layer: dict[str, Any]) -> int:
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        return int(weights.get("Count", 0))
    return math.prod(_largest_constant(layer).get("Dimensions") or [0])


def _by_weights(layer: dict[str, Any]) -> str | None:
    weights = layer.get("Weights")
    if isinstance(weights, dict):
        return _type_in(weights.get("Type"))
    largest = _largest_constant(layer)
    return _type_in(largest.get("Datatype") or largest.get("Format/Datatype"))


def _by_input(layer: dict[str, Any]) -> str | None:
    inputs = [item for item in layer.get("Inputs") or [] if isinstance(item, dict)]
    return _type_in(inputs[0].get("Datatype") or inputs[0].get("Format/Datatype")) if inputs else None


def _type_in(text: object) -> str | None:
    """Find the type in the inspector's words: `Half`, or `Thirty-two wide channel … Int8 format`."""
    words = str(text).lower()
    found = next((precision for word, precision in _TYPES if word in words), None)
    return found or ("fp32" if any(word in words for word in _FLOATS) else None)
