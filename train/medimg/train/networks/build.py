"""The networks, each one flat chain: image, convolutional blocks, pooling, dense head.

Source:
    K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image recognition,
    arXiv:1409.1556: configuration D (vgg16) and configuration A (vgg-bn).
    S. Ioffe, C. Szegedy, Batch normalization, arXiv:1502.03167.
"""

from typing import Any, TypeAlias

from medimg.train.keras_setup import Policy
from medimg.train.networks.options import BLOCKS, NetworkOptions
from medimg.train.tasks import train_task_of_head

Network: TypeAlias = Any
"""A functional Keras model; Keras is optional and untyped."""
Layer: TypeAlias = Any

IMAGE = "image"
LAST_POOL = f"block{BLOCKS}_pool"
"""The last layer of vgg16's base."""
POOL = "pool"
"""The layer that gives the features of a whole image, averaged or flattened."""
PROBABILITIES = "probabilities"


def last_frozen(unfrozen_blocks: int) -> str:
    """Name the layer of vgg16 after which fine-tuning begins."""
    return f"block{BLOCKS - unfrozen_blocks}_pool" if unfrozen_blocks < BLOCKS else IMAGE


def build(
    options: NetworkOptions,
    classes: int,
    policy: Policy,
    *,
    after: str = IMAGE,
    shape: tuple[int, ...] | None = None,
) -> Network:
    """Build a network with random weights, or the end of one.

    Args:
        options: architecture, image size and head.
        classes: number of labels.
        policy: precision of every layer but the last, which is float32.
        after: the layer whose output the model takes; with the same seed, the layers after it begin with the
            same weights as in the whole network.
        shape: of that output, without the batch; needed unless it is the image.

    Returns:
        A model from `(batch, size, size, 3)` or `(batch, *shape)` float32 to `(batch, units)` probabilities.
    """
    from keras import Input, Model

    # All are made, though not all are used, since each draws its seed when it is made.
    layers = _chain(options, classes, policy)
    if after != IMAGE:
        layers = layers[1 + [layer.name for layer in layers].index(after) :]
        assert shape is not None
    start = values = Input(shape or (options.image_size, options.image_size, 3), name=after)
    for layer in layers:
        values = layer(values)
    return Model(start, values, name=options.arch.replace("-", "_"))


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


def copy_weights(source: Network, target: Network) -> None:
    """Give the layers of a network the weights of the layers of another that have the same names."""
    names = {layer.name for layer in target.layers}
    for layer in source.layers:
        if layer.name in names and layer.weights:
            target.get_layer(layer.name).set_weights(layer.get_weights())


def _chain(options: NetworkOptions, classes: int, policy: Policy) -> list[Layer]:
    """Make every layer, in order."""
    from keras import layers

    chain: list[Layer] = []
    for index, (filters, count) in enumerate(options.convolutions, start=1):
        for number in range(1, count + 1):
            chain += _convolution(options, filters, f"block{index}_conv{number}", policy)
        chain.append(layers.MaxPooling2D(2, dtype=policy, name=f"block{index}_pool"))
    pooling = layers.Flatten if options.pooling == "flatten" else layers.GlobalAveragePooling2D
    chain.append(pooling(dtype=policy, name=POOL))
    for number, units in enumerate(options.hidden_units, start=1):
        chain.append(layers.Dropout(options.dropout, dtype=policy, name=f"dropout{number}"))
        chain.append(_dense(options, units, options.activation, f"dense{number}", policy))
    chain.append(layers.Dropout(options.dropout, dtype=policy, name="dropout"))
    end = train_task_of_head(options.head).learned(options.head)
    units = 1 if end.one_unit else classes
    return [*chain, _dense(options, units, end.activation, PROBABILITIES, "float32")]


def _dense(options: NetworkOptions, units: int, activation: str, name: str, policy: Policy) -> Layer:
    from keras import layers, regularizers

    penalty = regularizers.L1L2(options.l1, options.l2) if options.l1 or options.l2 else None
    return layers.Dense(units, activation, kernel_regularizer=penalty, dtype=policy, name=name)


def _convolution(options: NetworkOptions, filters: int, name: str, policy: Policy) -> list[Layer]:
    from keras import layers

    normalised = options.arch != "vgg16"
    convolution = layers.Conv2D(
        filters,
        3,
        padding=options.padding,
        activation=None if normalised else "relu",
        use_bias=not normalised,
        kernel_initializer="he_normal",
        dtype=policy,
        name=name,
    )
    if not normalised:
        return [convolution]
    return [
        convolution,
        # Keras's momentum of 0.99 needs hundreds of steps before validation means anything.
        layers.BatchNormalization(momentum=0.9, dtype=policy, name=f"{name}_bn"),
        layers.Activation(options.activation, dtype=policy, name=f"{name}_{options.activation}"),
    ]
