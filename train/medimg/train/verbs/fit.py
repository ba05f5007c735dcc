"""`medimg-train fit`."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options
from medimg.train.data.augmentation import read_augmentation
from medimg.train.fitting.options import FitOptions, require_heeded
from medimg.train.intended_use import Usage
from medimg.train.verbs.answer import show
from medimg.train.verbs.fit_flags import fit_options
from medimg.train.verbs.terminal_progress import terminal_progress
from medimg.train.verbs.usage_flags import usage_options


@click.command()
@click.argument("data", type=PathArgument)
@click.option("--output", type=PathArgument, required=True, help="The Keras file to write: .h5 or .keras.")
@fit_options
@usage_options
@click.option("--resume", is_flag=True, help="Go on with a training that was broken off; if none was, begin.")
@click.option("--restart", is_flag=True, help="Begin anew, whatever was broken off.")
@click.option("--history", type=PathArgument, help="A CSV file to write: a row an epoch.")
@click.option("--tensorboard", type=PathArgument, help="A folder for TensorBoard's logs.")
@commandline.JSON_OPTION
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
    from medimg.train.fitting.fit import fit as run_fit
    from medimg.train.fitting.summary import fit_lines

    training = FitOptions(augment=read_augmentation(augment), **options)
    source = click.get_current_context().get_parameter_source
    require_heeded(training, [name for name in options if source(name) is ParameterSource.COMMANDLINE])
    result = run_fit(
        data,
        output,
        training,
        threads=threads,
        cache_dir=cache_dir,
        progress=terminal_progress(),
        resume=resume,
        restart=restart,
        history=history,
        tensorboard=tensorboard,
        usage=usage,
    )
    show(result, fit_lines(result, str(data)), json_file)
