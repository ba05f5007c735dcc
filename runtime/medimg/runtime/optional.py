"""Optional packages, imported where they are used."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
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


def installed_version(distribution: str) -> str | None:
    """Give the version of a package, by the name that pip knows; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@contextlib.contextmanager
def hidden(*modules: str) -> Iterator[None]:
    """Keep packages from being imported meanwhile by others that could do without them.

    Args:
        modules: import names; what has been imported already stays.
    """
    unseen = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(unseen))  # type: ignore[arg-type]  # None is what makes an import fail
    try:
        yield
    finally:
        for name in unseen:
            del sys.modules[name]
