"""The command line of medimg-run."""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from medimg.runtime import commandline
from medimg.runtime.archive.cli import archive
from medimg.runtime.commandline import (
    BACKENDS,
    TRUST,
    InputArgument,
    PathArgument,
    standard_options,
    version_option,
)
from medimg.runtime.files.paths import is_folder
from medimg.runtime.node import cli as node
from medimg.runtime.streams import progress_hidden, write_json

if TYPE_CHECKING:
    from medimg.runtime.classifier import Prediction

STANDARD_INPUT = Path("-")


@click.group()
@version_option
def cli() -> None:
    """Run exported image classifiers on this device."""


@cli.command()
@click.argument("model", type=PathArgument)
@click.argument("inputs", type=InputArgument, nargs=-1, required=True)
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes an image.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Images at once.  [default: what suits the back end]"
)
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, gpu or gpu:N.")
@click.option(
    "--format", "style", type=click.Choice(["table", "jsonl", "csv"]), default="table", show_default=True
)
@click.option(
    "--window",
    metavar="first|window-N|min-max",
    help="Window of DICOM files, in place of the one that the model was made for.",
)
@click.option(
    "--decode",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="Where JPEG files are decoded; gpu needs --device gpu and the extra gpu-decode.",
)
@click.option("--output", type=PathArgument, help="Write the answers to FILE, whole or not at all.")
@click.option(
    "--triton",
    "server",
    metavar="URL",
    help="Have a server run MODEL: http://host:8000 or grpc://host:8001, and /NAME if that is another there.",
)
@TRUST
@standard_options
def predict(
    model: Path,
    inputs: tuple[Path, ...],
    top_k: int,
    batch_size: int | None,
    backend: str,
    device: str,
    style: str,
    window: str | None,
    decode: Literal["cpu", "gpu"],
    output: Path | None,
    server: str | None,
    trusted: tuple[str, ...],
    threads: int,
) -> int:
    """Classify INPUTS (files, folders, or - for paths on standard input) with MODEL.

    Exit status 1 if some inputs could not be read; each of them has its reason in the output.
    """
    from medimg.runtime.classifier import Classifier
    from medimg.runtime.output import Outcome, write_predictions

    outcome = Outcome()
    alone = len(inputs) == 1 and inputs[0] != STANDARD_INPUT and not is_folder(inputs[0])
    with Classifier(
        model,
        backend=backend,
        device=device,
        threads=threads,
        tuned_for="latency" if alone else "throughput",
        dicom_window=window,
        decode=decode,
        trusted=trusted,
        server=server,
    ) as classifier:
        used, reason = classifier.backend, classifier.choice.reason
        why = f" (auto: {reason})" if reason else ""
        click.echo(f"{used.name} on {used.device}, {used.precision}{why}", err=True)
        for note in classifier.notes:
            click.echo(f"warning: {note}", err=True)
        predictions = classifier.predict(_paths(inputs), top_k=top_k, batch_size=batch_size)
        if not _answers_are_seen(output):
            predictions = _with_progress(predictions, inputs)
        write_predictions(outcome.counting(predictions), style, output)
    click.echo(outcome.summary(), err=True)
    return 0 if outcome.failed == 0 and outcome.answered else 1


@cli.command()
@click.argument("model", type=PathArgument)
@click.option(
    "--golden",
    type=PathArgument,
    metavar="FILE.npz",
    help="Run a TensorRT engine on golden inputs (medimg-export --golden); the outcome is kept for this GPU.",
)
@TRUST
@commandline.JSON_OPTION
@standard_options
def inspect(
    model: Path, golden: Path | None, trusted: tuple[str, ...], json_file: str | None, threads: int
) -> int:
    """Show what MODEL is: labels, preprocessing, precision, origin, verification."""
    from medimg.runtime.model.containers import PLAN_SUFFIX
    from medimg.runtime.model.describe import describe, describe_engine
    from medimg.runtime.model.spec import SCHEMA, ModelSpec

    spec = ModelSpec.read(model)
    write_json(spec, json_file, schema=SCHEMA)
    if json_file != "-":
        click.echo("\n".join(describe(spec)))
    if model.suffix == PLAN_SUFFIX and json_file != "-":
        from medimg.runtime.model.plan import read_record

        click.echo("\n".join(describe_engine(read_record(model)[0])))
    return 0 if golden is None else _verify(model, golden, trusted)


@cli.command()
@commandline.JSON_OPTION
@standard_options
def doctor(json_file: str | None, threads: int) -> int:
    """Show what can run here: back ends, devices, versions, what is missing and how to get it."""
    from medimg.runtime.doctor import examine

    findings = examine(threads)
    write_json(findings, json_file, schema=1)
    if json_file != "-":
        click.echo("\n".join(findings.lines()))
    return 1 if findings.conflicts else 0


def _verify(model: Path, golden: Path, trusted: tuple[str, ...]) -> int:
    from medimg.runtime.building.verify import verify_engine

    found = verify_engine(model, golden, trusted)
    click.echo(
        f"{'passed' if found.passed else 'failed'}: {found.images} golden images, "
        f"max |Δp| {found.max_abs_diff:.1e}, top-1 agreement {found.top1_agreement:.4f}; "
        f"asked for: {found.limit}",
        err=True,
    )
    return 0 if found.passed else 1


for command in (archive, *node.COMMANDS):
    cli.add_command(command)


def _paths(inputs: Iterable[Path]) -> Iterator[Path]:
    """Expand folders and the list on standard input, lazily."""
    from medimg.runtime.files.paths import listed_paths, walk_images

    for item in inputs:
        if item == STANDARD_INPUT:
            yield from listed_paths(sys.stdin.buffer, "the list on standard input")
        else:
            yield from walk_images([item])


def _answers_are_seen(output: Path | None) -> bool:
    """Tell whether progress need not be shown: nobody looks, or the answers themselves appear meanwhile."""
    return progress_hidden() or (output is None and sys.stdout.isatty())


def _with_progress(predictions: "Iterator[Prediction]", inputs: tuple[Path, ...]) -> "Iterator[Prediction]":
    """Show how many files are done, how fast, and how long the rest will take."""
    from medimg.runtime.files.paths import walk_images

    known = STANDARD_INPUT not in inputs
    files = sum(1 for _ in walk_images(inputs)) if known else 1
    start, done = time.monotonic(), 0
    with click.progressbar(
        length=files, file=sys.stderr, show_pos=known, show_eta=known, show_percent=known
    ) as bar:
        for prediction in predictions:
            yield prediction
            if not prediction.frame:
                done += 1
                bar.label = f"{done / (time.monotonic() - start):.1f} files/s"
                bar.update(1 if known else 0)
