"""What can go wrong in training, beyond what runtime's tree holds.

MedimgError                     see medimg.runtime.errors
├── ModelError
│   └── WeightsError            pretrained weights cannot be had, or are not those of the network
└── CheckFailedError
    ├── DivergedError           training ran, and its loss is no number
    ├── DeploymentError         a trained model could not be exported, or not be timed
    └── TuningError             a search ended without a model
"""

from medimg.runtime.errors import CheckFailedError, ModelError


class WeightsError(ModelError):
    """Pretrained weights cannot be had, or are not those of the network."""


class DivergedError(CheckFailedError):
    """Training ran, and its loss is no number."""


class DeploymentError(CheckFailedError):
    """A trained model could not be exported, or not be timed."""


class TuningError(CheckFailedError):
    """A search ended without a model."""
