"""What a user asks of an export, and the spec that follows from it and from the file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medimg.export.head_choice import choose_head, refuse_softmax_of_one
from medimg.export.label_choice import DataLabels
from medimg.export.scaling_choice import check_scaling, infer_scaling
from medimg.export.sources.base import Architecture, Request, Source
from medimg.runtime.errors import UsageError
from medimg.runtime.files.plain import from_plain, to_plain
from medimg.runtime.images.rule import ImageRule, ResizeRule
from medimg.runtime.model.spec import ColorOrder, Intensity, IntensityName, ModelSpec, Precision
from medimg.runtime.model.spec import Source as SourceEntry
from medimg.runtime.tasks import Head, task_of_head

NOT_CLASSES = (
    "if its folders are not classes, give a folder that holds the images itself, "
    "or a CSV with the column path"
)


@dataclass(frozen=True)
class ExportOptions:
    """The options of `medimg-export`."""

    output: Path | None = None
    """Folder for the artefacts; beside the model unless given."""
    precisions: tuple[Precision, ...] = ("fp32",)
    preprocessing: IntensityName | None = None
    color_order: ColorOrder | None = None
    mean: tuple[float, ...] | None = None
    """With `std`: numbers of its own, for values from 0 to 1 after a division by 255."""
    std: tuple[float, ...] | None = None
    resize: ResizeRule | None = None
    head: Head | None = None
    labels: tuple[str, ...] | None = None
    spec_fields: dict[str, Any] | None = None
    """Fields of ModelSpec from a TOML file."""
    calibration: Path | None = None
    """Images that INT8 ranges are taken from."""
    calibration_images: int = 300
    """How many of them at most, drawn evenly with a fixed seed."""
    validation: Path | None = None
    """Images, labelled if possible, that the artefacts are judged on."""
    max_drop: float = 0.01
    repair_minutes: float = 15.0
    """Time for putting layers of a failed INT8 artefact back to float32."""
    golden: int | None = None
    """How many images to write, as the network takes them, with Keras's answers."""
    heatmap: bool = False
    """Adds the output `activation_map`."""
    strict: bool = False
    force: bool = False
    allow_code: bool = False
    """Whether code that the model file holds or names may run."""
    arch: Architecture | None = None
    """What the weights of a weights-only file belong to."""
    classes: int | None = None
    """Width of the last layer of a weights-only file."""
    input_size: tuple[int, int] | None = None
    """Rows and columns, for a network that takes images of any size."""
    output_name: str | None = None
    """Which output is exported, of a network that has several."""
    architecture: Path | None = None
    """The `model.json` or `.yaml` that a weights-only file belongs to."""

    def __post_init__(self) -> None:
        if "int8" in self.precisions and self.calibration is None:
            raise UsageError(
                "--precision int8 needs images of the kind the model will see: --calibration DATA "
                "(about 300, from the training set; labels are not needed)"
            )
        if (self.mean is None) != (self.std is None):
            raise UsageError("--mean and --std go together")
        if self.mean and self.preprocessing:
            raise UsageError("--mean and --std are a rule of their own: leave --preprocessing out")
        if self.color_order and not (self.mean or self.preprocessing):
            raise UsageError("--color-order goes with --preprocessing, or with --mean and --std")
        if self.architecture is not None and self.arch is not None:
            raise UsageError("--architecture and --arch both say what weights belong to: give one")
        if self.classes is not None and self.arch is None:
            raise UsageError("--classes is for files with weights only: it goes with --arch vgg16")

    def tells_scaling(self, known: ModelSpec | None) -> bool:
        """Whether the user, or the file's own spec, says how images are scaled."""
        fields = self.spec_fields or {}
        own = known is not None and known.intensity.rule != "unspecified"
        return bool(own or self.preprocessing or self.mean or "intensity" in fields)

    def tells_resize(self, known: ModelSpec | None) -> bool:
        """Whether the user, or the file's own spec, says how images are resized."""
        fields = (self.spec_fields or {}).get("image")
        return bool(known or self.resize or (isinstance(fields, dict) and "resize" in fields))

    def request(self, threads: int) -> Request:
        """What of this concerns the model file."""
        return Request(
            self.allow_code,
            self.arch,
            self.classes,
            self.input_size,
            self.output_name,
            self.architecture,
            threads,
        )


