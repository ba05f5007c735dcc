"""The command archive."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options
from medimg.runtime.files.text import printable
from medimg.runtime.streams import progress_hidden, write_json

if TYPE_CHECKING:
    from medimg.runtime.archive.job import Job
    from medimg.runtime.archive.run import ArchiveSummary, Progress
    from medimg.runtime.archive.worker import Outcome


@click.command()
@click.argument("model", type=PathArgument)
@click.argument("source", type=commandline.NameArgument, metavar="INPUT")
@click.option(
    "--output",
    type=commandline.NameArgument,
    required=True,
    metavar="DIR",
    help="Folder for the answers, as Parquet.",
)
@click.option("--address", metavar="RAY", help="Ray cluster to work on.  [default: this machine]")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Classifiers at once.  [default: one a machine or GPU]"
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Images at once.  [default: what suits the back end]"
)
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes an image.")
@click.option("--backend", type=click.Choice(commandline.BACKENDS), default="auto", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True)
@click.option(
    "--window", metavar="first|window-N|min-max", help="Window of DICOM files, in place of the model's own."
)
@click.option(
    "--partition-files",
    type=click.IntRange(min=1),
    help="Files a partition, what a lost worker does again.  [default: 256, more above a million]",
)
@click.option(
    "--allow-scheme",
    "schemes",
    metavar="SCHEME",
    multiple=True,
    help="Let a list name files of this scheme, such as s3, beside those of its own; may be repeated.",
)
@commandline.TRUST
@commandline.JSON_OPTION
@standard_options
@click.pass_context
def archive(
    context: click.Context,
    model: Path,
    source: str,
    output: str,
    address: str | None,
    workers: int | None,
    batch_size: int | None,
    top_k: int,
    backend: str,
    device: str,
    window: str | None,
    partition_files: int | None,
    schemes: tuple[str, ...],
    trusted: tuple[str, ...],
    json_file: str | None,
    threads: int,
) -> int:
    """Classify all of INPUT with MODEL, on this machine or a Ray cluster; the same command again goes on.

    INPUT is a folder, a list (.csv or .parquet, column path), or a URI of an object store. --threads are each
    worker's. Exit status 1 if some inputs could not be read; each of them has its reason in a row.
    """
    from medimg.runtime.archive.run import ArchiveOptions, classify_archive

    given = context.get_parameter_source("threads") is click.core.ParameterSource.COMMANDLINE
    options = ArchiveOptions(
        address,
        workers,
        threads if given else None,
        batch_size,
        top_k,
        backend,
        device,
        window,
        trusted,
        partition_files,
        schemes,
    )
    with _bar() as progress:
        summary = classify_archive(model, source, output, options, progress)
    write_json(summary, json_file, schema=1)
    if json_file != "-":
        click.echo("\n".join(_lines(summary)))
    return 1 if summary.counts.failed else 0


@contextlib.contextmanager
def _bar() -> Iterator["Progress"]:
    """Show how many files are done, how fast, and how long the rest will take."""
    with contextlib.ExitStack() as held:
        bar: list[Any] = []
        start, made = time.monotonic(), 0

        def show(outcome: "Outcome", job: "Job") -> None:
            nonlocal made
            if progress_hidden():
                return
            if not bar:
                length = click.progressbar(length=job.files, file=sys.stderr, show_pos=True, show_eta=True)
                bar.append(held.enter_context(length))
            files = len(job.numbers(outcome.partition))
            made += files * outcome.made
            bar[0].label = f"{made / (time.monotonic() - start):.1f} files/s"
            bar[0].update(files)

        yield show


def _lines(summary: "ArchiveSummary") -> Iterator[str]:
    """Say what the archive holds now."""
    counts = summary.counts
    output = printable(summary.output)
    yield f"{output}: {counts.files} files, {counts.images} images answered, {counts.failed} errors"
    yield f"    {summary.made} files in {summary.seconds:.1f} s, {summary.files_per_s:.1f} a second; " + (
        f"{counts.files - summary.made} were there before"
    )
    yield f"    {'; '.join(counts.ran_on)}; model {summary.model_sha256}"
    for label, count in counts.classes.items():
        yield f"    {count:9d}  {printable(label)}"
    tenths = ", ".join(f"{place / 10:.1f}: {count}" for place, count in enumerate(counts.scores) if count)
    yield f"    images by score of their first class, from {tenths or 'none'}"
    for name, count in counts.errors.items():
        yield f"    {count:9d}  not read: {name}"
    if len(counts.ran_on) > 1:
        yield "    warning: machines differ in what gave the answers: name --backend and --device"
