"""What all points are made with: channels in order, widths, networks of any width."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data import DataSet
from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import ModelSpec
from medimg.train.compression.chain import (
    Weights,
    arrays_of,
    build,
    narrowed_weights,
    set_weights,
    weights_of,
)
from medimg.train.compression.device import Device, Probe
from medimg.train.compression.latency import LatencyModel, measure_model
from medimg.train.compression.options import CompressOptions
from medimg.train.compression.parent import Parent, Taught
from medimg.train.compression.passes import BATCH, by_unit
from medimg.train.compression.reconstruction import Values, reconstruct
from medimg.train.compression.selection import Ranking, dropped, importance, interpolation, rank
from medimg.train.compression.stages import Stage, full_widths, total_macs
from medimg.train.compression.widths import MACS, Widths, by_error, uniform
from medimg.train.data.array_store import ArrayStore
from medimg.train.errors import TargetError
from medimg.train.evaluation.answers import Answers
from medimg.train.fitting.job import Job
from medimg.train.keras_files import save
from medimg.train.networks.build import Network

DEFAULT_MULTIPLE = 16
TRIES = 4
"""How often widths are chosen anew where the measured latency misses the target."""


@dataclass(frozen=True)
class Workshop:
    """The original, what is known of it, and where the work is kept."""

    parent: Parent
    taught: Taught
    test: DataSet
    """Images that chose nothing."""
    reference: Answers
    """The original's, on those."""
    options: CompressOptions
    job: Job
    data: Path
    folder: Path
    """Outlives a kill; holds no images."""
    own: ArrayStore
    """In that folder."""
    cache: ArrayStore
    """The same, or one that outlives the run."""

    @property
    def spec(self) -> ModelSpec:
        """What smaller models say of themselves before they are calibrated and judged."""
        return self.parent.spec.with_(
            image=self.parent.image, temperature=1.0, operating_points=(), verification=None, compression=None
        )

    @property
    def device(self) -> Device:
        """Exports and times."""
        return Device(self.options, self.job, self.data, self.folder)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The chain on the images that smaller models take."""
        return self.parent.chain.stages(self.parent.image.rows, self.parent.image.columns)

    @cached_property
    def parent_macs(self) -> int:
        """Multiply-accumulates of the original, on the images that it takes."""
        image = self.parent.spec.image
        stages = self.parent.chain.stages(image.rows, image.columns)
        return total_macs(stages, full_widths(stages))

    @cached_property
    def rankings(self) -> tuple[Ranking, ...]:
        """The channels of each boundary, the most useful first."""
        pairs = zip(self.taught.grams, self.parent.chain.units[1:], strict=True)
        tracked = self.job.progress.track(pairs, "rank channels", len(self.taught.grams))
        return tuple(rank(gram, importance(unit.kernel, len(gram))) for gram, unit in tracked)

    def kept(self, widths: Widths) -> list[NDArray[np.int64]]:
        """Name the channels that stay at such widths, in their old order."""
        pairs = zip(self.rankings, widths[:-1], strict=True)
        return [np.sort(ranking.order[:width]) for ranking, width in pairs]

    def weights(self, widths: Widths) -> Weights:
        """Give the weights of such widths, those of each layer worked out by itself."""
        kept = self.kept(widths)
        pairs = list(zip(self.taught.grams, kept, strict=True))
        if self.options.reconstruct:
            mixings = [interpolation(gram, chosen) for gram, chosen in pairs]
        else:
            mixings = [dropped(len(gram), chosen) for gram, chosen in pairs]
        return narrowed_weights(self.parent.chain, kept, mixings)

    def reconstructed(self, widths: Widths) -> Weights:
        """Give weights with which each narrower layer answers as the original's does, as far as it can."""
        network, seen = self.network(widths), self.taught.train.images

        def batches() -> Iterator[Values]:
            for places in np.array_split(self.taught.looked_at, -(-len(self.taught.looked_at) // BATCH)):
                yield to_network_input(seen[places], self.parent.spec.intensity)

        answers = by_unit(self.stages, self.taught.layer_answers)
        reconstruct(network, self.parent.chain, self.kept(widths), answers, batches, self.job.progress)
        return arrays_of(network)

    def network(self, widths: Widths, weights: Weights | None = None) -> Network:
        """Build a network of such widths in float32, with the weights of least squares or others."""
        image = self.parent.image
        network = build(self.parent.chain, (image.rows, image.columns), widths)
        set_weights(network, weights or self.weights(widths))
        return network

    @cached_property
    def latency_model(self) -> LatencyModel | None:
        """Measured when it is first needed; None where nothing asks for it."""
        if not self.options.models_latency:
            return None
        self.job.progress.note("timing networks of other widths, for a model of this device's latency")
        return measure_model(
            self.stages,
            lambda several: self.device.time_rounds([*map(self._probe, several)], self.cache),
            self.options.multiple,
        )

    @cached_property
    def parent_ms(self) -> float:
        """Median of single images by the original in INT8, on the images that it takes.

        Smaller models are set beside it, so it is not one of an earlier run.
        """
        image, chain = self.parent.spec.image, self.parent.chain
        network = build(chain, (image.rows, image.columns))
        return self.device.time_probe(Probe(network, lambda: weights_of(chain), self.parent.spec), self.own)

    def _probe(self, widths: Widths) -> Probe:
        image = self.parent.image
        network = build(self.parent.chain, (image.rows, image.columns), widths)
        return Probe(network, lambda: self.weights(widths), self.spec)

    def choose_widths(self, ratio: float) -> Widths:
        """Choose widths for so many times fewer multiply-accumulates.

        Raises:
            TargetError: no width has so few.
        """
        return self._chosen(lambda widths: total_macs(self.stages, widths), self.parent_macs / ratio, MACS)

    def choose_widths_for_latency(self, target_ms: float) -> Widths:
        """Choose widths whose measured latency is at most what is asked for.

        Raises:
            TargetError: no width is so fast.
        """
        model, wanted = self.latency_model, target_ms
        assert model is not None
        found = math.inf
        for _ in range(TRIES):
            widths = self._chosen(lambda widths: model.predict(self.stages, widths), wanted, "ms")
            if (found := self.device.time_probe(self._probe(widths), self.cache)) <= target_ms:
                return widths
            wanted *= min(target_ms / found, 0.98)
        raise TargetError(found, target_ms, "ms")

    def _chosen(self, cost: Callable[[Widths], float], target: float, unit: str) -> Widths:
        model = self.latency_model
        multiple = self.options.multiple or (model.multiple if model else DEFAULT_MULTIPLE)
        if self.options.widths == "uniform":
            return uniform(self.stages, cost=cost, target=target, unit=unit, multiple=multiple)
        if self.options.widths == "latency" and model:
            timed = model

            def price(widths: Widths) -> float:
                return timed.predict(self.stages, widths)
        else:

            def price(widths: Widths) -> float:
                return total_macs(self.stages, widths)

        return by_error(
            self.stages, self.rankings, price=price, cost=cost, target=target, unit=unit, multiple=multiple
        )


def write_original(parent: Parent, folder: Path) -> Path:
    """Write the original in float32 with its spec, unless it is there."""
    path, image = folder / "original.keras", parent.spec.image
    if not path.exists():
        network = build(parent.chain, (image.rows, image.columns))
        set_weights(network, weights_of(parent.chain))
        save(network, parent.spec, path)
    return path
