"""Monitors of power and load: lines recorded on boards, and a driver library that stands in for NVIDIA's."""

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medimg.runtime.errors import BackendError, MissingDependencyError, UsageError
from medimg.runtime.machine.nvml import Gpu, GpuSample, Nvml
from medimg.runtime.machine.tegrastats import TegraSample, parse_line, watch

LINES = (Path(__file__).parent / "fakes" / "tegrastats.txt").read_text().splitlines()
RECORDED = {board: line for board, _, line in (text.partition(": ") for text in LINES)}
THOR, NANO = RECORDED["Thor"], RECORDED["Nano"]


def parsed(line: str) -> TegraSample:
    sample = parse_line(line)
    assert sample is not None
    return sample


@pytest.mark.parametrize(
    ("board", "power_w", "rails", "memory", "cores"),
    [
        (
            "AGX Orin, JetPack 7",
            5.139 + 3.268 + 5.5,
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
            (20642, 62817),
            12,
        ),
        ("Orin Nano, JetPack 6", 5.704, ("VDD_IN",), (2461, 7620), 6),
        ("Xavier NX", 5.079, ("VDD_IN",), (2690, 6854), 6),
        ("Nano", 1.75, ("POM_5V_IN",), (1923, 3964), 4),
        (
            "AGX Xavier",
            0.216 + 0.864 + 0.144 + 1.889,
            ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
            (1903, 15692),
            8,
        ),
        ("Thor", None, (), (4722, 7844), 0),
    ],
)
def test_power_of_recorded_lines(
    board: str, power_w: float | None, rails: tuple[str, ...], memory: tuple[int, int], cores: int
) -> None:
    sample = parsed(RECORDED[board])
    assert sample.power_w == (None if power_w is None else pytest.approx(power_w))
    assert sample.power_rails == rails
    assert (sample.ram_used_mb, sample.ram_total_mb) == memory
    assert len(sample.cpu_load) == cores


def test_load_and_temperatures() -> None:
    orin, xavier, thor = (parsed(RECORDED[board]) for board in ("AGX Orin, JetPack 7", "Xavier NX", "Thor"))
    assert (orin.gpu_load, orin.gpu_clock_mhz) == (0.12, 1300)
    assert (thor.gpu_load, thor.gpu_clock_mhz) == (None, 1000)
    assert orin.temperatures_c == {"cpu": 52.968, "soc2": 48.406, "soc0": 49.531, "gpu": 47.625}
    assert xavier.cpu_load == (0.03, 0.07, 0.01, 0.0, None, None)
    assert parsed(f"{THOR} CV0@-256C gpu@-3.5C").temperatures_c == {"gpu": -3.5}


def test_power_that_the_sensor_sees_below_zero() -> None:
    """Thor's sensor for a powered-down GPU has an offset."""
    line = f"{THOR} VDD_GPU -392mW/-392mW/0mW VDD_CPU_SOC_MSS 3924mW/3924mW/3924mW VIN_SYS_5V0 6520mW/1mW/1mW"
    assert parsed(line).power_w == pytest.approx(-0.392 + 3.924 + 6.52)
    assert parsed(f"{line} VIN 22871mW/22871mW/22871mW").power_rails == ("VIN",)


def test_a_message_is_no_sample() -> None:
    assert parse_line("Error: could not open /sys/kernel/debug: run as root") is None


@given(st.text(max_size=80), st.sampled_from(sorted(RECORDED)), st.data())
def test_any_line_is_a_sample_or_none(text: str, board: str, data: st.DataObject) -> None:
    line = RECORDED[board]
    cut = data.draw(st.integers(0, len(line)))
    for damaged in (text, line[:cut] + text, line[cut:], line[:cut] + text + line[cut:]):
        sample = parse_line(damaged)
        assert sample is None or sample.ram_total_mb >= 0


def test_watching_a_running_program(tmp_path: Path) -> None:
    program = tmp_path / "tegrastats"
    program.write_text(
        f"#!/bin/sh\ntest \"$1 $2\" = '--interval 7' || exit 1\necho starting\n"
        f"while true; do echo '{NANO}'; sleep 0.01; done\n"
    )
    program.chmod(0o755)
    before = time.monotonic()
    with watch(7, str(program)) as samples:
        taken = [next(samples) for _ in range(3)]
    assert [sample.power_w for _, sample in taken] == [1.75] * 3
    times = [at for at, _ in taken]
    assert before <= times[0] < times[1] < times[2] <= time.monotonic()


def test_no_tegrastats() -> None:
    with pytest.raises(MissingDependencyError, match="nvidia-l4t-tools"), watch(program="/none/tegrastats"):
        pass
    with pytest.raises(UsageError, match="0 ms"), watch(0):
        pass


# NVML.


@pytest.fixture
def pynvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """NVIDIA's package as it is before it has loaded a driver."""
    import pynvml

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return pynvml


@pytest.fixture
def nvml(fake_library: Callable[[str], Path], pynvml: Any) -> ctypes.CDLL:
    library = ctypes.CDLL(str(fake_library("nvml")))
    pynvml.nvmlLib = library
    return library


def test_gpus_and_their_state(nvml: ctypes.CDLL) -> None:
    with Nvml() as driver:
        assert driver.driver_version == "580.65.06"
        first, second = driver.gpus()
        assert first == Gpu("NVIDIA RTX A4000", "00000000:3B:00.0")
        assert second == Gpu("NVIDIA T400", "00000000:AF:00.0")
        measured = driver.sampler(first.bus_id)()
        slowed = driver.sampler("0000:AF:00.0")()
        assert (slowed.power_w, slowed.throttled) == (None, True)
        assert nvml.fake_open_sessions() == 1
    assert measured == GpuSample(41.25, 9876543.21, 54.0, 0.73, 6 << 30, 16 << 30, 1560.0, throttled=False)
    assert nvml.fake_open_sessions() == 0


def test_failures_of_the_driver(nvml: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    with Nvml() as driver:
        with pytest.raises(BackendError, match=r"nvmlDeviceGetHandleByPciBusId failed: Not Found \(6\)"):
            driver.sampler("00000000:01:00.0")
        sample = driver.sampler("00000000:3B:00.0")
        monkeypatch.setenv("FAKE_NVML_FAIL", "nvmlDeviceGetMemoryInfo")
        with pytest.raises(BackendError, match=r"nvmlDeviceGetMemoryInfo failed: GPU is lost \(15\)"):
            sample()
    monkeypatch.setenv("FAKE_NVML_FAIL", "nvmlInitWithFlags")
    with pytest.raises(BackendError, match="nvmlInit failed"):
        Nvml()


def test_no_driver(pynvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "CDLL", absent)
    with pytest.raises(MissingDependencyError, match="needs NVIDIA's driver"):
        Nvml()


def test_no_package_for_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependencyError, match=r"needs pynvml .*medimg\[bench\]"):
        Nvml()
