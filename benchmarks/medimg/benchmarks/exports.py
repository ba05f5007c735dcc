"""One result struct, several files: JSON, CSV, Markdown and an HTML page."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from medimg.benchmarks.percentiles import SHARES
from medimg.benchmarks.results import SCHEMA, STAGES, Benchmark
from medimg.benchmarks.table import digits, facts
from medimg.runtime.files.text import csv_cell, printable
from medimg.runtime.files.writing import write_text
from medimg.runtime.streams import write_json

_LATENCIES = (*SHARES, "max", "mean")


@dataclass(frozen=True)
class Destinations:
    """Where a result goes; None for nowhere."""

    json: str | None = None
    """A file, or `-` for standard output."""
    csv: Path | None = None
    markdown: Path | None = None
    report: Path | None = None
    """The HTML page."""

    def write(self, found: Benchmark) -> None:
        """Write every file; of an incomplete result, only the JSON file, so that a crash loses nothing."""
        if found.complete or self.json != "-":
            write_json(found, self.json, schema=SCHEMA)
        if not found.complete:
            return
        if self.csv:
            write_text(self.csv, to_csv(found))
        if self.markdown:
            write_text(self.markdown, to_markdown(found))
        if self.report:
            from medimg.benchmarks.report import render

            write_text(self.report, render(found))


def to_csv(found: Benchmark) -> str:
    """Give a row a run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "model",
            "precision",
            "backend",
            "device",
            "images_from",
            "scenario",
            "batch_size",
            "samples",
            "valid",
            "throughput_per_s",
            *(f"{name}_ms" for name in _LATENCIES),
            *(f"{name}_ms" for name in STAGES),
            "cold_start_s",
            "joules_per_image",
            "accuracy",
        ]
    )
    for run in found.runs:
        energy = run.machine.energy if run.machine else None
        writer.writerow(
            [
                csv_cell(Path(found.model).name),
                found.precision,
                found.backend,
                found.device,
                found.images_from,
            ]
            + [run.scenario, run.batch_size, run.samples, run.validity.valid, run.throughput_per_s]
            + [run.latency_ms[name] for name in _LATENCIES]
            + [run.stages_ms[name] for name in STAGES]
            + [run.cold_start_s, energy.joules_per_image if energy else None]
            + [run.accuracy.accuracy if run.accuracy else None]
        )
    return text.getvalue()


def to_markdown(found: Benchmark) -> str:
    """Give a table, what it lacks in words, and the warnings."""
    name = markdown_text(Path(found.model).name)
    head = ("scenario", "batch", "images/s", *(f"{name} ms" for name in _LATENCIES))
    rows = [
        (
            run.scenario,
            str(run.batch_size),
            digits(run.throughput_per_s),
            *tuple(digits(run.latency_ms[key]) for key in _LATENCIES),
        )
        for run in found.runs
    ]
    lines = [
        f"# {name}: {found.precision} by {found.backend} on {found.device}",
        "",
        f"{markdown_text(found.environment.cpu)}, {found.threads} threads, {found.images} images from "
        f"{found.images_from}, {found.environment.started}.",
        "",
        *markdown_table(head, rows),
        "",
        *(f"- {markdown_text(words)}" for words in facts(found)),
        *(f"- **Warning:** {markdown_text(warning)}" for warning in found.warnings),
    ]
    return "\n".join(lines) + "\n"


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Lay out a table; the first column is text, the others are figures."""
    return [
        f"| {' | '.join(head)} |",
        "|---|" + "---:|" * (len(head) - 1),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def markdown_text(text: str) -> str:
    """Escape what Markdown or the HTML in it would act on."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|!&" else char for char in printable(text))
