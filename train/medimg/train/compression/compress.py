"""`compress`: smaller models of the same spec and head, each judged in INT8 on images that chose nothing."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from medimg.runtime.data import DataSet
from medimg.runtime.errors import DataError, UsageError
from medimg.runtime.files.writing import replaced, require_writable, written_whole
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.model.spec import Compression, HeldOut, ModelSpec
from medimg.train.compression.gate import passes
from medimg.train.compression.options import CompressOptions
from medimg.train.compression.parent import (
    Parent,
    fit_options,
    known_spec,
    read_parent,
    reference,
    require_images,
    teach,
)
from medimg.train.compression.result import CompressResult, Point
from medimg.train.compression.stages import full_widths, total_macs
from medimg.train.compression.widths import Widths
from medimg.train.compression.workshop import Workshop, write_original
from medimg.train.data.array_store import ArrayStore, open_store
from medimg.train.data.division import Division, divide
from medimg.train.errors import TargetError
from medimg.train.fitting.checkpoint import training_folder
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.keras_files import check_output, rewrite_spec
from medimg.train.progress import Progress
from medimg.train.simulation.simulate import is_simulated
from medimg.train.state_files import read_state

MARK = "compression.json"
"""Says what the folder's content depends on."""


def compress(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    options: CompressOptions | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    cache_dir: str | Path | None = None,
    resume: bool = False,
    restart: bool = False,
    plot: str | Path | None = None,
) -> CompressResult:
    """Make a chain of convolutions and dense layers narrower, and keep the fastest that is as good.

    The points are made from the least compressed on, and the first that does not pass ends the ladder. So
    each verdict stands at its full level though several are given on the same images (fixed sequence).
    Meanwhile a folder `OUTPUT.training` holds the work; one that was killed goes on from there.

    Args:
        model: a Keras file; one without a spec needs `preprocessing`.
        data: a data set with a part named test, which judges and chooses nothing.
        output: the Keras file to write, if a point passes.
        options: how far, and how.
        threads: processor threads; by default those this process may use.
        progress: shows how far it has come.
        cache_dir: keeps decoded images, the original's answers and this machine's timings for later runs; by
            default removed.
        resume: go on with a compression that was broken off; where there is none, begin.
        restart: begin anew, whatever was broken off.
        plot: an SVG file for accuracy and AUC against latency.

    Raises:
        ChainError: the network is no chain, or has a layer that cannot be narrowed.
        DataError: the data cannot be understood, or are too few.
        DeploymentError: an artefact could not be exported, or not be timed.
        ModelError: the model cannot be used, or is not trained.
        TargetError: no width reaches the target.
        UsageError: options make no sense, or a file cannot be written.

    Source:
        W. Maurer, L. Hothorn, W. Lehmacher, Multiple comparisons in drug clinical trials and preclinical
        assays: a-priori ordered hypotheses, Biometrie in der chemisch-pharmazeutischen Industrie 6 (1995).
    """
    begin = time.perf_counter()
    options, threads, progress = (
        options or CompressOptions(),
        threads or usable_cpus(),
        progress or Progress(),
    )
    model, data, output = Path(model), Path(data), Path(output)
    check_output(output)
    if plot is not None:
        require_writable(plot)
    if output.exists() and model.exists() and output.samefile(model):
        raise UsageError(f"{output}: is the original itself: name another file")
    known_spec(model, options)
    # It takes many networks, each asked a few times, for a loop that compiles one again and again.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    parent, dataset = read_parent(model, data, options, threads)
    base = fit_options(options, parent.spec.held_out, parent.spec.task)
    division, test = _parts(dataset, base, options.max_drop, str(data))
    if division.validation_from == "split":
        held_out = HeldOut(base.validation_fraction, base.seed, base.group_by)
        parent = replace(parent, spec=parent.spec.with_(held_out=held_out))
    with training_folder(output, resume=resume, restart=restart, mark=MARK) as folder:
        _require_same(folder, parent, data, options)
        (folder / "store").mkdir(exist_ok=True)
        with open_store(Path(cache_dir) if cache_dir else None) as store:
            own = ArrayStore(folder / "store", kept=True)
            kept = store if cache_dir else own
            job = Job(store, threads, progress, replace(base, seed=options.seed))
            taught = teach(parent, division, job, kept)
            _write_mark(folder, parent, data, options)
            original = write_original(parent, folder)
            answers = reference(parent, original, test, job, kept)
            shop = Workshop(parent, taught, test, answers, options, job, data, folder, own, kept)
            points = tuple(_ladder(shop, output))
            chosen = _fastest(points, options)
            if chosen:
                _write(shop, chosen, output)
            result = _result(shop, division, points, chosen, output, time.perf_counter() - begin)
    if plot is not None:
        from medimg.train.compression.picture import draw

        with written_whole(Path(plot)) as temporary:
            draw(result, temporary)
    return result


def _parts(dataset: DataSet, options: FitOptions, max_drop: float, name: str) -> tuple[Division, DataSet]:
    test = dataset.part("test")
    if not len(test):
        raise DataError(f"{name}: has no part named test, and the gate needs images that chose nothing")
    division = divide(dataset, options)
    require_images(division, test, max_drop)
    return division, test


