"""A TensorRT and a CUDA runtime that stand in for NVIDIA's.

The CUDA runtime is a shared library (`fakes/cudart.c`) that moves bytes. The fake TensorRT has, in each of
the six versions, the names of that version's API and no others, so that code which uses another name fails in
it. Its engines compute something simple of the bytes that they find in the fake device's memory. What they do
not prove: that real kernels give right answers, nor anything about time.
"""

import ctypes
import json
import os
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime.backends.with_tensorrt import TensorRtBackend
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.machine.cuda import Cuda
from medimg.runtime.model.containers import Artefact, embed_in_onnx
from medimg.runtime.model.plan import BatchProfile, EngineRecord
from medimg.runtime.model.spec import Intensity, ModelSpec

ROWS, COLUMNS, CLASSES = 5, 7, 3
SPEC = ModelSpec(
    ("cyst", "normal", "solid"), ImageRule(ROWS, COLUMNS), Intensity.named("caffe"), precision="fp16"
)
API_FOLDER = Path(os.environ.get("MEDIMG_TEST_DATA", "/none")) / "tensorrt-api"
VERSIONS = sorted(path.stem for path in API_FOLDER.glob("*.json")) or ["10.3.0"]
Launch = Callable[[Callable[[], int]], int]


def answers(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a fake engine computes: shares of three sums over each image."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    sums = np.stack([1 + flat[:, place::CLASSES].sum(axis=1) for place in range(CLASSES)], axis=1)
    return np.asarray(sums / sums.sum(axis=1, keepdims=True), np.float32)


@dataclass
class Faults:
    """What goes wrong in a fake TensorRT."""

    no_engine: str | None = None
    """What TensorRT says when it builds or loads none."""
    no_context: bool = False
    refuse_shape: bool = False
    fail_launch: bool = False
    fail_in_stream: int = 0
    """The code with which the kernel ends once the stream runs."""
    output_columns: int = CLASSES
    heatmap: bool = False
    """Not a fault: engines have the output `activation_map`."""
    executes: dict[str, str] = field(default_factory=dict)
    """In what layers run, by name, where it is not what was asked for."""
    alive: int = 0
    """Runtimes, engines and contexts that have not been freed."""


class FakeTensorRt(types.ModuleType):
    """A module `tensorrt` of one version."""

    def __init__(self, version: str, launch: Launch) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.faults = Faults()
        self.last_config: Any = None
        path = API_FOLDER / f"{version}.json"
        allowed: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.convolutions = {"conv1": "HALF", "conv2": "HALF"}
        for name, made in _classes(self, launch).items():
            setattr(self, name, _guarded(made, allowed.get(name)) if allowed else made)
        if allowed:
            missing = set(_classes(self, launch)) - set(allowed)
            assert not missing, f"TensorRT {version} has no {missing}"


def _guarded(made: type, allowed: list[str] | None) -> type:
    """Let only the names of the real class be used from outside; those with an underscore are the fake's."""
    names = set(allowed or ())

    def check(name: str) -> None:
        if not name.startswith("_") and name not in names:
            raise AttributeError(f"TensorRT has no {made.__name__}.{name}")

    def get(self: object, name: str) -> object:
        check(name)
        return object.__getattribute__(self, name)

    def put(self: object, name: str, value: object) -> None:
        check(name)
        object.__setattr__(self, name, value)

    return type(made.__name__, (made,), {"__getattribute__": get, "__setattr__": put})


def _enumeration(*names: str) -> Any:
    return type("Enumeration", (), {name: index for index, name in enumerate(names)})


def _classes(module: "FakeTensorRt", launch: Launch) -> dict[str, Any]:  # noqa: C901  a module's worth of classes
    """Make the classes; engines are JSON text in place of native code."""

    class Counted:
        def __init__(self) -> None:
            module.faults.alive += 1

        def __del__(self) -> None:
            module.faults.alive -= 1

    class Context(Counted):
        def __init__(self, engine: Any) -> None:
            super().__init__()
            self._engine, self._addresses = engine, dict[str, int]()
            self._batch = 0
            self._callback: Any = None

        def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
            self._batch = shape[0]
            low, high = self._engine._about["batch"]
            return low <= shape[0] <= high and not module.faults.refuse_shape

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return name in self._engine._tensors

        def execute_async_v3(self, _stream: int) -> bool:
            if module.faults.fail_launch:
                _logger_said("Error Code 1: Cuda Runtime (invalid argument)")
                return False
            batch, size = self._batch, ROWS * COLUMNS * 3
            addresses = self._addresses

            def run() -> int:
                source = (ctypes.c_uint8 * (batch * size)).from_address(addresses["image"])
                found = answers(np.ctypeslib.as_array(source).reshape(batch, ROWS, COLUMNS, 3))
                ctypes.memmove(addresses["probabilities"], found.ctypes.data, found.nbytes)
                if "activation_map" in addresses:
                    maps = np.ascontiguousarray(np.broadcast_to(found[:, None, None], (batch, 2, 4, CLASSES)))
                    ctypes.memmove(addresses["activation_map"], maps.ctypes.data, maps.nbytes)
                return module.faults.fail_in_stream

            return launch(run) == 0

    class Inspector:
        execution_context = None

        def __init__(self, engine: Any) -> None:
            object.__setattr__(self, "_engine", engine)

        def get_engine_information(self, _format: object) -> str:
            known = self.execution_context is not None and self.execution_context._batch
            text = "Row major linear {} format" if known else "{}N/A due to dynamic shapes"
            layers = [
                {
                    "Name": f"{name} + relu",
                    "LayerType": "CaskConvolution",
                    "Inputs": [{"Name": "in", "Format/Datatype": text.format(kind if known else "")}],
                    "ParameterType": "Convolution",
                }
                for name, kind in self._engine._about["layers"].items()  # type: ignore[attr-defined]
            ]
            return json.dumps({"Layers": layers, "Bindings": ["image", "probabilities"]})

    class Engine(Counted):
        def __init__(self, about: Any) -> None:
            super().__init__()
            self._about = about
            columns = module.faults.output_columns
            self._tensors: dict[str, tuple[int, ...]] = {
                "image": (-1, ROWS, COLUMNS, 3),
                "probabilities": (-1, columns),
            }
            if module.faults.heatmap:
                self._tensors["activation_map"] = (-1, 2, 4, columns)
            self.num_io_tensors = len(self._tensors)

        def get_tensor_name(self, place: int) -> str:
            return list(self._tensors)[place]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._tensors[name]

        def get_tensor_dtype(self, name: str) -> object:
            kinds = module.DataType
            return kinds.UINT8 if name == "image" else kinds.FLOAT

        def create_execution_context(self) -> Any:
            return None if module.faults.no_context else module.IExecutionContext(self)

        def create_engine_inspector(self) -> Any:
            return module.EngineInspector(self)

    class Runtime(Counted):
        def __init__(self, logger: Any) -> None:
            super().__init__()
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            if module.faults.no_engine:
                self._logger.log(1, module.faults.no_engine)
                return None
            return module.ICudaEngine(json.loads(content))

    class Logger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class Monitor:
        pass

    class Tensor:
        def __init__(self, name: str, dtype: object = None, shape: tuple[int, ...] = ()) -> None:
            self.name, self.dtype, self.shape = name, dtype, shape

    class Layer:
        def __init__(self, name: str, kind: str, source: Any) -> None:
            self.name, self.type, self._source = name, getattr(module.LayerType, kind), source

        def get_input(self, _place: int) -> Any:
            return self._source

        def get_output(self, _place: int) -> Any:
            return module.ITensor(f"{self.name}.out", module.DataType.FLOAT)

    class Network:
        def __init__(self) -> None:
            self._layers = []
            for name, kind in module.convolutions.items():
                if kind == "INT8":
                    self._layers.append(module.ILayer(f"dq.{name}", "DEQUANTIZE", None))
                    source = module.ITensor(f"dq.{name}.out", module.DataType.FLOAT)
                else:
                    source = module.ITensor(f"to.{name}", getattr(module.DataType, kind))
                self._layers.append(module.ILayer(name, "CONVOLUTION", source))
            self.num_layers = len(self._layers)

        def get_layer(self, place: int) -> Any:
            return self._layers[place]

        def get_input(self, _place: int) -> Any:
            return module.ITensor("image", module.DataType.UINT8, (-1, ROWS, COLUMNS, 3))

    class ParserError:
        def node_name(self) -> str:
            return "conv1"

        def desc(self) -> str:
            return "no importer for Conv"

    class Parser:
        num_errors = 1

        def __init__(self, _network: Any, _logger: Any) -> None:
            pass

        def parse(self, content: bytes) -> bool:
            return b"refuse me" not in content

        def get_error(self, _place: int) -> Any:
            return module.ParserError()

    class HostMemory(bytes):
        pass

    class TimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> bytes:
            return self._content + b"+"

    class Config:
        progress_monitor: Any = None
        profiling_verbosity: object = None

        def __init__(self) -> None:
            self._flags, self._pools = {"TF32"}, dict[object, int]()
            self._cache: Any = None

        def clear_flag(self, flag: str) -> None:
            self._flags.discard(flag)

        def set_flag(self, flag: str) -> None:
            self._flags.add(flag)

        def set_memory_pool_limit(self, pool: object, size: int) -> None:
            self._pools[pool] = size

        def add_optimization_profile(self, profile: Any) -> int:
            self._profile = profile
            return 0

        def create_timing_cache(self, content: bytes) -> Any:
            return None if content == b"damaged" else module.ITimingCache(content)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

    class Profile:
        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            assert name == "image"
            self._shapes = shapes

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def create_network(self, flags: int) -> Any:
            assert flags == 1 << module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
            return module.INetworkDefinition()

        def create_builder_config(self) -> Any:
            return module.IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return module.IOptimizationProfile()

        def build_serialized_network(self, _network: Any, config: Any) -> bytes | None:
            module.last_config = config
            monitor = config.progress_monitor
            monitor.phase_start("Building engine", None, 2)
            for step in range(2):
                assert monitor.step_complete("Building engine", step)
            monitor.phase_finish("Building engine")
            if module.faults.no_engine:
                self._logger.log(1, module.faults.no_engine)
                return None
            words = {"HALF": "Half", "FLOAT": "Float", "INT8": "Int8"}
            layers = {
                name: module.faults.executes.get(name, words[kind])
                for name, kind in module.convolutions.items()
            }
            shapes = config._profile._shapes
            return json.dumps({"batch": [shapes[0][0], shapes[2][0]], "layers": layers}).encode()

    def _logger_said(message: str) -> None:
        from medimg.runtime.engines.library import messages

        messages(module).errors.append(message)

    flags = type("BuilderFlag", (), {"TF32": "TF32", "VERSION_COMPATIBLE": "VERSION_COMPATIBLE"})
    return {
        "ILogger": Logger,
        "IProgressMonitor": Monitor,
        "Runtime": Runtime,
        "ICudaEngine": Engine,
        "IExecutionContext": Context,
        "EngineInspector": Inspector,
        "Builder": Builder,
        "OnnxParser": Parser,
        "ParserError": ParserError,
        "INetworkDefinition": Network,
        "ILayer": Layer,
        "ITensor": Tensor,
        "IBuilderConfig": Config,
        "IOptimizationProfile": Profile,
        "ITimingCache": TimingCache,
        "DataType": _enumeration("FLOAT", "HALF", "INT8", "UINT8"),
        "LayerType": _enumeration("CONVOLUTION", "DEQUANTIZE", "QUANTIZE"),
        "NetworkDefinitionCreationFlag": _enumeration("EXPLICIT_BATCH_IN_10", "STRONGLY_TYPED"),
        "BuilderFlag": flags,
        "ProfilingVerbosity": _enumeration("NONE", "DETAILED"),
        "MemoryPoolType": _enumeration("WORKSPACE"),
        "LayerInformationFormat": _enumeration("ONELINE", "JSON"),
    }


@dataclass
class Machine:
    """A fake GPU machine: its libraries, and what they have counted."""

    cuda: Cuda
    library: Any
    """The fake CUDA runtime, for its counters."""
    api: Any
    """The fake TensorRT."""
    keep: list[Any]
    """Callbacks that the fake CUDA runtime may still call."""

    def calls(self, name: str) -> int:
        return int(self.library.fake_calls(name.encode()))

    def held(self) -> int:
        """Memory blocks and streams that have not been freed."""
        return int(self.library.fake_held())

    def open(self, artefact: Artefact, number: int = 0) -> TensorRtBackend:
        return TensorRtBackend(artefact, self.api, self.cuda, number)


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own cache and configuration, empty."""
    for name in ("cache", "config"):
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(tmp_path / name))
    return tmp_path


@pytest.fixture
def make_machine(fake_library: Callable[[str], Path], homes: Path) -> Iterator[Callable[[str], Machine]]:
    """Make a machine with one version of TensorRT; nothing may be left on it at the end."""
    path = str(fake_library("cudart"))
    library: Any = ctypes.CDLL(path)
    machines: list[Machine] = []

    def make(version: str) -> Machine:
        library.fake_reset()
        keep: list[Any] = []

        def launch(run: Callable[[], int]) -> int:
            callback = ctypes.CFUNCTYPE(ctypes.c_int)(run)
            keep.append(callback)
            return int(library.fake_launch(callback))

        machines.append(Machine(Cuda(path), library, FakeTensorRt(version, launch), keep))
        return machines[-1]

    yield make
    assert library.fake_held() == 0


@pytest.fixture
def machine(make_machine: Callable[[str], Machine]) -> Machine:
    return make_machine(VERSIONS[0])


def engine(
    version: str = VERSIONS[0],
    profile: BatchProfile | None = None,
    spec: ModelSpec = SPEC,
    capability: str = "8.7",
) -> Artefact:
    """An engine for the fake TensorRT, with its record."""
    batch = profile or BatchProfile(2, 4, 8)
    content = json.dumps({"batch": [batch.least, batch.most], "layers": {"conv1": "Half"}}).encode()
    record = EngineRecord(
        spec=spec,
        engine_sha256=sha256(content).hexdigest(),
        engine_bytes=len(content),
        onnx_sha256="0" * 64,
        tensorrt=version,
        compute_capability=capability,
        gpu="Fake GPU A",
        profile=batch,
        executed_precision="fp16",
    )
    return Artefact(Path("model.sm87.fp16.plan"), spec, content, record)


@pytest.fixture
def make_engine() -> Callable[..., Artefact]:
    return engine


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """A file that carries a spec, with bytes that the fake TensorRT parses."""
    path = tmp_path / "model.fp16.onnx"
    path.write_bytes(embed_in_onnx(b"\x08\x09", SPEC))
    return path


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """`(20, rows, columns, 3)` of the fake engine's size."""
    return np.random.default_rng(0).integers(0, 256, (20, ROWS, COLUMNS, 3), np.uint8)


@pytest.fixture
def expected() -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    return answers
