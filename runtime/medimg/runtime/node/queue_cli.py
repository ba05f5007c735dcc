"""The command `queue`: what the node has not done, and what a person decides about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medimg.runtime.commandline import JSON_OPTION, PathArgument, standard_options
from medimg.runtime.streams import write_json

if TYPE_CHECKING:
    from medimg.runtime.node.desk import Desk

_CONFIG = click.option(
    "--config",
    "config_file",
    type=PathArgument,
    required=True,
    metavar="FILE.toml",
    help="The configuration that the node runs with.",
)
_DESTINATION = click.option(
    "--destination", metavar="NAME", help="Everything that this destination is to get."
)
_REPORTS = click.argument("reports", nargs=-1, metavar="[REPORT_UID]...")


@click.group()
def queue() -> None:
    """Show the node's queue, and decide about what it cannot do by itself; the node may be at work."""


@queue.command("list")
@_CONFIG
@JSON_OPTION
@standard_options
def list_queue(config_file: Path, json_file: str | None, threads: int) -> None:
    """List reports that destinations do not have, and images that could not be classified."""
    from medimg.runtime.node.desk import as_rows

    with _desk(config_file) as desk:
        found = desk.queue()
    write_json(found, json_file, schema=1)
    if json_file != "-":
        for line in as_rows(found):
            click.echo(line)


@queue.command()
@_REPORTS
@_DESTINATION
@_CONFIG
@standard_options
def retry(reports: tuple[str, ...], destination: str | None, config_file: Path, threads: int) -> None:
    """Send reports again at once, all that are open unless some are named."""
    with _desk(config_file) as desk:
        count = desk.retry_deliveries(desk.chosen(reports, destination))
    click.echo(f"{count} deliveries are tried again")


@queue.command()
@_REPORTS
@_DESTINATION
@_CONFIG
@standard_options
def skip(reports: tuple[str, ...], destination: str | None, config_file: Path, threads: int) -> None:
    """Give reports up: a destination, or every one, is not to get them any more."""
    from medimg.runtime.errors import UsageError

    if not reports and destination is None:
        raise UsageError("name reports, or a --destination")
    with _desk(config_file) as desk:
        count = desk.close_deliveries(desk.chosen(reports, destination), "skipped")
    click.echo(f"{count} deliveries are given up")


@queue.command()
@click.argument("images", nargs=-1, metavar="[SOP_INSTANCE_UID]...")
@click.option("--series", multiple=True, metavar="UID", help="Every image of this series; may be repeated.")
@_CONFIG
@standard_options
def reprocess(images: tuple[str, ...], series: tuple[str, ...], config_file: Path, threads: int) -> int:
    """Classify images again: those that were unreadable or set aside, unless some are named.

    A series whose answers change by that gets a new report, which names the one before.
    """
    with _desk(config_file) as desk:
        asked = desk.reprocess(images, series)
    click.echo(f"{asked.images} images are classified again")
    if asked.without_file:
        click.echo(f"{asked.without_file} keep their answers: their files were removed", err=True)
    return int(asked.without_file > 0)


@contextmanager
def _desk(config_file: Path) -> "Iterator[Desk]":
    import sqlite3

    from medimg.runtime.errors import CheckFailedError
    from medimg.runtime.node.config import read_config
    from medimg.runtime.node.desk import Desk

    config = read_config(config_file)
    desk = Desk(Path(config.folder), config.deliver.names())
    try:
        yield desk
    except sqlite3.Error as error:
        raise CheckFailedError(f"{config.folder}: {error}") from None
    finally:
        desk.close()
