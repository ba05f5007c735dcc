"""A spec in words."""

from collections.abc import Iterator

from medimg.runtime.files.text import printable
from medimg.runtime.model.plan import EngineRecord
from medimg.runtime.model.spec import Compression, Intensity, ModelSpec, Verification


def describe(spec: ModelSpec) -> list[str]:
    """Say what an artefact is, a line a fact."""
    return [_line(name, value) for name, value in _facts(spec)]


def describe_engine(record: EngineRecord) -> list[str]:
    """Say what a TensorRT engine is beyond its spec."""
    return [_line(name, value) for name, value in _engine_facts(record)]


def _line(name: str, value: str) -> str:
    return f"{name:<14} {printable(value)}"


def _engine_facts(record: EngineRecord) -> Iterator[tuple[str, str]]:
    later = ", and later ones of the same major version" if record.version_compatible else ""
    yield "engine for", f"{record.gpu}, compute capability {record.compute_capability}"
    yield "TensorRT", f"{record.tensorrt}{later}"
    yield "runs in", record.executed_precision
    profile = record.profile
    yield "batch", f"{profile.least} to {profile.most} images, tuned for {profile.best}"
    yield "engine SHA-256", record.engine_sha256
    yield "ONNX SHA-256", record.onnx_sha256
    if record.other_precision:
        yield "not as asked", ", ".join(record.other_precision)


def _facts(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    image = spec.image
    yield "labels", ", ".join(spec.labels)
    yield "task", f"{spec.task}, {spec.head} head"
    yield "precision", spec.precision
    yield "image", f"{image.rows} x {image.columns} px, {image.resize}, 16-bit by {image.sixteen_bit}"
    yield "preprocessing", _arithmetic(spec.intensity)
    if spec.temperature != 1:
        yield "temperature", f"{spec.temperature:g}"
    for point in spec.operating_points:
        yield "threshold", f"{point.label}: {point.threshold:g} ({point.chosen_for})"
    if spec.intended_use:
        yield "intended use", spec.intended_use
    for name, values in (
        ("modality", spec.allowed.modality),
        ("body part", spec.allowed.body_part),
        ("photometric", spec.allowed.photometric_interpretation),
    ):
        if values:
            yield name, f"{', '.join(values)} only"
    if spec.simulated_data:
        yield "trained on", "simulated images"
    yield from _origin(spec)
    if spec.float_layers:
        yield "kept in fp32", ", ".join(spec.float_layers)
    yield "verified", _verification(spec.verification) if spec.verification else "no"


def _origin(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    if spec.compression:
        yield "compressed", _compression(spec.compression)
    if spec.source:
        yield "made from", f"{spec.source.name}, SHA-256 {spec.source.sha256[:16]}…"
    if spec.tools:
        yield "made with", ", ".join(f"{name} {version}" for name, version in sorted(spec.tools.items()))


def _arithmetic(intensity: Intensity) -> str:
    if intensity.rule == "unspecified":
        return "unspecified: predict refuses until told"
    channels = "grey" if intensity.channels == 1 else intensity.color_order.upper()
    return f"{intensity.rule} ({channels})"


def _compression(found: Compression) -> str:
    low, high = found.accuracy_drop_ci95
    return (
        f"{found.parent_macs / found.macs:.1f}x fewer multiply-accumulates, {found.method}, from SHA-256 "
        f"{found.parent_sha256[:16]}…; {found.verdict} on {found.images} images: accuracy drop "
        f"{found.accuracy_drop:+.4f} [{low:+.4f}, {high:+.4f}], AUC drop {found.roc_auc_drop:+.4f}"
    )


def _verification(found: Verification) -> str:
    text = (
        f"{found.verdict}, {found.images} {found.images_from} images: "
        f"max |Δp| {found.max_abs_diff:.2g}, top-1 agreement {found.top1_agreement:.4f}"
    )
    if (
        found.accuracy is not None
        and found.accuracy_drop is not None
        and found.accuracy_drop_ci95 is not None
    ):
        low, high = found.accuracy_drop_ci95
        text += f", accuracy {found.accuracy:.4f}, drop {found.accuracy_drop:+.4f} [{low:+.4f}, {high:+.4f}]"
    return text
