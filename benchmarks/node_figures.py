"""What the DICOM node sustains on one machine, its senders included."""

import os
from typing import Any

from brain_model import ARTEFACTS, make_model
from commands import run_script
from registry import figure

MINUTES = float(os.environ.get("MEDIMG_NODE_MINUTES", "15"))
SHORT_MINUTES = min(MINUTES, 3.0)
SERIES_PER_HOUR, P99_MS = 1200, 500
HIGHER_RATES = (1400, 1600, 1800)
"""Series an hour, tried one after the other until one does not hold."""


@figure("node-load")
def load() -> dict[str, Any]:
    """The DICOM node with the INT8 VGG16 and eight senders: 1,200 series an hour, and the highest rate."""
    make_model()
    sustained = _measured(SERIES_PER_HOUR, MINUTES)
    higher = []
    for rate in HIGHER_RATES:
        higher.append(_measured(rate, SHORT_MINUTES))
        if not _holds(higher[-1]):
            break
    held = [found for found in (sustained, *higher) if _holds(found)]
    return {
        "target": {"series_per_hour": SERIES_PER_HOUR, "studies_per_hour": 400, "p99_ms": P99_MS},
        "sustained": sustained,
        "higher": higher,
        "highest_images_per_s_that_hold": max((found["images_per_s"] for found in held), default=None),
        "without_pause": _measured(0, SHORT_MINUTES),
    }


def _holds(found: dict[str, Any]) -> bool:
    lost = found["images_refused"] + found["images_without_result"]
    return not lost and found["latency_ms"]["p99"] < P99_MS


def _measured(series_per_hour: int, minutes: float) -> Any:  # noqa: ANN401  any layout
    options = ("--minutes", str(minutes), "--series-per-hour", str(series_per_hour))
    found = run_script("node_load.py", "--model", ARTEFACTS["int8"], *options)
    print(found, flush=True)
    return found