def _fingerprint(parent: Parent, data: Path, options: CompressOptions) -> dict[str, str]:
    """Collect what all that is in the folder depends on; points may be added later."""
    several = {name: str(value) for name, value in vars(options).items() if name not in ("macs", "strict")}
    return {**several, "model": parent.sha256, "data": str(data), "Keras": version("keras")}


def _require_same(folder: Path, parent: Parent, data: Path, options: CompressOptions) -> None:
    if not (folder / MARK).exists():
        return
    then = read_state(folder / MARK, "begin anew with --restart")
    for name, now in _fingerprint(parent, data, options).items():
        if then.get(name) != now:
            raise UsageError(
                f"{folder}: was begun with another {name} ({then.get(name)}, now {now}): go on with the same "
                "by --resume, or begin anew with --restart"
            )


def _write_mark(folder: Path, parent: Parent, data: Path, options: CompressOptions) -> None:
    with replaced(folder / MARK) as temporary:
        temporary.write_text(json.dumps(_fingerprint(parent, data, options)), encoding="utf-8")


def _ladder(shop: Workshop, output: Path) -> Iterator[Point]:
    """Make the points, until one does not pass."""
    from medimg.train.compression.point import make_point

    # All widths come first, so that a target out of reach ends the work before the long part of it.
    planned = _planned(shop)
    sizes = [total_macs(shop.stages, widths) for widths in planned.values()]
    for number, (name, widths) in enumerate(planned.items(), start=1):
        file = _file(shop, name, output)
        file.parent.mkdir(exist_ok=True)
        shop.job.progress.note(f"point {number} of {len(planned)}: {name}")
        point = make_point(shop, name, widths, file)
        yield point
        if not passes(point.gate.verdict, strict=shop.options.strict):
            return
        if number < len(planned):
            minutes = sum(sizes[number:]) / sizes[number - 1] * point.seconds / 60
            shop.job.progress.note(f"{name}: {point.gate.verdict}; about {minutes:.0f} minutes left at most")


def _planned(shop: Workshop) -> dict[str, Widths]:
    """Choose the widths of every point."""
    if shop.options.latency_ms:
        return {shop.options.names[0]: shop.choose_widths_for_latency(shop.options.latency_ms)}
    found: dict[str, Widths] = {}
    for name, ratio in zip(shop.options.names, shop.options.ratios, strict=True):
        try:
            found[name] = shop.choose_widths(ratio)
        except TargetError:
            # A small network has no point as small as those that nobody asked for.
            if shop.options.macs or not found:
                raise
            break
    return found


def _file(shop: Workshop, name: str, output: Path) -> Path:
    return shop.folder / name / f"model{output.suffix}"


def _fastest(points: tuple[Point, ...], options: CompressOptions) -> Point | None:
    good = [point for point in points if passes(point.gate.verdict, strict=options.strict)]
    return min(good, key=lambda point: point.latency_ms, default=None)


def _write(shop: Workshop, point: Point, output: Path) -> None:
    """Write a point's model, with what was found in its spec."""
    file = _file(shop, point.name, output)
    gate, area = point.gate, point.gate.roc_auc_drop
    found = Compression(
        parent_sha256=shop.parent.sha256,
        method=_method(shop.options),
        macs=point.macs,
        parent_macs=shop.parent_macs,
        images=gate.images,
        accuracy_drop=gate.accuracy_drop,
        accuracy_drop_ci95=gate.accuracy_drop_ci95,
        roc_auc_drop=area.value,
        roc_auc_drop_ci95=(area.low, area.high),
        max_drop=shop.options.max_drop,
        verdict=gate.verdict,
    )
    tools = {name: version(name) for name in ("medimg", "keras", "tensorflow")}
    rewrite_spec(file, ModelSpec.read(file).with_(compression=found, tools=tools), output)


def _method(options: CompressOptions) -> str:
    """Say in words how a model was made."""
    chosen = "channels by interpolative decomposition" if options.reconstruct else "channels left out"
    learned = "distillation" if options.distil else "training on the labels"
    if options.augment.changes:
        learned += f" with {options.augment_copies} copies of each image ({options.augment})"
    return f"{chosen}, {options.epochs} epochs of {learned}" if options.epochs else chosen


def _result(
    shop: Workshop,
    division: Division,
    points: tuple[Point, ...],
    chosen: Point | None,
    output: Path,
    seconds: float,
) -> CompressResult:
    names, full = shop.options.names, full_widths(shop.stages)
    return CompressResult(
        model=shop.parent.name,
        model_sha256=shop.parent.sha256,
        data=str(shop.data),
        output=str(output) if chosen else None,
        kept=chosen.name if chosen else None,
        options=shop.options,
        layers=tuple(stage.name for stage in shop.stages),
        full_widths=full,
        macs=shop.parent_macs,
        latency_ms=shop.parent_ms,
        latency_model=shop.latency_model,
        train_images=len(division.train),
        validation_images=len(division.validation),
        looked_at_images=len(shop.taught.looked_at),
        points=points,
        not_tried=names[len(points) :],
        simulated_data=is_simulated(shop.data),
        seconds=seconds,
    )
