"""Data sets, fine-tuning and evaluation of Keras image classifiers.

from medimg.train import FitOptions, evaluate, fit

result = fit("images/", "model.h5", FitOptions(weights="vgg16_notop.h5"))
print(result.validation.accuracy, evaluate("model.h5", "images/").evaluation.accuracy)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medimg.train.calibration import CalibrationResult, calibrate
    from medimg.train.checking import DataReport, check
    from medimg.train.compression.compress import compress
    from medimg.train.compression.options import CompressOptions
    from medimg.train.compression.result import CompressResult
    from medimg.train.evaluation import ModelEvaluation, evaluate
    from medimg.train.fitting import FitResult, fit
    from medimg.train.options import FitOptions
    from medimg.train.simulation import SimulatedSet, simulate
    from medimg.train.tuning import tune
    from medimg.train.tuning_options import TuneOptions
    from medimg.train.tuning_result import TuneResult
    from medimg.train.usage import Usage
    from medimg.train.weights import imagenet_weights

_HOMES = {
    "CalibrationResult": "calibration",
    "CompressOptions": "compression.options",
    "CompressResult": "compression.result",
    "DataReport": "checking",
    "FitOptions": "options",
    "FitResult": "fitting",
    "ModelEvaluation": "evaluation",
    "SimulatedSet": "simulation",
    "TuneOptions": "tuning_options",
    "TuneResult": "tuning_result",
    "Usage": "usage",
    "calibrate": "calibration",
    "check": "checking",
    "compress": "compression.compress",
    "evaluate": "evaluation",
    "fit": "fitting",
    "imagenet_weights": "weights",
    "simulate": "simulation",
    "tune": "tuning",
}

__all__ = [
    "CalibrationResult",
    "CompressOptions",
    "CompressResult",
    "DataReport",
    "FitOptions",
    "FitResult",
    "ModelEvaluation",
    "SimulatedSet",
    "TuneOptions",
    "TuneResult",
    "Usage",
    "calibrate",
    "check",
    "compress",
    "evaluate",
    "fit",
    "imagenet_weights",
    "simulate",
    "tune",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  a module attribute
    """Import a public name when it is first used, so that `--help` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
