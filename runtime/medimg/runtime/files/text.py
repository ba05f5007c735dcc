"""Text from files, made safe to show."""


def printable(text: str) -> str:
    """Escape what a terminal would act on: control characters, surrogates and bidirectional overrides."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def csv_cell(text: str) -> str:
    """Escape text for a CSV cell, so that no spreadsheet takes it for a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def size_text(size_bytes: int) -> str:
    """Write a file's size in the unit that fits."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"
