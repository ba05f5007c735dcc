"""What can go wrong in an export.

MedimgError
├── SourceError          the model file cannot be exported, and why
├── CalibrationError     the calibration images do not serve
└── CheckFailedError
    └── VerificationError  an artefact does not give the Keras model's answers
"""

from medimg.runtime.errors import CheckFailedError, MedimgError


class SourceError(MedimgError):
    """The model file cannot be exported."""


class CalibrationError(MedimgError):
    """The calibration images do not serve."""


class VerificationError(CheckFailedError):
    """An artefact does not give the Keras model's answers."""
