"""ONNX Runtime as its documentation shows it: a session and a loop, nothing of medimg.

`python -m peers.onnxruntime_alone ARTEFACT IMAGES.npy BATCH SECONDS` prints latencies and throughput as JSON.
"""

import sys

import numpy as np
import onnxruntime

from peers.timed import print_timed


def main() -> None:
    """Time `session.run` on batches of the images, one after another."""
    artefact, images_file, batch, seconds = sys.argv[1:]
    session = onnxruntime.InferenceSession(artefact, providers=["CPUExecutionProvider"])
    images, size = np.load(images_file), int(batch)
    batches = [images[start : start + size] for start in range(0, len(images) - size + 1, size)]
    print_timed(
        lambda number: session.run(None, {"image": batches[number % len(batches)]}), size, float(seconds)
    )


if __name__ == "__main__":
    main()
