"""What can go wrong in an export.

MedimgError
├── ModelError
│   └── SourceError      the model file cannot be exported, and why
├── CalibrationError     the calibration images do not serve
└── PreprocessingError   the images do not tell how they were prepared in training
"""

from medimg.runtime.errors import MedimgError, ModelError


class SourceError(ModelError):
    """The model file cannot be exported."""


class CalibrationError(MedimgError):
    """The calibration images do not serve."""


class PreprocessingError(MedimgError):
    """The images do not tell how they were prepared in training."""
