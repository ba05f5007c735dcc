"""Make a Keras classifier hard to quantise: `make_hard.py MODEL OUT LAYER NEXT`; it computes the same.

All output channels of LAYER but the first are divided by a power of two, and NEXT multiplies them again: one
INT8 range for all of them keeps the first alone. NEXT takes them, and is what a repair has to find.
"""

import sys

import keras
import numpy as np

SPREAD = 2.0**20


def main() -> None:
    """Rescale two layers."""
    model, out, layer, following = sys.argv[1:]
    network = keras.models.load_model(model, compile=False)
    found = {leaf.name: leaf for leaf in network._flatten_layers()}
    (weights, bias), (next_weights, next_bias) = (found[name].get_weights() for name in (layer, following))
    scale = np.full(len(bias), 1 / SPREAD, np.float32)
    scale[0] = 1
    found[layer].set_weights([weights * scale, bias * scale])
    found[following].set_weights([next_weights / scale[:, None], next_bias])
    network.save(out)


if __name__ == "__main__":
    main()
