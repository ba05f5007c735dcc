"""The machine's own word: files of the kernel, NVML's calls and the lines of tegrastats."""

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medimg.benchmarks import sensors
from medimg.benchmarks.monitor import watched
from medimg.benchmarks.sensors import (
    GpuReading,
    JetsonGpu,
    NvmlGpu,
    Processor,
    open_gpu,
)
from medimg.runtime.errors import MissingDependencyError
from medimg.runtime.machine.nvml import GpuSample
from medimg.runtime.machine.tegrastats import parse_line

CPU = "sys/devices/system/cpu"
RAPL = "sys/class/powercap"


def root_with(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_machine_that_tells_nothing_is_not_guessed_at(tmp_path: Path) -> None:
    processor = Processor(tmp_path)
    assert processor.clock_mhz() is None
    assert processor.temperature_c() is None
    assert processor.throttle_count() is None
    assert not processor.has_energy
    with watched(processor, every_s=0.01) as watch:
        watch.images = 10
    assert watch.log is not None
    assert (watch.log.energy, watch.log.throttled, watch.log.clock_fell) == (None, None, False)


def test_clocks_temperature_and_throttling_are_read(tmp_path: Path) -> None:
    root = root_with(
        tmp_path,
        {
            f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "2000000\n",
            f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "3000000\n",
            f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "3\n",
            f"{CPU}/cpu1/thermal_throttle/package_throttle_count": "4\n",
            "sys/class/thermal/thermal_zone0/temp": "41000\n",
            "sys/class/thermal/thermal_zone1/temp": "72500\n",
            "sys/class/thermal/thermal_zone2/temp": "no sensor\n",
        },
    )
    processor = Processor(root)
    assert processor.clock_mhz() == 2500
    assert processor.throttle_count() == 7
    assert processor.temperature_c() == 72.5


def test_the_clock_of_a_virtual_machine_is_in_cpuinfo(tmp_path: Path) -> None:
    root_with(tmp_path, {"proc/cpuinfo": "cpu MHz\t\t: 2000.0\nflags\t: fpu\ncpu MHz\t\t: 2200.0\n"})
    assert Processor(tmp_path).clock_mhz() == 2100


def test_other_work_is_what_the_machine_does_beyond_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, busy = Processor(tmp_path), iter([(10.0, 1.0), (13.0, 2.0)])
    monkeypatch.setattr(processor, "busy_s", lambda: next(busy))
    with watched(processor, every_s=10) as watch:
        pass
    assert watch.log is not None
    assert watch.log.other_cores == pytest.approx(2 * watch.log.own_cores)


def test_this_process_memory_and_time_are_its_own(tmp_path: Path) -> None:
    processor = Processor(tmp_path)
    (everybody, mine), memory = processor.busy_s(), processor.memory_mib()
    held = bytearray(b"x") * (64 << 20)
    while (used := time.process_time()) < mine + 0.05:
        pass
    later, own = processor.busy_s()
    assert own == pytest.approx(used, abs=0.05)
    # The kernel counts both in ticks of a hundredth of a second, one after the other.
    assert later - everybody >= own - mine - 0.03
    assert processor.memory_mib() - memory > 60
    del held


@pytest.mark.parametrize(("last_uj", "joules"), [(7_000_000, 5.0), (1_000_000, 9.0)])
def test_energy_is_the_difference_of_the_counters_also_when_they_begin_again(
    tmp_path: Path, last_uj: int, joules: float
) -> None:
    package = f"{RAPL}/intel-rapl:0"
    files = {
        f"{package}/energy_uj": "2000000",
        f"{package}/max_energy_range_uj": "10000000",
        # A part of the package, which would be counted twice.
        f"{RAPL}/intel-rapl:0:0/energy_uj": "0",
    }
    processor = Processor(root_with(tmp_path, files))
    with watched(processor, every_s=10) as watch:
        (tmp_path / package / "energy_uj").write_text(str(last_uj))
        (tmp_path / RAPL / "intel-rapl:0:0" / "energy_uj").write_text("900000000")
        watch.images = 100
    assert watch.log is not None
    assert watch.log.energy is not None
    assert watch.log.energy.joules == pytest.approx(joules)
    assert watch.log.energy.joules_per_image == pytest.approx(joules / 100)
    assert watch.log.energy.source == "RAPL"


def test_throttling_and_a_falling_clock_during_the_run_are_found(tmp_path: Path) -> None:
    clock, count = f"{CPU}/cpu0/cpufreq/scaling_cur_freq", f"{CPU}/cpu0/thermal_throttle/core_throttle_count"
    processor = Processor(root_with(tmp_path, {clock: "3000000", count: "0"}))
    with watched(processor, every_s=0.01) as watch:
        root_with(tmp_path, {clock: "1500000", count: "2"})
        while len(watch.states) < 20:
            time.sleep(0.01)
    assert watch.log is not None
    assert watch.log.throttled
    assert watch.log.clock_fell


def gpu_sample(**changes: Any) -> GpuSample:
    """A GPU that counts no energy."""
    known = GpuSample(None, None, 55.0, 0.5, 512 << 20, 1024 << 20, 1980.0, throttled=False)
    return replace(known, **changes)


def test_the_drivers_word_is_taken_over() -> None:
    assert NvmlGpu(lambda: gpu_sample(throttled=True, power_w=70.0)).read() == GpuReading(
        memory_mib=512, temperature_c=55, clock_mhz=1980, throttled=True, energy_j=None, power_w=70
    )


def test_a_gpus_energy_is_added_to_the_processors(tmp_path: Path) -> None:
    package = f"{RAPL}/intel-rapl:0/energy_uj"
    processor = Processor(root_with(tmp_path, {package: "0"}))
    counter = itertools.count(7)
    gpu = NvmlGpu(lambda: gpu_sample(energy_j=float(next(counter)), power_w=999.0))
    with watched(processor, gpu, every_s=10) as watch:
        root_with(tmp_path, {package: "2000000"})
        watch.images = 10
    assert watch.log is not None
    assert watch.log.energy is not None
    assert watch.log.energy.joules == pytest.approx(3.0)
    assert watch.log.energy.source == "RAPL+NVML"
    assert watch.log.before.gpu_memory_mib == 512


def board(line: str) -> JetsonGpu:
    sample = parse_line(line)
    assert sample is not None
    return JetsonGpu(iter([(0.0, sample)]))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "RAM 2448/7620MB (lfb 9x4MB) SWAP 0/3810MB CPU [9%@729,off] GR3D_FREQ 99%@[611] cpu@47.8C "
            "gpu@46.1C tj@49.5C VDD_IN 5240mW/4980mW VDD_CPU_GPU_CV 987mW/790mW",
            GpuReading(2448, 46.1, 611, None, None, 5.24),
        ),
        ("RAM 4181/30697MB CPU [1%@729] GPU@36.5C", GpuReading(4181, 36.5)),
    ],
)
def test_a_boards_samples_are_taken_over(line: str, expected: GpuReading) -> None:
    gpu = board(line)
    while gpu.read() == GpuReading():
        time.sleep(0.001)
    assert gpu.read() == expected


