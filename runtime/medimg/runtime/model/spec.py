"""What an artefact says about itself: labels, preprocessing, origin, verification."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from medimg.runtime.errors import ModelError
from medimg.runtime.files.class_names import fault_of
from medimg.runtime.files.plain import from_plain, to_plain
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.statistics.verdict import Verdict
from medimg.runtime.tasks import Head, TaskName, task_named

SCHEMA = 1
"""The newest layout of the entry that this version reads and the one that it writes."""

MAX_SPEC_BYTES = 4 * 1024 * 1024

ColorOrder: TypeAlias = Literal["rgb", "bgr"]
IntensityName: TypeAlias = Literal["caffe", "torch", "tf", "unit", "raw", "custom", "unspecified"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a JSON object, in which readers would differ on a name that stands there twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return fields


def _require_writable(value: object, where: str) -> None:
    """Refuse what JSON or UTF-8 has no form for: NaN, infinity, and halves of surrogate pairs."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ModelError(f"{where}: {value} is not a finite number")
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        raise ModelError(f"{where}: {value[:80]!r} holds half of a surrogate pair, which is no character")
    if isinstance(value, dict):
        for name, item in value.items():
            _require_writable(name, where)
            _require_writable(item, f"{where}.{name}")
    elif isinstance(value, list):
        for item in value:
            _require_writable(item, where)


@dataclass(frozen=True)
class Intensity:
    """The arithmetic from uint8 RGB to the network's float input: `(x / divisor - mean) / std`.

    The named rules are those of `keras.applications.imagenet_utils.preprocess_input`, and `unit` and `raw`.
    """

    rule: IntensityName
    """The rule's name; with `unspecified` the file keeps the Keras model's own float input."""
    color_order: ColorOrder = "rgb"
    """Order of the network's input channels."""
    channels: Literal[1, 3] = 3
    """Input channels of the network; one means a reduction to grey by OpenCV's `RGB2GRAY`."""
    divisor: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    """Subtracted after the division: one value, or one a channel in the network's own order."""
    std: tuple[float, ...] = (1.0,)
    """Divided by last: one value, or one a channel in the network's own order."""

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ModelError(f"{name} has {len(values)} values for {self.channels} channels")
        if not all(map(math.isfinite, (self.divisor, *self.mean, *self.std))):
            raise ModelError("divisor, mean and std must be finite")
        if self.divisor == 0 or 0 in self.std:
            raise ModelError("divisor and std must not be 0")

    @property
    def is_raw(self) -> bool:
        """Whether values are given as they are, from 0 to 255."""
        return self.divisor == 1 and not any(self.mean) and set(self.std) == {1.0}

    @classmethod
    def named(
        cls, rule: IntensityName, *, channels: Literal[1, 3] = 3, color_order: ColorOrder | None = None
    ) -> "Intensity":
        """Make one of the rules that Keras defines; `caffe` is BGR unless told otherwise."""
        if rule not in _RULES:
            raise ModelError(
                f"preprocessing {rule!r} needs its own numbers; named rules: {', '.join(_RULES)}"
            )
        divisor, mean, std, order = _RULES[rule]
        if channels == 1 and len(mean) == 3:
            raise ModelError(f"preprocessing {rule!r} is for three channels; the network takes one")
        if color_order and color_order != order:
            mean, std = mean[::-1], std[::-1]
        return cls(rule, color_order or order, channels, divisor, mean, std)


_RULES: dict[str, tuple[float, tuple[float, ...], tuple[float, ...], ColorOrder]] = {
    "caffe": (1.0, (103.939, 116.779, 123.68), (1.0,), "bgr"),
    "torch": (255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "rgb"),
    "tf": (127.5, (1.0,), (1.0,), "rgb"),
    "unit": (255.0, (0.0,), (1.0,), "rgb"),
    "raw": (1.0, (0.0,), (1.0,), "rgb"),
}


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on one class's probability."""

    label: str
    threshold: float
    chosen_for: str
    """What it was chosen for, and on which data: `sensitivity 0.95 on validation`."""


@dataclass(frozen=True)
class Allowed:
    """DICOM attribute values that the model may be given; an empty list allows any."""

    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    photometric_interpretation: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """The file that an artefact was made from."""

    name: str
    """File name, without folders."""
    sha256: str
    keras_version: str | None = None


@dataclass(frozen=True)
class HeldOut:
    """How validation images were held out of the training part; whatever chooses takes the same images."""

    fraction: float
    """Share of the training part."""
    seed: int
    group_by: str | None = None
    """Regular expression that finds the patient in an image's path."""


@dataclass(frozen=True)
class Verification:
    """How an artefact's answers compare with those of the Keras model in float32."""

    images: int
    """How many images were compared."""
    images_from: Literal["synthetic", "calibration", "validation"]
    max_abs_diff: float
    """Largest difference of one probability."""
    top1_agreement: float
    """Share of images whose first class is the same."""
    verdict: Verdict
    accuracy: float | None = None
    accuracy_reference: float | None = None
    accuracy_drop: float | None = None
    accuracy_drop_ci95: tuple[float, float] | None = None
    """95 % score interval for the difference of paired proportions (Tango 1998), or of the bootstrap over
    patients, where those have several images and it reaches further."""
    backend: str | None = None
    """What ran the artefact for the comparison."""

    def __post_init__(self) -> None:
        if self.images < 0 or not 0 <= self.top1_agreement <= 1:
            raise ModelError(f"no comparison has {self.images} images and agreement {self.top1_agreement:g}")


