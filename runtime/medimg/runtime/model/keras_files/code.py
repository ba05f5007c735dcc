"""Whether code that a configuration holds or names could run here at all, if it were let in."""

import base64
import binascii
import dis
import marshal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import CodeType

from medimg.runtime.errors import ModelError
from medimg.runtime.machine.bounded import Bounds, call
from medimg.runtime.model.keras_files.configuration import Foreign

_NOWHERE = frozenset(["", "__main__", "builtins", "Custom"])
"""Modules in which no file's own classes can be found again; `Custom` is Keras's word for no package."""
_PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"
_SAVE = "save it with model.export(folder) from the program that made it, and export that folder"


def advice(foreign: Sequence[Foreign]) -> str:
    """Say what can be done about foreign code: let it in, where it could run, or save the model otherwise."""
    for item in foreign:
        if reason := _obstacle(item):
            return f"--allow-code cannot help: {reason}; {_SAVE}"
    missing = sorted({module for item in foreign if (module := item.module) and not _is_here(module)})
    if missing:
        return (
            f"--allow-code lets it run, if you trust whoever made the file and put the folder with "
            f"{', '.join(missing)} on PYTHONPATH"
        )
    return "--allow-code lets it run, if you trust whoever made the file"


def check(path: str) -> str:
    """Tell whether marshalled code is this Python's; runs in a bounded process, and runs no code.

    Returns:
        An empty text, or why it is not.
    """
    other = f"its byte code is of another Python than this one ({_PYTHON})"
    try:
        code = marshal.loads(base64.b64decode(Path(path).read_bytes()))  # noqa: S302  not run
    except (ValueError, EOFError, TypeError, binascii.Error):
        return other
    if not isinstance(code, CodeType):
        return "what should be its byte code is none"
    places = range(0, len(code.co_code), 2)
    begins = "RESUME" not in dis.opmap or dis.opmap["RESUME"] in {code.co_code[place] for place in places}
    return "" if begins else other


def _obstacle(item: Foreign) -> str:
    if item.code is not None:
        with NamedTemporaryFile(prefix="medimg-") as file:
            file.write(item.code.encode("ascii", "replace"))
            file.flush()
            try:
                reason: str = call(f"{__name__}:check", file.name, bounds=Bounds(), subject=str(item))
            except ModelError:
                reason = f"its byte code cannot be read by this one ({_PYTHON})"
        return f"{item}: {reason}" if reason else ""
    if item.class_name in _KERAS_NAMED or item.module not in (None, *_NOWHERE):
        return ""
    return f"the code of {item} is not in the file, which does not say what module has it"


_KERAS_NAMED = frozenset(["Lambda", "TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"])
"""Classes that the framework itself has, which run what their configuration says."""


def _is_here(module: str) -> bool:
    """Whether the package of a module can be found; nothing is imported."""
    try:
        return find_spec(module.partition(".")[0]) is not None
    except (ValueError, ImportError):
        return False
