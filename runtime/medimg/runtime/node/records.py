"""What the queue holds, as it is handed from one part of the node to the next."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from medimg.runtime.node.identity import Identity, digest

Outcome: TypeAlias = Literal["classified", "not applicable", "unreadable", "set aside"]
Added: TypeAlias = Literal["stored", "flagged", "known", "other content"]


@dataclass(frozen=True)
class Arrival:
    """An image that has just been received."""

    sop_uid: str
    sop_class: str
    series_uid: str
    study_uid: str
    modality: str
    body_part: str
    photometric: str
    sender: str
    """AE title and address."""
    received_at: float
    """Seconds since 1970, when its last byte had come."""
    sha256: str
    """Of the data set as it was sent."""
    identity: Identity
    """Patient and study, for the series' report."""
    frames: int = 1
    """What its header says; 0 where it says nothing that can be understood."""

    @property
    def series_key(self) -> str:
        """What its images are put together by: a series UID alone may have several patients."""
        return digest(self.identity.patient, self.study_uid, self.series_uid)


@dataclass(frozen=True)
class Waiting:
    """An image to be classified."""

    sop_uid: str
    series_uid: str
    study_uid: str
    modality: str
    body_part: str
    photometric: str
    path: Path
    tries: int
    """With the one that begins now."""
    received_at: float
    frames: int = 1
    """As in `Arrival`; images of a database that did not count them have 0."""


@dataclass(frozen=True)
class Result:
    """The one answer for an image."""

    sop_uid: str
    outcome: Outcome
    model: str
    """SHA-256 of the model's file."""
    scores: tuple[float, ...] | None = None
    """One a class; None unless classified."""
    reason: str | None = None
    """Why it was not classified, or what must be known of it all the same, a note a line."""
    line: Mapping[str, object] | None = None
    """Further fields of the results line."""


@dataclass(frozen=True)
class Member:
    """An image of a series, with its answer."""

    sop_uid: str
    sop_class: str
    outcome: Outcome
    reason: str | None
    """As in `Result`."""
    scores: tuple[float, ...] | None
    model: str
    received_at: float
    path: Path | None = None
    """Its file; None once it was removed."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be known of an image that was classified all the same."""
        return tuple((self.reason or "").splitlines()) if self.outcome == "classified" else ()


@dataclass(frozen=True)
class Series:
    """Patient and study of a series."""

    series_key: str
    series_uid: str
    study_uid: str
    header: Mapping[str, str]
    """As in `Identity`."""
    notes: tuple[str, ...]
    """What was left out of `header`, and what contradicts."""
    contradictions: tuple[str, ...]
    """What else has been received that this cannot be true beside."""


@dataclass(frozen=True)
class Report:
    """What a series' report is stored as."""

    report_uid: str
    series_key: str
    predecessor: str | None
    members: tuple[str, ...]
    """SOP instance UIDs."""
    line: Mapping[str, object]
    """The series' results line."""


@dataclass(frozen=True)
class Pending:
    """A report that a destination does not have yet."""

    number: int
    report_uid: str
    tries: int
    lines: str
    """The series' result as JSON lines."""


@dataclass(frozen=True)
class OpenDelivery:
    """A report that a destination is still to get, as the command `queue` shows it."""

    number: int
    report_uid: str
    destination: str
    state: Literal["pending", "refused"]
    tries: int
    error: str | None
    """Why it was not taken last."""
    created_at: float
    """Seconds since 1970, when the report was written."""
