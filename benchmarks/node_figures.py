"""What the DICOM node sustains on one machine, its senders included."""

import os
from typing import Any

from brain_model import ARTEFACTS, make_model
from commands import run_script
from registry import figure

MINUTES = float(os.environ.get("MEDIMG_NODE_MINUTES", "15"))
HIGHEST_MINUTES = 3.0


@figure("node-load")
def load() -> dict[str, Any]:
    """The DICOM node with the INT8 VGG16 and eight senders: 1,200 series an hour, and the highest rate."""
    make_model()
    return {
        "target": {"series_per_hour": 1200, "studies_per_hour": 400, "p99_ms": 500},
        "sustained": _measured("--minutes", str(MINUTES), "--series-per-hour", "1200"),
        "highest": _measured("--minutes", str(min(MINUTES, HIGHEST_MINUTES)), "--series-per-hour", "0"),
    }


def _measured(*options: str) -> Any:  # noqa: ANN401  any layout
    found = run_script("node_load.py", "--model", ARTEFACTS["int8"], *options)
    print(found, flush=True)
    return found
