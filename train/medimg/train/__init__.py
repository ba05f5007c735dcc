"""Data sets, fine-tuning and evaluation of Keras image classifiers.

from medimg.train import FitOptions, evaluate, fit

result = fit("images/", "model.h5", FitOptions(weights="vgg16_notop.h5"))
print(result.validation.accuracy, evaluate("model.h5", "images/").evaluation.accuracy)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medimg.train.compression.compress import compress
    from medimg.train.compression.options import CompressOptions
    from medimg.train.compression.result import CompressResult
    from medimg.train.data.augmentation import Augmentation
    from medimg.train.data.check import DataReport, check
    from medimg.train.data.options import DataOptions
    from medimg.train.evaluation.calibrate import CalibrationResult, calibrate
    from medimg.train.evaluation.evaluate import ModelEvaluation, evaluate
    from medimg.train.evaluation.options import EvaluateOptions
    from medimg.train.fitting.fit import FitResult, fit
    from medimg.train.fitting.options import FitOptions
    from medimg.train.intended_use import Usage
    from medimg.train.networks.weights import imagenet_weights
    from medimg.train.progress import Progress
    from medimg.train.simulation.simulate import SimulatedSet, simulate
    from medimg.train.tuning.options import TuneOptions
    from medimg.train.tuning.result import TuneResult
    from medimg.train.tuning.tune import tune

_HOMES = {
    "Augmentation": "data.augmentation",
    "CalibrationResult": "evaluation.calibrate",
    "CompressOptions": "compression.options",
    "CompressResult": "compression.result",
    "DataOptions": "data.options",
    "DataReport": "data.check",
    "EvaluateOptions": "evaluation.options",
    "FitOptions": "fitting.options",
    "FitResult": "fitting.fit",
    "ModelEvaluation": "evaluation.evaluate",
    "Progress": "progress",
    "SimulatedSet": "simulation.simulate",
    "TuneOptions": "tuning.options",
    "TuneResult": "tuning.result",
    "Usage": "intended_use",
    "calibrate": "evaluation.calibrate",
    "check": "data.check",
    "compress": "compression.compress",
    "evaluate": "evaluation.evaluate",
    "fit": "fitting.fit",
    "imagenet_weights": "networks.weights",
    "simulate": "simulation.simulate",
    "tune": "tuning.tune",
}

__all__ = [
    "Augmentation",
    "CalibrationResult",
    "CompressOptions",
    "CompressResult",
    "DataOptions",
    "DataReport",
    "EvaluateOptions",
    "FitOptions",
    "FitResult",
    "ModelEvaluation",
    "Progress",
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
