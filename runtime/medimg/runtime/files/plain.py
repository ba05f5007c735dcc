"""Frozen dataclasses to and from plain JSON values, strictly."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from medimg.runtime.errors import MedimgError, ModelError

T = TypeVar("T")
MOST_INTEGER = 2**63
_LONGEST = 200
"""Characters of a value in a message."""


def to_plain(value: Any) -> Any:  # noqa: ANN401  any dataclass, at any depth
    """Turn a dataclass into dicts, lists and scalars that `json.dumps` takes."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def json_text(value: Any, indent: int | None = None) -> str:  # noqa: ANN401  any dataclass, at any depth
    """Write JSON that every reader takes, in ASCII.

    What is no finite number is `null`. A byte of a file's name that is not UTF-8 is written out as text, in
    the form that it has in tables and in an archive's Parquet: few readers take half a surrogate pair.
    """
    return json.dumps(_strict(to_plain(value)), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:  # noqa: ANN401  plain values, at any depth
    if isinstance(value, dict):
        return {_strict(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_plain(kind: type[T], value: object, where: str = "spec") -> T:
    """Build a dataclass from plain values, checking every type.

    Args:
        kind: the dataclass.
        value: what `json.loads` or `tomllib.load` returned.
        where: names the value in error messages.

    Raises:
        ModelError: a field is unknown, missing or of the wrong type.
    """
    return typing.cast("T", _convert(kind, value, where))


def _convert(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401  a type annotation at run time
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(typing.cast("type", kind), value, where)
    if origin is typing.Literal:
        choices = typing.get_args(kind)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ModelError(f"{where}: {_short(value)} is not one of {', '.join(map(str, choices))}")
        return value
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if value is None else _convert(options[0], value, where)
    if origin is tuple:
        return _convert_tuple(typing.get_args(kind), value, where)
    if origin in (dict, Mapping):
        return _convert_dict(typing.get_args(kind), value, where)
    return _convert_scalar(kind, value, where)


def _convert_dataclass(kind: type, value: Any, where: str) -> Any:  # noqa: ANN401
    if not isinstance(value, Mapping):
        raise ModelError(f"{where}: expected a table, got {_short(value)}")
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - names):
        raise ModelError(f"{where}: unknown field {_short(unknown[0])}; it has {', '.join(sorted(names))}")
    fields = {name: _convert(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return kind(**fields)
    except (TypeError, MedimgError) as error:
        raise ModelError(f"{where}: {error}") from None


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:  # noqa: ANN401
    if not isinstance(value, (list, tuple)):
        raise ModelError(f"{where}: expected a list, got {_short(value)}")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise ModelError(f"{where}: expected {len(arguments)} values, got {len(value)}")
    return tuple(_convert(kind, item, where) for kind, item in zip(arguments, value, strict=True))


def _convert_dict(arguments: tuple[Any, ...], value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(value, Mapping):
        raise ModelError(f"{where}: expected a table, got {_short(value)}")
    return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}


def _convert_scalar(kind: type, value: Any, where: str) -> Any:  # noqa: ANN401
    if isinstance(value, int) and abs(value) >= MOST_INTEGER:
        raise ModelError(f"{where}: a whole number of more than 64 bits")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ModelError(f"{where}: expected {kind.__name__}, got {_short(value)}")
    return value


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) >= MOST_INTEGER:
        return "a whole number of more than 64 bits"
    text = ascii(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
