"""The commands of the node: listen, queue, audit, bundle, sbom."""

import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options
from medimg.runtime.files.writing import write_text
from medimg.runtime.interrupt import leave_at_once
from medimg.runtime.node.queue_cli import queue
from medimg.runtime.streams import write_json

if TYPE_CHECKING:
    from medimg.runtime.node.config import NodeConfig


@click.command()
@click.argument("model", type=PathArgument)
@click.option("--config", "config_file", type=PathArgument, required=True, metavar="FILE.toml")
@click.option("--ae-title", help="In place of the configuration's.")
@click.option("--port", type=click.IntRange(1, 65535), help="In place of the configuration's.")
@click.option("--check", "is_check", is_flag=True, help="Say what would keep the node from working, and end.")
@standard_options
def listen(
    model: Path, config_file: Path, ae_title: str | None, port: int | None, is_check: bool, threads: int
) -> None:
    """Receive DICOM images, classify them with MODEL (an artefact or a signed bundle), send the results on.

    SIGTERM finishes what is under way; SIGHUP reads MODEL, configuration and certificates anew; SIGUSR2 goes
    back to the model before.
    """
    # Until it runs there is nothing to finish, and libraries can swallow Ctrl-C as they load.
    leave_at_once()
    for request in (signal.SIGHUP, signal.SIGUSR2):
        signal.signal(request, signal.SIG_IGN)
    import sqlite3

    from medimg.runtime.errors import CheckFailedError, ModelError, UsageError
    from medimg.runtime.node.config import NodeConfig, read_config
    from medimg.runtime.node.logs import log_json_lines
    from medimg.runtime.node.service import Node

    def configuration() -> NodeConfig:
        config = read_config(config_file)
        try:
            return replace(config, ae_title=ae_title or config.ae_title, port=port or config.port)
        except ModelError as error:
            raise UsageError(str(error)) from None

    config = configuration()
    if is_check:
        _check(model, config, threads)
        return
    log_json_lines()
    if not config.public_key:
        logging.getLogger(__name__).warning("no public_key is configured, so MODEL need not be signed")
    try:
        Node(model, config, threads, configuration).run()
    except (OSError, sqlite3.Error) as error:
        raise CheckFailedError(f"{config.folder}: {error}: is the disk full, or its owner another?") from None


def _check(model: Path, config: "NodeConfig", threads: int) -> None:
    """Print what would keep the node from working; exit status 1 if anything does."""
    from medimg.runtime.errors import CheckFailedError
    from medimg.runtime.files.text import printable
    from medimg.runtime.node.precheck import precheck

    found = precheck(model, config, threads)
    for item in found:
        mark = {True: "ok    ", False: "FAILED", None: "note  "}[item.is_well]
        click.echo(f"{mark}  {item.name:<14}  {printable(item.text)}")
    if failed := [item.name for item in found if item.is_well is False]:
        raise CheckFailedError(f"the node would not work: {', '.join(failed)}")


@click.group()
def audit() -> None:
    """Check the audit log."""


@audit.command("verify")
@click.argument("folder", type=PathArgument)
@click.option("--checkpoints", type=PathArgument, help="Folder of the signed checkpoints.")
@click.option("--key", type=PathArgument, help="Public key of the checkpoints.")
@commandline.JSON_OPTION
@standard_options
def verify_audit(
    folder: Path, checkpoints: Path | None, key: Path | None, json_file: str | None, threads: int
) -> None:
    """Check every entry of the log in FOLDER, and its length by the signed checkpoints."""
    from medimg.runtime.errors import UsageError
    from medimg.runtime.node.audit import verify_log

    if (checkpoints is None) != (key is None):
        raise UsageError("--checkpoints and --key go together")
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    found = verify_log(folder, checkpoints, key)
    write_json(found, json_file, schema=1)
    if json_file == "-":
        return
    click.echo(f"{found.entries} entries, each following the one before it")
    if key:
        click.echo(
            f"{found.checkpoints} checkpoints agree; the last vouches for {found.signed_entries} entries"
        )
    else:
        click.echo("without --checkpoints, entries cut off at the end cannot be noticed", err=True)


@click.group()
def bundle() -> None:
    """Sign an artefact with what belongs to it, and verify it."""


@bundle.command("sign")
@click.argument("folder", type=PathArgument)
@click.option("--key", type=PathArgument, required=True, help="Ed25519 private key in PEM.")
@click.option("--artefact", help="The .onnx file that a node runs, where FOLDER holds several.")
@click.option(
    "--version",
    type=click.IntRange(min=1),
    help="Number of this version; a node that ran it refuses lower ones.  [default: the time in seconds]",
)
@standard_options
def sign(folder: Path, key: Path, artefact: str | None, version: int | None, threads: int) -> None:
    """Hash every file in FOLDER and sign the list: manifest.json and manifest.sig."""
    from medimg.runtime.node.bundle import sign_bundle

    click.echo(sign_bundle(folder, key, artefact, version))


@bundle.command("verify")
@click.argument("folder", type=PathArgument)
@click.option("--key", type=PathArgument, required=True, help="Ed25519 public key in PEM.")
@standard_options
def verify(folder: Path, key: Path, threads: int) -> None:
    """Check FOLDER's signature and every file; exit status 1 if anything differs."""
    from medimg.runtime.node.bundle import verify_bundle, version_of

    manifest = verify_bundle(folder, key)
    click.echo(
        f"{len(manifest['sha256'])} files are as they were signed; {manifest['artefact']} is run, "
        f"version {version_of(manifest)}"
    )


@click.command()
@click.argument("model", type=PathArgument, required=False)
@click.option("--output", type=PathArgument, help="Write to FILE in place of standard output.")
@standard_options
def sbom(model: Path | None, output: Path | None, threads: int) -> None:
    """List this environment's packages, and MODEL, as a CycloneDX 1.6 bill of materials in JSON."""
    from medimg.runtime.node.sbom import bill_of_materials

    text = bill_of_materials(model)
    if output is None:
        click.echo(text)
        return
    write_text(output, text + "\n")


COMMANDS = (listen, queue, audit, bundle, sbom)
