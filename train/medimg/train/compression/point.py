"""One compressed model: widths, weights, distillation, calibration, INT8, gate.

Imports Keras: load it after `start_keras`.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

from medimg.runtime.errors import DataError
from medimg.runtime.files.plain import from_plain, to_plain
from medimg.runtime.files.writing import replaced
from medimg.runtime.tasks import task_named
from medimg.train.compression.chain import arrays_of, build, set_weights
from medimg.train.compression.distillation import distil, targets
from medimg.train.compression.gate import judge
from medimg.train.compression.parent import Lesson
from medimg.train.compression.result import Point
from medimg.train.compression.stages import total_macs
from medimg.train.compression.widths import Widths
from medimg.train.compression.workshop import Workshop
from medimg.train.data.balance import image_weights
from medimg.train.data.parts import Part, Parts
from medimg.train.evaluation.answers import ask
from medimg.train.evaluation.calibrate import CalibrationResult, calibrate
from medimg.train.evaluation.operating_points import wanted_sensitivities
from medimg.train.fitting.checkpoint import Checkpoint
from medimg.train.fitting.journal import Journal, Phase
from medimg.train.fitting.phases import Plan
from medimg.train.keras_files import save
from medimg.train.keras_setup import choose_policy, gpu_capabilities
from medimg.train.networks.build import Network
from medimg.train.state_files import read_state


def make_point(shop: Workshop, name: str, widths: Widths, model: Path) -> Point:
    """Make a compressed model and judge its INT8 artefact; what a kill left is gone on with.

    Args:
        shop: what all points are made with.
        name: of the point.
        widths: output channels of each layer.
        model: the Keras file to write; a point that was finished stands beside it.
    """
    finished = model.with_name("point.json")
    if finished.exists():
        way_out = f"remove the folder {finished.parent.name} to make that point again"
        return from_plain(Point, read_state(finished, way_out), str(finished))
    begin = time.perf_counter()
    network, training = _trained(shop, name, widths, model.parent)
    save(network, shop.spec, model)
    calibrated, notes = _calibrated(shop, model)
    artefact = shop.device.export(model)
    latency_ms = shop.device.time(artefact)
    found = ask(
        artefact,
        shop.spec,
        shop.test,
        batch_size=8,
        backend=shop.options.backend,
        threads=shop.job.threads,
        progress=shop.job.progress,
        device=shop.options.device,
    )
    latency = shop.latency_model
    point = Point(
        name=name,
        widths=widths,
        macs=total_macs(shop.stages, widths),
        lost=tuple(
            float(ranking.errors[width]) for ranking, width in zip(shop.rankings, widths[:-1], strict=True)
        ),
        modelled_ms=latency.predict(shop.stages, widths) if latency else None,
        latency_ms=latency_ms,
        training=training,
        temperature=calibrated.temperature,
        notes=notes,
        gate=judge(shop.reference, found, shop.options.max_drop),
        seconds=time.perf_counter() - begin,
    )
    with replaced(finished) as temporary:
        temporary.write_text(json.dumps(to_plain(point)), encoding="utf-8")
    return point


def _trained(shop: Workshop, name: str, widths: Widths, folder: Path) -> tuple[Network, Phase | None]:
    """Give the network in float32, after distillation."""
    options, chain, image = shop.options, shop.parent.chain, shop.parent.image
    weights = shop.reconstructed(widths) if options.reconstruct else shop.weights(widths)
    if not options.epochs:
        return shop.network(widths, weights), None
    policy = choose_policy("auto", gpus=gpu_capabilities())
    student = build(chain, (image.rows, image.columns), widths, policy, for_training=True)
    set_weights(student, weights)
    parts = Parts(_part(shop, shop.taught.train), _part(shop, shop.taught.validation))
    journal = Journal(Checkpoint(folder, {"width": str(widths), "precision": policy}))
    exclusive = task_named(shop.parent.spec.task).exclusive and chain.classes > 1
    phase = distil(
        student,
        parts,
        shop.parent.spec.intensity,
        Plan(name, options.epochs, options.epochs, options.learning_rate, may_keep_start=True),
        replace(shop.job, journal=journal),
        exclusive=exclusive,
        distilled=options.distil,
    )
    return shop.network(widths, arrays_of(student)), phase


def _part(shop: Workshop, lesson: Lesson) -> Part:
    truth, train_truth = (
        found.truth[: len(found.truth) // found.copies] for found in (lesson, shop.taught.train)
    )
    # One unit tells two classes apart.
    weights = image_weights(truth, train_truth, max(2, shop.parent.chain.classes), shop.options.balance)
    return Part(lesson.images, targets(lesson.logits, lesson.truth), weights)


def _calibrated(shop: Workshop, model: Path) -> tuple[CalibrationResult, tuple[str, ...]]:
    """Fit temperature and operating points anew, on validation images."""
    wanted = wanted_sensitivities(shop.parent.spec.operating_points)
    notes = tuple(
        f"the threshold of {point.label} names no sensitivity to keep: choose one by calibrate"
        for point in shop.parent.spec.operating_points
        if point.label not in wanted
    )

    def fitted(*, temperature: bool) -> CalibrationResult:
        return calibrate(
            model,
            shop.data,
            fit_the_temperature=temperature,
            sensitivities=wanted,
            threads=shop.job.threads,
            progress=shop.job.progress,
        )

    try:
        return fitted(temperature=True), notes
    except DataError as error:
        return fitted(temperature=False), (*notes, f"temperature 1: {error}")
