"""Options of the commands that write what a model is meant for."""

import functools
from typing import Any, cast

import click

from medimg.runtime.commandline import Command
from medimg.train.intended_use import Usage

_CODES = (
    ("--allow-modality", "DX"),
    ("--allow-body-part", "CHEST"),
    ("--allow-photometric", "MONOCHROME2"),
)


def usage_options(command: Command) -> Command:
    """Add intended use and allowed DICOM values; the verb receives them as one `usage`."""

    @functools.wraps(command)
    def collected(
        *arguments: Any,  # noqa: ANN401  the verb's own
        intended_use: str | None,
        allow_modality: tuple[str, ...],
        allow_body_part: tuple[str, ...],
        allow_photometric: tuple[str, ...],
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        usage = Usage(intended_use, allow_modality, allow_body_part, allow_photometric)
        return command(*arguments, usage=usage, **options)

    for option, example in reversed(_CODES):
        what = f"DICOM value that the model may be given, such as {example}; may be repeated."
        collected = click.option(option, multiple=True, metavar="VALUE", help=what)(collected)
    stated = click.option("--intended-use", metavar="TEXT", help="Said in the model's spec.")
    return cast("Command", stated(collected))
