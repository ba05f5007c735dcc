"""An engine from an ONNX file: built, its layers checked, verified on golden inputs, and then written."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from medimg.runtime.backends.with_tensorrt import TensorRtBackend
from medimg.runtime.engines import golden
from medimg.runtime.engines.builder import BuildOptions, build
from medimg.runtime.engines.layers import compare
from medimg.runtime.engines.library import TensorRt, load_tensorrt
from medimg.runtime.engines.verified import note_check
from medimg.runtime.errors import BackendError, CheckFailedError, UsageError
from medimg.runtime.machine.cuda import Cuda
from medimg.runtime.model.containers import Artefact, open_onnx
from medimg.runtime.model.plan import EngineRecord, plan_name, write_plan
from medimg.runtime.model.spec import Precision

_PRECISION_SUFFIXES = (".fp16", ".int8")


@dataclass(frozen=True)
class EngineFile:
    """One built engine."""

    path: str
    format: str
    precision: Precision
    """Of the ONNX file."""
    executed_precision: str
    """What most convolutions run in."""
    bytes: int
    sha256: str
    tensorrt: str
    gpu: str
    compute_capability: str
    other_precision: tuple[str, ...]
    """Convolutions that run in something else than asked for."""
    unknown_precision: tuple[str, ...]
    """Convolutions of which the engine does not tell it."""
    golden: golden.GoldenCheck | None
    """Verification on this GPU; None where there were no golden inputs."""


def make_engine(
    model: str | Path,
    *,
    output: Path | None = None,
    options: BuildOptions | None = None,
    device: int = 0,
    force: bool = False,
    progress: Callable[[str], None] = lambda _step: None,
) -> EngineFile:
    """Build an engine on this device from an exported ONNX file, with nothing but TensorRT and CUDA.

    Golden inputs are taken from `<stem>.golden.npz` beside the ONNX file, if it is there.

    Args:
        model: the ONNX file.
        output: folder for the engine; beside the ONNX file unless given.
        options: batch sizes, workspace, compatibility.
        device: number of the GPU.
        force: whether an engine is written whose layers run in another precision or that failed its check.
        progress: called with the name of each step as it begins.

    Raises:
        ModelError: the ONNX file cannot be used.
        MissingDependencyError: TensorRT or CUDA is not installed.
        BackendError: there is no GPU, or TensorRT builds no engine.
        CheckFailedError: the engine is not what was asked for; nothing is written.
        UsageError: the folder cannot be written.
    """
    artefact = open_onnx(model)
    cuda, api = find_libraries()
    cuda.select(device)
    return Making(artefact, api, cuda, device, options or BuildOptions(), force, progress).run(output)


def find_libraries() -> tuple[Cuda, TensorRt]:
    """Find the driver, a GPU and TensorRT, in this order.

    Raises:
        MissingDependencyError: a library is missing.
        BackendError: there is no driver or no GPU.
    """
    cuda = Cuda()
    if not cuda.count():
        raise BackendError("no NVIDIA GPU is there: an engine is built on the device that will run it")
    return cuda, load_tensorrt()


@dataclass(frozen=True)
class Making:
    """One engine under way."""

    artefact: Artefact
    api: TensorRt
    cuda: Cuda
    device: int
    options: BuildOptions
    force: bool
    progress: Callable[[str], None]

    def run(self, output: Path | None) -> EngineFile:
        """Build, check, verify and write."""
        artefact, gpu = self.artefact, self.cuda.device(self.device)
        stem = artefact_stem(artefact.path)
        path = (output or artefact.path.parent) / plan_name(stem, gpu.sm, artefact.spec)
        self.progress(f"build {path.name}: minutes, the first time")
        kept_for = f"{gpu.name} {gpu.compute_capability}"
        built = build(self.api, artefact, self.options, gpu=kept_for, progress=self.progress)
        record = EngineRecord(
            spec=artefact.spec,
            engine_sha256=sha256(built.engine).hexdigest(),
            engine_bytes=len(built.engine),
            onnx_sha256=sha256(artefact.content).hexdigest(),
            tensorrt=self.api.__version__,
            compute_capability=gpu.compute_capability,
            gpu=gpu.name,
            profile=self.options.profile,
            executed_precision="unknown",
            version_compatible=self.options.version_compatible,
        )
        engine = Artefact(path, artefact.spec, built.engine, record)
        backend = TensorRtBackend(engine, self.api, self.cuda, self.device)
        try:
            self.progress("look at the engine's layers")
            executed = compare(built.convolutions, backend.layers(self.api))
            self._require(
                not executed.others,
                f"{path.name}: built in another precision than asked for: {', '.join(executed.others)}",
            )
            found = self._verify(backend, artefact.path.with_name(stem + golden.SUFFIX))
        finally:
            backend.close()
        record = replace(
            record,
            executed_precision=executed.precision,
            other_precision=executed.others,
            unknown_precision=executed.unknown,
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_plan(path, built.engine, record)
        except OSError as error:
            raise UsageError(f"{error.filename or path}: cannot be written ({error.strerror})") from None
        if found:
            note_check(record.engine_sha256, gpu, found)
        return _file(path, record, found)

    def _verify(self, backend: TensorRtBackend, path: Path) -> golden.GoldenCheck | None:
        if not path.exists():
            return None
        self.progress(f"verify on {path.name}")
        found = golden.check(backend.infer, self.artefact.spec, path, self.options.profile.most)
        self._require(
            found.passed,
            f"{path.name}: the engine's answers are not Keras's: max |Δp| {found.max_abs_diff:.1e}, top-1 "
            f"agreement {found.top1_agreement:.4f}; asked for: {found.limit}",
        )
        return found

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds and not self.force:
            raise CheckFailedError(f"{otherwise}. Nothing is written; --force writes it all the same")


def artefact_stem(path: Path) -> str:
    """Give an ONNX file's name without `.onnx` and without its precision."""
    name = path.name.removesuffix(".onnx")
    return next((name.removesuffix(suffix) for suffix in _PRECISION_SUFFIXES if name.endswith(suffix)), name)


def _file(path: Path, record: EngineRecord, found: golden.GoldenCheck | None) -> EngineFile:
    return EngineFile(
        path=str(path),
        format="tensorrt",
        precision=record.spec.precision,
        executed_precision=record.executed_precision,
        bytes=record.engine_bytes,
        sha256=record.engine_sha256,
        tensorrt=record.tensorrt,
        gpu=record.gpu,
        compute_capability=record.compute_capability,
        other_precision=record.other_precision,
        unknown_precision=record.unknown_precision,
        golden=found,
    )
