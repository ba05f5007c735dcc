"""Watching the machine before, during and after a run."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from medimg.benchmarks.sensors import GpuReading, Processor

EVERY_S = 0.5
SLOWER_CLOCK = 0.95
"""A clock below this share of the one before the run has fallen."""


@dataclass(frozen=True)
class MachineState:
    """The machine at one moment; None stands for what it does not tell."""

    at_s: float
    """Seconds from the start of the run."""
    clock_mhz: float | None
    """Of the processor, mean of its cores."""
    temperature_c: float | None
    """Of the hottest zone."""
    memory_mib: float | None
    """Resident memory of the benchmark."""
    gpu_memory_mib: float | None
    """In use by everybody."""
    gpu_clock_mhz: float | None
    gpu_temperature_c: float | None


@dataclass(frozen=True)
class Energy:
    """What the run drew, idle power included."""

    joules: float
    joules_per_image: float
    source: str
    """`RAPL` (the processor's packages), `NVML` (the GPU's board), `tegrastats` (the whole module); joined by
    `+` where two are added."""


@dataclass(frozen=True)
class MachineLog:
    """The machine around one run."""

    before: MachineState
    during: tuple[MachineState, ...]
    """Every half second."""
    after: MachineState
    own_cores: float
    """Processors that the benchmark kept busy, on average."""
    other_cores: float
    """Processors that all other work kept busy, on average."""
    throttled: bool | None
    """Whether the kernel or the driver counted throttling; None where neither does."""
    peak_memory_mib: float | None
    """Largest resident memory seen."""
    energy: Energy | None
    """None where the platform does not tell it."""

    @property
    def clock_fell(self) -> bool:
        """Whether the processor's clock was lower during the run than before it."""
        first = self.before.clock_mhz
        during = [state.clock_mhz for state in self.during if state.clock_mhz is not None]
        return bool(first and during and sum(during) / len(during) < SLOWER_CLOCK * first)


class Gpu(Protocol):
    """Whatever tells of the GPU."""

    name: str

    def read(self) -> GpuReading:
        """Give its state now."""


@dataclass
class Watch:
    """A watch under way."""

    processor: Processor
    gpu: Gpu | None
    states: list[MachineState] = field(default_factory=list)
    gpu_joules: float = 0.0
    gpu_first_j: float | None = None
    gpu_throttled: bool | None = None
    log: MachineLog | None = None
    images: int = 0
    """To be set by the caller before the block ends, for the energy of each."""


@contextmanager
def watched(processor: Processor, gpu: Gpu | None = None, every_s: float = EVERY_S) -> Iterator[Watch]:
    """Watch the machine from a thread while the block runs; its findings are in `log` afterwards.

    Args:
        processor: the processor's sensors.
        gpu: the GPU's, if one takes part or the board tells of itself there.
        every_s: seconds from one look to the next.
    """
    watch, stop = Watch(processor, gpu), threading.Event()
    begin = time.monotonic()
    before, counted, drawn = _look(watch, begin, 0.0), processor.throttle_count(), processor.energies_j()
    busy = processor.busy_s()

    def follow() -> None:
        last = begin
        while not stop.wait(every_s):
            now = time.monotonic()
            watch.states.append(_look(watch, begin, now - last))
            last = now

    thread = threading.Thread(target=follow, name="medimg-monitor", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()
    seconds = time.monotonic() - begin
    everybody, mine = (after - first for after, first in zip(processor.busy_s(), busy, strict=True))
    last_at = watch.states[-1].at_s if watch.states else 0.0
    after = _look(watch, begin, seconds - last_at)
    memory = [state.memory_mib for state in (before, *watch.states, after) if state.memory_mib is not None]
    watch.log = MachineLog(
        before=before,
        during=tuple(watch.states),
        after=after,
        own_cores=mine / seconds,
        other_cores=max(0.0, everybody - mine) / seconds,
        throttled=_throttled(counted, processor.throttle_count(), watch.gpu_throttled),
        peak_memory_mib=max(memory, default=None),
        energy=_energy(watch, drawn),
    )


def _look(watch: Watch, begin: float, since_last_s: float) -> MachineState:
    reading = watch.gpu.read() if watch.gpu else GpuReading()
    if reading.power_w is not None:
        watch.gpu_joules += reading.power_w * since_last_s
    if reading.energy_j is not None:
        if watch.gpu_first_j is None:
            watch.gpu_first_j = reading.energy_j
        watch.gpu_joules = reading.energy_j - watch.gpu_first_j
    if reading.throttled is not None:
        watch.gpu_throttled = bool(watch.gpu_throttled) or reading.throttled
    return MachineState(
        at_s=time.monotonic() - begin,
        clock_mhz=watch.processor.clock_mhz(),
        temperature_c=watch.processor.temperature_c(),
        memory_mib=watch.processor.memory_mib(),
        gpu_memory_mib=reading.memory_mib,
        gpu_clock_mhz=reading.clock_mhz,
        gpu_temperature_c=reading.temperature_c,
    )


def _throttled(before: int | None, after: int | None, gpu: bool | None) -> bool | None:
    if before is None or after is None:
        return gpu
    return after > before or bool(gpu)


def _energy(watch: Watch, before: tuple[float, ...]) -> Energy | None:
    processor, joules, sources = watch.processor, 0.0, []
    if processor.has_energy:
        ranges = processor.energy_ranges_j()
        for first, last, wraps_at in zip(before, processor.energies_j(), ranges, strict=True):
            joules += last - first if last >= first else last + wraps_at - first
        sources.append("RAPL")
    if watch.gpu and watch.gpu_joules > 0:
        joules += watch.gpu_joules
        sources.append(watch.gpu.name)
    if not sources or not watch.images:
        return None
    return Energy(joules, joules / watch.images, "+".join(sources))
