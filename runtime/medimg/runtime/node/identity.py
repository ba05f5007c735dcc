"""Who and what a data set is about: values that a report repeats whole or leaves out with a note."""

import contextlib
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from medimg.runtime.node.charsets import CharacterSets, character_sets
from medimg.runtime.optional import require

ISSUERS = {
    "IssuerOfPatientIDQualifiersSequence": ("UniversalEntityID", "UniversalEntityIDType"),
    "IssuerOfAccessionNumberSequence": (
        *("LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType"),
    ),
}
"""Sequences of one item that say who issued a number, and what is kept of them."""
HEADER = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_PATIENT = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
_QUALIFIER = "IssuerOfPatientIDQualifiersSequence.UniversalEntityID"
_LONGEST = {
    **dict.fromkeys(("StudyID", "AccessionNumber", "UniversalEntityIDType"), 16),
    **dict.fromkeys(("LocalNamespaceEntityID", "UniversalEntityID"), 1024),
}
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", re.ASCII)
KEY_DIGITS = 32
"""Hexadecimal digits of a digest."""
_MOST_NOTES = 24
_JOINERS = "\u200c\u200d"
"""Format characters that words of some scripts need."""


@dataclass(frozen=True)
class Identity:
    """What a data set says of its patient and study."""

    header: Mapping[str, str]
    """Keyword to value, as DICOM allows it; items of sequences as `Sequence.Keyword`."""
    notes: tuple[str, ...]
    """What was left out of `header`, and why."""
    patient: str
    """Digest of all that tells patients apart, of values that were left out too."""


class _LeftOutError(ValueError):
    """Why a value is left out."""


@dataclass
class _Values:
    """The texts of one data set."""

    dataset: Any
    sets: CharacterSets | None
    header: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def raw(self, name: str) -> bytes:
        element = self.dataset.get_item(require("pydicom.tag", "node").Tag(name))
        value = element.value if element is not None else None
        return value.strip(b" \0") if isinstance(value, bytes) else str(value or "").encode()

    def text(self, name: str) -> str | None:
        """Decode a value; None where its character set does not allow it."""
        raw = self.raw(name)
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode()
        try:
            return self.sets.decode(raw, is_name=name.endswith("Name")) if self.sets else None
        except UnicodeError:
            return None

    def keep(self, prefix: str, name: str) -> None:
        """Put a value into the header, or a note why it is not there."""
        text = self.text(name)
        try:
            if text is None:
                raise _LeftOutError("it is not in the character set that the image names")
            value = checked_value(name, text)
        except _LeftOutError as left:
            self.notes.append(f"{prefix}{name} is left out: {left}")
            value = ""
        if value:
            self.header[f"{prefix}{name}"] = value


def read_identity(dataset: Any) -> Identity:  # noqa: ANN401  pydicom has no types
    """Read patient and study of a data set whose elements are not decoded yet."""
    values = _Values(dataset, None)
    # Values in ASCII can be read whatever is named.
    with contextlib.suppress(UnicodeError):
        values.sets = character_sets(values.raw("SpecificCharacterSet").decode("ascii").split("\\"))
    for name in HEADER:
        values.keep("", name)
    for sequence, names in ISSUERS.items():
        for item in list(dataset.get(sequence) or ())[:1]:
            inner = _Values(item, values.sets, values.header, values.notes)
            for name in names:
                inner.keep(f"{sequence}.", name)
    return Identity(values.header, tuple(values.notes), _patient(values))


def _patient(values: _Values) -> str:
    texts = {name: values.text(name) for name in _PATIENT}
    # What cannot be decoded still tells patients apart.
    known = {name: values.raw(name).hex() if text is None else text for name, text in texts.items()}
    return patient_digest({**known, _QUALIFIER: values.header.get(_QUALIFIER, "")})


def patient_digest(texts: Mapping[str, str]) -> str:
    """Digest what tells patients apart, without what is written in one way here and in another there."""
    parts = []
    for name in (*_PATIENT, _QUALIFIER):
        plain = unicodedata.normalize("NFC", texts.get(name, "")).strip(" \0")
        if name == "PatientName":
            groups = [group.strip(" ^") for group in plain.casefold().split("=")]
            plain = "=".join("^".join(part.strip() for part in group.split("^")) for group in groups)
            plain = plain.rstrip("=")
        parts.append(plain)
    return digest(*parts)


def digest(*parts: object) -> str:
    """Digest values to a key of fixed length."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:KEY_DIGITS]


def checked_value(name: str, text: str) -> str:
    """Give a value as DICOM allows it (PS3.5 6.2).

    Raises:
        ValueError: it may not be so; why.
    """
    text = text.strip(" \0\t\r\n")
    if "\\" in text:
        raise _LeftOutError("it has several values")
    if not all(map(_is_plain, text)):
        raise _LeftOutError("it has control characters")
    if name.endswith("Date"):
        return _require(text, not text or _is_date(text), "it is no date")
    if name.endswith("Time"):
        return _require(text, not text or bool(_TIME.fullmatch(text)), "it is no time")
    if name == "PatientSex":
        return _require(text, text in ("", "M", "F", "O"), "it is none of M, F and O")
    if name.endswith("Name"):
        return _name(text)
    longest = _LONGEST.get(name, 64)
    too_long = f"it has {len(text)} characters where DICOM allows {longest}: {text[:900]}"
    return _require(text, len(text) <= longest, too_long)


def _require(text: str, holds: bool, complaint: str) -> str:
    if not holds:
        raise _LeftOutError(complaint)
    return text


def _name(text: str) -> str:
    groups = [group.split("^") for group in text.split("=")]
    plain = ["^".join(part.strip() for part in group).rstrip("^") for group in groups]
    fits = len(groups) <= 3 and all(len(group) <= 64 for group in plain)
    components = max(group.count("^") for group in plain) + 1
    return _require("=".join(plain).rstrip("="), fits and components <= 5, "it is no name as DICOM allows it")


def _is_plain(char: str) -> bool:
    kind = unicodedata.category(char)
    return char in _JOINERS or not (kind.startswith("C") or kind in ("Zl", "Zp"))


def _is_date(text: str) -> bool:
    try:
        return (
            len(text) == 8 and text.isascii() and text.isdigit() and bool(datetime.strptime(text, "%Y%m%d"))
        )
    except ValueError:
        return False


def merged(
    header: Mapping[str, str], notes: Sequence[str], other: Identity
) -> tuple[dict[str, str], list[str], list[str]]:
    """Add what another image of the series says.

    A value that images of one series give differently is left out, and stays so.

    Returns:
        Header, notes, and the keywords that contradict for the first time.
    """
    together, contradicting = dict(header), []
    for name, value in other.header.items():
        note = _differs(name)
        if note in notes:
            continue
        if name.partition(".")[0] not in _PATIENT and together.setdefault(name, value) != value:
            del together[name]
            contradicting.append(name)
    kept = [*notes, *map(_differs, contradicting)]
    more = [note for note in other.notes if note not in kept]
    return together, kept + more[: max(0, _MOST_NOTES - len(kept))], contradicting


def _differs(name: str) -> str:
    return f"{name} is left out: the images of the series differ in it"
