"""Least squares a layer at a time: each narrower layer answers as the original's does, given narrower input.

Interpolation knows each layer's input from the original; here the errors of the layers before are seen too,
and made up for.

Source:
    Y. He, X. Zhang, J. Sun, Channel pruning for accelerating very deep neural networks, arXiv:1707.06168,
    section 3.1 (least squares for the kernel at sampled pixels).
    X. Zhang, J. Zou, K. He, J. Sun, Accelerating very deep convolutional networks for classification and
    detection, arXiv:1505.06798, "Asymmetric reconstruction for multi-layer" (the approximated input).
    A. Hoerl, R. Kennard, Ridge regression, Technometrics 12 (1970), 55-67 (the penalty).
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from medimg.train.compression.chain import Chain
from medimg.train.compression.selection import Matrix
from medimg.train.networks.build import Layer, Network
from medimg.train.progress import Progress

Values = NDArray[np.float32]

SAMPLED = 100
"""Pixels of an image at which a layer's answer counts, drawn at random."""
LARGEST = 4608
"""Inputs of one output beyond which the system is not solved, as after flattening: 3 x 3 taps of 512."""


def sampled_pixels(positions: int, images: int) -> NDArray[np.int64]:
    """Draw the pixels of a layer's output that count, `(images, sampled)`; the same at every call."""
    if positions <= SAMPLED:
        return np.tile(np.arange(positions), (images, 1))
    return np.random.default_rng(positions).integers(0, positions, (images, SAMPLED))


def reconstruct(
    network: Network,
    chain: Chain,
    kept: Sequence[NDArray[np.int64]],
    answers: Sequence[Values],
    batches: Callable[[], Iterable[Values]],
    progress: Progress,
) -> None:
    """Change the weights of a narrower network, layer by layer, so that it follows the original.

    Args:
        network: of the chain's layers, with interpolated weights.
        chain: the original.
        kept: output channels that stay, of each unit but the last.
        answers: of each unit: the original's outputs before activation, `(images, sampled, channels)`.
        batches: gives the same images, as the network takes them.
        progress: shows how far it has come.
    """
    from keras import Model

    everything = [*kept, np.arange(chain.classes)]
    complete = [len(some) == unit.outputs for some, unit in zip(everything, chain.units, strict=True)]
    # Up to the first layer that lost channels nothing has to be made up for.
    places = range(complete.index(False) + 1, len(complete)) if False in complete else range(0)
    for place in progress.track(places, "reconstruct layers", len(places)):
        layer = network.get_layer(chain.units[place].layer.name)
        weights = layer.get_weights()
        if np.prod(weights[0].shape[:-1]) > LARGEST:
            continue
        before = Model(network.input, layer.input)
        wanted = answers[place][..., everything[place]]
        pixels = sampled_pixels(_positions(layer), len(wanted))
        inputs = (image for batch in batches() for image in np.asarray(before(batch, training=False)))
        rows = np.stack([inputs_of(layer, image, some) for image, some in zip(inputs, pixels, strict=True)])
        layer.set_weights(corrected(weights, _flat(rows), _flat(wanted)))


def _positions(layer: Layer) -> int:
    return int(np.prod(layer.output.shape[1:-1], dtype=np.int64))


def _flat(rows: Values) -> Values:
    return rows.reshape(-1, rows.shape[-1])


def inputs_of(layer: Layer, values: Values, pixels: NDArray[np.int64]) -> Values:
    """Collect what some pixels of a layer's output are made of.

    Args:
        layer: a convolution or a dense layer.
        values: its input for one image, the channels last.
        pixels: `(pixels,)` of the output, counted row by row.

    Returns:
        `(pixels, inputs)`, in the order of the kernel.
    """
    if not hasattr(layer, "kernel_size"):
        return values.reshape(-1, values.shape[-1])[pixels]
    spans = [(size - 1) * step + 1 for size, step in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    if layer.padding == "same":
        values = np.pad(values, [*map(_same, values.shape, spans, layer.strides), (0, 0)])
    windows = sliding_window_view(values, spans, axis=(0, 1))
    (down, right), (tall, wide) = layer.strides, layer.dilation_rate
    windows = windows[::down, ::right, :, ::tall, ::wide]
    rows, columns = np.unravel_index(pixels, windows.shape[:2])
    return windows[rows, columns].transpose(0, 2, 3, 1).reshape(len(pixels), -1)


def _same(size: int, span: int, stride: int) -> tuple[int, int]:
    """Give what `same` pads before and after."""
    total = max((-(-size // stride) - 1) * stride + span - size, 0)
    return total // 2, total - total // 2


def corrected(weights: Sequence[Values], rows: Values, wanted: Values) -> list[Values]:
    """Give kernel and bias that come nearer to what is wanted, by ridge regression of what is still missing.

    The penalty is the mean energy of the inputs times inputs a row: the fewer rows, the less is changed.

    Args:
        weights: kernel, the outputs last, and bias, if there is one.
        rows: `(rows, inputs)`.
        wanted: `(rows, outputs)`.
    """
    kernel, *bias = weights
    flat = kernel.reshape(-1, kernel.shape[-1])
    missing = wanted - rows @ flat
    if bias:
        missing -= bias[0]
    # A bias takes up the means, so that they cost no penalty.
    mean_row, mean_missing = (values.mean(axis=0) if bias else 0.0 for values in (rows, missing))
    centred: Values = rows - mean_row
    gram = np.asarray(centred.T @ centred, np.float64)
    change = _solved(gram, centred.T @ (missing - mean_missing), len(rows))
    found = [(flat + change).astype(np.float32).reshape(kernel.shape)]
    return found + [(value + mean_missing - mean_row @ change).astype(np.float32) for value in bias]


def _solved(gram: Matrix, cross: NDArray[np.float32], rows: int) -> Matrix:
    penalty = float(np.trace(gram)) / rows or 1.0
    return np.asarray(np.linalg.solve(gram + penalty * np.eye(len(gram)), cross))
