"""What a compression made and found, as it is written by `--json`."""

from dataclasses import dataclass

from medimg.runtime.statistics.bootstrap import Estimate, Resampling
from medimg.runtime.statistics.verdict import Verdict
from medimg.train.compression.latency import LatencyModel
from medimg.train.compression.options import CompressOptions
from medimg.train.fitting.journal import Phase


@dataclass(frozen=True)
class Gate:
    """An INT8 artefact beside the original in float32, on images that chose nothing."""

    images: int
    accuracy: Estimate
    accuracy_reference: Estimate
    accuracy_drop: float
    accuracy_drop_ci95: tuple[float, float]
    """Tango's score interval for paired proportions; where patients have several images, the bootstrap's over
    patients where that reaches further."""
    roc_auc: Estimate
    roc_auc_reference: Estimate
    roc_auc_drop: Estimate
    """Over the same draws for both."""
    resampling: Resampling
    """What the intervals come from, but for Tango's."""
    backend: str
    """What ran the artefact."""
    verdict: Verdict


@dataclass(frozen=True)
class Point:
    """One compressed model."""

    name: str
    widths: tuple[int, ...]
    """Output channels of each layer with weights."""
    macs: int
    """Multiply-accumulates for an image."""
    lost: tuple[float, ...]
    """Of each boundary between layers: the share of the next one's output energy that least squares lose."""
    modelled_ms: float | None
    """None where widths did not follow a model of the latency."""
    latency_ms: float
    """Median of single images, measured on the INT8 artefact."""
    training: Phase | None
    temperature: float
    """Refitted on the validation images."""
    notes: tuple[str, ...]
    """What could not be refitted."""
    gate: Gate
    seconds: float


@dataclass(frozen=True)
class CompressResult:
    """Everything that a compression made and found."""

    model: str
    model_sha256: str
    data: str
    output: str | None
    """The file that was written; None if no point passed."""
    kept: str | None
    """The name of its point."""
    options: CompressOptions
    layers: tuple[str, ...]
    """With weights, in order."""
    full_widths: tuple[int, ...]
    macs: int
    """Of the original."""
    latency_ms: float
    """Of the original in INT8, median of single images."""
    latency_model: LatencyModel | None
    train_images: int
    validation_images: int
    looked_at_images: int
    """Those of the training part that channels were chosen by."""
    points: tuple[Point, ...]
    """The least compressed first."""
    not_tried: tuple[str, ...]
    """Points that come after one that did not pass."""
    simulated_data: bool
    """Whether the images are simulated."""
    seconds: float
