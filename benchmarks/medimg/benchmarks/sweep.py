"""Every artefact on every back end that can run it here: one table, and what to take."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medimg.benchmarks.benchmark import run_benchmark
from medimg.benchmarks.measuring import Progress
from medimg.benchmarks.options import SweepOptions
from medimg.benchmarks.recommendation import accuracy_drop, recommend
from medimg.benchmarks.results import Benchmark
from medimg.benchmarks.sweep_results import MeasuredAccuracy, Skipped, Sweep, SweepRow
from medimg.runtime.backends import ENGINE_NAMES, NAMES
from medimg.runtime.classifier import Classifier
from medimg.runtime.data import DataSet, load_batches, read_data
from medimg.runtime.errors import DataError, MedimgError, NoSpecError, UsageError
from medimg.runtime.machine.cpus import usable_cpus
from medimg.runtime.model.containers import PLAN_SUFFIX, read_spec
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.tasks.probabilities import require_numbers

SUFFIXES = (".onnx", PLAN_SUFFIX)
ACCURACY_BATCH = 8


def run_sweep(
    folder: str | Path,
    options: SweepOptions | None = None,
    *,
    threads: int | None = None,
    progress: Progress = lambda _step: None,
    on_row: Callable[[Sweep], None] = lambda _so_far: None,
) -> Sweep:
    """Measure what is in a folder, single-stream and offline.

    Args:
        folder: holds artefacts of medimg-export.
        options: on what, how long, with what.
        threads: processor threads.
        progress: called with the name of each step.
        on_row: called after each combination with what has been found so far.

    Raises:
        UsageError: the folder holds no artefact, or none can run here.
        DataError: the data cannot be read.
    """
    folder, options, threads = Path(folder), options or SweepOptions(), threads or usable_cpus()
    data, budget = options.data, options.latency_budget_ms
    paths = find_artefacts(folder)
    rows: list[SweepRow] = []
    skipped: list[Skipped] = []
    warnings: list[str] = []
    pairs = [(path, backend) for path in paths for backend in options.backends or _backends_for(path)]
    for path, backend in pairs:
        progress(f"{path.name} on {backend}")
        try:
            spec = read_spec(path)
            labelled = None if data is None else _labelled(data, spec)
            found = run_benchmark(path, options.benchmark(backend), threads=threads, progress=progress)
            accuracy = _count(path, found, labelled, threads) if labelled else _verified(spec)
        except DataError:
            raise
        except MedimgError as error:
            skipped.append(Skipped(path.name, backend, str(error)))
            continue
        rows.append(_row(path, found, accuracy))
        warnings += [f"{path.name} on {backend}: {warning}" for warning in found.warnings]
        if data is not None and labelled is None:
            warnings.append(
                f"{path.name}: {data} is not labelled with its classes; accuracy is from its verification"
            )
        on_row(_judged(folder, rows, skipped, warnings, budget, complete=False))
    if not rows:
        raise UsageError(f"{folder}: none of its artefacts can run here: {skipped[0].reason}")
    found_all = _judged(folder, rows, skipped, warnings, budget, complete=True)
    on_row(found_all)
    return found_all


def _backends_for(path: Path) -> tuple[str, ...]:
    return ENGINE_NAMES if path.suffix == PLAN_SUFFIX else NAMES


def find_artefacts(folder: Path) -> list[Path]:
    """List the files of a folder that carry a medimg entry.

    Raises:
        UsageError: there is none.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in SUFFIXES:
            try:
                read_spec(path)
            except NoSpecError:
                continue
            except MedimgError:
                # Whatever is wrong with it is said when it is opened.
                pass
            found.append(path)
    if not found:
        raise UsageError(f"{folder}: holds no artefact of medimg-export ({', '.join(SUFFIXES)})")
    return found


def _labelled(data: str | Path, spec: ModelSpec) -> DataSet | None:
    """Give the images that accuracy can be counted on; None if they lack labels of the model's classes."""
    try:
        dataset = read_data(data).relabelled(spec.labels)
    except DataError:
        read_data(data, labelled=False)
        return None
    return dataset.part("test") if len(dataset.part("test")) else dataset


def _count(path: Path, found: Benchmark, dataset: DataSet, threads: int) -> MeasuredAccuracy:
    with Classifier(
        path, backend=found.backend, device=found.device, threads=threads, tuned_for="latency"
    ) as model:
        batches = load_batches(dataset.samples, model.spec.image, ACCURACY_BATCH, threads)
        found_by_image = np.concatenate([model.probabilities(batch) for batch in batches])
    require_numbers(found_by_image, (sample.name for sample in dataset.samples))
    answers = found_by_image.argmax(axis=1)
    right: NDArray[np.bool_] = answers == dataset.truth
    return MeasuredAccuracy(float(right.mean()), len(right), "data", tuple(right.tolist()), None)


def _verified(spec: ModelSpec) -> MeasuredAccuracy | None:
    found = spec.verification
    if found is None or found.accuracy is None:
        return None
    return MeasuredAccuracy(found.accuracy, found.images, "verification", (), found.accuracy_drop_ci95)


def _row(path: Path, found: Benchmark, accuracy: MeasuredAccuracy | None) -> SweepRow:
    single = next(run for run in found.runs if run.scenario == "single-stream")
    best = max((run for run in found.runs if run.scenario == "offline"), key=lambda run: run.throughput_per_s)
    return SweepRow(
        artefact=path.name,
        file_precision=found.file_precision,
        precision=found.precision,
        backend=found.backend,
        device=found.device,
        p50_ms=single.latency_ms["p50"],
        p99_ms=single.latency_ms["p99"],
        throughput_per_s=best.throughput_per_s,
        batch_size=best.batch_size,
        accuracy=accuracy,
        accuracy_drop_ci95=None,
        on_front=False,
        benchmark=found,
    )


def _judged(
    folder: Path,
    rows: Sequence[SweepRow],
    skipped: Sequence[Skipped],
    warnings: Sequence[str],
    latency_budget_ms: float | None,
    *,
    complete: bool,
) -> Sweep:
    best = max((row.accuracy.accuracy for row in rows if row.accuracy), default=None)
    leader = next((row for row in rows if row.accuracy and row.accuracy.accuracy == best), None)
    judged = tuple(
        replace(row, on_front=_on_front(row, rows), accuracy_drop_ci95=accuracy_drop(row, leader))
        for row in rows
    )
    return Sweep(
        folder=str(folder),
        latency_budget_ms=latency_budget_ms,
        recommendation=tuple(recommend(judged, latency_budget_ms)),
        rows=tuple(sorted(judged, key=lambda row: row.p99_ms)),
        skipped=tuple(skipped),
        warnings=tuple(dict.fromkeys(warnings)),
        complete=complete,
    )


def _on_front(row: SweepRow, rows: Sequence[SweepRow]) -> bool:
    """Whether no other is at least as fast and as accurate, and better in one of the two."""
    mine = (-row.p99_ms, row.accuracy.accuracy if row.accuracy else 0.0)
    return not any(
        all(theirs >= own for theirs, own in zip(other, mine, strict=True)) and other != mine
        for other in ((-item.p99_ms, item.accuracy.accuracy if item.accuracy else 0.0) for item in rows)
    )
