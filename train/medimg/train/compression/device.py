"""Networks exported to INT8 and timed on this device; what was timed before is known by its layers."""

import functools
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.machine.cpus import cpu_flags, cpu_name
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.optional import installed_version
from medimg.train.compression.chain import Weights, set_weights
from medimg.train.compression.options import CompressOptions
from medimg.train.data.array_store import ArrayStore, key_of
from medimg.train.fitting.job import Job
from medimg.train.keras_files import save
from medimg.train.networks.build import Network
from medimg.train.tuning.deployment import export_int8, time_singles

PROBE_IMAGES = 8
"""INT8 ranges of a network that is only timed come from so many."""
TIMED_PACKAGES = ("medimg", "onnxruntime", "onnxruntime-gpu", "openvino")
TIMED = 2
"""How often an artefact is timed at once."""
ROUNDS = 3
"""How often each of several networks is timed, after all others."""


@dataclass(frozen=True)
class Probe:
    """A network that is only timed."""

    network: Network
    weights: Callable[[], Weights]
    """Not asked for where the timing is known."""
    spec: ModelSpec


@dataclass(frozen=True)
class Device:
    """What INT8 artefacts are made and timed with."""

    options: CompressOptions
    job: Job
    data: Path
    """Its images outside the test part give the INT8 ranges."""
    folder: Path
    """For what is made on the way."""

    def export(self, model: Path, *options: str) -> Path:
        """Export a Keras file to INT8 beside it."""
        return Path(export_int8(model, self.data, self.job.threads, *options)["path"])

    def time(self, artefact: Path) -> float:
        """Time an artefact: the median of single images, in milliseconds.

        What else the machine does only adds to it, so the smallest of several counts.
        """
        return min(self._time_once(artefact) for _ in range(TIMED))

    def time_probe(self, probe: Probe, store: ArrayStore) -> float:
        """Time a network as `time` does, unless one of such layers is known to the store."""

        def given() -> Iterator[NDArray[np.float64]]:
            yield np.array([[self.time(self._export_probe(probe, self.folder / "probe.keras"))]])

        return float(store.array(self._key(probe), 1, given()).values[0, 0])

    def time_rounds(self, probes: Sequence[Probe], store: ArrayStore) -> NDArray[np.float64]:
        """Time networks in INT8, all of them in each round: `(rounds, networks)`.

        What disturbs a timing often outlasts it, so the timings of a network lie apart. The store keeps each
        round as soon as it is over.
        """
        key, progress = self._key(*probes), self.job.progress
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:

            @functools.cache
            def artefacts() -> list[Path]:
                tracked = progress.track(probes, "export", len(probes))
                return [
                    self._export_probe(probe, Path(scratch, f"{number}.keras"))
                    for number, probe in enumerate(tracked)
                ]

            def timed(number: int) -> Iterator[NDArray[np.float64]]:
                tracked = progress.track(artefacts(), f"time, round {number} of {ROUNDS}", len(probes))
                yield np.array([[self._time_once(artefact) for artefact in tracked]])

            rounds = [
                store.array(key_of(key, str(number)), 1, timed(number)).values
                for number in range(1, ROUNDS + 1)
            ]
        return np.concatenate(rounds)

    def _export_probe(self, probe: Probe, path: Path) -> Path:
        set_weights(probe.network, probe.weights())
        save(probe.network, probe.spec, path)
        return self.export(path, "--calibration-images", str(PROBE_IMAGES))

    def _time_once(self, artefact: Path) -> float:
        chosen = ("--backend", self.options.backend, "--device", self.options.device)
        return time_singles(artefact, self.job.threads, *chosen)["p50"]

    def _key(self, *probes: Probe) -> str:
        """Name a timing: where, by which packages, of which layers; weights make no difference."""
        versions = [str(installed_version(package)) for package in TIMED_PACKAGES]
        machine = (platform.node(), cpu_name(), *sorted(cpu_flags()))
        where = (*machine, self.options.device, self.options.backend, self.job.threads)
        scaled = {repr(probe.spec.intensity) for probe in probes}
        layers = [probe.network.to_json() for probe in probes]
        return key_of("latency", repr(sorted(scaled)), repr(where), *versions, *layers)
