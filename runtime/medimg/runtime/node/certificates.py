"""How long certificates hold: one that has expired would have every peer fail without a word here."""

import logging
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timezone
from pathlib import Path

from medimg.runtime.errors import UsageError
from medimg.runtime.optional import require

_LOG = logging.getLogger(__name__)

WARN_DAYS = 30.0


@dataclass(frozen=True)
class Validity:
    """When all certificates of a PEM file hold."""

    path: Path
    begins: datetime
    ends: datetime

    @property
    def days_left(self) -> float:
        """Days until the first of them ends; negative after that."""
        return (self.ends - datetime.now(timezone.utc)).total_seconds() / 86400

    def problem(self) -> str | None:
        """Say why peers will not accept it; None if they will."""
        if self.days_left < 0:
            return f"{self.path}: expired on {self.ends:%Y-%m-%d %H:%M} UTC: have it renewed"
        if self.begins > datetime.now(timezone.utc):
            return f"{self.path}: does not hold before {self.begins:%Y-%m-%d %H:%M} UTC: is the clock right?"
        return None


def read_validities(path: Path) -> list[Validity]:
    """Read when each certificate of a PEM file holds.

    Raises:
        UsageError: it cannot be read, or holds no certificate.
    """
    x509 = require("cryptography.x509", "node")
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: no certificates in PEM ({error})") from None
    return [Validity(path, each.not_valid_before_utc, each.not_valid_after_utc) for each in found]


def require_valid(path: Path, *, any_is_enough: bool = False) -> None:
    """Check that the certificates of a file hold now, and warn if they soon do not.

    Args:
        path: in PEM.
        any_is_enough: as for authorities, where a new one stands beside an old one.

    Raises:
        UsageError: they do not.
    """
    found = read_validities(path)
    problems = [problem for each in found if (problem := each.problem())]
    if problems and (not any_is_enough or len(problems) == len(found)):
        raise UsageError(problems[0])
    for each in found:
        if 0 <= each.days_left < WARN_DAYS:
            _LOG.warning("%s: expires in %.0f days: have it renewed", path, each.days_left)


def earliest_end(config: object) -> Validity | None:
    """Find the certificate of this node, anywhere in a configuration, that ends first."""
    found = [each for path in _certificate_files(config) for each in read_validities(path)]
    return min(found, key=lambda each: each.ends, default=None)


def _certificate_files(config: object) -> list[Path]:
    if isinstance(config, tuple):
        return [path for item in config for path in _certificate_files(item)]
    if not is_dataclass(config):
        return []
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "certificate" and isinstance(value, str):
            found.append(Path(value))
        else:
            found += _certificate_files(value)
    return found
