"""What `doctor` finds of NVIDIA's: on simulated file systems, with libraries that stand in for theirs."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from medimg.runtime.backends import with_tensorrt
from medimg.runtime.doctor import Findings, examine
from medimg.runtime.engines import library
from medimg.runtime.errors import MissingDependencyError
from medimg.runtime.machine.cuda import Cuda
from medimg.runtime.machine.nvidia import look

DRIVER = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:07:19 UTC 2026
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
CARD = {
    "proc/driver/nvidia/version": DRIVER,
    "proc/driver/nvidia/gpus/0000:3b:00.0/information": "Model: \t\t NVIDIA RTX A4000\nIRQ:   \t\t 120\n",
    "sys/bus/pci/devices/0000:3b:00.0/vendor": "0x10de\n",
    "sys/bus/pci/devices/0000:3b:00.0/class": "0x030000\n",
}
BARE_CARD = {name: text for name, text in CARD.items() if name.startswith("sys")} | {
    # Its sound device is of the same vendor, and no GPU.
    "sys/bus/pci/devices/0000:3b:00.1/vendor": "0x10de\n",
    "sys/bus/pci/devices/0000:3b:00.1/class": "0x040300\n",
    "sys/bus/pci/devices/0000:00:02.0/vendor": "0x8086\n",
    "sys/bus/pci/devices/0000:00:02.0/class": "0x030000\n",
}
PACKAGE = "Package: {}\nStatus: {} ok {}\nArchitecture: arm64\nVersion: {}\nDescription: x\n Package: y\n\n"


def packages(**versions: str) -> str:
    return "".join(
        PACKAGE.format(name.replace("_", "-"), "install", "installed", found)
        for name, found in versions.items()
    )


JETPACK_6 = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "var/lib/dpkg/status": packages(
        libnvinfer10="10.3.0.30-1+cuda12.5",
        python3_libnvinfer="10.3.0.30-1+cuda12.5",
        nvidia_jetpack="6.2.1+b38",
    ),
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n",
}
JETPACK_7 = {
    "etc/nv_tegra_release": "# R38 (release), REVISION: 4.0, GCID: 42205042, BOARD: generic, EABI: aarch64\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,tegra264\0",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.00  R\n",
    "var/lib/dpkg/status": packages(libnvinfer10="10.13.3.9-1+cuda13.0"),
    "var/lib/nvpmodel/status": "pmode:0001",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
}


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def libraries(fake_library: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which of NVIDIA's libraries are installed."""

    def install(*, cuda: bool, tensorrt: str | None) -> None:
        path = str(fake_library("cudart")) if cuda else "libcudart-that-is-not-there.so"
        monkeypatch.setattr(with_tensorrt, "Cuda", lambda: Cuda(path))

        def load() -> SimpleNamespace:
            if tensorrt is None:
                raise MissingDependencyError("needs tensorrt (No module named 'tensorrt'): pip install …")
            return SimpleNamespace(__version__=tensorrt)

        monkeypatch.setattr(with_tensorrt, "load_tensorrt", load)

    return install


def fact(findings: Findings, name: str) -> str:
    (found,) = [line.removeprefix(name).strip() for line in findings.lines() if line.split()[0] == name]
    return found


def test_no_gpu(libraries: Callable[..., None], tmp_path: Path) -> None:
    libraries(cuda=False, tensorrt=None)
    findings = examine(1, system(tmp_path, {}))
    assert fact(findings, "gpu") == "none of NVIDIA's"
    assert fact(findings, "tensorrt").startswith("needs the CUDA runtime")
    assert findings.advice == ()


