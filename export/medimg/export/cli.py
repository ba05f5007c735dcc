"""The command line of medimg-export."""

import sys
from pathlib import Path
from typing import Any

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options, version_option

PRECISIONS = ("fp32", "fp16", "int8")


def _numbers(_context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not numbers with commas between", param=option) from None


def _size(_context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    rows, _, columns = value.lower().partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise click.BadParameter(f"{value!r} is not two numbers as in 224x224", param=option)
    return int(rows), int(columns)


def _labels(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Take names with commas between, or a file with a name a line."""
    if value is None:
        return None
    file = Path(value)
    names = file.read_text(encoding="utf-8").splitlines() if file.is_file() else value.split(",")
    return tuple(name.strip() for name in names if name.strip())


@click.command()
@click.argument("model", type=PathArgument)
@click.option("--output", type=PathArgument, help="Folder for the artefacts.  [default: beside MODEL]")
@click.option(
    "--to", "formats", type=click.Choice(["onnx"]), multiple=True, default=("onnx",), show_default=True
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    default=("fp32",),
    show_default=True,
    help="Repeat for several.",
)
@click.option(
    "--preprocessing",
    type=click.Choice(["caffe", "torch", "tf", "unit", "raw"]),
    help="How the network's images were scaled in training.",
)
@click.option("--color-order", type=click.Choice(["rgb", "bgr"]), help="Order of the network's channels.")
@click.option(
    "--mean", callback=_numbers, metavar="A,B,C", help="Own scaling of values from 0 to 1, with --std."
)
@click.option("--std", callback=_numbers, metavar="A,B,C")
@click.option(
    "--resize", type=click.Choice(["stretch-linear", "stretch-area", "stretch-nearest", "letterbox", "crop"])
)
@click.option(
    "--head",
    type=click.Choice(["softmax", "sigmoid", "multilabel", "logits"]),
    help="What the last layer gives.",
)
@click.option("--labels", callback=_labels, metavar="FILE|A,B,C", help="Names of the classes, in order.")
@click.option("--spec", "spec_file", type=PathArgument, help="TOML file that sets any field of ModelSpec.")
@click.option(
    "--calibration", type=PathArgument, metavar="DATA", help="Images that INT8 takes its ranges from."
)
@click.option(
    "--calibration-images",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="How many of them at most.",
)
@click.option(
    "--validation",
    type=PathArgument,
    metavar="DATA",
    help="Images, best with labels, to judge the artefacts on.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.01,
    show_default=True,
    help="Accepted loss of accuracy.",
)
@click.option(
    "--repair-budget",
    "repair_minutes",
    type=click.FloatRange(min=0),
    default=15,
    show_default=True,
    metavar="MINUTES",
    help="Time for putting layers of a failed INT8 artefact back to float32.",
)
@click.option("--heatmap", is_flag=True, help="Add the output activation_map (pooling + dense heads).")
@click.option("--allow-code", is_flag=True, help="Let code in the model file run, such as a Lambda layer.")
@click.option(
    "--arch", type=click.Choice(["vgg16"]), help="What the weights of a weights-only file belong to."
)
@click.option("--classes", type=click.IntRange(min=1), help="Width of its last layer, with --arch.")
@click.option(
    "--input-size",
    callback=_size,
    metavar="ROWSxCOLUMNS",
    help="Image size, for a network that takes any, or a weights-only file.",
)
@click.option("--strict", is_flag=True, help="Exit 1 unless every artefact is proven.")
@click.option("--force", is_flag=True, help="Write artefacts that failed their verification.")
@click.option("--report", type=PathArgument, metavar="FILE.html", help="Write the evidence as one HTML page.")
@click.option("--json", "json_file", metavar="FILE", help=commandline.JSON_HELP)
@standard_options
@version_option
def cli(
    model: Path,
    formats: tuple[str, ...],
    spec_file: Path | None,
    json_file: str | None,
    report: Path | None,
    threads: int,
    **options: Any,  # noqa: ANN401  the fields of ExportOptions
) -> int:
    """Export MODEL to ONNX that is proven to give the same answers.

    MODEL is a .keras, .h5 or .onnx file, or a SavedModel folder.

    Writes MODEL's name with .onnx, .fp16.onnx and .int8.onnx, for each --precision.
    """
    from medimg.export.pipeline import export_model
    from medimg.export.result import SCHEMA
    from medimg.export.summary import lines

    def show(step: str) -> None:
        if not commandline.progress_hidden():
            click.echo(f"{step} …", err=True)

    result = export_model(model, threads=threads, progress=show, spec_fields=_fields(spec_file), **options)
    commandline.write_json(result, json_file, schema=SCHEMA)
    if report:
        from medimg.export.report import render

        with commandline.written_whole(report) as temporary:
            temporary.write_text(render(result), encoding="utf-8", errors="surrogateescape")
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)
    if json_file != "-":
        click.echo("\n".join(lines(result)))
    unproven = [item for item in result.artefacts if item.verification.verdict != "proven"]
    return 1 if result.failed or (options["strict"] and unproven) else 0


def _fields(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    if sys.version_info < (3, 11):
        raise click.UsageError("--spec needs Python 3.11 or newer")
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{path}: not a readable TOML file ({error})") from None
