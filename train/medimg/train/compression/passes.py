"""What the original says of the training images: Gram matrices of its layers' inputs, and its answers.

Both stream: a few images are under way at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.model.preprocess import Images, to_network_input
from medimg.runtime.model.spec import Intensity
from medimg.train.compression.chain import (
    AVERAGING,
    Chain,
    Unit,
    build,
    kind_of,
    set_weights,
    weights_of,
    without_activation,
)
from medimg.train.compression.reconstruction import SAMPLED, Values, sampled_pixels
from medimg.train.compression.selection import Matrix, shrunk
from medimg.train.compression.stages import Stage
from medimg.train.progress import Progress

BATCH = 4


def grams(
    chain: Chain, images: Images, places: NDArray[np.int64], intensity: Intensity, progress: Progress
) -> tuple[Matrix, ...]:
    """Add up the Gram matrix of every unit's output, as the next unit takes it, over some images.

    Where the next unit takes averages over the image, the pixels before the averaging count: they are more,
    and sums of channels commute with it.

    Returns:
        `(channels, channels)` for each unit but the last, shrunk by how many rows it was made from.
    """
    sums = [np.zeros((unit.outputs, unit.outputs)) for unit in chain.units[:-1]]
    rows = [0] * len(sums)
    starts = range(0, len(places), BATCH)
    for start in progress.track(starts, f"look at {len(places)} images", len(starts)):
        batch = to_network_input(images[places[start : start + BATCH]], intensity)
        for place, values in enumerate(_outputs(chain, batch)):
            flat = values.reshape(-1, chain.units[place].outputs)
            sums[place] += flat.T @ flat
            rows[place] += len(flat)
    return tuple(shrunk(gram, count) for gram, count in zip(sums, rows, strict=True))


def _outputs(chain: Chain, values: Any) -> Iterator[NDArray[np.float32]]:  # noqa: ANN401  Keras is untyped
    """Run the chain layer by layer, and give what is counted of each unit but the last."""
    for layer in chain.before:
        values = layer(values, training=False)
    for unit in chain.units[:-1]:
        values = unit.layer(values, training=False)
        counted = None
        for layer in unit.after:
            if _stops_at(unit, layer):
                counted = values
            values = layer(values, training=False)
        yield np.asarray(values if counted is None else counted)


def _stops_at(unit: Unit, layer: Any) -> bool:  # noqa: ANN401
    return unit.pools_by_mean and kind_of(layer) in AVERAGING


def layer_answers(
    chain: Chain, images: Images, places: NDArray[np.int64], intensity: Intensity, progress: Progress
) -> Iterator[Values]:
    """Give what each unit answers before its activation, at sampled pixels of some images.

    Returns:
        Batch by batch: `(batch, values)`, those of the units one after the other; `by_unit` divides them.
    """
    plain = [without_activation(unit.layer) for unit in chain.units]
    starts = range(0, len(places), BATCH)
    for start in progress.track(starts, f"ask each layer about {len(places)} images", len(starts)):
        values: Any = to_network_input(images[places[start : start + BATCH]], intensity)
        for layer in chain.before:
            values = layer(values, training=False)
        found = []
        for unit, without in zip(chain.units, plain, strict=True):
            answer = without(values)
            flat = np.asarray(answer).reshape(len(answer), -1, unit.outputs)
            # Each image has pixels of its own, and all batches the same draw.
            pixels = sampled_pixels(flat.shape[1], len(places))[start : start + BATCH]
            found.append(np.take_along_axis(flat, pixels[..., None], axis=1).reshape(len(flat), -1))
            values = unit.layer.activation(answer)
            for layer in unit.after:
                values = layer(values, training=False)
        yield np.hstack(found)


def by_unit(stages: Sequence[Stage], values: Values) -> tuple[Values, ...]:
    """Divide what `layer_answers` gave of all images: `(images, sampled, channels)` of each unit."""
    ends = np.cumsum([min(stage.positions, SAMPLED) * stage.width for stage in stages])
    pieces = np.split(values, ends[:-1], axis=1)
    return tuple(
        piece.reshape(len(values), -1, stage.width) for piece, stage in zip(pieces, stages, strict=True)
    )


def logits(
    chain: Chain, images: Images, intensity: Intensity, progress: Progress, what: str
) -> Iterator[NDArray[np.float32]]:
    """Give the original's logits, `(batch, classes)`, batch by batch."""
    network = build(chain, (images.shape[1], images.shape[2]), for_training=True)
    set_weights(network, weights_of(chain))
    starts = range(0, len(images), 2 * BATCH)
    for start in progress.track(starts, f"ask the original about {what}", len(starts)):
        yield network.predict_on_batch(to_network_input(images[start : start + 2 * BATCH], intensity))
