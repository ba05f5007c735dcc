"""What a user must know beside the figures of an export, in words."""

from medimg.export.job import Job
from medimg.export.label_choice import doubts
from medimg.export.options import ExportOptions
from medimg.export.result import ArtefactFile, Quantization
from medimg.export.to_fp16 import costliest_layer, to_fp16
from medimg.export.verify import AGREEMENT_FLOOR, BATCH_LIMIT, FP32_LIMIT, Trial
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.statistics.bootstrap import Resamples
from medimg.runtime.statistics.metrics import images_needed

MOVES = 0.1
"""A change of a probability by INT8 from which on it is told, where no labels say what it costs."""
WANTED = 300
"""Calibration images that are enough for most networks."""


def notes_on(item: ArtefactFile, job: Job, quantization: Quantization | None) -> list[str]:
    """Say what is particular about an artefact.

    Args:
        item: the artefact.
        job: the export that made it.
        quantization: how INT8 came about, in that precision.
    """
    found, notes = item.verification, []
    if item.missed:
        notes.append(
            f"{item.precision}: Keras and the artefact do not agree for which images there is a number: "
            f"{some(item.missed)}"
        )
    if item.reference_rounding:
        notes.append(
            f"fp32: {found.max_abs_diff:.1e} from Keras, more than {FP32_LIMIT:.0e}: this network "
            f"multiplies rounding, and Keras itself is {item.reference_rounding:.1e} from its answers in "
            "float64"
        )
    if item.precision == "fp16" and item.float_layers:
        notes.append(f"fp16: {', '.join(item.float_layers)} would overflow and stay in float32")
    if item.precision == "int8" and quantization is not None:
        notes += _on_int8(item, job, quantization)
    if item.precision == "fp16" and found.verdict == "failed":
        notes.append(_on_failed_fp16(item, job))
    return notes


def _on_int8(item: ArtefactFile, job: Job, quantization: Quantization) -> list[str]:
    found, notes, count = item.verification, [], len(quantization.images)
    if restored := [layer.layer for layer in quantization.layers if layer.restored]:
        notes.append(f"int8: {', '.join(restored)} lost too much and stays in float32")
    if found.verdict == "failed":
        more = f"more calibration images than {count} (about {WANTED})" if count < WANTED else ""
        judged = "" if found.images_from == "validation" else "labelled images with --validation DATA"
        budget = f"more time for repair than --repair-budget {job.options.repair_minutes:g}"
        steps = [step for step in (more, judged, budget, "--precision fp16 instead") if step]
        notes.append(f"int8 failed ({_why_failed(item)}); what may help: {'; '.join(steps)}")
    elif found.accuracy is None and found.max_abs_diff > MOVES:
        notes.append(
            f"int8: caution: it moves a probability by up to {found.max_abs_diff:.2f} on {found.images} "
            f"{found.images_from} images, which no labels judge: --validation DATA tells what that costs"
        )
    return notes


def _why_failed(item: ArtefactFile) -> str:
    """Name the limit that an artefact went beyond."""
    found, precision = item.verification, item.precision
    if item.missed:
        return "images without a number"
    limit = BATCH_LIMIT.get(precision, FP32_LIMIT)
    if item.batch_max_abs_diff > limit:
        return f"a batch moves a probability by {item.batch_max_abs_diff:.1e}, at most {limit:.0e} is allowed"
    if found.accuracy_drop is not None:
        return f"the accuracy drops by {found.accuracy_drop:.4f}"
    floor = AGREEMENT_FLOOR[precision]
    return f"top-1 agreement {found.top1_agreement:.4f}, at least {floor:g} is asked for"


def _on_failed_fp16(item: ArtefactFile, job: Job) -> str:
    half = to_fp16(job.network, item.float_layers)
    layer = costliest_layer(job.network, half, next(job.trial.batches()), job.threads)
    judged = (
        "" if item.verification.images_from == "validation" else "; --validation DATA judges on real images"
    )
    return (
        f"fp16 failed on {item.verification.images} {item.verification.images_from} images "
        f"({_why_failed(item)}): half precision loses most in {layer}{judged}"
    )


def notes_on_trial(trial: Trial, spec: ModelSpec, options: ExportOptions) -> list[str]:
    """Say what the images of a trial showed of the model itself, and what they cannot show.

    Args:
        trial: the images and Keras's answers.
        spec: the artefact's.
        options: what the user asked for.
    """
    warnings = doubts(
        spec, trial.reference[trial.answered], None if trial.truth is None else trial.truth[trial.answered]
    )
    if silent := trial.unanswered():
        warnings.append(
            f"Keras itself gives no number (NaN) for {len(silent)} of {len(trial.names)} images, and so do "
            f"the artefacts: {some(silent)}"
        )
    if trial.is_constant:
        warnings.append(
            f"Keras gives one and the same answer to all {len(trial.names)} trial images, so this proves "
            "nothing: does the network get images as it was trained on (--preprocessing)? --validation DATA "
            "tries real ones"
        )
    return warnings + _limits_of_trial(trial, options)


def some(names: tuple[str, ...]) -> str:
    """List the first few names, and count the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _limits_of_trial(trial: Trial, options: ExportOptions) -> list[str]:
    """Say what the trial's images cannot show."""
    if trial.images_from == "synthetic":
        return ["verified on synthetic arrays only: --validation DATA verifies on your images"]
    if trial.images_from == "calibration":
        return [
            "compared on the calibration images, which INT8 ranges come from: --validation DATA judges fairly"
        ]
    drawn = Resamples(trial.patients).resampling
    if trial.truth is not None and drawn.units < images_needed(options.max_drop):
        what = "labelled images" if drawn.unit == "images" else "patients with labelled images"
        return [
            f"{drawn.units} {what} cannot prove a drop of at most {options.max_drop:g}: "
            f"{images_needed(options.max_drop)} would, without any disagreement"
        ]
    return []