def test_gpu_without_a_driver(
    libraries: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT is there too: a container that was started without the GPU, or a kernel update."""
    libraries(cuda=True, tensorrt="10.13.3.9")
    monkeypatch.setenv("FAKE_CUDA_DRIVER", "0")
    findings = examine(1, system(tmp_path, BARE_CARD))
    assert fact(findings, "gpu") == "NVIDIA GPU, no driver"
    assert fact(findings, "tensorrt").startswith("no NVIDIA driver is loaded")
    assert findings.advice[0].startswith("the GPU has no driver: sudo ubuntu-drivers install")


def test_tensorrt_with_a_driver_that_is_too_old(
    libraries: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries(cuda=True, tensorrt="10.13.3.9")
    monkeypatch.setenv("FAKE_CUDA_DRIVER", "11040")
    findings = examine(1, system(tmp_path, CARD))
    assert "too old: it supports CUDA 11.4" in fact(findings, "tensorrt")


def test_gpu_without_tensorrt(libraries: Callable[..., None], tmp_path: Path) -> None:
    libraries(cuda=True, tensorrt=None)
    findings = examine(1, system(tmp_path, CARD))
    assert fact(findings, "gpu") == "NVIDIA RTX A4000, driver 580.65.06"
    (advice,) = findings.advice
    assert "pip install 'medimg[tensorrt]'" in advice
    assert "pip install 'medimg[gpu]'" in advice


def test_gpu_with_tensorrt(libraries: Callable[..., None], tmp_path: Path) -> None:
    libraries(cuda=True, tensorrt="11.4.0.106")
    findings = examine(1, system(tmp_path, CARD))
    assert [item.devices for item in findings.backends if item.name == "tensorrt"] == [("gpu:0", "gpu:1")]
    assert fact(findings, "tensorrt") == "11.4.0.106 on gpu:0, gpu:1"
    assert findings.advice == ()


def test_jetpack_6(libraries: Callable[..., None], tmp_path: Path) -> None:
    libraries(cuda=True, tensorrt="10.3.0")
    findings = examine(1, system(tmp_path, JETPACK_6))
    assert fact(findings, "gpu") == (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super: Jetson Linux 36.4.7, "
        "JetPack 6.2.1, TensorRT 10.3.0.30, power mode MAXN_SUPER"
    )
    assert findings.advice == ()


def test_jetpack_7_without_tensorrt_for_python(libraries: Callable[..., None], tmp_path: Path) -> None:
    libraries(cuda=True, tensorrt=None)
    findings = examine(1, system(tmp_path, JETPACK_7))
    assert fact(findings, "gpu") == (
        "NVIDIA Jetson AGX Thor Developer Kit: Jetson Linux 38.4, JetPack 7.1, TensorRT 10.13.3.9, "
        "power mode 120W"
    )
    (advice,) = findings.advice
    assert advice.startswith("sudo apt install python3-libnvinfer")
    assert findings.nvidia.driver == "580.00"


@pytest.mark.parametrize(
    ("release", "jetpack", "advised"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 1", "5", "flash JetPack 6.2 or newer"),
        ("# R36 (release), REVISION: 3.0, GCID: 1", "6.0", "flash JetPack 6.2 or newer"),
        ("# R36 (release), REVISION: 4.0, GCID: 1", "6.1", "python3-libnvinfer"),
        ("# R36 (release), REVISION: 4.3, GCID: 1", "6.2", "python3-libnvinfer"),
        ("# R36 (release), REVISION: 9.1, GCID: 1", "6", "python3-libnvinfer"),
        ("# R39 (release), REVISION: 2.1, GCID: 1", "7.2", "python3-libnvinfer"),
        ("# R77 (release), REVISION: 1.0, GCID: 1", None, "python3-libnvinfer"),
        ("", None, "python3-libnvinfer"),
    ],
)
def test_jetpack_by_release(tmp_path: Path, release: str, jetpack: str | None, advised: str) -> None:
    compatible = {"proc/device-tree/compatible": JETPACK_6["proc/device-tree/compatible"]}
    found = look(system(tmp_path, compatible | ({"etc/nv_tegra_release": release} if release else {})))
    assert found.jetson is not None
    assert (found.jetson.jetpack, found.jetson.power_mode) == (jetpack, None)
    (advice,) = found.advice(tensorrt=False)
    assert advised in advice
    assert "power mode not known" in found.state()


def test_a_virtual_environment_that_does_not_see_the_systems_packages(tmp_path: Path) -> None:
    found = look(system(tmp_path, JETPACK_6))
    (advice,) = found.advice(tensorrt=False)
    assert "--system-site-packages" in advice


def test_a_package_that_was_removed_is_not_installed(tmp_path: Path) -> None:
    gone = PACKAGE.format("python3-libnvinfer", "deinstall", "config-files", "10.3.0")
    found = look(system(tmp_path, JETPACK_6 | {"var/lib/dpkg/status": gone}))
    assert found.jetson is not None
    assert not found.jetson.tensorrt_python


# TensorRT's own versions.


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106", "11.9"])
def test_versions_that_are_supported(version: str) -> None:
    library.check_version(version)


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0", "12.0.1", "", "nonsense"])
def test_versions_that_are_not(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"is not supported \(10\.3 to 11\.4\): pip install"):
        library.check_version(version)
    (tmp_path / "nv_tegra_release").touch()
    monkeypatch.setattr(library, "JETSON_RELEASE", tmp_path / "nv_tegra_release")
    with pytest.raises(MissingDependencyError, match="sudo apt install python3-libnvinfer"):
        library.check_version(version)


@pytest.mark.parametrize(
    "failure", [ImportError("libnvinfer.so.10: cannot open"), RuntimeError("no driver\nat x")]
)
def test_a_tensorrt_that_cannot_be_loaded(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> None:
        raise failure

    monkeypatch.setattr("medimg.runtime.engines.library.importlib.import_module", fail)
    with pytest.raises(MissingDependencyError, match=r"needs tensorrt \((libnvinfer|no driver\))") as caught:
        library.load_tensorrt()
    assert "\n" not in str(caught.value)
