"""Optional packages."""

import importlib
import sys

import pytest

from medimg.runtime.optional import hidden


def test_a_hidden_package_cannot_be_imported_meanwhile() -> None:
    sys.modules.pop("this", None)
    with hidden("this", "sys"):
        assert sys.modules["sys"] is sys
        with pytest.raises(ImportError):
            importlib.import_module("this")
    assert "this" not in sys.modules
