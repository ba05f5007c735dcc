"""A benchmark as one HTML page: figures, pictures, and the machine they belong to."""

from collections.abc import Iterator
from pathlib import Path

from medimg.benchmarks.percentiles import SHARES
from medimg.benchmarks.plots import curves, distribution, stages, timeline
from medimg.benchmarks.results import STAGES, Benchmark, Run
from medimg.benchmarks.table import DRIVERS, IMAGES, digits, facts
from medimg.runtime.report import Block, Section, Table, page

_LATENCIES = (*SHARES, "max", "mean")


def render(found: Benchmark) -> str:
    """Write the page; it holds no image of the data, and no path but the model's own name."""
    sections = [
        Section("What was measured", (_what(found), *facts(found))),
        Section("Figures", (_figures(found), _stages(found), *curves(found.runs), stages(found.runs))),
        *(
            Section(_title(run), tuple(_pictures(run)))
            for run in found.runs
        ),
        Section("Machine", (_machine(found),)),
    ]  # fmt: skip
    return page(f"Benchmark of {Path(found.model).name}", found.warnings, sections)


def _what(found: Benchmark) -> Table:
    rows = (
        ("file", Path(found.model).name),
        ("SHA-256", found.model_sha256 or "not said"),
        ("precision", f"{found.precision} (the file is {found.file_precision})"),
        ("back end", f"{found.backend} {found.environment.packages.get(found.backend, '')}".rstrip()),
        ("device", f"{found.device}, {found.threads} threads"),
        ("images", IMAGES[found.images_from].format(found.images).removeprefix("images: ")),
        ("driver", DRIVERS[found.runs[0].driver]),
        ("warm-up", f"until {found.runs[0].warm_up.criterion}"),
        ("complete", "yes" if found.complete else "no: it ended before its last run"),
    )
    return Table("The artefact and how it was run", ("", ""), rows)


def _figures(found: Benchmark) -> Table:
    rows = tuple(
        (
            _title(run),
            "valid" if run.validity.valid else "NOT valid",
            str(run.samples),
            digits(run.throughput_per_s),
            *(digits(run.latency_ms[name]) for name in _LATENCIES),
        )
        for run in found.runs
    )
    head = ("scenario", "rules", "images", "images/s", *_LATENCIES)
    return Table("Latencies of a query in ms, none left out", head, rows)


def _stages(found: Benchmark) -> Table:
    rows = tuple(
        (
            _title(run),
            *(
                _stage(run.stages_ms[name], (run.utilisation or {}).get(name))
                for name in STAGES
            ),
        )
        for run in found.runs
    )  # fmt: skip
    head = ("scenario", *(name.replace("_", " ") for name in STAGES))
    return Table(
        "Stages in ms a query; in brackets, the busy share of the threads that may work at it", head, rows
    )


def _stage(ms: float | None, share: float | None) -> str:
    if ms is None:
        return "-"
    return digits(ms) if share is None else f"{digits(ms)} ({share:.0%})"


def _pictures(run: Run) -> Iterator[Block]:
    yield distribution(run)
    yield timeline(run)


def _machine(found: Benchmark) -> Table:
    environment = found.environment
    rows = (
        ("started", environment.started),
        ("processor", f"{environment.cpu}, {environment.cores} cores, {environment.machine}"),
        ("instruction sets", " ".join(environment.cpu_features) or "none known"),
        ("affinity", " ".join(map(str, environment.affinity))),
        ("governor", environment.governor or "not available"),
        ("load before", " ".join(f"{load:.2f}" for load in environment.load_average)),
        ("kernel", environment.kernel),
        ("python", environment.python),
        ("medimg", environment.medimg),
        *environment.packages.items(),
    )
    return Table("Where the figures belong", ("", ""), rows)


def _title(run: Run) -> str:
    return run.scenario if run.scenario == "single-stream" else f"{run.scenario}, batch {run.batch_size}"