@dataclass(frozen=True)
class Compression:
    """How a model was made from a larger one, and how its INT8 artefact compares with that one in float32."""

    parent_sha256: str
    """Of the larger model's file."""
    method: str
    macs: int
    """Multiply-accumulates for an image."""
    parent_macs: int
    images: int
    """How many images were compared, none of which chose anything."""
    accuracy_drop: float
    accuracy_drop_ci95: tuple[float, float]
    roc_auc_drop: float
    roc_auc_drop_ci95: tuple[float, float]
    max_drop: float
    """The largest loss of either that was accepted."""
    verdict: Verdict

    def __post_init__(self) -> None:
        if self.macs < 1 or self.parent_macs < 1 or self.images < 0:
            raise ModelError(
                f"no network has {self.macs} multiply-accumulates, its original {self.parent_macs}, and "
                f"{self.images} images for their comparison"
            )


@dataclass(frozen=True)
class ModelSpec:
    """Everything that a client needs to use a classifier rightly, carried inside its file."""

    labels: tuple[str, ...]
    """One name a class, in the order of the output columns."""
    image: ImageRule
    intensity: Intensity
    task: TaskName = "multiclass"
    head: Head = "softmax"
    """The Keras model's own last step; an artefact's output is always probabilities."""
    precision: Precision = "fp32"
    temperature: float = 1.0
    """Divides the logits; folded into an artefact's graph."""
    heatmap: bool = False
    """Whether there is a second output, `activation_map`, float32 `[batch, rows, columns, classes]`."""
    operating_points: tuple[OperatingPoint, ...] = ()
    intended_use: str | None = None
    allowed: Allowed = field(default_factory=Allowed)
    simulated_data: bool = False
    """Whether the model was trained on simulated images."""
    compression: Compression | None = None
    """For a model that was made smaller."""
    held_out: HeldOut | None = None
    """None where the training data have a part for validation."""
    source: Source | None = None
    tools: dict[str, str] = field(default_factory=dict)
    """Versions of the tools that made the file."""
    float_layers: tuple[str, ...] = ()
    """Layers that a reduced-precision artefact keeps in float32."""
    verification: Verification | None = None
    artefact_sha256: str | None = None
    """SHA-256 of the file without this entry."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise ModelError("a model needs at least one label")
        if fault := fault_of(self.labels):
            raise ModelError(fault)
        if len(set(self.labels)) != len(self.labels):
            raise ModelError(f"labels repeat: {', '.join(self.labels)}")
        if self.head not in task_named(self.task).heads:
            raise ModelError(f"a {self.task} model has no head {self.head!r}")
        if not 0 < self.temperature < math.inf:
            raise ModelError(f"temperature {self.temperature} is not positive and finite")

    @property
    def classes(self) -> int:
        """Number of classes, which is the number of output columns."""
        return len(self.labels)

    def to_json(self) -> str:
        """Write the entry: one JSON object, `schema` first, the same text for the same spec."""
        return json.dumps({"schema": SCHEMA, **to_plain(self)}, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "spec") -> "ModelSpec":
        """Read the entry.

        Raises:
            ModelError: it is no JSON, its schema is newer than this version reads, or a field is wrong.
        """
        if len(text) > MAX_SPEC_BYTES:
            raise ModelError(f"{where}: the medimg entry is larger than {MAX_SPEC_BYTES} bytes")
        try:
            fields = json.loads(text, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{where}: the medimg entry is not JSON ({error})") from None
        if not isinstance(fields, dict) or not isinstance(fields.get("schema"), int):
            raise ModelError(f"{where}: the medimg entry has no schema number")
        schema = fields.pop("schema")
        if schema > SCHEMA:
            raise ModelError(
                f"{where}: written with schema {schema}, this version reads up to {SCHEMA}: "
                "pip install --upgrade medimg"
            )
        return cls.from_fields(fields, where)

    @classmethod
    def from_fields(cls, fields: object, where: str) -> "ModelSpec":
        """Build a spec from what was read from JSON or TOML.

        Raises:
            ModelError: a field is wrong, a number is not finite, or a text cannot be written.
        """
        spec = from_plain(cls, fields, where)
        _require_writable(fields, where)
        return spec

    @classmethod
    def read(cls, path: str | Path) -> "ModelSpec":
        """Read the spec out of a model file, without a back end and without onnx.

        Args:
            path: an `.onnx`, `.keras`, `.h5` or `.hdf5` file.

        Raises:
            NoSpecError: the file carries none.
            ModelError: the file or its entry cannot be read.
        """
        from medimg.runtime.model.containers import read_spec

        return read_spec(Path(path))

    def with_(self, **changes: object) -> "ModelSpec":
        """Copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]  # replace checks the names
