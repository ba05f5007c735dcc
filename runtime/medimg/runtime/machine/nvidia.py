"""NVIDIA's hardware and system software as the system's files show them; none of its libraries is loaded."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.machine.system_files import system_text

_VENDOR, _DISPLAY_CLASS = "0x10de", "0x03"
_JETPACKS = {
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
"""JetPack by Jetson Linux release; the longest beginning that fits counts."""
_MAJOR_JETPACKS = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}
OLDEST_JETSON_LINUX = (36, 4)
"""JetPack 6.1, the first with TensorRT 10.3."""


@dataclass(frozen=True)
class Jetson:
    """A Jetson board and the system on it."""

    board: str
    """Its model, as the device tree names it."""
    linux: str | None
    """Jetson Linux release, such as `36.4.4`."""
    jetpack: str | None
    """Version of JetPack, as far as it can be told."""
    tensorrt: str | None
    """Version of the installed TensorRT library."""
    tensorrt_python: bool
    """Whether the system's Python has TensorRT."""
    power_mode: str | None
    """Name of the power mode, such as `15W` or `MAXN`."""


@dataclass(frozen=True)
class Nvidia:
    """What of NVIDIA's this machine has."""

    gpus: tuple[str, ...]
    """Names of the GPUs; `NVIDIA GPU` where no driver tells it."""
    driver: str | None
    """Version of the kernel driver; None if none is loaded."""
    jetson: Jetson | None

    def state(self) -> str:
        """Say it in one line."""
        if self.jetson:
            jetson = self.jetson
            parts = (
                f"Jetson Linux {jetson.linux}" if jetson.linux else "a Jetson Linux that is not told",
                f"JetPack {jetson.jetpack}" if jetson.jetpack else "JetPack not known",
                f"TensorRT {jetson.tensorrt}" if jetson.tensorrt else "no TensorRT",
                f"power mode {jetson.power_mode}" if jetson.power_mode else "power mode not known",
            )
            return f"{jetson.board}: {', '.join(parts)}"
        if not self.gpus:
            return "none of NVIDIA's"
        return f"{', '.join(self.gpus)}, {f'driver {self.driver}' if self.driver else 'no driver'}"

    def advice(self, *, tensorrt: bool) -> Iterator[str]:
        """Say what to install, from where.

        Args:
            tensorrt: whether TensorRT can be used as things are.
        """
        if self.jetson:
            yield from _jetson_advice(self.jetson, usable=tensorrt)
        elif self.gpus and not self.driver:
            yield (
                "the GPU has no driver: sudo ubuntu-drivers install on Ubuntu, "
                "sudo apt install nvidia-driver on Debian (non-free), then restart"
            )
        elif self.gpus and not tensorrt:
            yield (
                "the GPU runs engines with TensorRT (pip install 'medimg[tensorrt]'), and ONNX files with "
                "ONNX Runtime on CUDA (pip install 'medimg[gpu]')"
            )


def look(root: Path = Path("/")) -> Nvidia:
    """Look at this machine's files.

    Args:
        root: where `proc`, `sys`, `etc` and `var` lie.
    """
    jetson = _read_jetson(root)
    return Nvidia(tuple(_gpus(root)) or ((jetson.board,) if jetson else ()), _driver(root), jetson)


def _gpus(root: Path) -> Iterator[str]:
    """Name the GPUs: by the driver where it is loaded, else by the bus."""
    known = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    for file in known:
        yield next(iter(re.findall(r"Model:\s*(.+)", system_text(file))), "NVIDIA GPU").strip()
    if not known:
        for device in sorted((root / "sys/bus/pci/devices").glob("*")):
            is_display = system_text(device / "class").startswith(_DISPLAY_CLASS)
            if is_display and system_text(device / "vendor").strip() == _VENDOR:
                yield "NVIDIA GPU"


def _driver(root: Path) -> str | None:
    found = re.search(r"Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", system_text(root / "proc/driver/nvidia/version"))
    return found[1] if found else None


def _read_jetson(root: Path) -> Jetson | None:
    described = system_text(root / "etc/nv_tegra_release")
    release = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", described)
    tree = root / "proc/device-tree"
    if not release and "nvidia,tegra" not in system_text(tree / "compatible"):
        return None
    packages = _packages(root)
    linux = f"{release[1]}.{release[2].removesuffix('.0')}" if release else None
    library = packages.get("libnvinfer10") or packages.get("libnvinfer11") or packages.get("libnvinfer8")
    return Jetson(
        board=system_text(tree / "model").strip("\0\n ") or "Jetson",
        linux=linux,
        jetpack=re.split(r"[-+]", packages["nvidia-jetpack"])[0]
        if "nvidia-jetpack" in packages
        else _jetpack(linux),
        tensorrt=re.split(r"[-+]", library)[0] if library else None,
        tensorrt_python="python3-libnvinfer" in packages,
        power_mode=_power_mode(root),
    )


def _jetpack(linux: str | None) -> str | None:
    if linux is None:
        return None
    fitting = [begin for begin in _JETPACKS if f"{linux}.".startswith(f"{begin}.")]
    if fitting:
        return _JETPACKS[max(fitting, key=len)]
    return _MAJOR_JETPACKS.get(int(linux.partition(".")[0]))


def _packages(root: Path) -> dict[str, str]:
    """Give the versions of the installed Debian packages that matter, by name."""
    found = {}
    for entry in system_text(root / "var/lib/dpkg/status").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", entry, re.MULTILINE))
        name, installed = fields.get("Package", ""), fields.get("Status", "").endswith(" installed")
        if installed and ("nvinfer" in name or name == "nvidia-jetpack"):
            found[name] = fields.get("Version", "")
    return found


def _power_mode(root: Path) -> str | None:
    """Read the mode's number from what nvpmodel keeps, and its name from its configuration."""
    number = re.search(r"pmode:(\d+)", system_text(root / "var/lib/nvpmodel/status"))
    if not number:
        return None
    mode = int(number[1])
    name = re.search(rf"< POWER_MODEL ID={mode} NAME=(\S+)", system_text(root / "etc/nvpmodel.conf"))
    return name[1] if name else str(mode)


def _jetson_advice(jetson: Jetson, *, usable: bool) -> Iterator[str]:
    numbers = tuple(map(int, (jetson.linux or "0").split(".")))
    if jetson.linux and numbers < OLDEST_JETSON_LINUX:
        yield (
            f"Jetson Linux {jetson.linux} has a TensorRT older than 10.3: flash JetPack 6.2 or newer with "
            "NVIDIA's SDK Manager"
        )
    elif not jetson.tensorrt_python:
        yield (
            "sudo apt install python3-libnvinfer brings TensorRT for Python, from NVIDIA's repository that "
            "Jetson Linux has set up (repo.download.nvidia.com/jetson); pip's tensorrt is not for Jetson"
        )
    elif not usable:
        yield (
            "TensorRT is installed for the system's Python: make the virtual environment with "
            "python3 -m venv --system-site-packages, and with that Python"
        )
