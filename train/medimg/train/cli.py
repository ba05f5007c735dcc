"""The command line of medimg-train."""

import click

from medimg.runtime.commandline import version_option
from medimg.train.verbs.compress import compress
from medimg.train.verbs.data import augment, check, simulate
from medimg.train.verbs.evaluate import calibrate, evaluate
from medimg.train.verbs.fit import fit
from medimg.train.verbs.tune import tune


@click.group()
@version_option
def cli() -> None:
    """Train and evaluate image classifiers."""


for verb in (fit, tune, check, evaluate, calibrate, compress, augment, simulate):
    cli.add_command(verb)