def test_power_is_added_up_over_time_where_there_is_no_counter(tmp_path: Path) -> None:
    gpu = board("RAM 1/2MB VDD_IN 5000mW/5000mW")
    while gpu.read().power_w is None:
        time.sleep(0.001)
    with watched(Processor(tmp_path), gpu, every_s=0.02) as watch:
        while len(watch.states) < 10:
            time.sleep(0.01)
        watch.images = 1
    assert watch.log is not None
    assert watch.log.energy is not None
    assert watch.log.energy.joules == pytest.approx(5.0 * watch.log.after.at_s, rel=0.05)
    assert watch.log.energy.source == "tegrastats"


def test_a_processor_needs_no_gpus_monitor() -> None:
    with open_gpu("cpu") as gpu:
        assert gpu is None


def test_tegrastats_is_followed_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, pid = tmp_path / "tegrastats", tmp_path / "pid"
    tool.write_text(
        f"#!/bin/sh\necho $$ > {pid}\n"
        "while true; do echo 'RAM 1/2MB VDD_IN 5000mW/5000mW'; sleep 0.05; done\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with open_gpu("gpu:0") as gpu:
        assert isinstance(gpu, JetsonGpu)
        while gpu.read().power_w is None:
            time.sleep(0.01)
        assert gpu.read().power_w == 5.0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_gpu_without_a_driver_is_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cuda() -> None:
        raise MissingDependencyError("needs CUDA")

    monkeypatch.setattr(sensors, "Cuda", no_cuda)
    with open_gpu("gpu:0") as gpu:
        assert gpu is None
