"""Keras file in, verified artefacts out.

from medimg.export import ExportOptions, export_model

options = ExportOptions(precisions=("fp32", "int8"), calibration=Path("train"))
result = export_model("model.h5", options)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medimg.export.options import ExportOptions
    from medimg.export.pipeline import export_model
    from medimg.export.result import ExportResult

_HOMES = {
    "ExportOptions": "options",
    "ExportResult": "result",
    "export_model": "pipeline",
}

__all__ = ["ExportOptions", "ExportResult", "export_model"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  a module attribute
    """Import a public name when it is first used, so that `--help` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
