"""The networks, each one flat graph: image, convolutional blocks, average pooling, dense head.

Source:
    K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image recognition,
    arXiv:1409.1556: configuration D (vgg16) and configuration A (vgg-bn).
    S. Ioffe, C. Szegedy, Batch normalization, arXiv:1502.03167.
"""

from typing import Any, TypeAlias

from medimg.train.keras_setup import Policy
from medimg.train.options import Arch, FitOptions

Network: TypeAlias = Any
"""A functional Keras model; Keras is optional and untyped."""
Tensor: TypeAlias = Any

CONVOLUTIONS: dict[Arch, tuple[tuple[int, int], ...]] = {
    "vgg16": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    "vgg-bn": ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)),
}
"""Filters and number of the 3-by-3 convolutions of each block."""

LAST_FROZEN = "block4_pool"
"""The vgg16 layer after which fine-tuning begins."""
POOL = "pool"
"""The layer that gives the pooled features."""
PROBABILITIES = "probabilities"


def build(options: FitOptions, classes: int, policy: Policy) -> Network:
    """Build a network with random weights.

    Args:
        options: architecture, image size and head.
        classes: width of the output.
        policy: precision of every layer but the last, which is float32.

    Returns:
        A model from `(batch, size, size, 3)` float32 to `(batch, classes)` probabilities.
    """
    from keras import Input, Model, layers

    image = values = Input((options.image_size, options.image_size, 3), name="image")
    for index, (filters, count) in enumerate(CONVOLUTIONS[options.arch], start=1):
        for number in range(1, count + 1):
            name = f"block{index}_conv{number}"
            values = _convolve(values, filters, name, normalised=options.arch == "vgg-bn", policy=policy)
        values = layers.MaxPooling2D(2, dtype=policy, name=f"block{index}_pool")(values)
    values = layers.GlobalAveragePooling2D(dtype=policy, name=POOL)(values)
    for number, units in enumerate(options.hidden_units, start=1):
        values = layers.Dropout(options.dropout, dtype=policy, name=f"dropout{number}")(values)
        values = layers.Dense(units, activation="relu", dtype=policy, name=f"dense{number}")(values)
    values = layers.Dropout(options.dropout, dtype=policy, name="dropout")(values)
    output = layers.Dense(classes, activation="softmax", dtype="float32", name=PROBABILITIES)(values)
    return Model(image, output, name=options.arch.replace("-", "_"))


def view(network: Network, after: str, until: str | None = None) -> Network:
    """Give a stretch of a network as a model of its own, which shares the layers.

    Args:
        network: what `build` made.
        after: the layer whose output the view takes.
        until: the layer whose output it gives; by default the network's.
    """
    from keras import Model

    start = network.get_layer(after).output
    end = network.get_layer(until).output if until else network.output
    return Model(start, end, name=f"{network.name}_from_{after}")


def _convolve(values: Tensor, filters: int, name: str, *, normalised: bool, policy: Policy) -> Tensor:
    from keras import layers

    convolution = layers.Conv2D(
        filters,
        3,
        padding="same",
        activation=None if normalised else "relu",
        use_bias=not normalised,
        kernel_initializer="he_normal",
        dtype=policy,
        name=name,
    )
    values = convolution(values)
    if not normalised:
        return values
    # Keras's momentum of 0.99 needs hundreds of steps before validation means anything.
    values = layers.BatchNormalization(momentum=0.9, dtype=policy, name=f"{name}_bn")(values)
    return layers.ReLU(dtype=policy, name=f"{name}_relu")(values)
