"""How every verb of medimg-train gives its result."""

from collections.abc import Iterable

import click

from medimg.runtime.streams import write_json

SCHEMA = 1


def show(result: object, lines: Iterable[str], json_file: str | None) -> None:
    """Write a result as JSON where that is asked for, and its lines unless that went to standard output."""
    write_json(result, json_file, schema=SCHEMA)
    if json_file != "-":
        click.echo("\n".join(lines))
