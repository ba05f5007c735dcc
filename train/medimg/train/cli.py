"""The command line of medimg-train."""

import functools
from pathlib import Path
from typing import Any, cast, get_args

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options, version_option
from medimg.runtime.data import Split
from medimg.runtime.errors import UsageError
from medimg.runtime.spec import JpegRule
from medimg.train.keras_setup import PolicyChoice
from medimg.train.options import ARCHS, ClassWeights, FitOptions
from medimg.train.progress import terminal_progress
from medimg.train.simulation import FileFormat
from medimg.train.usage import CalibrationPart, Usage

SCHEMA = 1
BACKENDS = ("auto", "openvino", "onnxruntime")
DEFAULTS = FitOptions()

positive = click.IntRange(min=1)


@click.group()
@version_option
def cli() -> None:
    """Train and evaluate image classifiers."""


@cli.command()
@click.argument("data", type=PathArgument)
@click.option("--output", type=PathArgument, required=True, help="The Keras file to write: .h5 or .keras.")
@click.option("--arch", type=click.Choice(ARCHS), default=DEFAULTS.arch, show_default=True)
@click.option(
    "--weights",
    metavar="imagenet|none|PATH",
    help="Pretrained VGG16 weights.  [default: imagenet for vgg16, none for vgg-bn]",
)
@click.option(
    "--image-size", type=int, default=DEFAULTS.image_size, show_default=True, help="Network input, in pixels."
)
@click.option(
    "--jpeg",
    type=click.Choice(get_args(JpegRule)),
    default=DEFAULTS.jpeg,
    show_default=True,
    help="dct-scaled: large JPEG files are decoded at a reduced scale, wherever the model is used.",
)
@click.option("--epochs", type=int, help="At most, of vgg16's new head or of all vgg-bn.  [default: 60 or 8]")
@click.option(
    "--fine-tune-epochs",
    type=int,
    default=DEFAULTS.fine_tune_epochs,
    show_default=True,
    help="At most, of vgg16's last block.",
)
@click.option("--learning-rate", type=float, default=DEFAULTS.learning_rate, show_default=True)
@click.option(
    "--fine-tune-rate",
    type=float,
    default=DEFAULTS.fine_tune_rate,
    show_default=True,
    help="Learning rate of vgg16's last block.",
)
@click.option("--batch-size", type=int, default=DEFAULTS.batch_size, show_default=True)
@click.option(
    "--dense-units",
    type=int,
    help="Units of vgg-bn's two dense layers, or of one hidden layer for vgg16.  [default: 4096, or none]",
)
@click.option("--dropout", type=float, default=DEFAULTS.dropout, show_default=True)
@click.option(
    "--validation-fraction",
    type=float,
    default=DEFAULTS.validation_fraction,
    show_default=True,
    help="Held out of the training part where DATA name no validation part.",
)
@click.option(
    "--class-weights",
    type=click.Choice(get_args(ClassWeights)),
    default=DEFAULTS.class_weights,
    show_default=True,
    help="balanced: every class counts alike, however many images it has.",
)
@click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True)
@click.option(
    "--precision-policy",
    type=click.Choice(get_args(PolicyChoice)),
    default=DEFAULTS.precision_policy,
    show_default=True,
    help="What training computes in; auto is mixed_bfloat16 on CPUs that have its units.",
)
@click.option(
    "--cache-dir", type=PathArgument, help="Keeps decoded images and frozen features for later runs."
)
@click.option("--json", "json_file", metavar="FILE", help=commandline.JSON_HELP)
@standard_options
def fit(
    data: Path,
    output: Path,
    cache_dir: Path | None,
    json_file: str | None,
    threads: int,
    **options: Any,  # noqa: ANN401  each is a field of FitOptions
) -> None:
    """Train a classifier on DATA and save it as a float32 Keras model.

    DATA is a folder with a folder per class (or train/, val/ and test/ each holding such), a CSV with
    path,label[,patient][,split], a CIFAR-10 folder or a MedMNIST .npz. A test part is never looked at.
    """
    from medimg.train.fitting import fit as run_fit
    from medimg.train.summary import fit_lines

    result = run_fit(
        data,
        output,
        FitOptions(**options),
        threads=threads,
        cache_dir=cache_dir,
        progress=terminal_progress(),
    )
    commandline.write_json(result, json_file, schema=SCHEMA)
    if json_file != "-":
        click.echo("\n".join(fit_lines(result, str(data))))


