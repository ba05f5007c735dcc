"""What an export did, as it is written by `--json`."""

from dataclasses import dataclass

from medimg.export.evidence import Evidence
from medimg.export.ranges import MethodScore
from medimg.export.repair import LayerEffect
from medimg.export.to_triton import ServedModel
from medimg.export.verify import ClassRecall
from medimg.runtime.building.make import EngineFile
from medimg.runtime.model.spec import Precision, Verification

SCHEMA = 1


@dataclass(frozen=True)
class SourceFile:
    """The model file."""

    path: str
    kind: str
    """`.keras`, `.h5`, `weights`, `SavedModel` or `ONNX`."""
    sha256: str
    keras_version: str | None
    """The Keras that wrote it; None where the file does not say."""


@dataclass(frozen=True)
class ArtefactFile:
    """One exported file."""

    path: str
    format: str
    precision: Precision
    bytes: int
    sha256: str
    verification: Verification
    batch_max_abs_diff: float
    """Largest difference of a probability between an image alone and in a batch."""
    recall: tuple[ClassRecall, ...]
    difference_counts: tuple[int, ...]
    """Images by their largest difference, in the bins of `medimg.export.verify.DIFFERENCE_EDGES`."""
    float_layers: tuple[str, ...]
    """Layers that a reduced-precision artefact keeps in float32."""
    reference_rounding: float | None
    """Keras's own distance from float64, where a float32 artefact is further from Keras than is usual."""
    written: bool
    """False if it failed its verification and was not forced."""
    missed: tuple[str, ...] = ()
    """Images for which either Keras or the artefact gives no number, and the other does."""


@dataclass(frozen=True)
class CalibrationImage:
    """One image that INT8 ranges came from."""

    name: str
    """Path relative to the data."""
    sha256: str
    """Of the file; of the decoded pixels where it lies in an archive."""


@dataclass(frozen=True)
class Quantization:
    """How INT8 came about."""

    method: str
    """The method of ranges that agreed best with float32 on held-back images."""
    scores: tuple[MethodScore, ...]
    images: tuple[CalibrationImage, ...]
    layers: tuple[LayerEffect, ...]
    """Effect of quantising each layer alone; measured only where a repair was needed."""


@dataclass(frozen=True)
class ExportResult:
    """Everything that an export made and found."""

    source: SourceFile
    artefacts: tuple[ArtefactFile, ...]
    quantization: Quantization | None
    evidence: Evidence | None
    """How the preprocessing was found, where neither the file nor the user said it."""
    warnings: tuple[str, ...]
    steps_s: dict[str, float]
    """Seconds that each step took."""
    engines: tuple[EngineFile, ...] = ()
    """TensorRT engines that were built from the artefacts."""
    repository: tuple[ServedModel, ...] = ()
    """Models of a Triton repository, made of artefacts and engines."""

    @property
    def failed(self) -> tuple[ArtefactFile, ...]:
        """The artefacts whose verification failed."""
        return tuple(item for item in self.artefacts if item.verification.verdict == "failed")
