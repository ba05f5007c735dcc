"""What the DICOM node sustains on one machine, its senders included."""

import os
from pathlib import Path
from typing import Any

from brain_model import ARTEFACTS, make_model
from commands import run_command, run_script
from registry import SCRATCH, figure

MINUTES = float(os.environ.get("MEDIMG_NODE_MINUTES", "15"))
SHORT_MINUTES = min(MINUTES, 3.0)
SERIES_PER_HOUR, P99_MS = 1200, 500
HIGHER_RATES = (1200, 1400, 1600, 1800)
"""Series an hour, tried one after the other until one does not hold."""
KILLS = 200
CT = "dicom/cornerstone/CTImage.dcm_JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80.dcm"


@figure("node-load")
def load() -> dict[str, Any]:
    """The DICOM node with the INT8 VGG16 and eight senders: 1,200 series an hour for 15 minutes."""
    make_model()
    return {
        "target": {"series_per_hour": SERIES_PER_HOUR, "studies_per_hour": 400, "p99_ms": P99_MS},
        "sustained": _measured(SERIES_PER_HOUR, MINUTES),
    }


@figure("node-highest")
def highest() -> dict[str, Any]:
    """The same node at higher rates, and with senders that never pause."""
    make_model()
    found = []
    for rate in HIGHER_RATES:
        found.append(_measured(rate, SHORT_MINUTES))
        if not _holds(found[-1]):
            break
    held = [run["images_per_s"] for run in found if _holds(run)]
    return {
        "p99_target_ms": P99_MS,
        "rates": found,
        "highest_images_per_s_that_hold": max(held, default=None),
        "without_pause": _measured(0, SHORT_MINUTES),
    }


@figure("power-loss")
def power_loss() -> Any:  # noqa: ANN401  any layout
    """The same node killed 200 times, each time without what it had not synced; what is lost or twofold."""
    make_model()
    image = Path(os.environ["MEDIMG_TEST_DATA"]) / CT
    return run_script("power_loss.py", "--model", ARTEFACTS["int8"], "--image", image, "--kills", str(KILLS))


@figure("node-year")
def year() -> Any:  # noqa: ANN401  any layout
    """The node's start and hourly cleaning with what a year at 1,200 series an hour leaves in its folder."""
    artefact = SCRATCH / "node-year" / "k3_vgg16_brain_mri_240_softmax4.onnx"
    if not artefact.exists():
        model = Path(os.environ["MEDIMG_TEST_DATA"]) / "models" / artefact.with_suffix(".h5").name
        run_command("medimg-export", model, "--preprocessing", "unit", "--output", artefact.parent)
    # Making millions of files takes an hour, so that what an earlier run left is used.
    return run_script("node_year.py", "--model", artefact, "--folder", artefact.parent, "--keep")


def _holds(found: dict[str, Any]) -> bool:
    lost = found["images_refused"] + found["images_without_result"]
    return not lost and found["latency_ms"]["p99"] < P99_MS


def _measured(series_per_hour: int, minutes: float) -> Any:  # noqa: ANN401  any layout
    options = ("--minutes", str(minutes), "--series-per-hour", str(series_per_hour))
    found = run_script("node_load.py", "--model", ARTEFACTS["int8"], *options)
    print(found, flush=True)
    return found
