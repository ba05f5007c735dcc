"""A Keras configuration, judged and put into float32 as plain JSON before a framework sees it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medimg.runtime.errors import ModelError
from medimg.runtime.model.keras_files import allowed

_POLICIES = frozenset(["DTypePolicy", "DTypePolicyMap", "FloatDTypePolicy", "Policy", "PolicyV1"])
_FLOATS = frozenset(
    ["bfloat16", "double", "float16", "float64", "half", "mixed_bfloat16", "mixed_float16", "_infer"]
)
"""Data types and policies that become float32."""
_MAX_DIGITS = 18
"""Longest whole number that is read; frameworks keep them in 64 bits."""
_SHAPES = frozenset(["batch_input_shape", "batch_shape"])
_DROPPED = frozenset(["compile_config"])
"""What only training needs, custom losses and metrics among it."""
_NAMED_FUNCTIONS = {
    "activation": allowed.ACTIVATIONS,
    "initializer": allowed.HELPER_NAMES,
    "regularizer": allowed.HELPER_NAMES,
    "constraint": allowed.HELPER_NAMES,
}
"""Last part of a field's name, where a bare text is looked up as a function, and what it may say."""


@dataclass(frozen=True)
class Foreign:
    """A thing in a configuration that is not the framework's own, or runs code."""

    kind: str
    """As a message names it: `Lambda layer`, `custom object`, …"""
    name: str
    class_name: str
    module: str | None = None
    """Where the file says that its code is; None if it says nothing."""
    code: str | None = None
    """The marshalled byte code that the file holds, in base 64."""

    def __str__(self) -> str:
        place = f" of {self.module}" if self.module else ""
        return f"the {self.kind} '{self.name}'{place}"


def parse(path: Path, text: str) -> dict[str, Any]:
    """Read a configuration's JSON.

    Raises:
        ModelError: it is no JSON object with a class name.
    """
    try:
        config = json.loads(text, parse_int=_small_int)
        json.dumps(config, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ModelError(
            f"{path}: its model configuration holds half characters, which are no text"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its model configuration is not JSON ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ModelError(f"{path}: its model configuration names no model")
    return config


def _small_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def without_training(config: Any) -> Any:  # noqa: ANN401  any JSON value
    """Copy a configuration without what only training needs, in float32 and for any batch size."""
    if isinstance(config, list):
        return [without_training(value) for value in config]
    if not isinstance(config, dict):
        return config
    return {name: _plain(name, value) for name, value in config.items() if name not in _DROPPED}


def with_plain_outputs(config: Any) -> Any:  # noqa: ANN401  any JSON value
    """Take the one output of each functional model out of its list, so that it gives a tensor, not a list.

    Keras 3 writes `[["x", 0, 0]]` for a model that was made with a list of one output, and then gives lists
    to the layers behind it, which take tensors (keras#20084).
    """
    if isinstance(config, list):
        return [with_plain_outputs(value) for value in config]
    if not isinstance(config, dict):
        return config
    plain = {name: with_plain_outputs(value) for name, value in config.items()}
    outputs = plain.get("output_layers")
    while isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], list):
        (outputs,) = outputs
    return {**plain, "output_layers": outputs} if "output_layers" in plain else plain


def foreign(config: Any) -> tuple[Foreign, ...]:  # noqa: ANN401  any JSON value
    """Name everything in a configuration that is not on the lists of `allowed`, each once."""
    return tuple(dict.fromkeys(_foreign_objects(config)))


def input_shapes(config: Any) -> Iterator[list[Any]]:  # noqa: ANN401  any JSON value
    """Give every shape that a configuration says of an input, with the batch first."""
    if isinstance(config, list):
        for value in config:
            yield from input_shapes(value)
    elif isinstance(config, dict):
        for name, value in config.items():
            if name in _SHAPES and isinstance(value, list):
                yield value
            else:
                yield from input_shapes(value)


def _plain(name: str, value: Any) -> Any:  # noqa: ANN401
    if name in {"dtype", "dtype_policy"}:
        return _float32(value)
    if name in _SHAPES and isinstance(value, list) and value:
        return [None, *value[1:]]
    return without_training(value)


