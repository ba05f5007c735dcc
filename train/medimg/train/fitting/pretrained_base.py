"""The pretrained base: built and checked when it is first needed, and run over each image once."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.preprocess import to_network_input
from medimg.train.data.array_store import key_of
from medimg.train.data.augmentation import Copies
from medimg.train.data.decoded_images import BATCH
from medimg.train.data.parts import Part, Parts
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.keras_setup import Policy
from medimg.train.networks.build import IMAGE, POOL, Network, build, view
from medimg.train.networks.weights import LoadedWeights, load_weights, require_file


class PretrainedBase:
    """VGG16's five blocks with the weights of a file, for any number of trainings on the same images."""

    def __init__(self, path: Path, options: FitOptions, policy: Policy) -> None:
        """Take a file; nothing is built yet.

        Args:
            path: weights in Keras's layout.
            options: image size and intensity.
            policy: what the base computes in.

        Raises:
            WeightsError: there is no such file.
        """
        require_file(path)
        self._path, self._options, self._policy = path, options, policy

    @cached_property
    def _built(self) -> tuple[Network, LoadedWeights]:
        size = self._options.image_size
        whole = build(FitOptions(image_size=size), 2, self._policy)
        return view(whole, IMAGE, POOL), load_weights(whole, self._path)

    @property
    def network(self) -> Network:
        """From `(batch, size, size, 3)` to the averaged features.

        Raises:
            WeightsError: the file is damaged, or is not of VGG16.
        """
        return self._built[0]

    @property
    def loaded(self) -> LoadedWeights:
        """What the weights were loaded from.

        Raises:
            WeightsError: the file is damaged, or is not of VGG16.
        """
        return self._built[1]

    def outputs(
        self, images: Parts, layer: str, job: Job, computed: tuple[str, Parts] | None = None
    ) -> Parts:
        """Give what a layer gives for every image: from the store, or computed and kept there.

        The base is built only where something has to be computed.

        Args:
            images: `(images, rows, columns, 3)` uint8 RGB.
            layer: a layer of the base.
            job: the store, and what copies of the training images there are.
            computed: an earlier layer and its outputs, to go on from.

        Raises:
            UsageError: they do not fit on the disk.
            WeightsError: the file is damaged, or is not of VGG16.
        """
        if layer == IMAGE:
            return images
        start, inputs = computed or (IMAGE, images)

        @cache
        def network() -> Network:
            return view(self.network, start, layer)

        def outputs(image: Part, given: Part, copies: Copies | None, name: str) -> Part:
            rows = len(image) * (copies.number if copies else 1)
            batches = (
                copies.batches(given.inputs, BATCH)
                if copies and start == IMAGE
                else (given.inputs[first : first + BATCH] for first in range(0, rows, BATCH))
            )
            tracked = job.progress.track(batches, f"compute {name} {layer}", math.ceil(rows / BATCH))
            key = key_of("frozen", self._key, image.key, layer, str(copies))
            return image.with_inputs(job.store.array(key, rows, self._run(tracked, network)))

        return Parts(
            outputs(images.train, inputs.train, job.options.copies, "training"),
            outputs(images.validation, inputs.validation, None, "validation"),
        )

    def _run(self, batches: Iterable[NDArray[Any]], network: Callable[[], Network]) -> Iterator[NDArray[Any]]:
        for batch in batches:
            images = batch.dtype == np.uint8
            values = to_network_input(batch, self._options.intensity) if images else batch.astype(np.float32)
            yield network().predict_on_batch(values)

    @cached_property
    def _key(self) -> str:
        """Hash everything but the images that the outputs depend on."""
        arithmetic = json.dumps(asdict(self._options.intensity))
        frameworks = (version("keras"), version("tensorflow"))
        return key_of(*frameworks, file_sha256(self._path), self._policy, arithmetic)
