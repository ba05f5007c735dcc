"""The node's configuration: one TOML file, checked whole before anything starts."""

import re
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from medimg.runtime.errors import ModelError, UsageError
from medimg.runtime.files.plain import from_plain
from medimg.runtime.files.text_files import read_toml

IMAGE_STORAGE = (
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.2",
    "1.2.840.10008.5.1.4.1.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.3.1",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.6.1",
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.7.1",
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
    "1.2.840.10008.5.1.4.1.1.7.4",
    "1.2.840.10008.5.1.4.1.1.12.1",
    "1.2.840.10008.5.1.4.1.1.12.2",
    "1.2.840.10008.5.1.4.1.1.13.1.3",
    "1.2.840.10008.5.1.4.1.1.20",
    "1.2.840.10008.5.1.4.1.1.77.1.1",
    "1.2.840.10008.5.1.4.1.1.77.1.4",
    "1.2.840.10008.5.1.4.1.1.77.1.5.1",
    "1.2.840.10008.5.1.4.1.1.128",
)
"""CR, DX, mammography, CT, MR, US, secondary capture, XA, RF, tomosynthesis, NM, VL and PET (PS3.4 B.5).

Structured reports are left out, so that the node's own cannot come back to it.
"""

_AE_TITLE = re.compile(r"[\x21-\x5b\x5d-\x7e](?:[\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?")
_UID = re.compile(r"(?=.{1,64}\Z)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ModelError(message)


def _require_ae_title(title: str) -> None:
    _require(
        bool(_AE_TITLE.fullmatch(title)),
        f"AE title {title!r} is not 1 to 16 characters without control characters and backslash (PS3.5 6.2)",
    )


@dataclass(frozen=True)
class Peer:
    """Who may send images."""

    ae_title: str
    addresses: tuple[str, ...] = ("127.0.0.0/8", "::1")
    """Addresses or networks from which this title is accepted."""

    def __post_init__(self) -> None:
        _require_ae_title(self.ae_title)
        for address in self.addresses:
            try:
                ip_network(address)
            except ValueError:
                raise ModelError(f"{address!r} is no IP address or network") from None


@dataclass(frozen=True)
class Tls:
    """TLS with client certificates, by files in PEM."""

    certificate: str
    key: str
    authorities: str
    """Certificates that sign those of the peers."""


@dataclass(frozen=True)
class Reception:
    """What is received, and how much of it."""

    sop_classes: tuple[str, ...] = IMAGE_STORAGE
    """UIDs of the storage SOP classes that are accepted."""
    max_instance_mb: float = 256.0
    """Largest data set, as it is sent and, if it is deflated, unpacked."""
    memory_mb: float = 0.0
    """Memory that images of all associations may take while they come in; when it is used up, the largest of
    them is refused. 0 is a quarter of the machine's, or of what its cgroups allow."""
    max_associations: int = 16
    """More are rejected."""
    max_pending: int = 64
    """Connections that have no association yet; with more, the oldest of them is closed."""
    images_per_s: float = 0.0
    """Most that one association may send; it is slowed to this rate. 0 is no limit."""
    network_timeout_s: float = 30.0
    """An association that is silent for so long is ended."""
    min_kb_per_s: float = 16.0
    """A message that comes more slowly, from `network_timeout_s` after its begin on, ends the association; 0
    is no limit."""
    reserve_mb: float = 1024.0
    """Space on the disk below which images are refused, so that results can still be written."""
    tls: Tls | None = None

    def __post_init__(self) -> None:
        for uid in self.sop_classes:
            _require(bool(_UID.fullmatch(uid)), f"{uid!r} is no UID")
        _require(
            bool(self.sop_classes) and len(self.sop_classes) <= 120,
            "sop_classes must name 1 to 120: an association negotiates no more",
        )
        _require(
            self.max_instance_mb > 0
            and min(self.max_associations, self.max_pending) > 0
            and self.network_timeout_s > 0,
            "max_instance_mb, max_associations, max_pending and network_timeout_s must be positive",
        )
        _require(
            min(self.reserve_mb, self.images_per_s, self.min_kb_per_s, self.memory_mb) >= 0,
            "reserve_mb, images_per_s, min_kb_per_s and memory_mb: 0 or more",
        )


@dataclass(frozen=True)
class Inference:
    """How images are classified and series put together."""

    budget_ms: float = 100.0
    """Time that one batch may take; a batch holds as many images as were measured to fit, at least one."""
    queue_ms: float = 200.0
    """While more images wait than can be answered in this time, acknowledgements are held back, so that
    senders come no faster than answers do; 0 never holds one back."""
    series_idle_s: float = 10.0
    """A series to which nothing was added for so long is reported."""
    combine: Literal["mean", "max"] = "mean"
    """A class's score for a series, from those of its images: their mean, or the largest."""
    max_tries: int = 3
    """An image that could not be classified so often is set aside."""
    retry_s: float = 5.0
    """Wait before the next try where the cause may pass, such as a decoder that was short of time or memory;
    each further wait is six times as long, up to an hour."""
    max_frames: int = 10_000
    """An image of more frames is set aside; others are classified some frames at a time, between images."""

    def __post_init__(self) -> None:
        _require(
            self.budget_ms > 0 and self.series_idle_s > 0 and self.max_tries > 0 and self.queue_ms >= 0,
            "budget_ms, series_idle_s and max_tries must be positive, queue_ms 0 or more",
        )
        _require(self.retry_s >= 0 and self.max_frames > 0, "retry_s must be 0 or more, max_frames 1 or more")


@dataclass(frozen=True)
class LabelCode:
    """A label's code in a terminology, for the report."""

    value: str
    scheme: str
    """Coding scheme designator, such as `SCT`."""
    meaning: str

    def __post_init__(self) -> None:
        _require(
            1 <= len(self.value) <= 16 and 1 <= len(self.scheme) <= 16 and 1 <= len(self.meaning) <= 64,
            f"code {self.value!r}: value and scheme have 1 to 16 characters, meaning 1 to 64 (PS3.3 8.1)",
        )


@dataclass(frozen=True)
class DicomDestination:
    """An archive that gets the reports by C-STORE."""

    name: str
    ae_title: str
    host: str
    port: int
    tls: bool = False
    """Whether to use the certificate of `receive.tls` as a client."""

    def __post_init__(self) -> None:
        _require_ae_title(self.ae_title)
        _require(1 <= self.port <= 65535, f"port {self.port} is not within 1 to 65535")


@dataclass(frozen=True)
class HttpDestination:
    """A service that gets each series' result as JSON lines by POST."""

    name: str
    url: str
    token_file: str | None = None
    """File with the one line that is sent as a bearer token."""
    user: str | None = None
    """Name for basic authentication."""
    password_file: str | None = None
    """File with the one line that is the password of `user`."""
    authorities: str | None = None
    """Certificates in PEM that sign that of the service, in place of the system's."""
    certificate: str | None = None
    """The node's own certificate in PEM, for services that want one."""
    key: str | None = None
    """Private key of `certificate`, in PEM."""

    def __post_init__(self) -> None:
        _require(self.url.startswith(("http://", "https://")), f"{self.url!r} is no http or https address")
        where = urlsplit(self.url)
        _require(where.hostname is not None, f"{self.url!r} names no host")
        _require("@" not in where.netloc, f"destination {self.name}: credentials belong into a file")
        _require(
            (self.user is None) == (self.password_file is None) and not (self.user and self.token_file),
            f"destination {self.name}: either token_file, or user and password_file",
        )
        _require(":" not in (self.user or ""), f"destination {self.name}: user has a colon")
        _require(
            (self.certificate is None) == (self.key is None),
            f"destination {self.name}: certificate and key go together",
        )
        secret = self.token_file or self.password_file or self.certificate or self.authorities
        _require(
            not secret or where.scheme == "https" or where.hostname in ("127.0.0.1", "::1", "localhost"),
            f"destination {self.name}: credentials and certificates need https",
        )


@dataclass(frozen=True)
class Delivery:
    """Where results go."""

    dicom: tuple[DicomDestination, ...] = ()
    http: tuple[HttpDestination, ...] = ()
    overlay: bool = False
    """Whether each report comes with a secondary capture: an image, its heat map and scores, burned in."""
    first_retry_s: float = 1.0
    max_retry_s: float = 300.0
    """The wait doubles from the first to this one; a destination is never given up."""
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        names = self.names()
        _require(len(set(names)) == len(names), f"destinations share a name: {', '.join(sorted(names))}")
        _require(0 < self.first_retry_s <= self.max_retry_s, "0 < first_retry_s <= max_retry_s is wanted")

    def names(self) -> tuple[str, ...]:
        """Name every destination."""
        return (*(to.name for to in self.dicom), *(to.name for to in self.http))


@dataclass(frozen=True)
class AuditRule:
    """How the audit log is kept."""

    key: str | None = None
    """Ed25519 private key in PEM that signs the checkpoints; without it there are none."""
    checkpoints: str | None = None
    """Their folder, best on another disk; `checkpoints` in the node's folder unless given."""
    every_s: float = 60.0
    """A checkpoint at least so often, while there are new entries."""
    patient_names: bool = False
    """Whether the log names patients."""


@dataclass(frozen=True)
class Retention:
    """What is removed, and when, so that the disk does not fill."""

    images_h: float = 24.0
    """Images, after they were answered and their reports delivered; earlier where the disk is nearly full.
    As long are deliveries kept open whose destination was removed."""
    results_days: float = 90.0
    """Reports, and what the database knows of series; an image that comes later begins its series anew."""
    lines_days: float = 365.0
    """Files of results lines; 0 keeps them for ever."""
    audit_days: float = 3650.0
    """Files of the audit log; 0 keeps them for ever."""

    def __post_init__(self) -> None:
        for name in ("images_h", "results_days", "lines_days", "audit_days"):
            _require(getattr(self, name) >= 0, f"retention.{name} must be 0 or more")


@dataclass(frozen=True)
class NodeConfig:
    """The whole configuration."""

    folder: str
    """State: queue, images, reports, results, audit log."""
    ae_title: str = "MEDIMG"
    address: str = "0.0.0.0"  # noqa: S104  senders are other machines; `peers` says which
    port: int = 11112
    public_key: str | None = None
    """Ed25519 public key in PEM; with it, only bundles that it verifies are run."""
    status_port: int = 9112
    """Metrics, health and status page; 0 turns them off."""
    status_address: str = "127.0.0.1"
    """Where they are served; another address than this machine's own needs `status_token`."""
    status_token: str | None = None
    """File with the token that each of their readers must send (`Authorization: Bearer …`)."""
    drain_s: float = 20.0
    """How long SIGTERM may wait for associations and the queue."""
    peers: tuple[Peer, ...] = ()
    """Accepted senders; without any, every title from this machine alone."""
    receive: Reception = field(default_factory=Reception)
    inference: Inference = field(default_factory=Inference)
    codes: dict[str, LabelCode] = field(default_factory=dict)
    """Label to code; other labels get one of a private scheme."""
    deliver: Delivery = field(default_factory=Delivery)
    audit: AuditRule = field(default_factory=AuditRule)
    retention: Retention = field(default_factory=Retention)

    def __post_init__(self) -> None:
        _require_ae_title(self.ae_title)
        _require(0 <= self.port <= 65535 and 0 <= self.status_port <= 65535, "ports are within 0 to 65535")
        _require(not self.port or self.port != self.status_port, f"port and status_port are both {self.port}")
        try:
            is_local = ip_address(self.status_address).is_loopback
        except ValueError:
            raise ModelError(f"status_address {self.status_address!r} is no IP address") from None
        _require(
            is_local or self.status_token is not None,
            f"status_address {self.status_address} is open to others: name a file in status_token",
        )


def read_config(path: Path) -> NodeConfig:
    """Read a configuration; relative paths in it begin at its own folder.

    Raises:
        UsageError: it cannot be read, is no TOML, or a field is wrong.
    """
    try:
        return _resolved(read_toml(path), path.parent)
    except ModelError as error:
        raise UsageError(f"{path}: {error}") from None


_PATHS = (
    ("folder",),
    ("public_key",),
    ("status_token",),
    ("audit", "key"),
    ("audit", "checkpoints"),
    ("receive", "tls", "certificate"),
    ("receive", "tls", "key"),
    ("receive", "tls", "authorities"),
)
_HTTP_PATHS = ("token_file", "password_file", "authorities", "certificate", "key")


def _resolved(plain: dict[str, object], base: Path) -> NodeConfig:
    for *tables, name in _PATHS:
        table: object = plain
        for part in tables:
            table = table.get(part) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(table.get(name), str):
            if not table[name]:
                raise ModelError(
                    f"{'.'.join((*tables, name))} is empty, and would be the folder of this file"
                )
            table[name] = str(base / table[name])
    deliver = plain.get("deliver")
    destinations = deliver.get("http") if isinstance(deliver, dict) else None
    for destination in destinations if isinstance(destinations, list) else ():
        for name in _HTTP_PATHS:
            if isinstance(destination, dict) and isinstance(destination.get(name), str):
                destination[name] = str(base / destination[name])
    return from_plain(NodeConfig, plain, "configuration")


_FIXED = (
    *("folder", "address", "port", "public_key", "status_address", "status_port"),
    "audit",
)
"""What a running node keeps until its next start."""


def merge_reloaded(running: NodeConfig, reloaded: NodeConfig) -> tuple[NodeConfig, tuple[str, ...]]:
    """Take from a configuration that was read anew what a running node can change.

    Returns:
        The configuration to go on with, and the fields that only the next start will change.
    """
    later = tuple(name for name in _FIXED if getattr(running, name) != getattr(reloaded, name))
    return replace(reloaded, **{name: getattr(running, name) for name in later}), later
