"""The command line of medimg-train."""

from pathlib import Path
from typing import Any, get_args

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options, version_option
from medimg.runtime.data import Split
from medimg.runtime.spec import JpegRule
from medimg.train.keras_setup import PolicyChoice
from medimg.train.options import ARCHS, ClassWeights, FitOptions
from medimg.train.progress import terminal_progress
from medimg.train.simulation import FileFormat

SCHEMA = 1
BACKENDS = ("auto", "openvino", "onnxruntime", "tensorrt")
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
@click.option("--cache-dir", type=PathArgument, help="Where decoded images are kept meanwhile.")
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
    batch_size: int,
    backend: str,
    json_file: str | None,
    threads: int,
) -> None:
    """Measure MODEL, a Keras file or an exported .onnx, on the labelled images of DATA."""
    from medimg.train.evaluation import evaluate as run_evaluate
    from medimg.train.summary import evaluation_lines

    result = run_evaluate(
        model,
        data,
        split=split,
        batch_size=batch_size,
        backend=backend,
        threads=threads,
        progress=terminal_progress(),
    )
    commandline.write_json(result, json_file, schema=SCHEMA)
    if json_file != "-":
        click.echo("\n".join(evaluation_lines(result)))


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
