"""From uint8 RGB images to the network's float input: the reference for what export puts into the graph."""

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ModelError
from medimg.runtime.model.spec import Intensity

Images: TypeAlias = NDArray[np.uint8]
"""`(batch, rows, columns, 3)` uint8 RGB."""


def to_network_input(images: Images, intensity: Intensity) -> NDArray[np.float32]:
    """Apply the intensity arithmetic.

    Args:
        images: `(batch, rows, columns, 3)` uint8 RGB.
        intensity: the network's rule.

    Returns:
        `(batch, rows, columns, channels)` float32 in the network's channel order.

    Raises:
        ModelError: the rule is `unspecified`.
    """
    if intensity.rule == "unspecified":
        raise ModelError("the preprocessing is unspecified: say which with --preprocessing")
    if intensity.channels == 1:
        images = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])[..., None]
    elif intensity.color_order == "bgr":
        images = images[..., ::-1]
    values = images.astype(np.float32)
    if intensity.divisor != 1:
        values /= np.float32(intensity.divisor)
    if any(intensity.mean):
        values -= np.asarray(intensity.mean, np.float32)
    if set(intensity.std) != {1.0}:
        values /= np.asarray(intensity.std, np.float32)
    return values
