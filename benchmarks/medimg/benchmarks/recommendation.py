"""Which artefact and back end to take, in words."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from medimg.benchmarks.sweep_results import SweepRow
from medimg.benchmarks.table import digits
from medimg.runtime.statistics.metrics import paired_drop_ci95

WORTH_SAYING = 1.5
"""Times that one back end must be faster than another on the same file to be named."""


def accuracy_drop(row: SweepRow, leader: SweepRow | None) -> tuple[float, float] | None:
    """Bound how much less accurate a row is: than the leader on the same images, or than Keras."""
    if row.accuracy is None:
        return None
    if leader and leader.accuracy and row.accuracy.right and leader.accuracy.right:
        return paired_drop_ci95(np.array(leader.accuracy.right), np.array(row.accuracy.right))
    return row.accuracy.drop_ci95


def recommend(rows: Sequence[SweepRow], latency_budget_ms: float | None) -> Iterator[str]:
    """Say which row to take, and what the others show.

    Of the rows within the budget, those that are surely less accurate than the best are left out; the fastest
    of the rest is taken.

    Args:
        rows: at least one.
        latency_budget_ms: for p99 of one image after another; None for as fast as possible.
    """
    within = [row for row in rows if latency_budget_ms is None or row.p99_ms <= latency_budget_ms]
    if not within:
        fastest = min(rows, key=lambda row: row.p99_ms)
        yield (
            f"Nothing answers within {latency_budget_ms:g} ms: the fastest, {_name(fastest)}, takes up to "
            f"{digits(fastest.p99_ms)} ms (p99)."
        )
    else:
        yield from _chosen(within, latency_budget_ms)
    yield from _backends_apart(rows)
    yield from _lower_and_slower(rows)


def _chosen(within: Sequence[SweepRow], latency_budget_ms: float | None) -> Iterator[str]:
    as_good = [row for row in within if not _surely_less_accurate(row)] or within
    chosen = min(as_good, key=lambda row: row.p99_ms)
    budget = "" if latency_budget_ms is None else f", within the budget of {latency_budget_ms:g} ms"
    yield (
        f"Take {_name(chosen)}: one image takes {digits(chosen.p50_ms)} ms (p99 {digits(chosen.p99_ms)} ms"
        f"{budget}); batches of {chosen.batch_size} make {digits(chosen.throughput_per_s)} images a second."
    )
    yield _accuracy(chosen)
    most = max(as_good, key=lambda row: row.throughput_per_s)
    if most.throughput_per_s > 1.05 * chosen.throughput_per_s:
        rate = digits(most.throughput_per_s)
        yield f"For many images at once {_name(most)} is faster: {rate} images a second."


def _accuracy(row: SweepRow) -> str:
    found = row.accuracy
    if found is None:
        return "Its accuracy is not known: give labelled images with --data, or export with --validation."
    words = f"Its accuracy is {found.accuracy:.4f} on {found.images} images"
    if row.accuracy_drop_ci95 is None:
        return f"{words}."
    low, high = row.accuracy_drop_ci95
    other = "the most accurate one's" if found.source == "data" else "Keras's"
    return f"{words}; its drop below {other} is {100 * low:+.1f} to {100 * high:+.1f} % (95 % interval)."


def _surely_less_accurate(row: SweepRow) -> bool:
    return row.accuracy_drop_ci95 is not None and row.accuracy_drop_ci95[0] > 0


def _backends_apart(rows: Sequence[SweepRow]) -> Iterator[str]:
    """Name files that one back end runs much faster than another."""
    ordered = sorted(rows, key=lambda row: (row.artefact, row.p50_ms))
    for artefact, group in groupby(ordered, key=lambda row: row.artefact):
        fastest, *others = group
        for other in others:
            if other.p50_ms >= WORTH_SAYING * fastest.p50_ms:
                yield (
                    f"{artefact} is {other.p50_ms / fastest.p50_ms:.1f} times slower on {other.backend} "
                    f"({digits(other.p50_ms)} ms) than on {fastest.backend} ({digits(fastest.p50_ms)} ms)."
                )


def _lower_and_slower(rows: Sequence[SweepRow]) -> Iterator[str]:
    """Name back ends on which a file of fewer bits gains nothing."""
    by_backend = sorted(rows, key=lambda row: row.backend)
    for backend, group in groupby(by_backend, key=lambda row: row.backend):
        members = list(group)
        full = next((row for row in members if row.file_precision == "fp32"), None)
        for row in members:
            if full and row.file_precision != "fp32" and row.p50_ms > 0.95 * full.p50_ms:
                yield (
                    f"On {backend} {row.artefact} gains no speed: {digits(row.p50_ms)} ms in {row.precision} "
                    f"against {digits(full.p50_ms)} ms of {full.artefact}."
                )


def _name(row: SweepRow) -> str:
    return f"{row.artefact} on {row.backend} ({row.device}, {row.precision})"
