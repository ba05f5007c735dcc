"""Names of classes: checked and compared in one place, wherever they come from."""

import logging
import re
import unicodedata
from collections.abc import Collection, Iterable

from medimg.runtime.files.text import printable

_WHOLE = re.compile(r"([0-9]+)(\.0+)?")
_LOG = logging.getLogger(__name__)


def fault_of(names: Iterable[str]) -> str | None:
    """Say what is wrong with the first name that cannot be a class's; nothing if all of them can."""
    for name in names:
        if not name.strip():
            return "a class has no name"
        if not name.isprintable():
            shown = printable(name)
            return f"the class {shown!r} has a name that is not UTF-8 text, or cannot be shown: rename it"
    return None


def same_class(names: Collection[str]) -> dict[str, str]:
    """Tell which names mean the same class, by giving each the one form of it.

    One name has several forms where letters have accents (NFC and NFD), and where a table's column of whole
    numbers became one of floats: 1 and 1.0.
    """
    forms = {name: unicodedata.normalize("NFC", name) for name in names}
    if all(_WHOLE.fullmatch(form) for form in forms.values()):
        forms = {name: form.partition(".")[0] for name, form in forms.items()}
    return forms


def ambiguity_of(names: Collection[str]) -> str | None:
    """Say which of the names, in their one form, are the same number; warn of those that differ in case."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        number = str(int(name)) if name.isascii() and name.isdigit() and len(name) < 100 else name.casefold()
        other = seen.setdefault(number, name)
        if other != name and number.isdigit():
            return f"the classes {other!r} and {name!r} are the same number: write them alike"
        if other != name:
            _LOG.warning("the classes %r and %r differ in nothing but case", other, name)
    return None
