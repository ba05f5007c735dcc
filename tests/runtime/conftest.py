"""Shared libraries that stand in for NVIDIA's, compiled for the tests."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

FAKES = Path(__file__).parent / "fakes"
Compile = Callable[[str], Path]


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compile `fakes/NAME.c` once; give the library's path."""
    folder = tmp_path_factory.mktemp("fakes")

    def compiled(name: str) -> Path:
        target = folder / f"{name}.so"
        if not target.exists():
            source = FAKES / f"{name}.c"
            # TensorFlow has functions of the same names, and must not take their place within the library.
            flags = ["-std=c11", "-Wall", "-O1", "-shared", "-fPIC", "-Wl,-Bsymbolic"]
            subprocess.run(["cc", *flags, "-o", str(target), str(source)], check=True)
        return target

    return compiled
