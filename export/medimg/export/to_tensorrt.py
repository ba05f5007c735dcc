"""TensorRT engines from exported ONNX files; nothing here imports a framework, so that a device can do it.

The building itself is the runtime's (`medimg.runtime.engines`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.building.make import EngineFile, make_engine
from medimg.runtime.engines.builder import BuildOptions
from medimg.runtime.errors import BackendError, MissingDependencyError, NoSpecError, UsageError
from medimg.runtime.files.text import printable, size_text
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.spec import ModelSpec

SCHEMA = 1
Progress = Callable[[str], None]


@dataclass(frozen=True)
class OnnxSource:
    """The ONNX file that an engine was built from."""

    path: str
    kind: str
    sha256: str


@dataclass(frozen=True)
class EngineResult:
    """What was built from a ready ONNX file."""

    source: OnnxSource
    artefacts: tuple[EngineFile, ...]
    warnings: tuple[str, ...]


def is_exported(path: Path) -> bool:
    """Tell whether a file is an ONNX file that medimg-export made, and so can be built as it is."""
    if path.suffix != ".onnx":
        return False
    try:
        ModelSpec.read(path)
    except NoSpecError:
        return False
    return True


def build_ready(
    path: Path,
    options: BuildOptions,
    *,
    precisions: tuple[str, ...] | None,
    output: Path | None = None,
    force: bool = False,
    progress: Progress = lambda _step: None,
) -> EngineResult:
    """Build an engine from an ONNX file that medimg-export made, on the device that will run it.

    Args:
        path: the ONNX file.
        options: batch sizes, workspace, compatibility.
        precisions: what the user asked for; None to take the file as it is.
        output: folder for the engine; beside the ONNX file unless given.
        force: whether an engine is written whose layers or answers are not what was asked for.
        progress: called with the name of each step as it begins.

    Raises:
        UsageError: the file is in another precision than asked for.
        MedimgError: see `medimg.runtime.building.make.make_engine`.
    """
    precision = ModelSpec.read(path).precision
    if precisions is not None and precisions != (precision,):
        raise UsageError(
            f"{path}: is {precision}, and precision lives in the ONNX file: take another file, or export it "
            f"from the Keras model with --precision {precisions[0]}"
        )
    made = make_engine(path, output=output, options=options, force=force, progress=progress)
    return EngineResult(OnnxSource(str(path), "ONNX", file_sha256(path)), (made,), tuple(warnings_of(made)))


def build_exported(
    paths: Iterable[str], options: BuildOptions, *, force: bool, progress: Progress
) -> tuple[EngineFile, ...]:
    """Build an engine from each ONNX file that an export has just written.

    Raises:
        BackendError: this machine cannot; the message says how the device can.
    """
    files = tuple(paths)
    try:
        return tuple(make_engine(path, options=options, force=force, progress=progress) for path in files)
    except (MissingDependencyError, BackendError) as error:
        commands = "; ".join(f"medimg-export {Path(path).name} --to tensorrt" for path in files)
        raise BackendError(
            f"no engine is built here: {error}. The ONNX files are ready: on the device, run {commands}"
        ) from None


def lines(made: EngineFile) -> list[str]:
    """Say what was built, two lines."""
    head = f"{printable(made.path)}  {size_text(made.bytes)}  {made.executed_precision}"
    found = made.golden
    verified = (
        f"{found.images} golden images on {printable(made.gpu)}: max |Δp| {found.max_abs_diff:.1e}, "
        f"top-1 agreement {found.top1_agreement:.4f}, {'passed' if found.passed else 'failed'}"
        if found
        else "not verified on this GPU"
    )
    return [head, f"    TensorRT {made.tensorrt}, compute capability {made.compute_capability}; {verified}"]


def warnings_of(made: EngineFile) -> Iterable[str]:
    """Say what a user must know about an engine."""
    if made.golden is None:
        yield (
            f"{made.path}: verified on nothing: export the model with --golden N, put the .golden.npz "
            "beside the .onnx, and build again"
        )
    if made.other_precision:
        yield f"{made.path}: not in the precision asked for: {', '.join(made.other_precision)}"
    if made.unknown_precision:
        count = len(made.unknown_precision)
        yield (
            f"{made.path}: TensorRT does not tell the precision of {count} convolutions; it is the ONNX "
            "file's, by strong typing"
        )
