"""What runs on the device: images in, answers out.

from medimg.runtime import Classifier

with Classifier("model.int8.onnx") as classifier:
    for prediction in classifier.predict(["a.png", "b.dcm"]):
        print(prediction.path, prediction.top_k)

Importing it turns off the usage reports of ONNX Runtime, unless `ORT_DISABLE_TELEMETRY` is already set.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medimg.runtime.classifier import Classifier, ClassScore, Prediction
    from medimg.runtime.errors import MedimgError
    from medimg.runtime.images.limits import Limits
    from medimg.runtime.images.load import load_frames, load_image
    from medimg.runtime.images.rule import ImageRule
    from medimg.runtime.model.spec import ModelSpec

# From 1.29 on it sends names, versions and hashes of models to its maker (docs/Privacy.md in its repository).
# It reads this when it is first imported, in this process and its children.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "ClassScore": "classifier",
    "Classifier": "classifier",
    "ImageRule": "images.rule",
    "Limits": "images.limits",
    "MedimgError": "errors",
    "ModelSpec": "model.spec",
    "Prediction": "classifier",
    "load_frames": "images.load",
    "load_image": "images.load",
}

__all__ = [
    "ClassScore",
    "Classifier",
    "ImageRule",
    "Limits",
    "MedimgError",
    "ModelSpec",
    "Prediction",
    "load_frames",
    "load_image",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  a module attribute
    """Import a public name when it is first used, so that `--help` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
