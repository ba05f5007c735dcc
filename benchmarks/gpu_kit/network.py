"""Makes a VGG16 with seeded weights as a Keras file; a process of its own, since it needs TensorFlow.

`python -m gpu_kit.network OUTPUT.keras WIDTH IMAGES.npy`: WIDTH 1 is VGG16, 0.5 one of half the channels.
The head is scaled on the images so that the probabilities differ from image to image.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpu_kit.seeded import Drawn
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import write_spec
from medimg.runtime.model.spec import Intensity, ModelSpec

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each block (Simonyan and Zisserman, ICLR 2015, configuration D)."""
LABELS = ("a", "b", "c", "d")


def kernels(width: float) -> list[Drawn]:
    """List the arrays of all convolutions, in order."""
    drawn: list[Drawn] = []
    inputs = 3
    for channels, count in BLOCKS:
        for _ in range(count):
            drawn.append(Drawn(len(drawn), (int(channels * width), inputs, 3, 3)))
            inputs = int(channels * width)
    return drawn


def make(path: Path, width: float, images: NDArray[np.uint8]) -> None:
    """Build the network, give it its weights, and save it with its spec."""
    import keras

    layers = keras.layers
    image = features = layers.Input((224, 224, 3), name="image")
    arrays = iter(kernels(width))
    for block, (channels, count) in enumerate(BLOCKS, 1):
        for number in range(1, count + 1):
            name = f"block{block}_conv{number}"
            layer = layers.Conv2D(int(channels * width), 3, padding="same", activation="relu", name=name)
            features = layer(features)
            kernel = next(arrays).values().transpose(2, 3, 1, 0)
            layer.set_weights([kernel, np.linspace(-1, 1, kernel.shape[-1], dtype=np.float32)])
        features = layers.MaxPooling2D(name=f"block{block}_pool")(features)
    features = layers.GlobalAveragePooling2D(name="pool")(features)
    head = layers.Dense(len(LABELS), activation="softmax", name="classes")
    model = keras.Model(image, head(features))
    intensity = Intensity.named("caffe")
    found = keras.Model(image, features).predict(_caffe(images), batch_size=8, verbose=0)
    directions = np.linalg.svd(found - found.mean(axis=0), full_matrices=False)[2][: len(LABELS)]
    scores = found @ directions.T
    weights = (2 * directions / scores.std(axis=0)[:, None]).T.astype(np.float32)
    head.set_weights([weights, -(found @ weights).mean(axis=0)])
    model.save(path)
    write_spec(path, ModelSpec(LABELS, ImageRule(224, 224), intensity))


def _caffe(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    means = np.array([103.939, 116.779, 123.68], np.float32)
    return np.asarray(images[..., ::-1].astype(np.float32) - means, np.float32)


if __name__ == "__main__":
    make(Path(sys.argv[1]), float(sys.argv[2]), np.load(sys.argv[3]))
