"""Data sets, fine-tuning and evaluation of Keras image classifiers.

from medimg.train import FitOptions, evaluate, fit

result = fit("images/", "model.h5", FitOptions(weights="vgg16_notop.h5"))
print(result.validation.accuracy, evaluate("model.h5", "images/").evaluation.accuracy)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medimg.train.calibration import CalibrationResult, calibrate
    from medimg.train.evaluation import ModelEvaluation, evaluate
    from medimg.train.fitting import FitResult, fit
    from medimg.train.options import FitOptions
    from medimg.train.simulation import SimulatedSet, simulate
    from medimg.train.usage import Usage
    from medimg.train.weights import imagenet_weights

_HOMES = {
    "CalibrationResult": "calibration",
    "FitOptions": "options",
    "FitResult": "fitting",
    "ModelEvaluation": "evaluation",
    "SimulatedSet": "simulation",
    "Usage": "usage",
    "calibrate": "calibration",
    "evaluate": "evaluation",
    "fit": "fitting",
    "imagenet_weights": "weights",
    "simulate": "simulation",
}

__all__ = [
    "CalibrationResult",
    "FitOptions",
    "FitResult",
    "ModelEvaluation",
    "SimulatedSet",
    "Usage",
    "calibrate",
    "evaluate",
    "fit",
    "imagenet_weights",
    "simulate",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  a module attribute
    """Import a public name when it is first used, so that `--help` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
