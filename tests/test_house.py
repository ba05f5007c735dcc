"""What holds the house together: tasks in their own folders, no circles, functions of a screen, one API."""

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

from medimg.runtime.tasks import Head, TaskName

ROOT = Path(__file__).parent.parent
ROOMS = ("runtime", "export", "train", "benchmarks")
NAMES = {*get_args(TaskName), *get_args(Head)}
# `ModelSpec.read` finds the entry in any kind of file, and the readers of those make specs.
CIRCLE = {
    f"medimg.runtime.model.{name}"
    for name in (
        "containers",
        "plan",
        "spec",
        "trust",
        "keras_files.archive",
        "keras_files.hdf5",
        "keras_files.reading",
    )
}
LONGEST, USUAL = 60, 20


def modules() -> dict[str, Path]:
    found = {}
    for room in ROOMS:
        for path in (ROOT / room / "medimg").rglob("*.py"):
            name = ".".join(path.relative_to(ROOT / room).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def asks_for_a_task(node: ast.AST) -> bool:
    """Whether a comparison or a key names a task or a head."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        asked = any(
            (isinstance(side, ast.Attribute) and side.attr in ("task", "head"))
            or (isinstance(side, ast.Name) and side.id in ("task", "head"))
            for side in sides
        )
        texts = {item.value for side in sides for item in ast.walk(side) if isinstance(item, ast.Constant)}
        return asked and bool(texts & NAMES)
    return (
        isinstance(node, ast.MatchValue)
        and isinstance(node.value, ast.Constant)
        and node.value.value in NAMES
    )


def test_tasks_are_told_apart_in_their_own_folders_alone() -> None:
    found = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in TREES.items()
        if ".tasks" not in name
        for node in ast.walk(tree)
        if asks_for_a_task(node)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ['spec.task == "multilabel"', 'head in ("softmax", "sigmoid")', 'self.head != "logits"']
)
def test_what_asks_for_a_task_is_found(text: str) -> None:
    assert any(map(asks_for_a_task, ast.walk(ast.parse(text))))


def imports(name: str) -> Iterator[str]:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for item in node.names:
                inner = f"{node.module}.{item.name}"
                yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (item.name for item in node.names if item.name in MODULES)


def only_for_types(tree: ast.Module) -> None:
    """Leave out what type checkers alone import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]


def reached(arrows: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in arrows[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


def test_modules_import_in_no_circle_but_that_of_the_spec() -> None:
    for tree in TREES.values():
        only_for_types(tree)
    arrows = {name: {other for other in imports(name) if other != name} for name in MODULES}
    assert {name for name in arrows if name in reached(arrows, name)} <= CIRCLE


def bodies() -> Iterator[tuple[str, int]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
                yield f"{name}.{node.name}", lines


def test_functions_fit_on_a_screen() -> None:
    found = sorted(bodies(), key=lambda item: item[1])
    assert [item for item in found if item[1] > LONGEST] == []
    assert found[int(0.9 * len(found))][1] <= USUAL


def is_of_the_command_line(name: str) -> bool:
    last = name.rpartition(".")[2]
    return ".verbs" in name or last in ("cli", "commandline", "__main__") or last.endswith(("_flags", "_cli"))


def imports_click(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.Import | ast.ImportFrom) and re.search(r"\bclick\b", ast.unparse(node))
        for node in ast.walk(tree)
    )


def test_the_library_knows_no_command_line() -> None:
    library = [name for name in MODULES if not is_of_the_command_line(name)]
    assert [name for name in library if imports_click(TREES[name])] == []
    assert [
        (name, other) for name in library for other in imports(name) if is_of_the_command_line(other)
    ] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_there(room: str) -> None:
    module = importlib.import_module(f"medimg.{room}")
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def classes_in(hint: object) -> Iterator[type]:
    """The library's own classes that an annotation names."""
    if inspect.isclass(hint) and hint.__module__.startswith("medimg."):
        yield hint
    for inner in get_args(hint):
        for item in inner if isinstance(inner, list) else (inner,):
            yield from classes_in(item)


def signatures(thing: object) -> Iterator[object]:
    """A function itself; of a class that does something, what can be called."""
    if inspect.isfunction(thing):
        yield thing
    elif inspect.isclass(thing) and not dataclasses.is_dataclass(thing):
        own = vars(thing).items()
        yield from (
            item
            for name, item in own
            if inspect.isfunction(item) and (name == "__init__" or not name.startswith("_"))
        )


def to_be_made(given: type) -> set[type]:
    """A class that a caller passes in, and what its fields need."""
    fields = get_type_hints(given).values() if dataclasses.is_dataclass(given) else ()
    return {given}.union(*(to_be_made(found) for hint in fields for found in classes_in(hint)))


def needed(function: object) -> set[type]:
    """What has to be made to call a function, and what it gives: back, or to a function of the caller."""
    hints = get_type_hints(function)
    out = {name for name, hint in hints.items() if name == "return" or get_origin(hint) is Callable}
    found: set[type] = set()
    for name, hint in hints.items():
        for named in classes_in(hint):
            found |= {named} if name in out else to_be_made(named)
    return found


def test_what_public_signatures_name_is_public() -> None:
    rooms = [importlib.import_module(f"medimg.{room}") for room in ROOMS]
    public = {f"{room.__name__}.{name}": getattr(room, name) for room in rooms for name in room.__all__}
    missing = {
        (name, found.__qualname__)
        for name, thing in public.items()
        for function in signatures(thing)
        for found in needed(function)
        if found not in public.values()
    }
    assert missing == set()


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("medimg.train.fit", "FitOptions"),
        ("medimg.train.tune", "TuneOptions"),
        ("medimg.train.evaluate", "EvaluateOptions"),
        ("medimg.train.compress", "CompressOptions"),
        ("medimg.export.export_model", "ExportOptions"),
        ("medimg.benchmarks.run_benchmark", "BenchmarkOptions"),
        ("medimg.benchmarks.run_sweep", "SweepOptions"),
    ],
)
def test_verbs_have_one_shape(verb: str, options: str) -> None:
    room, _, name = verb.rpartition(".")
    function = getattr(importlib.import_module(room), name)
    parameters = list(inspect.signature(function).parameters.values())
    *inputs, last = [item for item in parameters if item.kind is not item.KEYWORD_ONLY]
    assert all(item.default is item.empty for item in inputs)
    assert (last.name, last.default) == ("options", None)
    hints = get_type_hints(function)
    assert [found.__name__ for found in classes_in(hints["options"])] == [options]
    by_name = [item for item in parameters if item.kind is item.KEYWORD_ONLY]
    assert [item.name for item in by_name[:2]] == ["threads", "progress"]
    assert all(item.default is not item.empty for item in by_name)
    assert dataclasses.is_dataclass(hints["return"])
