"""What `tune` searches: fields of FitOptions with the values that they may take, read from TOML."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from medimg.runtime.errors import UsageError
from medimg.runtime.files.text_files import read_toml
from medimg.train.data.options import DataOptions
from medimg.train.fitting.options import FitOptions

Value: TypeAlias = int | float | str
"""What Keras Tuner stores; `none` stands for None, which neither it nor TOML knows."""
Sampling: TypeAlias = Literal["linear", "log"]

NONE = "none"
OTHERS = ("seed", "augment")
"""Fields that are no numbers or words to choose from."""
FIXED = (
    *(field.name for field in fields(DataOptions) if field.name not in OTHERS),
    *("arch", "weights", "image_size", "jpeg", "precision_policy", "head"),
)
"""Fields that what all trials share depends on."""


@dataclass(frozen=True)
class Range:
    """A number between two ends, both included."""

    low: float
    high: float
    sampling: Sampling = "linear"
    """`log`: every factor is as likely as any other, as suits rates."""
    step: float | None = None
    """Distance between values, or with `log` their ratio; None for any value."""
    whole: bool = False
    """Whether only integers are meant."""

    @property
    def ends(self) -> tuple[Value, ...]:
        """The outermost values."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    @property
    def grid(self) -> tuple[Value, ...]:
        """The values that a grid tries: every step, or five from end to end."""
        logarithmic = self.sampling == "log"
        low, high = map(math.log, (self.low, self.high)) if logarithmic else (self.low, self.high)
        if self.step:
            step = math.log(self.step) if logarithmic else self.step
            places = [low + index * step for index in range(math.floor((high - low) / step + 1e-9) + 1)]
        else:
            places = [low + index / 4 * (high - low) for index in range(5)]
        values = [math.exp(place) if logarithmic else place for place in places]
        # Ten digits are more than any rate needs, and leave no trace of the arithmetic.
        rounded = (round(value) if self.whole else float(f"{value:.10g}") for value in values)
        return tuple(dict.fromkeys(rounded))


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    choices: tuple[Value, ...]

    @property
    def ends(self) -> tuple[Value, ...]:
        """All of them."""
        return self.choices

    @property
    def grid(self) -> tuple[Value, ...]:
        """All of them."""
        return self.choices


Parameter: TypeAlias = Range | Choice