@cli.command()
@click.argument("model", type=PathArgument)
@click.argument("data", type=PathArgument)
@click.option(
    "--split",
    type=click.Choice(get_args(Split)),
    help="The part of DATA to use.  [default: test, or everything where DATA are not divided]",
)
@click.option(
    "--positive",
    metavar="LABEL",
    help="Of two classes the one whose areas under the curves count.  [default: the last]",
)
@click.option("--batch-size", type=positive, default=32, show_default=True, help="Images at once.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="What runs an exported model.",
)
@click.option("--json", "json_file", metavar="FILE", help=commandline.JSON_HELP)
@standard_options
def evaluate(
    model: Path,
    data: Path,
    split: Split | None,
    positive: str | None,
    batch_size: int,
    backend: str,
    json_file: str | None,
    threads: int,
) -> None:
    """Measure MODEL, a Keras file or an exported artefact, on the labelled images of DATA.

    Each figure has a 95 % interval, from the bootstrap over patients where DATA name them, else over images.
    """
    from medimg.train.evaluation import evaluate as run_evaluate
    from medimg.train.evaluation_summary import evaluation_lines

    result = run_evaluate(
        model,
        data,
        split=split,
        positive=positive,
        batch_size=batch_size,
        backend=backend,
        threads=threads,
        progress=terminal_progress(),
    )
    commandline.write_json(result, json_file, schema=SCHEMA)
    if json_file != "-":
        click.echo("\n".join(evaluation_lines(result)))


def usage_options(command: commandline.Command) -> commandline.Command:
    """Add what a model is meant for; the verb receives it as `usage`."""

    @functools.wraps(command)
    def collected(
        *arguments: Any,  # noqa: ANN401  the command's own
        intended_use: str | None,
        allow_modality: tuple[str, ...],
        allow_body_part: tuple[str, ...],
        allow_photometric: tuple[str, ...],
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        usage = Usage(intended_use, allow_modality, allow_body_part, allow_photometric)
        return command(*arguments, usage=usage, **options)

    for option, example in (
        ("--allow-photometric", "MONOCHROME2"),
        ("--allow-body-part", "CHEST"),
        ("--allow-modality", "DX"),
    ):
        what = f"DICOM value that the model may be given, such as {example}; may be repeated."
        collected = click.option(option, multiple=True, metavar="VALUE", help=what)(collected)
    stated = click.option("--intended-use", metavar="TEXT", help="Said in the model's spec.")
    return cast("commandline.Command", stated(collected))


@cli.command()
@click.argument("model", type=PathArgument)
@click.argument("data", type=PathArgument)
@click.option("--output", type=PathArgument, help="The file to write.  [default: MODEL itself]")
@click.option(
    "--split",
    "part",
    type=click.Choice(get_args(CalibrationPart)),
    default="val",
    show_default=True,
    help="val: the part named so, or what fit holds out; all: DATA are validation images.",
)
@click.option("--use-test", is_flag=True, help="Let images of a part named test choose.")
@click.option(
    "--sensitivity",
    "sensitivities",
    multiple=True,
    metavar="LABEL=SHARE",
    callback=lambda _context, _option, values: dict(map(_sensitivity, values)),
    help="Choose a threshold that finds this share of a class, such as tumour=0.95; may be repeated.",
)
@click.option("--no-temperature", is_flag=True, help="Leave the temperature as it is.")
@usage_options
@click.option(
    "--validation-fraction",
    type=float,
    default=DEFAULTS.validation_fraction,
    show_default=True,
    help="As given to fit.",
)
@click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True, help="As given to fit.")
@click.option("--batch-size", type=positive, default=32, show_default=True, help="Images at once.")
@click.option("--json", "json_file", metavar="FILE", help=commandline.JSON_HELP)
@standard_options
def calibrate(
    model: Path,
    data: Path,
    no_temperature: bool,
    json_file: str | None,
    **options: Any,  # noqa: ANN401  those of the function
) -> None:
    """Make the probabilities of MODEL, a Keras file, mean what they say, on validation images of DATA.

    A temperature, thresholds for wanted sensitivities and the intended use are written into the file; export
    puts the temperature into the graph.
    """
    from medimg.train.calibration import calibrate as run_calibrate
    from medimg.train.evaluation_summary import calibration_lines

    result = run_calibrate(
        model, data, fit_the_temperature=not no_temperature, progress=terminal_progress(), **options
    )
    commandline.write_json(result, json_file, schema=SCHEMA)
    if json_file != "-":
        click.echo("\n".join(calibration_lines(result)))


def _sensitivity(text: str) -> tuple[str, float]:
    label, _, value = text.rpartition("=")
    try:
        return label, float(value)
    except ValueError:
        raise UsageError(f"--sensitivity {text}: LABEL=SHARE is wanted, such as tumour=0.95") from None


@cli.command()
@click.argument("folder", type=PathArgument)
@click.option("--train", type=int, default=250, show_default=True, help="Training images a class.")
@click.option("--test", type=int, default=100, show_default=True, help="Test images a class.")
@click.option("--size", type=int, default=160, show_default=True, help="Side of the images, in pixels.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--format", "file_format", type=click.Choice(get_args(FileFormat)), default="png", show_default=True
)
@standard_options
def simulate(folder: Path, threads: int, **options: Any) -> None:  # noqa: ANN401  those of the function
    """Write simulated ultrasound images into FOLDER, which must be new or empty.

    They are made by a seeded generator, for demonstrations and tests; they show no patient.
    """
    from medimg.train.simulation import simulate as run_simulate
    from medimg.train.summary import simulation_lines

    del threads  # the generator is quick enough on one
    result = run_simulate(folder, progress=terminal_progress(), **options)
    click.echo("\n".join(simulation_lines(result)))
