"""From a Keras file to verified artefacts."""

import itertools
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from onnx import ModelProto

from medimg.export import graph, head
from medimg.export.bounds import within_allowance
from medimg.export.calibration_data import check_classes, read_calibration, read_images
from medimg.export.errors import SourceError
from medimg.export.evidence import Evidence, find_preprocessing
from medimg.export.golden import write_trial
from medimg.export.guard import guard, refuse_nan_weights
from medimg.export.int8 import make_int8
from medimg.export.job import SUFFIXES, Job, Steps
from medimg.export.label_choice import check_names, decide_order, labels_of
from medimg.export.notes import notes_on, notes_on_trial
from medimg.export.options import ExportOptions, make_spec
from medimg.export.result import ArtefactFile, CalibrationImage, ExportResult, SourceFile
from medimg.export.simplify import without_whole_number_casts
from medimg.export.sources import Source, load_source
from medimg.export.sources.base import Request
from medimg.export.to_fp16 import overflowing_nodes, to_fp16
from medimg.export.to_onnx import NETWORK_INPUT
from medimg.export.verify import Trial, make_trial, own_rounding
from medimg.runtime.data import DataSet, read_data
from medimg.runtime.data.patients import with_patients
from medimg.runtime.errors import DataError, ModelError, UsageError
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.model.applicability import require_all_applicable
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.tasks import task_named

OVERFLOW_BATCHES = 4
"""Batches of images on which activations beyond half precision are looked for."""
TOOLS = ("medimg", "keras", "tf-keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime")


