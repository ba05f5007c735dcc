"""What the system tells in small files: below `/proc` and `/sys`, and in the device tree."""

from pathlib import Path


def system_text(path: Path) -> str:
    """Read such a file; empty where it is absent or may not be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
