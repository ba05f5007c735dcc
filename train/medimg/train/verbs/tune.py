"""`medimg-train tune`."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options
from medimg.train.data.augmentation import read_augmentation
from medimg.train.fitting.options import FitOptions
from medimg.train.tuning.options import DIRECTIONS, TUNERS, TuneOptions
from medimg.train.verbs.answer import show
from medimg.train.verbs.fit_flags import fit_options
from medimg.train.verbs.terminal_progress import terminal_progress

DEFAULTS = TuneOptions()

positive = click.IntRange(min=1)


@click.command()
@click.argument("data", type=PathArgument)
@click.option("--output", type=PathArgument, required=True, help="Folder for the search and its best model.")
@click.option(
    "--tuner", type=click.Choice(TUNERS), default=DEFAULTS.tuner, show_default=True, help="What chooses."
)
@click.option("--max-trials", type=positive, help="At most.  [default: 20, or as many as hyperband wants]")
@click.option(
    "--executions-per-trial",
    type=positive,
    default=DEFAULTS.executions_per_trial,
    show_default=True,
    help="Trainings a trial, from different seeds; their figures are averaged.",
)
@click.option(
    "--objective",
    type=click.Choice(tuple(DIRECTIONS)),
    default=DEFAULTS.objective,
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
    default=DEFAULTS.max_failures,
    show_default=True,
    help="Trials in a row that may fail before the search ends.",
)
@click.option("--space", type=PathArgument, metavar="FILE.toml", help="What to search, instead of the usual.")
@click.option("--resume", is_flag=True, help="Go on with the search in --output, where there is one.")
@fit_options
@commandline.JSON_OPTION
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
    from medimg.train.tuning.summary import tune_lines
    from medimg.train.tuning.tune import tune as run_tune

    names = {field.name for field in dataclasses.fields(TuneOptions)}
    tuning = TuneOptions(**{name: options.pop(name) for name in names})
    result = run_tune(
        data,
        output,
        tuning,
        threads=threads,
        progress=terminal_progress(),
        training=FitOptions(augment=read_augmentation(augment), **options),
        space=space,
        cache_dir=cache_dir,
        resume=resume,
    )
    show(result, tune_lines(result), json_file)
