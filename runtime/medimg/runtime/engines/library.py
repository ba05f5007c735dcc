"""TensorRT itself: found, checked, and its messages collected.

Variables that hold TensorRT's objects are annotated with their classes: a test reads these annotations and
checks every name that is used against the API of each supported version.
"""

import functools
import importlib
import logging
import re
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

from medimg.runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    import tensorrt as trt

TensorRt: TypeAlias = ModuleType
"""The module `tensorrt`; variables of this type are named `api`."""

OLDEST, NEWEST = (10, 3), (11, 4)
"""Versions whose API is checked by name; later ones of the same major version are let in."""
JETSON_RELEASE = Path("/etc/nv_tegra_release")

_logger = logging.getLogger(__name__)


def load_tensorrt() -> TensorRt:
    """Import TensorRT.

    Raises:
        MissingDependencyError: it is not installed, it cannot be loaded, or its version is not supported.
    """
    try:
        api = importlib.import_module("tensorrt")
        version = api.__version__
    # Its packages fail in their own ways where a library of theirs or the driver is missing.
    except Exception as error:  # noqa: BLE001
        raise MissingDependencyError(f"needs tensorrt ({_first_line(error)}): {how_to_install()}") from None
    check_version(version)
    return api


def check_version(version: str) -> None:
    """Check that a version of TensorRT is supported.

    Raises:
        MissingDependencyError: it is not.
    """
    numbers = re.findall(r"\d+", version)
    found = (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)
    if not (found >= OLDEST and found[0] <= NEWEST[0]):
        supported = " to ".join(".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        raise MissingDependencyError(f"TensorRT {version} is not supported ({supported}): {how_to_install()}")


def is_out_of_memory(reason: str) -> bool:
    """Tell whether TensorRT's words mean that the GPU's memory did not suffice."""
    return "outofmemory" in reason.lower().replace(" ", "")


def how_to_install() -> str:
    """Say where TensorRT comes from on this machine."""
    if JETSON_RELEASE.exists():
        return (
            "on Jetson it comes with JetPack 6.1 or newer: sudo apt install python3-libnvinfer, "
            "and a virtual environment needs --system-site-packages"
        )
    return "pip install 'medimg[tensorrt]'"


@functools.cache
def messages(api: TensorRt) -> "Messages":
    """Give the process's one collector: TensorRT keeps the first logger that it is given."""
    return Messages(api)


class Messages:
    """Collects what TensorRT says: errors to explain a failure, everything for the log."""

    def __init__(self, api: TensorRt) -> None:
        self.errors: deque[str] = deque(maxlen=8)
        """The last error messages; cleared by `explain`."""
        self.logger: trt.ILogger = _make_logger(api, self.errors)

    def explain(self) -> str:
        """Give the errors since the last call, oldest first, and forget them."""
        said = "; ".join(self.errors)
        self.errors.clear()
        return said or "TensorRT gives no reason"


def _make_logger(api: TensorRt, errors: deque[str]) -> "trt.ILogger":
    severity = api.ILogger
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.INFO,
        severity.INFO: logging.DEBUG,
        severity.VERBOSE: logging.DEBUG - 1,
    }

    class Logger(api.ILogger):  # type: ignore[misc,name-defined]  # TensorRT has no types
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, level: "trt.ILogger.Severity", message: str) -> None:
            if levels[level] == logging.ERROR:
                errors.append(message)
            else:
                _logger.log(levels[level], "%s", message)

    return Logger()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
