"""A sweep on the terminal, and as JSON, CSV, Markdown and an HTML page."""

import csv
import io
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medimg.benchmarks.exports import markdown_table, markdown_text
from medimg.benchmarks.sweep_results import Sweep, SweepRow
from medimg.benchmarks.table import WIDTH, digits
from medimg.runtime.files.text import csv_cell, printable
from medimg.runtime.files.writing import write_text
from medimg.runtime.report import Figure, Section, Table, page
from medimg.runtime.streams import write_json

SCHEMA = 1
MARKERS = "os^Dv"
_HEAD = ("artefact", "runs in", "back end", "p50 ms", "p99 ms", "images/s", "batch", "accuracy", "front")


@dataclass(frozen=True)
class SweepDestinations:
    """Where a sweep goes; None for nowhere."""

    json: str | None = None
    """A file, or `-` for standard output."""
    csv: Path | None = None
    markdown: Path | None = None
    report: Path | None = None
    """The HTML page."""

    def write(self, found: Sweep) -> None:
        """Write every file; of an incomplete sweep, only the JSON file."""
        if found.complete or self.json != "-":
            write_json(found, self.json, schema=SCHEMA)
        if not found.complete:
            return
        for path, layout in ((self.csv, to_csv), (self.markdown, to_markdown), (self.report, render)):
            if path:
                write_text(path, layout(found))


def show_sweep(found: Sweep) -> list[str]:
    """Lay it out within 80 columns."""
    width = min(24, max(len(printable(row.artefact)) for row in found.rows))
    figures = "p50 ms p99 ms images/s accuracy"
    lines = [f"{'artefact':<{width}} {'runs in':<7} {'back end':<11} {figures}"]
    lines += [
        f"{printable(row.artefact):<{width}.{width}} {row.precision:<7} {row.backend:<11} "
        f"{digits(row.p50_ms):>6} {digits(row.p99_ms):>6} {digits(row.throughput_per_s):>8} "
        f"{_accuracy(row):>8}{' *' if row.on_front else ''}"
        for row in found.rows
    ]
    lines += ["* nothing here is as fast (p99) and as accurate, and better in one of the two", ""]
    skipped = [f"{item.artefact} on {item.backend} was left out: {item.reason}" for item in found.skipped]
    for words in (*found.recommendation, *skipped):
        lines += textwrap.wrap(printable(words), WIDTH, subsequent_indent="  ")
    return lines


def to_csv(found: Sweep) -> str:
    """Give a row a combination."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "artefact",
            "file_precision",
            "precision",
            "backend",
            "device",
            "p50_ms",
            "p99_ms",
            "throughput_per_s",
            "batch_size",
            "accuracy",
            "accuracy_images",
            "accuracy_from",
            "on_front",
        ]
    )
    for row in found.rows:
        known = row.accuracy
        writer.writerow(
            [csv_cell(row.artefact), row.file_precision, row.precision, row.backend, row.device, row.p50_ms]
            + [row.p99_ms, row.throughput_per_s, row.batch_size]
            + ([known.accuracy, known.images, known.source] if known else [None, None, None])
            + [row.on_front]
        )
    return text.getvalue()


def to_markdown(found: Sweep) -> str:
    """Give the table and the recommendation."""
    rows = [(markdown_text(row.artefact), *_cells(row)[1:]) for row in found.rows]
    lines = ["# Sweep", "", *markdown_table(_HEAD, rows), ""]
    lines += [f"- {markdown_text(words)}" for words in found.recommendation]
    lines += [
        f"- {markdown_text(item.artefact)} on {item.backend} was left out: {markdown_text(item.reason)}"
        for item in found.skipped
    ]
    lines += [f"- **Warning:** {markdown_text(warning)}" for warning in found.warnings]
    return "\n".join(lines) + "\n"


def render(found: Sweep) -> str:
    """Write the page: the recommendation, the picture and the table."""
    table = Table("One image after another, and batches in offline", _HEAD, tuple(map(_cells, found.rows)))
    sections = [
        Section("Recommendation", found.recommendation),
        Section("Accuracy against latency", (_picture(found), table)),
    ]
    if found.skipped:
        rows = tuple((item.artefact, item.backend, item.reason) for item in found.skipped)
        sections.append(
            Section("Left out", (Table("What cannot run here", ("artefact", "back end", "why"), rows),))
        )
    return page(f"Sweep of {Path(found.folder).name}", found.warnings, sections)


def _picture(found: Sweep) -> Figure:
    """Draw the Pareto front, and what lies behind it."""
    from medimg.benchmarks.plots import COLORS, Picture

    picture = Picture(height=4.2)
    (axes,) = picture.axes
    known = [row for row in found.rows if row.accuracy]
    front = [row for row in known if row.on_front]
    axes.step(
        [row.p99_ms for row in front],
        [_share(row) for row in front],
        where="post",
        color=COLORS[0],
        linewidth=1,
    )
    colors = _numbered(row.artefact for row in known)
    markers = _numbered(row.backend for row in known)
    for row in known:
        axes.plot(
            row.p99_ms,
            _share(row),
            MARKERS[markers[row.backend] % len(MARKERS)],
            color=COLORS[colors[row.artefact] % len(COLORS)],
            # A dollar sign would start a formula.
            label=f"{printable(row.artefact)}, {row.backend}".replace("$", r"\$"),
        )
    if found.latency_budget_ms:
        axes.axvline(found.latency_budget_ms, color=COLORS[1], linewidth=1, linestyle="--", label="budget")
    axes.set_xlim(left=0)
    axes.set_xlabel("p99 of one image, ms")
    axes.set_ylabel("accuracy")
    axes.margins(y=0.2)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    unknown = len(found.rows) - len(known)
    missing = f"; {unknown} without a known accuracy are not shown" if unknown else ""
    return picture.finish(f"Accuracy against latency; the line is the Pareto front{missing}")


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(sorted(names)))}


def _share(row: SweepRow) -> float:
    return row.accuracy.accuracy if row.accuracy else 0.0


def _cells(row: SweepRow) -> tuple[str, ...]:
    return (
        row.artefact,
        row.precision,
        f"{row.backend} on {row.device}",
        digits(row.p50_ms),
        digits(row.p99_ms),
        digits(row.throughput_per_s),
        str(row.batch_size),
        _accuracy(row),
        "yes" if row.on_front else "no",
    )


def _accuracy(row: SweepRow) -> str:
    return f"{row.accuracy.accuracy:.4f}" if row.accuracy else "-"
