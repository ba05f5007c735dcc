"""What files that are no models often are instead, told from their first bytes."""

from pathlib import Path

_HTML = (b"<!doctype html", b"<html", b"<head", b"<?xml")
_LOOKED_AT = 512
_ZIP_END = b"PK\x05\x06"
_ZIP_END_BYTES = 22 + 65535
"""The end record of a zip file, with the longest comment."""


def what_it_is(path: Path) -> str:
    """Name what a file is that should be a model, as `: it is …`; empty if nothing is known of it.

    Broken downloads keep the name of what they should have been: the pointer of Git LFS, a page that asks
    for a login, a server's error as JSON, a file that breaks off.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
            file.seek(max(0, path.stat().st_size - _ZIP_END_BYTES))
            end = file.read()
    except OSError:
        return ""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        return ": it is empty; copy or download it again"
    if text.startswith(b"version https://git-lfs"):
        return ": it is a pointer of Git LFS, not the file; fetch the file itself with git lfs pull"
    if text.lower().startswith(_HTML):
        return ": it is a web page, as a download that needs a login gives; download the file itself"
    if text.startswith((b"{", b"[")):
        return ": it is JSON text, as a server's error; download it again"
    if start.startswith(b"PK\x03\x04") and _ZIP_END not in end:
        return ": it breaks off, as a download that was cut; copy or download it again"
    if b"HDF" in start[:16] and not start.startswith(b"\x89HDF\r\n\x1a\n"):
        return ": its signature was changed as by a transfer in text mode; copy it again in binary mode"
    return ""
