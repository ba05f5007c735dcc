"""The command line of medimg-bench."""

import os
from pathlib import Path

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options, version_option
from medimg.runtime.errors import UsageError

SCENARIOS = ("single-stream", "offline")
BACKENDS = ("auto", "openvino", "onnxruntime", "tensorrt")


def _batch_sizes(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, ...]:
    parts = value.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of whole numbers from 1, such as 1,8,32")
    return tuple(int(part) for part in parts)


def _check_destination(json_file: str | None) -> None:
    """Refuse a file that cannot be written before minutes are spent on measuring."""
    if json_file is not None and json_file != "-" and not os.access(Path(json_file).parent, os.W_OK):
        raise UsageError(f"{json_file}: its folder does not exist or cannot be written to")


@click.group()
@version_option
def cli() -> None:
    """Measure exported image classifiers on this machine."""


@cli.command()
@click.argument("model", type=PathArgument)
@click.option("--data", type=PathArgument, help="Images to send.  [default: made ones, not decoded]")
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice(SCENARIOS),
    multiple=True,
    default=SCENARIOS,
    show_default=True,
    help="Which to run; may be repeated.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    callback=_batch_sizes,
    metavar="N,N…",
    default="8",
    show_default=True,
    help="Images a query in offline, a run each; single-stream sends one.",
)
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, gpu or gpu:N.")
@click.option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds a run, after its warm-up.",
)
@click.option("--json", "json_file", metavar="FILE", help=commandline.JSON_HELP)
@standard_options
def run(
    model: Path,
    data: Path | None,
    scenarios: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    backend: str,
    device: str,
    duration: float,
    json_file: str | None,
    threads: int,
) -> None:
    """Measure MODEL from the image to its most likely classes.

    single-stream sends an image when the one before it is answered; offline has all images at the start and
    answers them in batches, decoding beside inference.
    """
    from medimg.benchmarks.benchmark import run_benchmark
    from medimg.benchmarks.results import SCHEMA
    from medimg.benchmarks.table import show

    def show_step(step: str) -> None:
        if not commandline.progress_hidden():
            click.echo(f"{step} …", err=True)

    _check_destination(json_file)
    result = run_benchmark(
        model,
        data=data,
        scenarios=scenarios,  # type: ignore[arg-type]  # click has checked the names
        batch_sizes=batch_sizes,
        backend=backend,
        device=device,
        duration_s=duration,
        threads=threads,
        progress=show_step,
    )
    if json_file != "-":
        click.echo("\n".join(show(result)))
    commandline.write_json(result, json_file, schema=SCHEMA)
    for warning in result.warnings:
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
@click.option("--json", "json_file", metavar="FILE", help=commandline.JSON_HELP)
@standard_options
def compare(
    before: Path, after: Path, max_slowdown: float | None, json_file: str | None, threads: int
) -> int:
    """Say whether AFTER is faster than BEFORE, two files of `run --json`, slower, or whether none can tell.

    The interval covers what varied within the two runs, not from one process to the next.
    """
    from medimg.benchmarks.comparison import compare_benchmarks
    from medimg.benchmarks.table import show_comparison

    _check_destination(json_file)
    found = compare_benchmarks(before, after)
    if json_file != "-":
        click.echo("\n".join(show_comparison(found)))
    commandline.write_json(found, json_file, schema=1)
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
