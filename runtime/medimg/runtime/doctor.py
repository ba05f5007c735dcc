"""What can run here, and what would help."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path

from medimg.runtime.backends import ENGINE_NAMES, Availability, availability
from medimg.runtime.machine.cpus import Division, cpu_flags, divide
from medimg.runtime.machine.nvidia import Nvidia, look
from medimg.runtime.optional import installed_version

_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "bf16",
    "i8mm",
)
_SHARED_NAMES = ("onnxruntime", "cv2")


@dataclass(frozen=True)
class Findings:
    """The state of this machine."""

    medimg: str
    python: str
    machine: str
    cpu_features: tuple[str, ...]
    threads: int
    division: Division
    backends: tuple[Availability, ...]
    packages: dict[str, str | None]
    """Versions of the packages that matter; None where one is missing."""
    nvidia: Nvidia
    """GPUs, driver and Jetson system, as the system's files show them."""
    advice: tuple[str, ...]
    """What to install to use the GPU, from where."""
    conflicts: tuple[str, ...]
    """Two distributions that provide one import name, and how to leave one."""

    def lines(self) -> list[str]:
        """Say it, a line a fact."""
        return list(self._facts())

    def _facts(self) -> Iterator[str]:
        yield f"medimg {self.medimg}, Python {self.python}, {self.machine}"
        yield _fact("cpu", f"{self.threads} threads; {' '.join(self.cpu_features) or 'no known features'}")
        division = self.division
        yield _fact("files", f"{division.decoding} threads decode beside {division.inference} of inference")
        yield _fact("gpu", self.nvidia.state())
        for backend in self.backends:
            state = (
                f"{backend.version} on {', '.join(backend.devices)}" if backend.devices else backend.remedy
            )
            yield _fact(backend.name, state)
        for name, found in self.packages.items():
            yield _fact(name, found or "not installed")
        for step in self.advice:
            yield _fact("to do", step)
        for conflict in self.conflicts:
            yield _fact("conflict", conflict)


def _fact(name: str, state: str | None) -> str:
    return f"{name:<22} {state}"


def examine(threads: int, root: Path = Path("/")) -> Findings:
    """Look at this machine.

    Args:
        threads: processor threads that a run may use.
        root: where the system's files lie.
    """
    backends, nvidia, flags = availability(), look(root), cpu_flags(root)
    usable = any(backend.devices for backend in backends if backend.name in ENGINE_NAMES)
    return Findings(
        medimg=version("medimg"),
        python=platform.python_version(),
        machine=platform.machine(),
        cpu_features=tuple(name for name in _FEATURES if name in flags),
        threads=threads,
        division=divide(threads),
        backends=backends,
        packages={name: installed_version(name) for name in ("numpy", "opencv-python-headless", "pydicom")},
        nvidia=nvidia,
        advice=tuple(nvidia.advice(tensorrt=usable)),
        conflicts=tuple(_conflicts(packages_distributions())),
    )


def _conflicts(providers: Mapping[str, list[str]]) -> Iterator[str]:
    for name in _SHARED_NAMES:
        found = sorted(set(providers.get(name, ())))
        if len(found) > 1:
            both = " and ".join(found)
            yield f"{both} provide {name}: pip uninstall {' '.join(found)}, then install one"
