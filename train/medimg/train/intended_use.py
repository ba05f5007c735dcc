"""What a model is meant for, as its spec says it."""

import re
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from medimg.runtime.errors import UsageError
from medimg.runtime.model.spec import Allowed, ModelSpec

CalibrationPart: TypeAlias = Literal["val", "test", "all"]
"""The images that may choose a temperature and thresholds; `val` as `fit` takes them."""

_CODE = re.compile("[A-Z0-9_ ]{1,16}")
"""A DICOM code string (PS3.5, section 6.2)."""


@dataclass(frozen=True)
class Usage:
    """Intended use, and the DICOM attribute values that a model may be given; empty says nothing."""

    intended_use: str | None = None
    modality: tuple[str, ...] = ()
    """Such as `DX`."""
    body_part: tuple[str, ...] = ()
    """Such as `CHEST`."""
    photometric_interpretation: tuple[str, ...] = ()
    """Such as `MONOCHROME2`."""

    def __post_init__(self) -> None:
        for value in (*self.modality, *self.body_part, *self.photometric_interpretation):
            if not _CODE.fullmatch(value):
                raise UsageError(
                    f"{value!r} is no DICOM code: at most 16 capital letters, digits, spaces and underscores"
                )

    @property
    def allowed(self) -> Allowed:
        """What a model may be given, of which nothing was said before."""
        return Allowed(self.modality, self.body_part, self.photometric_interpretation)

    def applied(self, spec: ModelSpec) -> ModelSpec:
        """Write what is said into a spec; what is not said stays as it was."""
        lists = ("modality", "body_part", "photometric_interpretation")
        said: dict[str, tuple[str, ...]] = {
            name: getattr(self, name) for name in lists if getattr(self, name)
        }
        allowed: Allowed = replace(spec.allowed, **said)
        return spec.with_(allowed=allowed, intended_use=self.intended_use or spec.intended_use)
