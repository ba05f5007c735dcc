"""The commands of the node: listen, queue, audit, bundle, sbom."""

import logging
from dataclasses import replace
from pathlib import Path

import click

from medimg.runtime import commandline
from medimg.runtime.commandline import PathArgument, standard_options
from medimg.runtime.node.queue_cli import queue


@click.command()
@click.argument("model", type=PathArgument)
@click.option("--config", "config_file", type=PathArgument, required=True, metavar="FILE.toml")
@click.option("--ae-title", help="In place of the configuration's.")
@click.option("--port", type=click.IntRange(1, 65535), help="In place of the configuration's.")
@standard_options
def listen(model: Path, config_file: Path, ae_title: str | None, port: int | None, threads: int) -> None:
    """Receive DICOM images, classify them with MODEL (an artefact or a signed bundle), send the results on.

    SIGTERM finishes what is under way; SIGHUP loads MODEL anew; SIGUSR2 goes back to the model before.
    """
    import sqlite3

    from medimg.runtime.errors import CheckFailedError, ModelError, UsageError
    from medimg.runtime.node.config import read_config
    from medimg.runtime.node.logs import log_json_lines
    from medimg.runtime.node.service import Node

    log_json_lines()
    config = read_config(config_file)
    try:
        config = replace(config, ae_title=ae_title or config.ae_title, port=port or config.port)
    except ModelError as error:
        raise UsageError(str(error)) from None
    if not config.public_key:
        logging.getLogger(__name__).warning("no public_key is configured, so MODEL need not be signed")
    try:
        Node(model, config, threads).run()
    except (OSError, sqlite3.Error) as error:
        raise CheckFailedError(f"{config.folder}: {error}: is the disk full, or its owner another?") from None


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
    commandline.write_json(found, json_file, schema=1)
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
@standard_options
def sign(folder: Path, key: Path, artefact: str | None, threads: int) -> None:
    """Hash every file in FOLDER and sign the list: manifest.json and manifest.sig."""
    from medimg.runtime.node.bundle import sign_bundle

    click.echo(sign_bundle(folder, key, artefact))


@bundle.command("verify")
@click.argument("folder", type=PathArgument)
@click.option("--key", type=PathArgument, required=True, help="Ed25519 public key in PEM.")
@standard_options
def verify(folder: Path, key: Path, threads: int) -> None:
    """Check FOLDER's signature and every file; exit status 1 if anything differs."""
    from medimg.runtime.node.bundle import verify_bundle

    manifest = verify_bundle(folder, key)
    click.echo(f"{len(manifest['sha256'])} files are as they were signed; {manifest['artefact']} is run")


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
    commandline.write_text(output, text + "\n")


COMMANDS = (listen, queue, audit, bundle, sbom)
