"""The command line of medimg-train."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options, version_option
from medimg.runtime.data import Split
from medimg.runtime.errors import CheckFailedError, UsageError
from medimg.train.augmentation import PRESETS, read_augmentation
from medimg.train.data_flags import division_options, reading_options
from medimg.train.keras_setup import PolicyChoice
from medimg.train.network_options import ARCHS, Activation, Head, Padding, Pooling
from medimg.train.options import Balance, FitOptions, OptimizerName, Schedule, require_heeded
from medimg.train.progress import terminal_progress
from medimg.train.simulation import FileFormat
from medimg.train.tuning_options import DIRECTIONS, TUNERS, TuneOptions
from medimg.train.usage import CalibrationPart, Usage
from medimg.train.usage_flags import usage_options

SCHEMA = 1
BACKENDS = ("auto", "openvino", "onnxruntime", "tensorrt")
DEFAULTS = FitOptions()
TUNE_DEFAULTS = TuneOptions()

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
    help="Pretrained VGG16 weights.  [default: imagenet for vgg16, none otherwise]",
)
@reading_options
@click.option(
    "--head",
    type=click.Choice(get_args(Head)),
    default=DEFAULTS.head,
    show_default=True,
    help="sigmoid: one unit for two classes; multilabel: an image may show several classes, or none.",
)
@click.option(
    "--pooling",
    type=click.Choice(get_args(Pooling)),
    default=DEFAULTS.pooling,
    show_default=True,
    help="Of the last block's output: every channel's average, or all its pixels.",
)
@click.option(
    "--dense-units",
    type=int,
    help="Units of vgg-bn's two dense layers, or of each hidden layer otherwise.  [default: 4096, or none]",
)
@click.option(
    "--dense-layers",
    type=int,
    default=DEFAULTS.dense_layers,
    show_default=True,
    help="Hidden layers of --dense-units each, but for vgg-bn.",
)
@click.option(
    "--activation",
    type=click.Choice(get_args(Activation)),
    default=DEFAULTS.activation,
    show_default=True,
    help="Of hidden dense layers, and of the convolutions of vgg-bn and cnn.",
)
@click.option("--dropout", type=float, default=DEFAULTS.dropout, show_default=True)
@click.option("--l1", type=float, default=DEFAULTS.l1, show_default=True, help="Penalty of the dense layers.")
@click.option("--l2", type=float, default=DEFAULTS.l2, show_default=True, help="Penalty of the dense layers.")
@click.option(
    "--padding",
    type=click.Choice(get_args(Padding)),
    default=DEFAULTS.padding,
    show_default=True,
    help="Of the convolutions of vgg-bn and cnn.",
)
@click.option(
    "--filters", type=int, default=DEFAULTS.filters, show_default=True, help="Of cnn's first block."
)
@click.option("--blocks", type=int, default=DEFAULTS.blocks, show_default=True, help="Of cnn.")
@click.option(
    "--block-layers",
    type=int,
    default=DEFAULTS.block_layers,
    show_default=True,
    help="Convolutions in each block of cnn.",
)
@click.option(
    "--epochs",
    type=int,
    help="At most, of vgg16's new head or of a network from scratch.  [default: 60 or 8]",
)
@click.option(
    "--fine-tune-epochs",
    type=int,
    default=DEFAULTS.fine_tune_epochs,
    show_default=True,
    help="At most, of vgg16's last blocks.",
)
@click.option(
    "--unfreeze-blocks",
    type=int,
    default=DEFAULTS.unfreeze_blocks,
    show_default=True,
    help="How many of vgg16's five blocks are fine-tuned, counted from the last.",
)
@click.option("--learning-rate", type=float, default=DEFAULTS.learning_rate, show_default=True)
@click.option(
    "--fine-tune-rate",
    type=float,
    default=DEFAULTS.fine_tune_rate,
    show_default=True,
    help="Learning rate of vgg16's last blocks.",
)
@click.option(
    "--optimizer",
    type=click.Choice(get_args(OptimizerName)),
    default=DEFAULTS.optimizer,
    show_default=True,
)
@click.option("--momentum", type=float, default=DEFAULTS.momentum, show_default=True, help="Of sgd.")
@click.option(
    "--schedule",
    type=click.Choice(get_args(Schedule)),
    help="Of the learning rate.  [default: fixed for vgg16's last blocks, cosine from scratch]",
)
@click.option("--batch-size", type=int, default=DEFAULTS.batch_size, show_default=True)
@division_options
@click.option(
    "--augment",
    metavar="WORD,…",
    default="none",
    show_default=True,
    help=f"How training images may change: {', '.join(PRESETS)}, and settings such as rotation=5 "
    "(medimg-train augment --help lists them).",
)
@click.option(
    "--augment-copies",
    type=int,
    default=DEFAULTS.augment_copies,
    show_default=True,
    help="Copies of each image that vgg16's frozen blocks see.",
)
@click.option(
    "--balance",
    type=click.Choice(get_args(Balance)),
    default=DEFAULTS.balance,
    show_default=True,
    help="Classes of different size: alike in the loss, shown alike often, or as they are.",
)
@click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True)
@click.option(
    "--precision-policy",
    type=click.Choice(get_args(PolicyChoice)),
    default=DEFAULTS.precision_policy,
    show_default=True,
    help="What training computes in; auto is mixed_bfloat16 on CPUs that have its units.",
)
@usage_options
@click.option("--resume", is_flag=True, help="Go on with a training that was broken off; if none was, begin.")
@click.option("--restart", is_flag=True, help="Begin anew, whatever was broken off.")
@click.option("--history", type=PathArgument, help="A CSV file to write: a row an epoch.")
@click.option("--tensorboard", type=PathArgument, help="A folder for TensorBoard's logs.")
@click.option("--json", "json_file", metavar="FILE", help=commandline.JSON_HELP)
@standard_options
def fit(
    data: Path,
    output: Path,
    cache_dir: Path | None,
    resume: bool,
    restart: bool,
    history: Path | None,
    tensorboard: Path | None,
    usage: Usage,
    augment: str,
    json_file: str | None,
    threads: int,
    **options: Any,  # noqa: ANN401  each is a field of FitOptions
) -> None:
    """Train a classifier on DATA and save it as a float32 Keras model.

    DATA is a folder with a folder per class (or train/, val/ and test/ each holding such), a CSV with
    path,label[,patient][,split], a CIFAR-10 folder or a MedMNIST .npz. Images of a test part are never
    looked at.
    """
    from medimg.train.fitting import fit as run_fit
    from medimg.train.summary import fit_lines

    fit_options = FitOptions(augment=read_augmentation(augment), **options)
    source = click.get_current_context().get_parameter_source
    require_heeded(fit_options, [name for name in options if source(name) is ParameterSource.COMMANDLINE])
    result = run_fit(
        data,
        output,
        fit_options,
        threads=threads,
        cache_dir=cache_dir,
        progress=terminal_progress(),
        resume=resume,
        restart=restart,
        history=history,
        tensorboard=tensorboard,
        usage=usage,
    )
    commandline.write_json(result, json_file, schema=SCHEMA)
    if json_file != "-":
        click.echo("\n".join(fit_lines(result, str(data))))


@cli.command()
@click.argument("data", type=PathArgument)
@click.option("--output", type=PathArgument, required=True, help="Folder for the search and its best model.")
@click.option(
    "--tuner", type=click.Choice(TUNERS), default=TUNE_DEFAULTS.tuner, show_default=True, help="What chooses."
)
@click.option("--max-trials", type=positive, help="At most.  [default: 20, or as many as hyperband wants]")
@click.option(
    "--executions-per-trial",
    type=positive,
    default=TUNE_DEFAULTS.executions_per_trial,
    show_default=True,
    help="Trainings a trial, from different seeds; their figures are averaged.",
)
@click.option(
    "--objective",
    type=click.Choice(tuple(DIRECTIONS)),
    default=TUNE_DEFAULTS.objective,
    show_default=True,
    help="deployed: accuracy after export to INT8, within --latency-budget on this machine.",
)
@click.option(
    "--latency-budget",
    "latency_budget_ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="For deployed: what 90 % of single images must be answered within.",
)
@click.option(
    "--max-failures",
    type=positive,
    default=TUNE_DEFAULTS.max_failures,
    show_default=True,
    help="Trials in a row that may fail before the search ends.",
)
@click.option("--space", type=PathArgument, metavar="FILE.toml", help="What to search, instead of the usual.")
@click.option("--resume", is_flag=True, help="Go on with the search in --output, where there is one.")
@click.option(
    "--cache-dir", type=PathArgument, help="Keeps decoded images and frozen features for later runs."
)
@click.option("--json", "json_file", metavar="FILE", help=commandline.JSON_HELP)
@standard_options
def tune(
    data: Path,
    output: Path,
    space: Path | None,
    resume: bool,
    augment: str,
    cache_dir: Path | None,
    json_file: str | None,
    threads: int,
    **options: Any,  # noqa: ANN401  the fields of TuneOptions and FitOptions
) -> None:
    """Search for the options that train the best model on DATA, and train and save it.

    Images are decoded once, and frozen features computed once, for all trials. The options of `fit` stay as
    they are given, unless the search is over them. A test part of DATA is never looked at.
    """
    from medimg.train.tuning import tune as run_tune
    from medimg.train.tuning_summary import tune_lines

    names = {field.name for field in dataclasses.fields(TuneOptions)}
    tuning = TuneOptions(**{name: options.pop(name) for name in names})
    result = run_tune(
        data,
        output,
        FitOptions(augment=read_augmentation(augment), **options),
        tuning,
        space=space,
        resume=resume,
        threads=threads,
        cache_dir=cache_dir,
        progress=terminal_progress(),
    )
    commandline.write_json(result, json_file, schema=SCHEMA)
    if json_file != "-":
        click.echo("\n".join(tune_lines(result)))


FIT_FIELDS = {field.name for field in dataclasses.fields(FitOptions)}
tune.params += [parameter for parameter in fit.params if parameter.name in FIT_FIELDS]


@cli.command()
@click.argument("data", type=PathArgument)
@reading_options
@click.option("--head", type=click.Choice(get_args(Head)), default=DEFAULTS.head, show_default=True)
@click.option("--json", "json_file", metavar="FILE", help=commandline.JSON_HELP)
@standard_options
def check(
    data: Path,
    cache_dir: Path | None,
    json_file: str | None,
    threads: int,
    **options: Any,  # noqa: ANN401  each is a field of FitOptions
) -> None:
    """Count the images of DATA, and name what would spoil a result, in all parts.

    That is: images that cannot be read, patients with images in two parts, and pictures that are in two
    parts, to the pixel or nearly so. The exit status is 1 if there are any.
    """
    from medimg.train.checking import check as run_check
    from medimg.train.summary import data_lines

    report = run_check(
        data, FitOptions(**options), threads=threads, cache_dir=cache_dir, progress=terminal_progress()
    )
    commandline.write_json(report, json_file, schema=SCHEMA)
    if json_file != "-":
        click.echo("\n".join(data_lines(report)))
    if not report.clean:
        raise CheckFailedError(f"{data}: images cannot be read, or stand in two parts; they are listed above")


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
@click.option(
    "--subgroup",
    "subgroups",
    multiple=True,
    metavar="COLUMN",
    help="Column of a CSV whose values are measured apart, such as sex; may be repeated.",
)
@click.option(
    "--group-by",
    metavar="PATTERN",
    help="Regular expression that finds the patient in an image's path, as fit takes it.",
)
@click.option("--report", type=PathArgument, help="Write an HTML page with plots to this file.")
@click.option(
    "--with-images",
    is_flag=True,
    help="Show the worst mistakes in the report, with heat maps where the head allows; they show patients.",
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
    json_file: str | None,
    **options: Any,  # noqa: ANN401  those of the function
) -> None:
    """Measure MODEL, a Keras file or an exported artefact, on the labelled images of DATA.

    Each figure has a 95 % interval, from the bootstrap over patients where DATA name them, else over images.
    """
    from medimg.train.evaluation import evaluate as run_evaluate
    from medimg.train.evaluation_summary import evaluation_lines

    result = run_evaluate(model, data, split=split, progress=terminal_progress(), **options)
    commandline.write_json(result, json_file, schema=SCHEMA)
    if json_file != "-":
        click.echo("\n".join(evaluation_lines(result)))


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
    callback=lambda _context, _option, values: _sensitivities(values),
    help="Choose a threshold that finds this share of a class, such as tumour=0.95; may be repeated.",
)
@click.option("--no-temperature", is_flag=True, help="Leave the temperature as it is.")
@usage_options
@click.option("--group-by", metavar="PATTERN", help="As given to fit.  [default: what MODEL says]")
@click.option("--validation-fraction", type=float, help="As given to fit.  [default: what MODEL says]")
@click.option("--seed", type=int, help="As given to fit.  [default: what MODEL says]")
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


def _sensitivities(texts: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        label, _, share = text.rpartition("=")
        if label in found:
            raise UsageError(f"--sensitivity {text}: one is given already for {label}")
        try:
            found[label] = float(share)
        except ValueError:
            raise UsageError(f"--sensitivity {text}: LABEL=SHARE is wanted, such as tumour=0.95") from None
    return found


@cli.command()
@click.argument("data", type=PathArgument)
@click.option("--output", type=PathArgument, required=True, help="The picture to write: .png.")
@click.option(
    "--augment",
    metavar="WORD,…",
    required=True,
    help=f"A preset ({', '.join(PRESETS)}), settings, or both, such as xray,rotation=5.",
)
@click.option("--images", type=positive, default=6, show_default=True, help="Rows, the classes by turns.")
@click.option("--copies", type=positive, default=7, show_default=True, help="Changed copies in each row.")
@click.option(
    "--image-size", type=int, default=DEFAULTS.image_size, show_default=True, help="Network input, in pixels."
)
@click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True)
@standard_options
def augment(
    data: Path,
    output: Path,
    augment: str,
    images: int,
    copies: int,
    image_size: int,
    seed: int,
    threads: int,
) -> None:
    """Show what an augmentation does to the training images of DATA, as one picture.

    Each row is an image and its changed copies. The picture holds the images: treat it as you treat them.

    Settings: flip_horizontal and flip_vertical (yes, no); rotation (degrees to either side); zoom, crop and
    translation (shares of the image's side); brightness, contrast and noise (shares of the range of values).
    """
    from medimg.train.contact_sheet import write_contact_sheet

    del threads  # a few images are quick enough on one
    shown = write_contact_sheet(
        data,
        output,
        read_augmentation(augment),
        images=images,
        copies=copies,
        image_size=image_size,
        seed=seed,
    )
    click.echo(f"{output}: {shown} images and {copies} changed copies of each; it may show patients")


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
