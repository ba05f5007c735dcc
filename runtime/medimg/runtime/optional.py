"""Optional packages, imported where they are used."""

import importlib
from types import ModuleType

from medimg.runtime.errors import MissingDependencyError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: the module's import name, such as `openvino`.
        extra: the extra of medimg that installs it, such as `cpu`.

    Raises:
        MissingDependencyError: it is not installed, or one of its own libraries is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"needs {module} ({error}): pip install 'medimg[{extra}]'") from error
