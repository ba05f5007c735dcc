"""Keras's `predict`, on the images that the artefacts get, with the network's own intensity arithmetic.

`python -m peers.keras_predict MODEL IMAGES.npy BATCH SECONDS` prints latencies and throughput as JSON.
"""

import sys

import numpy as np

from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import ModelSpec
from peers.timed import print_timed


def main() -> None:
    """Time `model.predict` on batches of the images, one after another."""
    import keras

    path, images_file, batch, seconds = sys.argv[1:]
    model, spec = keras.models.load_model(path), ModelSpec.read(path)
    images, size = np.load(images_file), int(batch)
    batches = [images[start : start + size] for start in range(0, len(images) - size + 1, size)]

    def predict(number: int) -> None:
        model.predict(to_network_input(batches[number % len(batches)], spec.intensity), verbose=0)

    print_timed(predict, size, float(seconds))


if __name__ == "__main__":
    main()
