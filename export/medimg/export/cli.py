"""The command line of medimg-export."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options, version_option
from medimg.runtime.errors import MissingDependencyError
from medimg.runtime.files.text import printable
from medimg.runtime.files.text_files import read_labels, read_toml
from medimg.runtime.files.writing import write_text
from medimg.runtime.streams import progress_hidden, write_json

if TYPE_CHECKING:
    from medimg.export.result import ExportResult
    from medimg.export.to_triton import ServedModel, ServingBackend, ServingOptions
    from medimg.runtime.building.make import EngineFile
    from medimg.runtime.engines.builder import BuildOptions

PRECISIONS = ("fp32", "fp16", "int8")
_FOR_ENGINES = {"model", "output", "formats", "precisions", "profile", "workspace_mib", "version_compatible"}
_FOR_ENGINES |= {"force", "json_file", "threads", "triton_backend", "queue_delay_us", "instances"}
"""What may be said about a finished artefact; anything else concerns the conversion."""


def _numbers(_context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not numbers with commas between", param=option) from None


def _profile(_context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    parts = value.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is not least,best,most as in 1,8,32", param=option)
    sizes = tuple(int(part) for part in parts)
    return sizes if len(sizes) == 3 else (1, *sizes, *sizes)


def _size(_context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    rows, _, columns = value.lower().partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise click.BadParameter(f"{value!r} is not two numbers as in 224x224", param=option)
    return int(rows), int(columns)


def _labels(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Take names with commas between, or a file with a name a line."""
    return None if value is None else read_labels(value)