@dataclass(frozen=True)
class SearchSpace:
    """Fields of FitOptions that trials vary."""

    parameters: Mapping[str, Parameter]

    @property
    def combinations(self) -> int:
        """How many trials a whole grid takes."""
        return math.prod(len(parameter.grid) for parameter in self.parameters.values())

    def declare(self, hyperparameters: Any, base: FitOptions, *, grid: bool = False) -> None:  # noqa: ANN401  Keras Tuner is untyped
        """Put the space into Keras Tuner's `HyperParameters`.

        Args:
            hyperparameters: an empty object of that class.
            base: its values are the defaults, where the space holds them.
            grid: whether every parameter is to be a choice among the values of its grid.
        """
        for name, parameter in self.parameters.items():
            default = _stored(getattr(base, name))
            if grid or isinstance(parameter, Choice):
                choices = list(parameter.grid)
                # Keras Tuner takes values of one type only.
                if len(set(map(type, choices))) > 1:
                    choices, default = list(map(str, choices)), str(default)
                hyperparameters.Choice(name, choices, default=default if default in choices else None)
                continue
            inside = not isinstance(default, str) and parameter.low <= default <= parameter.high
            number = hyperparameters.Int if parameter.whole else hyperparameters.Float
            low, high = parameter.ends
            number(
                name,
                low,
                high,
                step=int(parameter.step) if parameter.step and parameter.whole else parameter.step,
                sampling=parameter.sampling,
                # With steps, a default between them would be a value that the space does not hold.
                default=default if inside and not parameter.step else None,
            )

    def drawn(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Give the fields of FitOptions that a trial differs in.

        Args:
            values: what Keras Tuner drew; names that are not of this space are left out.
        """
        return {
            name: _restored(values[name], parameter)
            for name, parameter in self.parameters.items()
            if name in values
        }


def default_space(base: FitOptions) -> SearchSpace:
    """Give what is searched unless the user says otherwise: what matters most to the architecture's accuracy.

    Args:
        base: names the architecture; choices that it rules out are left out.
    """
    wanted: dict[str, Parameter] = {
        "learning_rate": Range(1e-4, 1e-2, "log"),
        "dropout": Range(0.0, 0.7),
        "l2": Range(1e-6, 1e-2, "log"),
        "batch_size": Choice((16, 32, 64)),
        "activation": Choice(("relu", "gelu", "silu")),
    }
    if base.arch == "vgg16":
        wanted |= {"dense_layers": Choice((0, 1, 2)), "dense_units": Choice((64, 256, 1024))}
        if base.pretrained and base.fine_tunes:
            wanted["unfreeze_blocks"] = Choice((0, 1, 2))
    elif base.arch == "vgg-bn":
        wanted["dense_units"] = Choice((512, 1024, 4096))
    else:
        wanted |= {
            "filters": Choice((16, 32, 64)),
            "blocks": Choice((3, 4, 5)),
            "block_layers": Choice((1, 2)),
            "dense_units": Choice((NONE, 64, 256)),
        }
    return SearchSpace({name: _possible(name, parameter, base) for name, parameter in wanted.items()})


def read_space(path: Path, base: FitOptions) -> SearchSpace:
    """Read a search space from TOML: a table a field, with `choices`, or with `low` and `high`.

    Args:
        path: the file.
        base: the options that stay as they are.

    Raises:
        UsageError: it cannot be read, or holds something that no trial could take.
    """
    tables = read_toml(path)
    if not tables:
        raise UsageError(f"{path}: names nothing to search: give a table such as [learning_rate]")
    space = SearchSpace({name: _read(name, table, str(path)) for name, table in tables.items()})
    _check(space, base, str(path))
    return space


def _read(name: str, table: object, where: str) -> Parameter:
    where = f"{where}: [{name}]"
    known = {field.name for field in fields(FitOptions)} - {*FIXED, *OTHERS}
    if name in FIXED:
        raise UsageError(f"{where}: all trials share what is computed from it once: give it as an option")
    if name not in known:
        raise UsageError(f"{where}: is nothing to search; {', '.join(sorted(known))} are")
    if not isinstance(table, dict):
        raise UsageError(f"{where}: is no table: write [{name}] with choices, or low and high, below it")
    if "choices" in table:
        return _read_choice(table, where)
    return _read_range(table, _number_type(name), where)


def _read_choice(table: dict[str, Any], where: str) -> Choice:
    if unknown := sorted(set(table) - {"choices"}):
        raise UsageError(f"{where}: choices stand alone; {unknown[0]} does not belong to them")
    choices = table["choices"]
    if not isinstance(choices, list) or not choices or not all(_is_value(item) for item in choices):
        raise UsageError(f"{where}: choices is no list of numbers or words")
    if len(set(choices)) < len(choices):
        raise UsageError(f"{where}: a choice is named twice")
    if {type(item) for item in choices} == {int, float}:
        choices = list(map(float, choices))
    return Choice(tuple(choices))


def _read_range(table: dict[str, Any], number: type | None, where: str) -> Range:
    if number is None:
        raise UsageError(f"{where}: is no number: give choices")
    if unknown := sorted(set(table) - {"low", "high", "sampling", "step"}):
        raise UsageError(
            f"{where}: unknown key {unknown[0]!r}; it takes choices, or low, high, sampling, step"
        )
    for key in ("low", "high", "step"):
        if key in table or key != "step":
            _check_number(table.get(key), number, f"{where}: {key}")
    found = Range(**table, whole=number is int)
    if found.sampling not in get_args(Sampling):
        raise UsageError(
            f"{where}: sampling {found.sampling!r} is not one of {', '.join(get_args(Sampling))}"
        )
    if not found.low < found.high:
        raise UsageError(f"{where}: low {found.low} is not below high {found.high}")
    if found.sampling == "log" and found.low <= 0:
        raise UsageError(f"{where}: low {found.low}: log sampling needs numbers above 0")
    least = 1 if found.sampling == "log" else 0
    if found.step is not None and found.step <= least:
        raise UsageError(f"{where}: step {found.step} is not above {least}")
    return found


def _possible(name: str, parameter: Parameter, base: FitOptions) -> Parameter:
    """Leave out the choices that the other options rule out."""
    if isinstance(parameter, Range):
        return parameter
    return Choice(tuple(value for value in parameter.choices if _fits(name, value, parameter, base)))


def _fits(name: str, value: Value, parameter: Choice, base: FitOptions) -> bool:
    try:
        replace(base, **{name: _restored(value, parameter)})
    except UsageError:
        return False
    return True


def _check(space: SearchSpace, base: FitOptions, where: str) -> None:
    """Try every end of every parameter on its own."""
    for name, parameter in space.parameters.items():
        for value in parameter.ends:
            try:
                _check_type(name, _restored(value, parameter))
                replace(base, **space.drawn({name: value}))
            except UsageError as error:
                raise UsageError(f"{where}: [{name}]: {error}") from None


def _check_type(name: str, value: object) -> None:
    hint = typing.get_type_hints(FitOptions)[name]
    kinds = get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for kind in kinds:
        if typing.get_origin(kind) is Literal and value in get_args(kind):
            return
        if kind in (int, str, bool, type(None)) and type(value) is kind:
            return
        if kind is float and type(value) in (int, float):
            return
    raise UsageError(f"{value!r} is no value of it")


def _check_number(value: object, number: type, where: str) -> None:
    if type(value) not in ((int,) if number is int else (int, float)) or not math.isfinite(value):  # type: ignore[arg-type]  # a number by then
        kind = "whole number" if number is int else "number"
        raise UsageError(f"{where} is no {kind}" + ("" if value is None else f": {value!r}"))


def _number_type(name: str) -> type | None:
    """Tell whether a field holds integers, other numbers, or neither."""
    hint = typing.get_type_hints(FitOptions)[name]
    kinds = set(get_args(hint)) or {hint}
    return int if int in kinds else float if float in kinds else None


def _is_value(item: object) -> bool:
    return isinstance(item, (str, int)) or (isinstance(item, float) and math.isfinite(item))


def _stored(value: Any) -> Value:  # noqa: ANN401  a field of FitOptions
    return NONE if value is None else value


def _restored(stored: Any, parameter: Parameter) -> Any:  # noqa: ANN401
    """Turn what Keras Tuner holds back into a field's value."""
    if isinstance(parameter, Range):
        return int(stored) if parameter.whole else float(stored)
    (value,) = (choice for choice in parameter.choices if choice == stored or str(choice) == stored)
    return None if value == NONE else value