def export_model(
    model: str | Path,
    options: ExportOptions | None = None,
    *,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> ExportResult:
    """Export a classifier to ONNX, each artefact compared with the model before it is put in place.

    Args:
        model: a `.keras`, `.h5` or `.onnx` file, or a SavedModel folder.
        options: which artefacts, and what is known of the model.
        threads: processor threads; all that this process may use unless given.
        progress: called with the name of each step as it begins.

    Returns:
        What was made and found. An artefact whose verification failed is not written unless `force` is set.

    Raises:
        SourceError: the file cannot be exported.
        UsageError: the options do not fit the model, or the output folder cannot be written.
        DataError: the calibration or validation data cannot be understood.
        CalibrationError: the calibration images do not serve.
    """
    chosen = options or ExportOptions()
    path, used_threads, steps = Path(model), threads or usable_cpus(), Steps(progress)
    stem = _stem(path, chosen)
    with steps.step("read data"):
        calibration = (
            read_calibration(chosen.calibration, chosen.calibration_images) if chosen.calibration else None
        )
        validation = read_data(chosen.validation, labelled=False) if chosen.validation else None
    with steps.step("load model"):
        source = load_source(path, chosen.request(used_threads))
    with closing(source):
        named = next((data for data in (validation, calibration) if data and data.labels), None)
        spec, warnings = make_spec(source, chosen, labels_of(named))
        spec, said = _with_order(source, spec, None if chosen.labels else named, used_threads)
        warnings += said
        spec = spec.with_(heatmap=chosen.heatmap, tools={name: version(name) for name in TOOLS})
        validation = validation.relabelled(spec.labels) if validation and validation.labels else validation
        if validation:
            require_all_applicable((sample.source for sample in validation.samples), spec.allowed)
        calibration_images = _checked_calibration(calibration, spec, chosen, used_threads, steps)
        spec, evidence = _with_evidence(source, spec, validation, chosen, used_threads, steps)
        resize_is_known = chosen.tells_resize(source.origin.spec)
        warnings += _preprocessing_notes(spec, evidence, resize_is_known=resize_is_known)
        _require_preprocessing(spec, chosen)
        _refuse_golden_floats(spec, chosen)
        images = _evaluation_part(validation) if validation else calibration
        if validation and images:
            images, unknown = _with_patients(images, spec, used_threads)
            warnings += unknown
        judged = validation is not None
        with steps.step("run Keras"):
            trial = _trial(source, spec, images, judged, used_threads)
        with steps.step("convert"), within_allowance(path):
            # The framework's process first, so that its memory and the graph's do not add up.
            source.stop()
            network = convert_network(source, spec)
    if chosen.golden:
        write_trial(stem, trial, chosen.golden)
    warnings += notes_on_trial(trial, spec, chosen)
    rounding = partial(_own_rounding, path, chosen.request(used_threads), spec, trial)
    job = Job(network, spec, trial, rounding, stem, chosen, used_threads, steps)
    artefacts, quantization = [], None
    for precision in dict.fromkeys(chosen.precisions):
        if precision == "int8":
            assert calibration is not None, "options are checked before anything is loaded"
            item, quantization = make_int8(job, calibration, calibration_images)
        elif precision == "fp16":
            item = _make_fp16(job)
        else:
            item = job.place(network, precision)
        warnings += notes_on(item, job, quantization)
        artefacts.append(item)
    summary = SourceFile(str(path), source.origin.kind, source.origin.sha256, source.origin.keras_version)
    return ExportResult(summary, tuple(artefacts), quantization, evidence, tuple(warnings), steps.seconds)


def _with_order(
    source: Source, spec: ModelSpec, named: DataSet | None, threads: int
) -> tuple[ModelSpec, list[str]]:
    """Settle the order of class names that came from the data, where Keras has to be asked for it."""
    found = labels_of(named)
    check_names(source.origin.path, spec, found)
    if named is None or not found.as_numbers or spec.labels != found.names or source.origin.spec:
        return spec, []
    return decide_order(source, spec, found, _choosing_part(named), threads)


def _checked_calibration(
    calibration: DataSet | None, spec: ModelSpec, options: ExportOptions, threads: int, steps: Steps
) -> tuple[CalibrationImage, ...]:
    """Check that the calibration images serve, before anything is made; give their names and hashes."""
    if calibration is None or options.calibration is None:
        return ()
    check_classes(options.calibration, calibration, spec.labels)
    with steps.step(f"read {len(calibration)} calibration images"):
        return read_images(calibration, spec, threads)


def _with_evidence(
    source: Source,
    spec: ModelSpec,
    validation: DataSet | None,
    options: ExportOptions,
    threads: int,
    steps: Steps,
) -> tuple[ModelSpec, Evidence | None]:
    """Find an unknown preprocessing with labelled images, if there are any."""
    shown = None if spec.intensity.rule == "unspecified" else spec.intensity
    known = shown is not None and options.tells_scaling(source.origin.spec)
    if known or not task_named(spec.task).exclusive or validation is None or not validation.labels:
        return spec, None
    with steps.step("find preprocessing"):
        evidence = find_preprocessing(
            source,
            spec.head,
            spec.image,
            _choosing_part(validation),
            resize_is_known=options.tells_resize(source.origin.spec),
            threads=threads,
            shown=shown,
        )
    image = replace(spec.image, resize=evidence.resize)
    return spec.with_(intensity=evidence.intensity, image=image), evidence


def _preprocessing_notes(spec: ModelSpec, evidence: Evidence | None, *, resize_is_known: bool) -> list[str]:
    if evidence is not None:
        chosen, margin = evidence.intensity, evidence.margin
        by = f", {margin:.3f} more accurate than the next" if margin is not None else ""
        return [f"preprocessing found: {chosen.rule} {chosen.color_order}{by}", *evidence.notes]
    resize = (
        f"the model file does not say how images were resized in training: {spec.image.resize} is assumed; "
        "--resize changes it"
    )
    if spec.intensity.rule != "unspecified":
        return [] if resize_is_known else [resize]
    return [
        "the preprocessing is unknown: the artefact takes the network's own float input, and predict "
        "refuses it; say how images were scaled with --preprocessing caffe|torch|tf|unit|raw, or give "
        "labelled images with --validation"
    ]


def _require_preprocessing(spec: ModelSpec, options: ExportOptions) -> None:
    if "int8" in options.precisions and spec.intensity.rule == "unspecified":
        raise UsageError(
            "--precision int8 runs the network on the calibration images, so it must know how images were "
            "scaled in training: --preprocessing caffe|torch|tf|unit|raw says it, labelled images with "
            "--validation tell it"
        )


def _refuse_golden_floats(spec: ModelSpec, options: ExportOptions) -> None:
    if options.golden and spec.intensity.rule == "unspecified":
        raise UsageError(
            "--golden writes images as the network takes them, so their scaling must be known: "
            "--preprocessing caffe|torch|tf|unit|raw"
        )


def _make_fp16(job: Job) -> ArtefactFile:
    with job.steps.step("look for overflow"):
        batches = itertools.islice(job.trial.batches(), OVERFLOW_BATCHES)
        # One image at a time: every activation of the network is held at once.
        images = (image[None] for batch in batches for image in batch)
        beyond = overflowing_nodes(job.network, images, job.threads)
    return job.place(to_fp16(job.network, beyond), "fp16", float_layers=beyond)


def _trial(source: Source, spec: ModelSpec, images: DataSet | None, judged: bool, threads: int) -> Trial:
    try:
        return make_trial(source, spec, images, validation=judged, threads=threads)
    except SourceError:
        # Where the weights are no numbers, no image is to blame.
        refuse_nan_weights(graph.tidy(source.convert(), source.layer_names()))
        raise


def _own_rounding(path: Path, request: Request, spec: ModelSpec, trial: Trial) -> float:
    """Open the model once more, in float64; 0 where it cannot be had so."""
    try:
        with closing(load_source(path, replace(request, float64=True))) as exact:
            return own_rounding(exact, spec, trial)
    except SourceError:
        return 0.0


def convert_network(source: Source, spec: ModelSpec) -> ModelProto:
    """Convert a network, from uint8 images to probabilities, and check the graph."""
    network = graph.tidy(source.convert(), source.layer_names())
    refuse_nan_weights(network)
    if source.input_dtype != "float32":
        without_whole_number_casts(network, NETWORK_INPUT)
    network = graph.add_preprocessing(network, spec.intensity)
    network = guard(head.finish_head(network, spec.head, spec.temperature))
    return graph.check(head.add_heatmap(network) if spec.heatmap else network)


def _stem(path: Path, options: ExportOptions) -> Path:
    """Tell the artefacts' path without the suffix; none of them may take the model file's place."""
    name = path.resolve().name if path.is_dir() else path.stem
    stem = _writable(options.output or path.parent) / name
    for precision in options.precisions:
        target = stem.with_name(name + SUFFIXES[precision])
        if target.exists() and path.exists() and target.samefile(path):
            raise UsageError(
                f"{path}: the artefact would take its place: choose another folder with --output"
            )
        if target.is_file() and _made_from(target) != _source_name(path):
            made = _made_from(target)
            whose = f"was made from {made}" if made else "is no artefact of medimg-export"
            raise UsageError(
                f"{target}: {whose}, and {path.name}'s would take its place: choose another folder with "
                "--output, or move it away"
            )
    return stem


def _source_name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.name


def _made_from(artefact: Path) -> str | None:
    """Name the model file that an artefact was made from; None if it is no artefact, or does not say."""
    try:
        source = ModelSpec.read(artefact).source
    except ModelError:
        return None
    return source.name if source else None


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without a name, so that exports into one folder do not meet, and nothing is left.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{folder}: artefacts cannot be written there ({error.strerror}): choose --output DIR"
        ) from None
    return folder


def _evaluation_part(data: DataSet) -> DataSet:
    """Take the test split if there is one, else the validation split, else everything."""
    return next((part for part in (data.part("test"), data.part("val")) if len(part)), data)


def _choosing_part(data: DataSet) -> DataSet:
    """Take images for choices: not the test split, which judges, where the data have other parts."""
    return next((part for part in (data.part("val"), data.part("train")) if len(part)), data)


def _with_patients(images: DataSet, spec: ModelSpec, threads: int) -> tuple[DataSet, list[str]]:
    """Say whose images they are, as training did."""
    try:
        return with_patients(images, spec.held_out.group_by if spec.held_out else None, threads), []
    except DataError as error:
        return images, [f"intervals take every image for a patient of its own; as medimg-train says: {error}"]