def _float32(dtype: Any) -> Any:  # noqa: ANN401
    if isinstance(dtype, str):
        return "float32" if dtype in _FLOATS else dtype
    if isinstance(dtype, dict) and dtype.get("class_name") in _POLICIES:
        return "float32"
    return without_training(dtype)


def _foreign_objects(value: Any, field: str = "") -> Iterator[Foreign]:  # noqa: ANN401
    if isinstance(value, list):
        for item in value:
            yield from _foreign_objects(item, field)
    elif isinstance(value, dict):
        if "class_name" in value:
            yield from _foreign_object(value)
        for name, inner in value.items():
            yield from _foreign_objects(inner, name)
    elif isinstance(value, str):
        known = _NAMED_FUNCTIONS.get(field.rpartition("_")[2])
        if known is not None and value not in known:
            yield Foreign(f"custom {field}", value, value)


def _foreign_object(value: dict[str, Any]) -> Iterator[Foreign]:
    class_name, config = value["class_name"], value.get("config")
    if not isinstance(class_name, str):
        yield Foreign("unreadable class", str(class_name)[:80], "")
        return
    own_name = config.get("name") if isinstance(config, dict) else None
    name = own_name if isinstance(own_name, str) else class_name
    if class_name in {"Lambda", "__lambda__"}:
        kind = "Lambda layer" if class_name == "Lambda" else "Python function in the file"
        yield Foreign(kind, name, class_name, code=_code(config))
        if isinstance(config, dict) and isinstance(function := config.get("function"), str):
            yield Foreign("custom function", function, function, _module(config))
    elif class_name == "function":
        yield from _foreign_function(value)
    elif class_name not in allowed.OBJECTS or not _is_own(value, class_name):
        yield Foreign("custom object", class_name, class_name, _module(value))
    elif class_name in {"TFOpLambda", "SlicingOpLambda"}:
        function = config.get("function") if isinstance(config, dict) else None
        if function not in allowed.TENSORFLOW_FUNCTIONS:
            yield Foreign("TensorFlow function", str(function)[:80], class_name)
    elif class_name == "TensorFlowOpLayer":
        operation = _operation(config)
        if operation not in allowed.GRAPH_OPS:
            yield Foreign("TensorFlow operation", operation[:80], class_name)


def _code(config: Any) -> str | None:  # noqa: ANN401
    """Find the byte code of a `Lambda` or a `__lambda__`; None where a name stands in its place."""
    function = config.get("function", config) if isinstance(config, dict) else None
    if isinstance(function, dict):
        function = function.get("config", function)
    if isinstance(function, dict):
        code = function.get("code", function.get("value"))
    else:
        code = function[0] if isinstance(function, list) and function else None
    return code if isinstance(code, str) else None


def _foreign_function(value: dict[str, Any]) -> Iterator[Foreign]:
    name = value.get("config")
    if not isinstance(name, str) or name not in allowed.ACTIVATIONS or not _is_own(value, name):
        yield Foreign("custom function", str(name)[:80], str(name)[:80], _module(value))


def _is_own(value: dict[str, Any], name: str) -> bool:
    """Whether module and registered name, where given, are the framework's own."""
    module, registered = value.get("module"), value.get("registered_name")
    if registered not in (None, "", name):
        return False
    if module is None:
        return True
    return isinstance(module, str) and any(
        module == package or module.startswith(f"{package}.") for package in allowed.MODULES
    )


def _module(value: dict[str, Any]) -> str | None:
    module, registered = value.get("module"), value.get("registered_name")
    if isinstance(module, str):
        return module
    return registered.partition(">")[0] if isinstance(registered, str) and ">" in registered else None


def _operation(config: Any) -> str:  # noqa: ANN401
    """Name the operation of a `TensorFlowOpLayer`; the form that TensorFlow 2.0 wrote is not read."""
    node = config.get("node_def") if isinstance(config, dict) else None
    return str(node.get("op")) if isinstance(node, dict) else "in binary form"
