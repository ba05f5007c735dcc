"""The command line of medimg-bench."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options, version_option
from medimg.runtime.files.writing import require_writable
from medimg.runtime.streams import progress_hidden, write_json

SCENARIOS = ("single-stream", "multi-stream", "offline", "server")
DEFAULT_SCENARIOS = ("single-stream", "offline")
BACKENDS = ("auto", "openvino", "onnxruntime", "tensorrt")
PERCENTILES = ("p50", "p90", "p95", "p99", "p99.9")
Command = TypeVar("Command", bound=Callable[..., Any])
MILLISECONDS = click.FloatRange(min=0, min_open=True)


def _batch_sizes(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of whole numbers from 1, such as 1,8,32")
    return tuple(int(part) for part in parts)


def _check_destinations(*files: str | Path | None) -> None:
    """Refuse a file that cannot be written before minutes are spent on measuring."""
    for file in files:
        if file is not None and str(file) != "-":
            require_writable(file)


def _show_step(step: str) -> None:
    if not progress_hidden():
        click.echo(f"{step} …", err=True)


def _measuring_options(command: Command) -> Command:
    """Add what `run` and `sweep` share."""
    options = (
        click.option("--data", type=PathArgument, help="Images to send.  [default: made ones, not decoded]"),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, gpu or gpu:N."),
        click.option(
            "--duration",
            type=click.FloatRange(min=0, min_open=True),
            default=10.0,
            show_default=True,
            help="Seconds a run, after its warm-up.",
        ),
        click.option(
            "--driver",
            type=click.Choice(("auto", "loadgen", "native")),
            default="auto",
            show_default=True,
            help="What sends the queries; auto is LoadGen where it is installed.",
        ),
        commandline.JSON_OPTION,
        click.option("--csv", "csv_file", type=PathArgument, metavar="FILE", help="Write a row a run."),
        click.option("--markdown", type=PathArgument, metavar="FILE", help="Write tables as Markdown."),
        click.option(
            "--report", type=PathArgument, metavar="FILE", help="Write one HTML page with pictures."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
@version_option
def cli() -> None:
    """Measure exported image classifiers on this machine."""


@cli.command()
@click.argument("model", type=PathArgument)
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice(SCENARIOS),
    multiple=True,
    default=DEFAULT_SCENARIOS,
    show_default=True,
    help="Which to run; may be repeated.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    callback=_batch_sizes,
    metavar="N,N…",
    help="Images a query, a run each; single-stream sends one.  [default: 8; 1 in server]",
)
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option(
    "--from",
    "images_from",
    type=click.Choice(("files", "arrays")),
    help="Decode the images of --data in every query, or before the clock is started.  [default: files]",
)
@click.option(
    "--latency-bound", type=MILLISECONDS, metavar="MS", help="What server's percentile must stay within."
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Images a second in server.  [default: the most that hold the bound]",
)
@click.option(
    "--percentile",
    type=click.Choice(PERCENTILES),
    help="Refuse a duration too short for it.  [default: p90; p99 in multi-stream and server]",
)
@click.option(
    "--accuracy", is_flag=True, help="Send every image of --data once more and count right answers."
)
@click.option("--logs", type=PathArgument, metavar="DIR", help="Keep LoadGen's logs, a folder a run.")
@_measuring_options
@standard_options
def run(
    model: Path,
    data: Path | None,
    json_file: str | None,
    csv_file: Path | None,
    markdown: Path | None,
    report: Path | None,
    latency_bound: float | None,
    rate: float | None,
    duration: float,
    threads: int,
    **options: Any,  # noqa: ANN401  fields of BenchmarkOptions
) -> None:
    """Measure MODEL from the image to its most likely classes, as MLPerf does.

    single-stream sends an image when the one before it is answered, multi-stream a group of images; offline
    has all images at the start and answers them in batches, decoding beside inference; server has images
    arrive at random and looks for the highest rate that keeps p99 within --latency-bound.
    """
    from medimg.benchmarks.benchmark import run_benchmark
    from medimg.benchmarks.exports import Destinations
    from medimg.benchmarks.options import BenchmarkOptions
    from medimg.benchmarks.table import show

    _check_destinations(json_file, csv_file, markdown, report)
    destinations = Destinations(json_file, csv_file, markdown, report)
    chosen = BenchmarkOptions(
        data=data, duration_s=duration, latency_bound_ms=latency_bound, rate_per_s=rate, **options
    )
    result = run_benchmark(model, chosen, threads=threads, progress=_show_step, on_run=destinations.write)
    if json_file != "-":
        click.echo("\n".join(show(result)))
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)


@cli.command()
@click.argument("folder", type=PathArgument)
@click.option(
    "--batch-size",
    "batch_sizes",
    callback=_batch_sizes,
    metavar="N,N…",
    default="1,8",
    show_default=True,
    help="Images a query in offline, a run each.",
)
@click.option(
    "--backend",
    "backends",
    type=click.Choice(BACKENDS[1:]),
    multiple=True,
    help="May be repeated.  [default: all]",
)
@click.option(
    "--latency-budget",
    type=MILLISECONDS,
    metavar="MS",
    help="Recommend what answers one image within it, by p99.",
)
@_measuring_options
@standard_options
def sweep(
    folder: Path,
    data: Path | None,
    json_file: str | None,
    csv_file: Path | None,
    markdown: Path | None,
    report: Path | None,
    latency_budget: float | None,
    duration: float,
    threads: int,
    **options: Any,  # noqa: ANN401  fields of SweepOptions
) -> None:
    """Measure every artefact in FOLDER on every back end that can run it here, and recommend one.

    Accuracy is counted on --data where its images are labelled, and else is what the artefact's own
    verification says.
    """
    from medimg.benchmarks.options import SweepOptions
    from medimg.benchmarks.sweep import run_sweep
    from medimg.benchmarks.sweep_exports import SweepDestinations, show_sweep

    _check_destinations(json_file, csv_file, markdown, report)
    destinations = SweepDestinations(json_file, csv_file, markdown, report)
    chosen = SweepOptions(data=data, duration_s=duration, latency_budget_ms=latency_budget, **options)
    found = run_sweep(folder, chosen, threads=threads, progress=_show_step, on_row=destinations.write)
    if json_file != "-":
        click.echo("\n".join(show_sweep(found)))
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)


@cli.command()
@click.argument("before", type=PathArgument)
@click.argument("after", type=PathArgument)
@click.option(
    "--max-slowdown",
    type=click.FloatRange(min=0, max=1, max_open=True),
    metavar="SHARE",
    help="Exit with 1 where AFTER is surely slower by more than this share, such as 0.05.",
)
@commandline.JSON_OPTION
@standard_options
def compare(
    before: Path, after: Path, max_slowdown: float | None, json_file: str | None, threads: int
) -> int:
    """Say whether AFTER is faster than BEFORE, two files of `run --json`, slower, or whether none can tell.

    The interval covers what varied within the two runs, not from one process to the next.
    """
    from medimg.benchmarks.comparison import compare_benchmarks
    from medimg.benchmarks.table import show_comparison

    _check_destinations(json_file)
    found = compare_benchmarks(before, after)
    if json_file != "-":
        click.echo("\n".join(show_comparison(found)))
    write_json(found, json_file, schema=1)
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    if max_slowdown is None:
        return 0
    slower = found.slower_by(max_slowdown)
    for change in slower:
        click.echo(
            f"{change.scenario}, batch {change.batch_size}: slower by more than {max_slowdown:.1%}", err=True
        )
    return 1 if slower else 0
