"""Small JSON files that say how far a long run has come."""

import json
from pathlib import Path
from typing import Any

from medimg.runtime.errors import UsageError


def read_state(file: Path, way_out: str) -> dict[str, Any]:
    """Read one; what a full disk or another program left of it is named.

    Args:
        file: a JSON object.
        way_out: what the user can do.

    Raises:
        UsageError: it is damaged.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: damaged ({error}): {way_out}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{file}: damaged (no object): {way_out}")
    return found
