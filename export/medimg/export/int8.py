"""INT8 from end to end: ranges, quantisation, proof, and repair where the proof fails."""

from pathlib import Path

from onnx import ModelProto

from medimg.export.calibration import ends
from medimg.export.equalize import equalize
from medimg.export.job import Job
from medimg.export.ranges import choose_ranges, hold_back, split_calibration
from medimg.export.repair import LayerEffect, repair
from medimg.export.result import ArtefactFile, CalibrationImage, Quantization
from medimg.export.to_int8 import to_int8
from medimg.runtime.data import DataSet, load_batches
from medimg.runtime.model.containers import Artefact
from medimg.runtime.model.spec import Verification

EQUALIZING_IMAGES = 32
"""Calibration images that channel ranges are taken from."""


def make_int8(
    job: Job, calibration: DataSet, images: tuple[CalibrationImage, ...]
) -> tuple[ArtefactFile, Quantization]:
    """Make the INT8 artefact; one that fails its verification is repaired before it is given up.

    Args:
        job: the export under way.
        calibration: images of the kind that the model will see, all of which can be read.
        images: their names and hashes, for the report.
    """
    feeding, judging = split_calibration(calibration)
    with job.steps.step(f"calibrate on {len(calibration)} images"):
        held_back = hold_back(job.network, job.spec, judging, job.threads)
        sample = load_batches(feeding.samples[:EQUALIZING_IMAGES], job.spec.image, 1, job.threads)
        names = [item.name for item in feeding.samples]
        network = equalize(job.network, sample, job.threads, names)
        ranges = choose_ranges(network, job.spec, feeding, held_back, job.threads)
    kept = ends(network)
    quantized = to_int8(network, ranges.thresholds, kept)
    item = job.place(quantized, "int8", float_layers=kept, force=False)
    effects: tuple[LayerEffect, ...] = ()
    if item.verification.verdict == "failed":
        if job.options.repair_minutes:
            with job.steps.step("repair int8"):
                mended = repair(
                    network,
                    job.spec,
                    ranges.thresholds,
                    held_back,
                    judge=lambda model, layers: _judge(job, model, layers),
                    threads=job.threads,
                    budget_s=job.options.repair_minutes * 60,
                )
            quantized, kept, effects = mended.model, mended.float_layers, mended.effects
        item = job.place(quantized, "int8", float_layers=kept)
    return item, Quantization(ranges.method, ranges.scores, images, effects)


def _judge(job: Job, model: ModelProto, layers: tuple[str, ...]) -> Verification:
    spec = job.spec.with_(precision="int8", float_layers=layers)
    artefact = Artefact(Path(f"{job.stem}.int8.onnx"), spec, model.SerializeToString())
    return job.compare(artefact).verification
