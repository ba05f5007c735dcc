"""What an export did, as it is written by `--json`."""

from dataclasses import dataclass

from medimg.runtime.spec import Precision, Verification

SCHEMA = 1


@dataclass(frozen=True)
class SourceFile:
    """The Keras file."""

    path: str
    sha256: str
    keras_version: str


@dataclass(frozen=True)
class ArtefactFile:
    """One exported file."""

    path: str
    format: str
    precision: Precision
    bytes: int
    sha256: str
    verification: Verification
    written: bool
    """False if it failed its verification and was not forced."""


@dataclass(frozen=True)
class ExportResult:
    """Everything that an export made and found."""

    source: SourceFile
    artefacts: tuple[ArtefactFile, ...]
    warnings: tuple[str, ...]
    steps_s: dict[str, float]
    """Seconds that each step took."""

    @property
    def failed(self) -> tuple[ArtefactFile, ...]:
        """The artefacts whose verification failed."""
        return tuple(item for item in self.artefacts if item.verification.verdict == "failed")
