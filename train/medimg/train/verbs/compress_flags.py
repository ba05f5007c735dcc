"""Options of `medimg-train compress`."""

from typing import get_args

import click

from medimg.runtime.commandline import Command, PathArgument
from medimg.runtime.model.spec import ColorOrder
from medimg.train.compression.options import CompressOptions, WidthRule, read_ratio
from medimg.train.data.balance import CountsOfClasses
from medimg.train.verbs.data_flags import add_options, augment_options, division_options

_DEFAULTS = CompressOptions()


def compress_options(command: Command) -> Command:
    """Add what `compress` may be told."""
    return add_options(division_options(command), _OPTIONS)


_OPTIONS = (
    click.option(
        "--output", type=PathArgument, required=True, help="The Keras file to write: .h5 or .keras."
    ),
    click.option(
        "--macs",
        multiple=True,
        metavar="8x",
        callback=lambda _context, _option, values: tuple(map(read_ratio, values)),
        help="How many times fewer multiply-accumulates; repeat for several points.  [default: 2x 4x 8x 16x]",
    ),
    click.option(
        "--latency-ms",
        type=float,
        metavar="MS",
        help="In place of --macs: the median time of single images in INT8 on this device.",
    ),
    click.option("--device", default=_DEFAULTS.device, show_default=True, help="As medimg-bench takes it."),
    click.option("--backend", default=_DEFAULTS.backend, show_default=True, help="As medimg-bench takes it."),
    click.option("--image-size", type=int, metavar="PX", help="A smaller square input.  [default: MODEL's]"),
    click.option(
        "--max-drop",
        type=float,
        default=_DEFAULTS.max_drop,
        show_default=True,
        help="Accepted loss of accuracy, and of the area under the ROC curve.",
    ),
    click.option("--strict", is_flag=True, help="Keep only what is proven."),
    click.option(
        "--epochs",
        type=int,
        default=_DEFAULTS.epochs,
        show_default=True,
        help="Epochs of distillation, a point.",
    ),
    click.option("--learning-rate", type=float, default=_DEFAULTS.learning_rate, show_default=True),
    click.option("--batch-size", type=int, default=_DEFAULTS.batch_size, show_default=True),
    click.option(
        "--widths",
        type=click.Choice(get_args(WidthRule)),
        default=_DEFAULTS.widths,
        show_default=True,
        help="What narrowing saves at least error: time as measured here, or multiply-accumulates; uniform "
        "narrows all layers alike.",
    ),
    click.option(
        "--multiple",
        type=int,
        help="What widths are multiples of.  [default: of 16, 32 and 64 the one that is fastest here]",
    ),
    click.option(
        "--no-reconstruction",
        "reconstruct",
        flag_value=False,
        default=True,
        help="Leave channels out, without least squares in the next layer.",
    ),
    click.option(
        "--no-distillation", "distil", flag_value=False, default=True, help="Train on the labels alone."
    ),
    click.option(
        "--balance",
        type=click.Choice(get_args(CountsOfClasses)),
        default=_DEFAULTS.balance,
        show_default=True,
        help="As MODEL was trained: classes of different size alike in the loss, or as they are.",
    ),
    *augment_options("Copies of each image, one an epoch by turns."),
    click.option(
        "--preprocessing",
        type=click.Choice(["caffe", "torch", "tf", "unit", "raw"]),
        help="Preprocessing of a MODEL that carries no spec.",
    ),
    click.option(
        "--color-order",
        type=click.Choice(get_args(ColorOrder)),
        help="Colour order of a MODEL that carries no spec.",
    ),
    click.option("--group-by", metavar="PATTERN", help="As given to fit, where MODEL does not say."),
    click.option("--allow-unlisted", is_flag=True, help="As given to fit."),
    click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True),
    click.option(
        "--cache-dir",
        type=PathArgument,
        help="Keeps decoded images, MODEL's answers and this machine's timings for later runs.",
    ),
    click.option("--plot", type=PathArgument, metavar="FILE.svg", help="Draw the points by latency."),
    click.option("--resume", is_flag=True, help="Go on with a compression that was broken off, or begin."),
    click.option("--restart", is_flag=True, help="Begin anew, whatever was broken off."),
)
