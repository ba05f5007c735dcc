"""From an ONNX file to engine bytes, by the one path that TensorRT 10.3 to 11.4 share.

The network is strongly typed: every layer runs in the type that the ONNX file gives it, so precision lives
there and nowhere else ("Strong Typing vs Weak Typing" in TensorRT's documentation; version 11 has no other
mode). TF32 is off: float32 means float32.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medimg.runtime.engines.library import TensorRt, is_out_of_memory, messages
from medimg.runtime.errors import BackendError, GpuMemoryError, TrustError
from medimg.runtime.files.writing import replaced
from medimg.runtime.model import trust
from medimg.runtime.model.containers import Artefact
from medimg.runtime.model.plan import BatchProfile
from medimg.runtime.model.spec import Precision

if TYPE_CHECKING:
    import tensorrt as trt

Progress = Callable[[str], None]

TOLD_EVERY_S = 2.0
"""How often a long build says what it is at."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """What a user may choose about an engine."""

    profile: BatchProfile = field(default_factory=BatchProfile)
    workspace_mib: int | None = None
    """Memory that TensorRT may use to try kernels and to run them; all there is unless given."""
    version_compatible: bool = False
    """Whether later versions of TensorRT shall run it; it is larger then, and may be slower."""


@dataclass(frozen=True)
class Built:
    """A finished engine."""

    engine: bytes
    convolutions: dict[str, Precision]
    """In what each convolution of the ONNX file is to run, by its name there."""


def build(
    api: TensorRt,
    artefact: Artefact,
    options: BuildOptions,
    *,
    gpu: str,
    progress: Progress = lambda _step: None,
) -> Built:
    """Build an engine for the thread's GPU; it may take minutes.

    Args:
        api: TensorRT.
        artefact: a checked ONNX file.
        options: what the user chose.
        gpu: what the timing cache is kept for: the GPU's name and compute capability.
        progress: called with what TensorRT is at.

    Raises:
        BackendError: TensorRT refuses the graph or fails.
        GpuMemoryError: the GPU has too little memory for it.
    """
    said = messages(api)
    said.errors.clear()
    try:
        builder = api.Builder(said.logger)
    except (RuntimeError, TypeError) as error:
        raise BackendError(f"TensorRT {api.__version__} does not start: {error}; {said.explain()}") from None
    # Their owners must outlive what they give: TensorRT's objects do not keep each other alive.
    network: trt.INetworkDefinition = builder.create_network(
        1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser = api.OnnxParser(network, said.logger)
    if not parser.parse(artefact.content):
        raise BackendError(
            f"{artefact.path}: TensorRT {api.__version__} refuses it: {_parser_errors(parser)}"
        )
    config: trt.IBuilderConfig = builder.create_builder_config()
    _configure(api, config, options)
    _set_profile(builder, config, network, options.profile)
    monitor = _make_monitor(api, progress)
    config.progress_monitor = monitor
    with _timing_cache(config, f"{api.__version__} {gpu}"):
        plan: trt.IHostMemory = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(artefact, options, said.explain())
    return Built(bytes(plan), typed_convolutions(api, network))


def typed_convolutions(api: TensorRt, network: "trt.INetworkDefinition") -> dict[str, Precision]:
    """Read from a parsed network in what each convolution is to run, by its name."""
    kinds = api.LayerType
    names: dict[object, Precision] = {api.DataType.HALF: "fp16", api.DataType.FLOAT: "fp32"}
    found: dict[str, Precision] = {}
    dequantized: set[str] = set()
    for place in range(network.num_layers):
        layer: trt.ILayer = network.get_layer(place)
        if layer.type == kinds.DEQUANTIZE:
            output: trt.ITensor = layer.get_output(0)
            dequantized.add(output.name)
        elif layer.type == kinds.CONVOLUTION:
            image: trt.ITensor = layer.get_input(0)
            # A float convolution behind a dequantisation is what runs in int8.
            found[layer.name] = "int8" if image.name in dequantized else names[image.dtype]
    return found


def _configure(api: TensorRt, config: "trt.IBuilderConfig", options: BuildOptions) -> None:
    config.clear_flag(api.BuilderFlag.TF32)
    # Without details the inspector gives names alone, and the precision cannot be checked.
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    if options.version_compatible:
        config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)


def _set_profile(
    builder: "trt.Builder",
    config: "trt.IBuilderConfig",
    network: "trt.INetworkDefinition",
    batch: BatchProfile,
) -> None:
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    image: trt.ITensor = network.get_input(0)
    one = tuple(image.shape)[1:]
    profile.set_shape(image.name, (batch.least, *one), (batch.best, *one), (batch.most, *one))
    config.add_optimization_profile(profile)


def _parser_errors(parser: "trt.OnnxParser") -> str:
    found = []
    for place in range(parser.num_errors):
        error: trt.ParserError = parser.get_error(place)
        found.append(f"{error.node_name() or 'graph'}: {error.desc()}")
    return "; ".join(found) or "it gives no reason"


def _failure(artefact: Artefact, options: BuildOptions, reason: str) -> BackendError:
    """Make of TensorRT's messages an error with a way out."""
    message = f"{artefact.path}: TensorRT builds no engine: {reason}"
    if is_out_of_memory(reason):
        profile = options.profile
        smaller = f"--batch-size {profile.least},{profile.least},{max(profile.least, profile.most // 2)}"
        return GpuMemoryError(f"{message}: a smaller batch needs less: {smaller}, or limit --workspace")
    return BackendError(message)


def _make_monitor(api: TensorRt, progress: Progress) -> "trt.IProgressMonitor":
    class Monitor(api.IProgressMonitor):  # type: ignore[misc,name-defined]  # TensorRT has no types
        """Tells every step of the whole, and of its parts one now and then; False would cancel the build."""

        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._whole: set[str] = set()
            self._told_at = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            if not parent_phase:
                self._whole.add(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if phase_name in self._whole or now - self._told_at > TOLD_EVERY_S:
                self._told_at = now
                progress(f"{phase_name} {step + 1}/{self._steps.get(phase_name, '?')}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


@contextlib.contextmanager
def _timing_cache(config: "trt.IBuilderConfig", kept_for: str) -> Iterator[None]:
    """Take the measured times of kernels from the last builds, and keep those of this one.

    A folder that others can write to, or that cannot be written, costs the cache and nothing else.
    """
    name = hashlib.sha256(kept_for.encode()).hexdigest()[:32]
    try:
        file = trust.private_folder("timing") / f"{name}.cache"
        known = file.read_bytes() if file.exists() else b""
    except (OSError, TrustError) as error:
        _logger.warning("no timing cache: %s", error)
        yield
        return
    cache: trt.ITimingCache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        # A damaged file, or another machine's.
        empty: trt.ITimingCache = config.create_timing_cache(b"")
        config.set_timing_cache(empty, ignore_mismatch=False)
    yield
    after: trt.ITimingCache = config.get_timing_cache()
    content: trt.IHostMemory = after.serialize()
    with contextlib.suppress(OSError), replaced(file) as temporary:
        temporary.write_bytes(bytes(content))
