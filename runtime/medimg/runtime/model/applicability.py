"""Whether a model may be given an image at all: the DICOM values that its spec allows."""

from collections.abc import Iterable
from pathlib import Path

from medimg.runtime.errors import NotApplicableError
from medimg.runtime.images.load import read_elements
from medimg.runtime.model.spec import Allowed

_ELEMENTS = ("Modality", "BodyPartExamined", "PhotometricInterpretation")


def refusal(allowed: Allowed, modality: str, body_part: str, photometric: str) -> str | None:
    """Say why the model may not be given an image with these values; nothing if it may."""
    for name, value, values in (
        ("modality", modality, allowed.modality),
        ("body part", body_part, allowed.body_part),
        ("photometric interpretation", photometric, allowed.photometric_interpretation),
    ):
        if values and value.upper() not in {entry.upper() for entry in values}:
            return f"its {name} is {value or 'not stated'}; the model is for {', '.join(values)}"
    return None


def require_all_applicable(sources: Iterable[object], allowed: Allowed) -> None:
    """Hold every image of a data set against what the model is for; see `require_applicable`."""
    for source in sources:
        if isinstance(source, Path):
            require_applicable(source, allowed)


def require_applicable(path: Path, allowed: Allowed) -> None:
    """Hold a DICOM file's header against what the model is for; other files state nothing, and pass.

    Raises:
        NotApplicableError: the model is for other images.
        ImageError: the file cannot be read.
    """
    if allowed == Allowed():
        return
    values = read_elements(path, _ELEMENTS)
    if values is not None and (reason := refusal(allowed, *(values[name] for name in _ELEMENTS))):
        raise NotApplicableError(f"{path}: {reason}")
