"""What can go wrong in training, beyond what runtime's tree holds.

MedimgError                     see medimg.runtime.errors
├── ModelError
│   ├── WeightsError            pretrained weights cannot be had, or are not those of the network
│   └── ChainError              the network cannot be compressed
├── UsageError
│   └── TargetError             no width of the network reaches what is asked for
└── CheckFailedError
    ├── DivergedError           training ran, and its loss is no number
    ├── DeploymentError         a trained model could not be exported, or not be timed
    └── TuningError             a search ended without a model
"""

from medimg.runtime.errors import CheckFailedError, ModelError, UsageError


class WeightsError(ModelError):
    """Pretrained weights cannot be had, or are not those of the network."""


class ChainError(ModelError):
    """The network cannot be compressed."""


class TargetError(UsageError):
    """No width of the network reaches what is asked for."""

    def __init__(self, least: float, target: float, unit: str) -> None:
        super().__init__(
            f"narrowing comes down to {least:.4g} {unit}, and {target:.4g} are asked for: "
            "ask for less, or take smaller images by --image-size"
        )


class DivergedError(CheckFailedError):
    """Training ran, and its loss is no number."""


class DeploymentError(CheckFailedError):
    """A trained model could not be exported, or not be timed."""


class TuningError(CheckFailedError):
    """A search ended without a model."""


def require(*checks: tuple[bool, str]) -> None:
    """Raise a UsageError with the message of the first check that does not hold."""
    for holds, message in checks:
        if not holds:
            raise UsageError(message)
