"""Every TensorRT name that the code touches exists in all six versions' APIs: read from the code itself.

Variables that hold what TensorRT's methods return are annotated (`config: trt.IBuilderConfig = …`); this
follows them through the syntax trees, and refuses an object of TensorRT's whose class is not written down. It
proves that the names exist, not that they mean the same in each version, nor that the annotations are right:
the build with TensorRT for RTX runs the builder's for real.
"""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOMS = ("runtime", "export", "train", "benchmarks")
MODULE = "TensorRt"
"""The annotation of variables that hold the module itself."""
UNKNOWN = "?"

Api = dict[str, list[str]]


@dataclass
class Reader:
    """Follows TensorRT's objects through one module."""

    members: dict[str, str] = field(default_factory=dict)
    """Classes of `self.name`, by name."""
    touched: set[tuple[str, str]] = field(default_factory=set)
    """(class or "", name) that the code uses; "" is the module."""
    faults: list[str] = field(default_factory=list)

    def read(self, source: str) -> None:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and (kind := annotated(node.annotation)):
                if isinstance(node.target, ast.Attribute):
                    self.members[node.target.attr] = kind
                elif isinstance(node.target, ast.Name) and kind == MODULE:
                    self.members[node.target.id] = kind
        self.scope(tree, {})

    def scope(self, owner: ast.AST, outer: dict[str, str]) -> None:
        """Read one function with the names that it sees; functions inside see them too."""
        names = dict(outer)
        if isinstance(owner, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = (*owner.args.posonlyargs, *owner.args.args, *owner.args.kwonlyargs)
            names |= {item.arg: kind for item in arguments if (kind := annotated(item.annotation))}
        inside = list(statements(owner))
        for node in inside:
            names |= self.named(node, names)
        for node in inside:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.scope(node, names)
            elif isinstance(node, ast.ClassDef):
                self.derived(node, names)
                self.scope(node, names)
            elif isinstance(node, ast.Attribute):
                self.touch(node, names)

    def named(self, node: ast.AST, names: dict[str, str]) -> dict[str, str]:
        """Give the names that a statement binds to TensorRT's objects."""
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            kind = annotated(node.annotation)
            return {node.target.id: kind} if kind else {}
        if isinstance(node, ast.Assign) and self.kind(node.value, names):
            kind = self.kind(node.value, names) or UNKNOWN
            return {target.id: kind for target in node.targets if isinstance(target, ast.Name)}
        return {}

    def kind(self, node: ast.AST, names: dict[str, str]) -> str | None:
        """Tell the class of an expression's value; None if it is nothing of TensorRT's."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return self.members.get(node.attr)
            owner = self.kind(node.value, names)
            return node.attr if owner == MODULE else UNKNOWN if owner else None
        if isinstance(node, ast.Call):
            # To call a class of the module is to make one of it.
            return self.kind(node.func, names)
        return None

    def touch(self, node: ast.Attribute, names: dict[str, str]) -> None:
        kind = self.kind(node.value, names)
        if kind is None or node.attr.startswith("__"):
            return
        if kind == UNKNOWN:
            self.faults.append(f"line {node.lineno}: {ast.unparse(node)}: annotate what it is taken from")
        else:
            self.touched.add(("" if kind == MODULE else kind, node.attr))

    def derived(self, node: ast.ClassDef, names: dict[str, str]) -> None:
        """What a class that derives from TensorRT's overrides must be there to be overridden."""
        for base in node.bases:
            if isinstance(base, ast.Attribute) and self.kind(base.value, names) == MODULE:
                methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
                self.touched |= {(base.attr, name) for name in methods if not name.startswith("__")}


def annotated(annotation: ast.expr | None) -> str | None:
    """Read `trt.X`, `"trt.X"` or `TensorRt`."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.Attribute) and isinstance(annotation.value, ast.Name):
        return annotation.attr if annotation.value.id == "trt" else None
    return MODULE if isinstance(annotation, ast.Name) and annotation.id == MODULE else None


def statements(owner: ast.AST) -> Iterator[ast.AST]:
    """Walk a scope in order, but not into the functions and classes inside it; annotations are left out."""
    for name, value in ast.iter_fields(owner):
        if name in ("annotation", "returns", "args") and not isinstance(owner, ast.Call):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    yield from statements(child)


def missing(touched: set[tuple[str, str]], api: Api) -> list[str]:
    return sorted(
        f"{kind}.{name}" for kind, name in touched if name not in (api.get(kind, []) if kind else api)
    )


def sources() -> dict[Path, str]:
    """The modules that deal with TensorRT."""
    paths = (path for room in ROOMS for path in (ROOT / room / "medimg").rglob("*.py"))
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    return {path: text for path, text in texts.items() if "import tensorrt as trt" in text or MODULE in text}


@pytest.fixture(scope="module")
def touched() -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for path, text in sources().items():
        reader = Reader()
        reader.read(text)
        assert not reader.faults, f"{path}: {reader.faults}"
        found |= reader.touched
    return found


@pytest.mark.real
@pytest.mark.parametrize(
    "version", ["10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106"]
)
def test_names_exist(touched: set[tuple[str, str]], real_data: Path, version: str) -> None:
    api: Api = json.loads((real_data / "tensorrt-api" / f"{version}.json").read_text())
    assert missing(touched, api) == []


def test_the_path_is_seen(touched: set[tuple[str, str]]) -> None:
    assert {
        ("", "Builder"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("Builder", "build_serialized_network"),
        ("IProgressMonitor", "step_complete"),
        ("Runtime", "deserialize_cuda_engine"),
        ("IExecutionContext", "execute_async_v3"),
        ("EngineInspector", "get_engine_information"),
    } <= touched
    assert len(touched) > 60


def test_nothing_else_imports_tensorrt() -> None:
    for room in ROOMS:
        for path in (ROOT / room / "medimg").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    assert (node.module or "").partition(".")[0] != "tensorrt", path
                if isinstance(node, ast.Import) and "tensorrt" in [item.name for item in node.names]:
                    assert path in sources(), path


API: Api = {"Builder": ["create_network"], "INetworkDefinition": ["num_layers"], "ILogger": ["log"]}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("api.Refitter(1)", [".Refitter"]),
        ("b: trt.Builder = made()\n b.reset()", ["Builder.reset"]),
        ("b = api.Builder(1)\n b.reset()", ["Builder.reset"]),
        ("api.ILogger.INFO", ["ILogger.INFO"]),
        ("b = api.Builder(1)\n def g(): return b.reset()", ["Builder.reset"]),
        (
            "self._n: trt.INetworkDefinition = 1\n print(self._n.num_inputs)",
            ["INetworkDefinition.num_inputs"],
        ),
        ("class L(api.ILogger):\n  def warn(self): pass", ["ILogger.warn"]),
        ("b = api.Builder(1)\n n = b.create_network(0)\n n.num_layers", "annotate"),
        ("b = api.Builder(1)\n print(b.create_network(0).num_layers)", "annotate"),
    ],
)
def test_the_reader_notices(source: str, expected: list[str] | str) -> None:
    reader = Reader()
    reader.read(f"def f(api: TensorRt):\n {source}")
    if isinstance(expected, str):
        assert reader.faults
        assert expected in reader.faults[0]
    else:
        assert not reader.faults
        assert missing(reader.touched, API) == expected
