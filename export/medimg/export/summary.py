"""An export's outcome in words."""

from medimg.export.result import ArtefactFile, ExportResult
from medimg.runtime.files.text import printable, size_text


def lines(result: ExportResult) -> list[str]:
    """Say what was made, a few lines an artefact."""
    return [line for item in result.artefacts for line in _artefact(item)]


def _artefact(item: ArtefactFile) -> list[str]:
    found = item.verification
    state = found.verdict if item.written else f"{found.verdict}, not written"
    head = f"{printable(item.path)}  {size_text(item.bytes)}  {state}"
    figures = (
        f"    {found.images} {found.images_from} images: max |Δp| {found.max_abs_diff:.1e}, "
        f"top-1 agreement {found.top1_agreement:.4f}"
    )
    lines = [head, figures]
    if (
        found.accuracy is not None
        and found.accuracy_drop is not None
        and found.accuracy_drop_ci95 is not None
    ):
        low, high = found.accuracy_drop_ci95
        interval = f"(95 %: {low:+.4f} to {high:+.4f})"
        lines.append(f"    accuracy {found.accuracy:.4f}, drop {found.accuracy_drop:+.4f} {interval}")
    if item.float_layers:
        lines.append(f"    in float32: {printable(', '.join(item.float_layers))}")
    return lines
