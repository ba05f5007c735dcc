"""What `listen --check` looks at: all that can be known before the node starts, beside one that runs."""

import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.classifier import Classifier
from medimg.runtime.errors import MedimgError, ModelError
from medimg.runtime.node.bundle import AcceptedVersions, read_private_key, verified_artefact
from medimg.runtime.node.certificates import earliest_end
from medimg.runtime.node.config import NodeConfig
from medimg.runtime.node.health import read_token
from medimg.runtime.node.models import ACCEPTED_VERSIONS
from medimg.runtime.node.receiver import tls_context
from medimg.runtime.optional import require


@dataclass(frozen=True)
class Item:
    """One thing that was looked at."""

    name: str
    is_well: bool | None
    """None for what is only worth a remark."""
    text: str


def precheck(model: Path, config: NodeConfig, threads: int) -> list[Item]:
    """Look at everything, and go on after what fails. Nothing is written."""
    return [
        *_tried("packages", _packages),
        *_tried("model", lambda: _model(model, config, threads)),
        *_tried("folder", lambda: _folder(config)),
        *_tried("certificates", lambda: _certificates(config)),
        *_tried("audit key", lambda: _audit_key(config)),
        *_tried("status", lambda: _status(config)),
        *_tried("peers", lambda: _peers(config)),
        *_tried("port", lambda: _port(config)),
    ]


def _tried(name: str, look: Callable[[], Iterator[tuple[bool | None, str]]]) -> Iterator[Item]:
    try:
        for is_well, text in look():
            yield Item(name, is_well, text)
    except (MedimgError, OSError) as error:
        yield Item(name, False, str(error))


def _packages() -> Iterator[tuple[bool | None, str]]:
    for module in ("pydicom.pixels", "pynetdicom", "highdicom.sr", "highdicom.sc", "cryptography"):
        require(module, "node")
    yield True, "all that the node needs is installed"


def _model(model: Path, config: NodeConfig, threads: int) -> Iterator[tuple[bool | None, str]]:
    found = verified_artefact(model, Path(config.public_key) if config.public_key else None)
    AcceptedVersions(Path(config.folder) / ACCEPTED_VERSIONS).require_not_older(found)
    path = found.path
    with Classifier(path, threads=threads, tuned_for="latency") as classifier:
        spec, backend = classifier.spec, classifier.backend
        if spec.intensity.rule == "unspecified":
            raise ModelError(f"{path}: its preprocessing is unspecified: export it with --preprocessing")
        yield True, f"{path} runs in {backend.precision} on {backend.name}, {backend.device}"
    if not config.public_key:
        yield None, "need not be signed: no public_key is configured"
    allowed = spec.allowed
    values = (*allowed.modality, *allowed.body_part, *allowed.photometric_interpretation)
    if not values:
        yield None, "says of no modality or body part that it is for them: every image is classified"


def _folder(config: NodeConfig) -> Iterator[tuple[bool | None, str]]:
    folder = Path(config.folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield False, f"{there}: this user may not write there"
        return
    free_mb = shutil.disk_usage(there).free / 1e6
    reserve_mb = config.receive.reserve_mb
    yield free_mb > reserve_mb, f"{folder}: {free_mb:,.0f} MB free, receive.reserve_mb is {reserve_mb:,.0f}"


def _certificates(config: NodeConfig) -> Iterator[tuple[bool | None, str]]:
    tls = config.receive.tls
    if tls is None:
        yield None, "none: senders are not encrypted (receive.tls)"
    else:
        tls_context(tls, server=True)
    if any(destination.tls and tls is None for destination in config.deliver.dicom):
        yield False, "a destination with tls needs the certificate of receive.tls"
    if found := earliest_end(config):
        yield found.days_left > 0, f"{found.path} holds for {found.days_left:,.0f} days"


def _audit_key(config: NodeConfig) -> Iterator[tuple[bool | None, str]]:
    if config.audit.key is None:
        yield None, "none: the audit log has no signed checkpoints"
        return
    read_private_key(Path(config.audit.key))
    is_private = Path(config.audit.key).stat().st_mode & 0o077 == 0
    yield is_private or None, f"{config.audit.key}{'' if is_private else ': others may read it'}"


def _status(config: NodeConfig) -> Iterator[tuple[bool | None, str]]:
    if config.status_token:
        read_token(Path(config.status_token))
    guarded = "with the token" if config.status_token else "for whoever is on this machine"
    yield True, f"{config.status_address}, port {config.status_port}, {guarded}"


def _peers(config: NodeConfig) -> Iterator[tuple[bool | None, str]]:
    if not config.peers:
        yield None, "none: every AE title is accepted, from this machine alone"
    for peer in config.peers:
        yield True, f"{peer.ae_title} from {', '.join(peer.addresses)}"


def _port(config: NodeConfig) -> Iterator[tuple[bool | None, str]]:
    """Try the port; that it is taken is no fault while the node runs."""
    family = socket.AF_INET6 if ":" in config.address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.address, config.port))
        except PermissionError:
            yield False, f"{config.port}: this user may not listen on it (CAP_NET_BIND_SERVICE)"
        except OSError as error:
            # A node that runs has it.
            is_well = None if error.errno == errno.EADDRINUSE else False
            yield is_well, f"{config.port} of {config.address}: {error.strerror}"
        else:
            yield True, f"{config.port} of {config.address} is free"
