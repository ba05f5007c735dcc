"""Options of the commands that read training data."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

import click

from medimg.runtime.commandline import Command, PathArgument
from medimg.runtime.images.rule import JpegRule
from medimg.train.data.augmentation import PRESETS
from medimg.train.fitting.options import FitOptions

_DEFAULTS = FitOptions()


def reading_options(command: Command) -> Command:
    """Add how images are read, and how patients are told apart."""
    options = (
        click.option(
            "--image-size",
            type=int,
            default=_DEFAULTS.image_size,
            show_default=True,
            help="Network input, in pixels.",
        ),
        click.option(
            "--no-resize",
            "resize",
            flag_value=False,
            default=True,
            help="Refuse images that have not the network's size.",
        ),
        click.option(
            "--jpeg",
            type=click.Choice(get_args(JpegRule)),
            default=_DEFAULTS.jpeg,
            show_default=True,
            help="dct-scaled: large JPEG files are decoded at a reduced scale, wherever the model is used.",
        ),
        click.option(
            "--group-by",
            metavar="PATTERN",
            help="Regular expression whose group `patient`, or first group, finds the patient in an image's "
            "path.  [default: the CSV's column patient, or DICOM's PatientID]",
        ),
        click.option(
            "--allow-unlisted", is_flag=True, help="A CSV may leave out images beside those it lists."
        ),
        click.option(
            "--cache-dir", type=PathArgument, help="Keeps decoded images and frozen features for later runs."
        ),
    )
    return add_options(command, options)


def augment_options(copies: str) -> tuple[Callable[[Command], Command], ...]:
    """Give the options of augmentation.

    Args:
        copies: says what the copies are for.
    """
    return (
        click.option(
            "--augment",
            metavar="WORD,…",
            default="none",
            show_default=True,
            help=f"How training images may change: {', '.join(PRESETS)}, and settings such as rotation=5 "
            "(medimg-train augment --help lists them).",
        ),
        click.option(
            "--augment-copies", type=int, default=_DEFAULTS.augment_copies, show_default=True, help=copies
        ),
    )


def division_options(command: Command) -> Command:
    """Add how the data are divided, and how many of them may be unreadable."""
    options = (
        click.option(
            "--validation-fraction",
            type=float,
            default=_DEFAULTS.validation_fraction,
            show_default=True,
            help="Held out of the training part where DATA name no validation part.",
        ),
        click.option(
            "--max-unreadable",
            metavar="N|N%",
            default=_DEFAULTS.max_unreadable,
            show_default=True,
            help="Unreadable images of a part that may be left out.",
        ),
    )
    return add_options(command, options)


def add_options(command: Command, options: Sequence[Callable[[Any], Any]]) -> Command:
    """Add options, the first of them first."""
    for option in reversed(options):
        command = option(command)
    return command
