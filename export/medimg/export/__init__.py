"""Keras file in, verified artefacts out.

from medimg.export import export_model

result = export_model("model.h5", precisions=("fp32", "int8"), calibration=Path("train"))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medimg.export.pipeline import export_model
    from medimg.export.result import ExportResult

__all__ = ["ExportResult", "export_model"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  a module attribute
    """Import a public name when it is first used, so that `--help` stays quick."""
    if name == "export_model":
        from medimg.export.pipeline import export_model

        return export_model
    if name == "ExportResult":
        from medimg.export.result import ExportResult

        return ExportResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
