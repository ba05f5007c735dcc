"""Verbs about images alone: check, augment, simulate."""

from pathlib import Path
from typing import Any, get_args

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options
from medimg.runtime.errors import CheckFailedError
from medimg.train.data.augmentation import PRESETS, read_augmentation
from medimg.train.fitting.options import FitOptions
from medimg.train.simulation.simulate import FileFormat
from medimg.train.tasks import TrainedHead
from medimg.train.verbs.answer import show
from medimg.train.verbs.data_flags import reading_options
from medimg.train.verbs.terminal_progress import terminal_progress

DEFAULTS = FitOptions()

positive = click.IntRange(min=1)


@click.command()
@click.argument("data", type=PathArgument)
@reading_options
@click.option("--head", type=click.Choice(get_args(TrainedHead)), default=DEFAULTS.head, show_default=True)
@commandline.JSON_OPTION
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
    from medimg.train.data.check import check as run_check
    from medimg.train.fitting.summary import data_lines

    wanted = FitOptions(**options)
    report = run_check(
        data,
        wanted,
        rule=wanted.image,
        task=wanted.task,
        threads=threads,
        cache_dir=cache_dir,
        progress=terminal_progress(),
    )
    show(report, data_lines(report), json_file)
    if not report.clean:
        raise CheckFailedError(f"{data}: images cannot be read, or stand in two parts; they are listed above")


@click.command()
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
    from medimg.train.data.contact_sheet import write_contact_sheet

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


@click.command()
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
    from medimg.train.fitting.summary import simulation_lines
    from medimg.train.simulation.simulate import simulate as run_simulate

    del threads  # the generator is quick enough on one
    result = run_simulate(folder, progress=terminal_progress(), **options)
    click.echo("\n".join(simulation_lines(result)))