@click.command()
@click.argument("model", type=PathArgument)
@click.option("--output", type=PathArgument, help="Folder for the artefacts.  [default: beside MODEL]")
@click.option(
    "--to",
    "formats",
    type=click.Choice(["onnx", "tensorrt", "triton"]),
    multiple=True,
    default=("onnx",),
    show_default=True,
    help="tensorrt builds engines for this machine's GPU, triton a model repository.",
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
@click.option(
    "--labels",
    type=commandline.NameArgument,
    callback=_labels,
    metavar="FILE|A,B,C",
    help="Names of the classes, in order.",
)
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
@click.option(
    "--golden",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write N of the images, as the network takes them, and Keras's answers, to verify engines.",
)
@click.option(
    "--batch-size",
    "profile",
    callback=_profile,
    default="1,8,32",
    show_default=True,
    metavar="LEAST,BEST,MOST",
    help="Images at once that an engine, or a server, takes.",
)
@click.option(
    "--workspace",
    "workspace_mib",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="GPU memory for an engine.",
)
@click.option("--version-compatible", is_flag=True, help="Let later versions of TensorRT run the engine.")
@click.option(
    "--triton-backend",
    type=click.Choice(["onnxruntime", "openvino"]),
    help="What a server runs ONNX files with.  [default: openvino for int8, else onnxruntime on a GPU]",
)
@click.option(
    "--queue-delay",
    "queue_delay_us",
    type=click.IntRange(min=0),
    default=2000,
    show_default=True,
    metavar="MICROSECONDS",
    help="How long a server lets a request wait for others.",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Copies of a model on a server.",
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
@click.option(
    "--architecture",
    type=PathArgument,
    metavar="FILE",
    help="The model.json or .yaml that the weights of a weights-only file belong to.",
)
@click.option("--output-name", metavar="NAME", help="The output to export, of a network that has several.")
@click.option("--strict", is_flag=True, help="Exit 1 unless every artefact is proven.")
@click.option("--force", is_flag=True, help="Write artefacts that failed their verification.")
@click.option("--report", type=PathArgument, metavar="FILE.html", help="Write the evidence as one HTML page.")
@commandline.JSON_OPTION
@standard_options
@version_option
@click.pass_context
def cli(
    context: click.Context,
    /,
    model: Path,
    formats: tuple[str, ...],
    spec_file: Path | None,
    json_file: str | None,
    report: Path | None,
    profile: tuple[int, ...],
    workspace_mib: int | None,
    version_compatible: bool,
    triton_backend: "ServingBackend | None",
    queue_delay_us: int,
    instances: int,
    threads: int,
    **options: Any,  # noqa: ANN401  the fields of ExportOptions
) -> int:
    """Export MODEL to ONNX that is proven to give the same answers.

    MODEL is a .keras, .h5 or .onnx file, or a SavedModel folder.

    Writes MODEL's name with .onnx, .fp16.onnx and .int8.onnx, for each --precision. With --to tensorrt also
    engines for this machine's GPU, with --to triton also a model repository, in the folder triton; from
    finished files of medimg-export neither needs a framework.
    """
    from medimg.export.to_tensorrt import is_exported
    from medimg.export.to_triton import ServingOptions
    from medimg.runtime.engines.builder import BuildOptions
    from medimg.runtime.model.containers import PLAN_SUFFIX
    from medimg.runtime.model.plan import BatchProfile

    engine = BuildOptions(BatchProfile(*profile), workspace_mib, version_compatible)
    serving = ServingOptions(triton_backend, engine.profile, queue_delay_us, instances)
    if "onnx" not in formats and (is_exported(model) or model.suffix == PLAN_SUFFIX):
        if len(formats) > 1:
            raise click.UsageError("first --to tensorrt, then --to triton for the engine that it wrote")
        if formats == ("tensorrt",):
            _build_ready(context, model, engine, json_file)
        else:
            _serve_ready(context, model, serving, json_file)
        return 0
    try:
        from medimg.export.options import ExportOptions
        from medimg.export.pipeline import export_model
        from medimg.export.result import SCHEMA
        from medimg.export.summary import lines
    except ImportError as error:
        raise MissingDependencyError(
            f"an export needs {error.name}: pip install 'medimg[export]'. Where that is too much, "
            "--to tensorrt builds engines from .onnx files that medimg-export has made elsewhere"
        ) from None

    chosen = ExportOptions(spec_fields=_fields(spec_file), **options)
    result = export_model(model, chosen, threads=threads, progress=_show)
    if formats == ("onnx",) or json_file != "-":
        write_json(result, json_file, schema=SCHEMA)
    if report:
        from medimg.export.report import render

        write_text(report, render(result))
    _tell(result.warnings, (lines(result),), json_file)
    if "tensorrt" in formats:
        result = replace(result, engines=_build_exported(result, engine, options["force"], json_file))
    if "triton" in formats:
        result = replace(
            result, repository=_serve_exported(result, model, options["output"], serving, json_file)
        )
    if formats != ("onnx",):
        write_json(result, json_file, schema=SCHEMA)
    unproven = [item for item in result.artefacts if item.verification.verdict != "proven"]
    return 1 if result.failed or (options["strict"] and unproven) else 0


def _show(step: str) -> None:
    if not progress_hidden():
        click.echo(f"{step} …", err=True)


def _build_ready(context: click.Context, model: Path, engine: "BuildOptions", json_file: str | None) -> None:
    """Build an engine from a finished ONNX file."""
    from medimg.export import to_tensorrt

    built = to_tensorrt.build_ready(
        model,
        engine,
        precisions=_asked_of_an_engine(context),
        output=context.params["output"],
        force=context.params["force"],
        progress=_show,
    )
    write_json(built, json_file, schema=to_tensorrt.SCHEMA)
    _tell(built.warnings, (to_tensorrt.lines(item) for item in built.artefacts), json_file)


def _build_exported(
    result: "ExportResult", engine: "BuildOptions", force: bool, json_file: str | None
) -> "tuple[EngineFile, ...]":
    """Build an engine from each artefact that an export has written."""
    from medimg.export import to_tensorrt

    written = [item.path for item in result.artefacts if item.written]
    engines = to_tensorrt.build_exported(written, engine, force=force, progress=_show)
    notes = [note for item in engines for note in to_tensorrt.warnings_of(item)]
    _tell(notes, (to_tensorrt.lines(item) for item in engines), json_file)
    return engines


def _serve_ready(
    context: click.Context, model: Path, serving: "ServingOptions", json_file: str | None
) -> None:
    """Put a finished artefact into a model repository."""
    from medimg.export import to_triton

    _asked_of_an_engine(context)
    root = (context.params["output"] or model.parent) / to_triton.FOLDER
    built = to_triton.Repository(to_triton.build_repository([model], root, serving))
    write_json(built, json_file, schema=to_triton.SCHEMA)
    _tell((), (to_triton.lines(item) for item in built.repository), json_file)


def _serve_exported(
    result: "ExportResult", model: Path, output: Path | None, serving: "ServingOptions", json_file: str | None
) -> "tuple[ServedModel, ...]":
    """Put what an export has written into a model repository."""
    from medimg.export import to_triton

    written = [item.path for item in result.artefacts if item.written]
    written += [item.path for item in result.engines]
    served = to_triton.build_repository(written, (output or model.parent) / to_triton.FOLDER, serving)
    _tell((), (to_triton.lines(item) for item in served), json_file)
    return served


def _asked_of_an_engine(context: click.Context) -> tuple[str, ...] | None:
    """Refuse options that concern a conversion; give the precisions that were on the command line, if any."""
    source = click.core.ParameterSource.COMMANDLINE
    given = {name for name in context.params if context.get_parameter_source(name) is source}
    if others := sorted(given - _FOR_ENGINES):
        option = next(item.opts[-1] for item in context.command.params if item.name == others[0])
        raise click.UsageError(f"{option} concerns an export, and an engine is built from a finished one")
    precisions: tuple[str, ...] = context.params["precisions"]
    return precisions if "precisions" in given else None


def _tell(warnings: Iterable[str], items: Iterable[list[str]], json_file: str | None) -> None:
    for warning in warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    if json_file != "-":
        click.echo("\n".join(line for item in items for line in item))


def _fields(path: Path | None) -> dict[str, Any] | None:
    return None if path is None else read_toml(path)
