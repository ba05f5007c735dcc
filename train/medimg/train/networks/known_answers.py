"""What published weights must give on one fixed image: a base that computes something else is noticed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.model.preprocess import Images, to_network_input
from medimg.runtime.model.spec import Intensity
from medimg.train.errors import WeightsError
from medimg.train.networks.build import IMAGE, LAST_POOL, Network

SIDE_PX = 64
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.06, "float16": 0.02}
"""Largest distance from the expected features, as a share of their norm."""


@dataclass(frozen=True)
class KnownAnswer:
    """Published weights, and some of the features that they give for `fixed_image`."""

    name: str
    channels: tuple[int, ...]
    """Of the base's last pooling."""
    features: tuple[float, ...]
    """Their averages over the image, computed in float64 by NumPy alone."""


KNOWN_ANSWERS = {
    "7cf0e8fdadeb448d715514240fbce18b36b4bfa4d6bf77ed7f93d98c9c05408c": KnownAnswer(
        "ImageNet weights of keras.applications",
        (82, 103, 276, 331, 344, 378, 444, 471, 474, 502),
        (35.3697, 29.117, 39.3635, 37.8592, 91.8181, 47.274, 37.8431, 103.1432, 32.391, 48.5847),
    ),
}
"""By `digest` of the hashes of the layers."""


def fixed_image() -> Images:
    """Make `(1, 64, 64, 3)` uint8 RGB in which no axis or channel can be mistaken for another."""
    rows, columns = np.indices((SIDE_PX, SIDE_PX))
    checks = (rows // 8 + columns // 16) % 2
    return np.stack([4 * columns, 255 - 3 * rows, 200 * checks], axis=-1).astype(np.uint8)[None]


def digest(layers: Sequence[str]) -> str:
    """Hash the hashes of the layers of a base."""
    return hashlib.sha256("".join(layers).encode()).hexdigest()


def check_known_answer(network: Network, layers: Sequence[str], where: str) -> str | None:
    """Run a base on the fixed image, and compare where its weights are known.

    Args:
        network: vgg16 from the image on, of any size and precision; its own layers are run.
        layers: the hash of each convolution's weights.
        where: the weights' name in messages.

    Returns:
        The name of the weights, or None where they are not known.

    Raises:
        WeightsError: the features are not those expected, or they are all the same.
    """
    features = base_features(network)
    if not np.isfinite(features).all() or np.ptp(features) == 0:
        raise WeightsError(f"{where}: gives no features: every channel is alike, or no number")
    known = KNOWN_ANSWERS.get(digest(layers))
    if known is None:
        return None
    expected = np.array(known.features)
    distance = np.linalg.norm(features[list(known.channels)] - expected) / np.linalg.norm(expected)
    if distance > TOLERANCE[network.get_layer(LAST_POOL).compute_dtype]:
        raise WeightsError(
            f"{where}: the {known.name} give other features here than they must, by {distance:.1%}: "
            "TensorFlow computes wrongly on this machine; try --precision-policy float32, or another version"
        )
    return known.name


def base_features(network: Network) -> NDArray[np.float64]:
    """Give the averages, `(channels,)`, of the base's last pooling for the fixed image."""
    values = to_network_input(fixed_image(), Intensity.named("caffe"))
    for layer in network.layers:
        if layer.name != IMAGE:
            values = layer(values)
        if layer.name == LAST_POOL:
            break
    return np.asarray(np.asarray(values, np.float64).mean(axis=(0, 1, 2)))