def make_spec(
    source: Source, options: ExportOptions, data_labels: DataLabels | None
) -> tuple[ModelSpec, list[str]]:
    """Decide the artefacts' spec; what the user says wins over what the file says.

    Args:
        source: the model file.
        options: what the user asked for.
        data_labels: class names of the validation or calibration data, if there are any.

    Returns:
        The spec, and warnings about what had to be assumed.

    Raises:
        UsageError: labels or head do not match the model's width.
        SourceError: the head is neither probabilities nor logits.
    """
    origin, warnings = source.origin, list(source.origin.warnings)
    rows, columns, _ = source.input_shape
    known = origin.spec
    intensity = _intensity(source, options, known, warnings)
    head = _head(source, options, known, intensity, warnings)
    classes = task_of_head(head).columns(source.units)
    image = replace(known.image, rows=rows, columns=columns) if known else ImageRule(rows, columns)
    spec = ModelSpec(
        labels=_labels(options, known, data_labels or DataLabels(), classes, warnings),
        image=from_plain(
            ImageRule, {**to_plain(image), **({"resize": options.resize} if options.resize else {})}
        ),
        intensity=intensity,
        task=task_of_head(head).name,
        head=head,
        source=SourceEntry(
            origin.path.resolve().name if origin.path.is_dir() else origin.path.name,
            origin.sha256,
            origin.keras_version,
        ),
    )
    if known:
        spec = known.with_(
            **{
                name: getattr(spec, name)
                for name in ("labels", "image", "intensity", "task", "head", "source")
            }
        )
    return _with_fields(spec, options.spec_fields or {}), warnings


def _head(
    source: Source,
    options: ExportOptions,
    known: ModelSpec | None,
    intensity: Intensity,
    warnings: list[str],
) -> Head:
    """Decide what the last layer gives: as the user says, as the file says, or as Keras shows."""
    refuse_softmax_of_one(source)
    path, units = source.origin.path, source.units
    told = options.head or (known.head if known else None)
    if told is None:
        told, said = choose_head(source, intensity)
        warnings += said
    if told == "sigmoid" and units != 1:
        raise UsageError(f"--head sigmoid is for one unit; {path} has {units}: --head multilabel or logits")
    if told == "softmax" and units == 1:
        raise UsageError(f"--head softmax is for several units; {path} has one: --head sigmoid or logits")
    if told == "logits":
        added = "sigmoid" if units == 1 else "softmax"
        warnings.append(f"the model ends in bare logits: a {added} is added")
        if source.ending.nature.is_probable:
            warnings.append(
                f"its outputs are made of a {source.ending.nature.kind}'s: the {added} comes on top"
            )
    return told


def _intensity(
    source: Source, options: ExportOptions, known: ModelSpec | None, warnings: list[str]
) -> Intensity:
    """Decide how images are scaled: as the user says, as the file says, or as the first layers show."""
    channels: Literal[1, 3] = 1 if source.input_shape[2] == 1 else 3
    told = known.intensity if known else None
    if options.mean and options.std:
        told = Intensity("custom", options.color_order or "rgb", channels, 255.0, options.mean, options.std)
    elif options.preprocessing:
        told = Intensity.named(options.preprocessing, channels=channels, color_order=options.color_order)
    if told is None or told.rule == "unspecified":
        shown, said = infer_scaling(source)
        warnings += said
        return shown or Intensity("unspecified", channels=channels)
    warnings += check_scaling(source, told)
    return told


def _labels(
    options: ExportOptions,
    known: ModelSpec | None,
    data_labels: DataLabels,
    classes: int,
    warnings: list[str],
) -> tuple[str, ...]:
    for origin, labels in (
        ("--labels", options.labels),
        ("the model file", known.labels if known else None),
        ("the data", data_labels.names),
    ):
        if labels:
            if len(labels) != classes:
                counts = (
                    f"{origin} names {len(labels)} classes ({', '.join(labels)}); the model has {classes}"
                )
                raise UsageError(f"{counts}: {NOT_CLASSES}" if origin == "the data" else counts)
            if origin == "the data":
                warnings.append(
                    f"class names come from {data_labels.said}: {', '.join(labels)}; --labels changes them"
                )
            return tuple(labels)
    warnings.append(
        f"the classes have no names: they are numbered 0 to {classes - 1}; name them with --labels"
    )
    return tuple(str(number) for number in range(classes))


def _with_fields(spec: ModelSpec, fields: dict[str, Any]) -> ModelSpec:
    def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        return {
            **old,
            **{
                name: merge(old[name], value)
                if isinstance(value, dict) and isinstance(old.get(name), dict)
                else value
                for name, value in new.items()
            },
        }

    return ModelSpec.from_fields(merge(to_plain(spec), fields), "--spec") if fields else spec
