"""The export's outcome as one HTML page: what went in, what came out, and what it cost."""

import itertools
from collections.abc import Iterator, Sequence

from medimg.export.result import ArtefactFile, ExportResult, Quantization
from medimg.export.verify import DIFFERENCE_EDGES
from medimg.runtime.files.text import size_text
from medimg.runtime.optional import require
from medimg.runtime.report import Block, Figure, Section, Table, page, svg_of

COLORS = {"fp32": "#4b6b9b", "fp16": "#7aa37a", "int8": "#c46a4a"}
COUNTED = "images"
"""Unit of bars that say nothing where they are empty."""


def render(result: ExportResult) -> str:
    """Write the page; it holds no image and no path but the files' own names."""
    sections = [
        Section("What went in", (_source(result),)),
        Section("What came out", (_artefacts(result.artefacts), *_accuracies(result.artefacts))),
        Section("Differences from Keras", tuple(_differences(result.artefacts))),
    ]
    if result.evidence:
        rows = tuple(
            (item.rule, str(item.images), f"{item.accuracy:.4f}", "yes" if item.same_as_winner else "no")
            for item in result.evidence.attempts
        )
        head = ("rule", "images", "accuracy", "same predictions as the winner")
        sections.append(Section("Preprocessing by evidence", (Table("Tried on Keras itself", head, rows),)))
    if result.quantization:
        sections.append(Section("INT8", tuple(_quantization(result.quantization))))
    steps = tuple((name, f"{seconds:.1f}") for name, seconds in result.steps_s.items())
    sections.append(Section("Time", (Table("Seconds by step", ("step", "s"), steps),)))
    if result.quantization:
        sections.append(Section("Calibration images", (_calibration(result.quantization),)))
    return page(f"Export of {_name(result.source.path)}", result.warnings, sections)


def _source(result: ExportResult) -> Table:
    rows = (
        ("file", _name(result.source.path)),
        ("SHA-256", result.source.sha256),
        ("kind", result.source.kind),
        ("Keras version", result.source.keras_version or "not said"),
    )
    return Table("The model", ("", ""), rows)


def _artefacts(artefacts: Sequence[ArtefactFile]) -> Table:
    rows = tuple(
        (
            _name(item.path) if item.written else f"{_name(item.path)} (not written)",
            item.precision,
            size_text(item.bytes),
            item.verification.verdict,
            f"{item.verification.images} {item.verification.images_from}",
            f"{item.verification.max_abs_diff:.1e}",
            f"{item.verification.top1_agreement:.4f}",
            f"{item.batch_max_abs_diff:.1e}",
        )
        for item in artefacts
    )
    head = (
        "file",
        "precision",
        "size",
        "verdict",
        "images",
        "max |Δp|",
        "top-1 agreement",
        "max |Δp| of one alone and in a batch",
    )
    return Table("Artefacts, each compared with Keras in float32 from image to probabilities", head, rows)


def _accuracies(artefacts: Sequence[ArtefactFile]) -> Iterator[Block]:
    rows = tuple(
        (
            item.precision,
            f"{found.accuracy:.4f}",
            f"{found.accuracy_reference:.4f}",
            f"{found.accuracy_drop:+.4f}",
            f"{found.accuracy_drop_ci95[0]:+.4f} to {found.accuracy_drop_ci95[1]:+.4f}",
        )
        for item in artefacts
        if (found := item.verification).accuracy_drop_ci95 is not None
    )
    if rows:
        head = ("precision", "accuracy", "Keras", "drop", "95 % interval of the drop (Tango 1998)")
        yield Table("Accuracy on labelled images that chose nothing", head, rows)
    for item in artefacts:
        if item.recall and item.precision != "fp32":
            yield _recall_figure(item)


def _recall_figure(item: ArtefactFile) -> Figure:
    labels = [entry.label for entry in item.recall]
    series = {
        "Keras": [entry.reference for entry in item.recall],
        item.precision: [entry.artefact for entry in item.recall],
    }
    return _bars(f"Recall a class, Keras beside {item.precision}", labels, series, "recall")


def _differences(artefacts: Sequence[ArtefactFile]) -> Iterator[Block]:
    edges = [f"{edge:.0e}" for edge in DIFFERENCE_EDGES[1:]]
    names = [
        f"< {edges[0]}",
        *(f"{low} to {high}" for low, high in itertools.pairwise(edges)),
        f"≥ {edges[-1]}",
    ]
    series: dict[str, list[float]] = {
        item.precision: [float(count) for count in item.difference_counts] for item in artefacts
    }
    yield _bars("Images by their largest difference of a probability", names, series, COUNTED)


def _quantization(found: Quantization) -> Iterator[Block]:
    yield f"Ranges come from {len(found.images)} images by {found.method}, which agreed best with float32."
    rows = tuple((s.method, f"{s.top1_agreement:.4f}", f"{s.log_rms:.2e}") for s in found.scores)
    yield Table("Methods, on held-back images", ("method", "top-1 agreement", "RMS Δ log p"), rows)
    if found.layers:
        names = [layer.layer for layer in found.layers]
        restored = tuple(
            (layer.layer, f"{layer.mean_abs_diff:.2e}") for layer in found.layers if layer.restored
        )
        yield Table("Layers put back to float32", ("layer", "mean |Δp| of quantising it alone"), restored)
        effects = {"int8": [layer.mean_abs_diff for layer in found.layers]}
        yield _bars("Effect of quantising one layer alone", names, effects, "mean |Δp|")


def _calibration(found: Quantization) -> Table:
    rows = tuple((image.name, image.sha256) for image in found.images)
    return Table(f"{len(rows)} images that INT8 ranges came from", ("image", "SHA-256"), rows)


def _bars(caption: str, names: Sequence[str], series: dict[str, list[float]], unit: str) -> Figure:
    """Draw grouped horizontal bars, one group a name."""
    figures = require("matplotlib.figure", "export")
    height = 0.9 + 0.28 * len(names) * max(1, len(series))
    figure = figures.Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(series)
    for place, (label, values) in enumerate(series.items()):
        positions = [row + place * width for row in range(len(names))]
        color = COLORS.get(label, "#b8c1cc")
        bars = axes.barh(positions, values, width * 0.92, label=label, color=color)
        shown = [f"{value:.3g}" if value or unit != COUNTED else "" for value in values]
        axes.bar_label(bars, shown, padding=3, fontsize=8)
    # A dollar sign in a label would start a formula.
    axes.set_yticks(
        [row + 0.4 - width / 2 for row in range(len(names))], [n.replace("$", r"\$") for n in names]
    )
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return Figure(caption, svg_of(figure))


def _name(path: str) -> str:
    return path.rpartition("/")[2]
