"""Options that are the fields of FitOptions, for the verbs that train."""

import dataclasses
from typing import get_args

import click

from medimg.runtime.commandline import Command
from medimg.train.fitting.options import Balance, FitOptions, OptimizerName, Schedule
from medimg.train.keras_setup import PolicyChoice
from medimg.train.networks.options import ARCHS, Activation, Padding, Pooling
from medimg.train.tasks import TrainedHead
from medimg.train.verbs.data_flags import add_options, augment_options, division_options, reading_options

DEFAULTS = FitOptions()
FIT_FIELDS = {field.name for field in dataclasses.fields(FitOptions)}


def fit_options(command: Command) -> Command:
    """Add a field of FitOptions each: the network, the data, the training."""
    command = add_options(division_options(add_options(command, _LEARNING)), _TRAINING)
    return add_options(reading_options(add_options(command, _NETWORK)), _ORIGIN)


_ORIGIN = (
    click.option("--arch", type=click.Choice(ARCHS), default=DEFAULTS.arch, show_default=True),
    click.option(
        "--weights",
        metavar="imagenet|none|PATH",
        help="Pretrained VGG16 weights.  [default: imagenet for vgg16, none otherwise]",
    ),
)

_NETWORK = (
    click.option(
        "--head",
        type=click.Choice(get_args(TrainedHead)),
        default=DEFAULTS.head,
        show_default=True,
        help="sigmoid: one unit for two classes; multilabel: an image may show several classes, or none.",
    ),
    click.option(
        "--pooling",
        type=click.Choice(get_args(Pooling)),
        default=DEFAULTS.pooling,
        show_default=True,
        help="What is made of the last block's output: every channel's average, or all its pixels.",
    ),
    click.option(
        "--dense-units",
        type=int,
        help="Units of vgg-bn's two dense layers, or of each hidden layer otherwise.  "
        "[default: 4096, or none]",
    ),
    click.option(
        "--dense-layers",
        type=int,
        default=DEFAULTS.dense_layers,
        show_default=True,
        help="Hidden layers of --dense-units each, but for vgg-bn.",
    ),
    click.option(
        "--activation",
        type=click.Choice(get_args(Activation)),
        default=DEFAULTS.activation,
        show_default=True,
        help="Activation of hidden dense layers, and of the convolutions of vgg-bn and cnn.",
    ),
    click.option("--dropout", type=float, default=DEFAULTS.dropout, show_default=True),
    click.option(
        "--l1", type=float, default=DEFAULTS.l1, show_default=True, help="Penalty of the dense layers."
    ),
    click.option(
        "--l2", type=float, default=DEFAULTS.l2, show_default=True, help="Penalty of the dense layers."
    ),
    click.option(
        "--padding",
        type=click.Choice(get_args(Padding)),
        default=DEFAULTS.padding,
        show_default=True,
        help="Padding of the convolutions of vgg-bn and cnn.",
    ),
    click.option(
        "--filters",
        type=int,
        default=DEFAULTS.filters,
        show_default=True,
        help="Filters of cnn's first block.",
    ),
    click.option("--blocks", type=int, default=DEFAULTS.blocks, show_default=True, help="Blocks of cnn."),
    click.option(
        "--block-layers",
        type=int,
        default=DEFAULTS.block_layers,
        show_default=True,
        help="Convolutions in each block of cnn.",
    ),
)

_TRAINING = (
    click.option(
        "--epochs",
        type=int,
        help="At most, of vgg16's new head or of a network from scratch.  [default: 60 or 8]",
    ),
    click.option(
        "--fine-tune-epochs",
        type=int,
        default=DEFAULTS.fine_tune_epochs,
        show_default=True,
        help="At most, of vgg16's last blocks.",
    ),
    click.option(
        "--unfreeze-blocks",
        type=int,
        default=DEFAULTS.unfreeze_blocks,
        show_default=True,
        help="How many of vgg16's five blocks are fine-tuned, counted from the last.",
    ),
    click.option("--learning-rate", type=float, default=DEFAULTS.learning_rate, show_default=True),
    click.option(
        "--fine-tune-rate",
        type=float,
        default=DEFAULTS.fine_tune_rate,
        show_default=True,
        help="Learning rate of vgg16's last blocks.",
    ),
    click.option(
        "--optimizer",
        type=click.Choice(get_args(OptimizerName)),
        default=DEFAULTS.optimizer,
        show_default=True,
    ),
    click.option(
        "--momentum", type=float, default=DEFAULTS.momentum, show_default=True, help="Momentum of sgd."
    ),
    click.option(
        "--schedule",
        type=click.Choice(get_args(Schedule)),
        help="Course of the learning rate.  [default: fixed for vgg16's last blocks, cosine from scratch]",
    ),
    click.option("--batch-size", type=int, default=DEFAULTS.batch_size, show_default=True),
)

_LEARNING = (
    *augment_options("Copies of each image that vgg16's frozen blocks see."),
    click.option(
        "--balance",
        type=click.Choice(get_args(Balance)),
        default=DEFAULTS.balance,
        show_default=True,
        help="Classes of different size: alike in the loss, shown alike often, or as they are.",
    ),
    click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True),
    click.option(
        "--precision-policy",
        type=click.Choice(get_args(PolicyChoice)),
        default=DEFAULTS.precision_policy,
        show_default=True,
        help="What training computes in; auto is mixed_bfloat16 on CPUs that have its units.",
    ),
)
