from pathlib import Path

import keras
import numpy as np
import pytest

from medimg.train.fitting.options import FitOptions
from medimg.train.networks.build import POOL, build, last_frozen, view
from medimg.train.networks.weights import load_weights


@pytest.mark.parametrize("arch", ["vgg16", "vgg-bn", "cnn"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_networks_are_flat_and_end_in_float32_probabilities(arch: str, policy: str) -> None:
    network = build(FitOptions(arch=arch, image_size=32, dense_units=4), 3, policy)  # type: ignore[arg-type]
    assert not any(isinstance(layer, keras.Model) for layer in network.layers)
    answers = network.predict_on_batch(np.random.default_rng(0).random((2, 32, 32, 3), np.float32))
    assert answers.shape == (2, 3)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-6)
    assert {layer.compute_dtype for layer in network.layers[1:-1]} == {policy.removeprefix("mixed_")}


@pytest.mark.usefixtures("published_widths")
def test_widths_of_the_blocks() -> None:
    for arch, convolutions in (("vgg16", 13), ("vgg-bn", 8)):
        network = build(FitOptions(arch=arch, image_size=32, dense_units=4), 2, "float32")  # type: ignore[arg-type]
        found = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
        assert len(found) == convolutions
        assert [network.get_layer(f"block{block}_pool").output.shape[-1] for block in range(1, 6)] == [
            64,
            128,
            256,
            512,
            512,
        ]


@pytest.mark.parametrize(
    ("arch", "units", "widths"),
    [
        ("vgg16", None, []),
        ("vgg16", 7, [7]),
        ("vgg-bn", None, [4096, 4096]),
        ("vgg-bn", 7, [7, 7]),
    ],
)
def test_dense_layers(arch: str, units: int | None, widths: list[int]) -> None:
    network = build(FitOptions(arch=arch, image_size=32, dense_units=units), 2, "float32")  # type: ignore[arg-type]
    dense = [layer.units for layer in network.layers if isinstance(layer, keras.layers.Dense)]
    assert dense == [*widths, 2]


def test_views_share_layers_and_together_are_the_network() -> None:
    network = build(FitOptions(image_size=32), 2, "float32")
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    values = images
    for after, until in (("image", last_frozen(1)), (last_frozen(1), POOL), (POOL, None)):
        values = view(network, after, until).predict_on_batch(values)
    np.testing.assert_allclose(values, network.predict_on_batch(images), atol=1e-6)


@pytest.mark.real
def test_features_are_those_of_kerass_own_vgg16(imagenet_weights: Path) -> None:
    network = build(FitOptions(image_size=64), 2, "float32")
    load_weights(network, imagenet_weights)
    reference = keras.applications.VGG16(
        weights=str(imagenet_weights), include_top=False, pooling="avg", input_shape=(64, 64, 3)
    )
    images = np.random.default_rng(0).uniform(-120, 150, (4, 64, 64, 3)).astype(np.float32)
    features = view(network, "image", POOL).predict_on_batch(images)
    np.testing.assert_allclose(features, reference.predict_on_batch(images), rtol=1e-4, atol=1e-4)
