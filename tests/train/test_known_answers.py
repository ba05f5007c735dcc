"""The base's features beside a VGG16 in plain NumPy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import Intensity
from medimg.train.errors import WeightsError
from medimg.train.keras_setup import Policy
from medimg.train.networks.build import build
from medimg.train.networks.known_answers import KNOWN_ANSWERS, base_features, fixed_image
from medimg.train.networks.options import NetworkOptions
from medimg.train.networks.weights import load_weights


def plain_features(weights: Path) -> NDArray[np.float64]:
    """Compute the averaged features of the fixed image in float64, by the paper alone."""
    values = to_network_input(fixed_image(), Intensity.named("caffe"))[0].astype(np.float64)
    with h5py.File(weights) as file:
        for block, (_, count) in enumerate(NetworkOptions().convolutions, start=1):
            for number in range(1, count + 1):
                arrays: dict[int, NDArray[Any]] = {}
                name = f"block{block}_conv{number}"
                file.get("model_weights", file)[name].visititems(_collect(arrays))
                rows, columns, _ = values.shape
                padded = np.pad(values, ((1, 1), (1, 1), (0, 0)))
                shifted = (
                    padded[row : row + rows, column : column + columns] @ arrays[4][row, column]
                    for row in range(3)
                    for column in range(3)
                )
                values = np.maximum(sum(shifted) + arrays[1], 0)
            rows, columns, channels = values.shape
            values = values.reshape(rows // 2, 2, columns // 2, 2, channels).max(axis=(1, 3))
    return np.asarray(values.mean(axis=(0, 1)))


def _collect(arrays: dict[int, NDArray[Any]]) -> Callable[[str, Any], None]:
    def collect(_name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[item.ndim] = np.asarray(item, np.float64)

    return collect


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 0.05)])
def test_features_are_those_of_plain_numpy(policy: Policy, tolerance: float, base_weights: Path) -> None:
    network = build(NetworkOptions(image_size=32), 2, policy)
    loaded = load_weights(network, base_weights)
    assert loaded.known is None
    assert [layer.name for layer in loaded.layers][::6] == ["block1_conv1", "block3_conv3", "block5_conv3"]
    reference = plain_features(base_weights)
    assert np.linalg.norm(base_features(network) - reference) < tolerance * np.linalg.norm(reference)


@pytest.mark.real
def test_the_stored_features_are_those_of_plain_numpy(imagenet_weights: Path) -> None:
    (known,) = KNOWN_ANSWERS.values()
    reference = plain_features(imagenet_weights)
    np.testing.assert_allclose(reference[list(known.channels)], known.features, atol=1e-4)
    assert np.linalg.norm(known.features) > 0.8 * np.linalg.norm(reference)


@pytest.mark.real
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_imagenet_weights_are_recognised(policy: Policy, imagenet_weights: Path) -> None:
    loaded = load_weights(build(NetworkOptions(image_size=32), 2, policy), imagenet_weights)
    assert loaded.known == "ImageNet weights of keras.applications"


@pytest.mark.real
@pytest.mark.parametrize("what", ["another activation", "another padding"])
def test_a_base_that_computes_something_else_is_noticed(what: str, imagenet_weights: Path) -> None:
    network = build(NetworkOptions(image_size=32), 2, "float32")
    layer = network.get_layer("block2_conv1")
    if what == "another activation":
        layer.activation = np.abs
    else:
        layer.padding = "valid"
    with pytest.raises(WeightsError, match=r"give other features here than they must, by \d"):
        load_weights(network, imagenet_weights)


def test_a_base_that_gives_nothing(base_weights: Path, tmp_path: Path) -> None:
    dead = tmp_path / "dead.h5"
    dead.write_bytes(base_weights.read_bytes())
    with h5py.File(dead, "r+") as file:
        file["block5_conv3"]["block5_conv3_b_1:0"][...] = -1e9
    with pytest.raises(WeightsError, match="gives no features"):
        load_weights(build(NetworkOptions(image_size=32), 2, "float32"), dead)
