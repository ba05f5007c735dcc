"""What can go wrong in an export.

MedimgError
├── SourceError          the model file cannot be exported, and why
├── CalibrationError     the calibration images do not serve
└── PreprocessingError   the images do not tell how they were prepared in training
"""

from medimg.runtime.errors import MedimgError


class SourceError(MedimgError):
    """The model file cannot be exported."""


class CalibrationError(MedimgError):
    """The calibration images do not serve."""


class PreprocessingError(MedimgError):
    """The images do not tell how they were prepared in training."""
