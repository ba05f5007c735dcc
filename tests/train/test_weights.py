import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from medimg.runtime.model.containers import file_sha256
from medimg.train import imagenet_weights as find_imagenet_weights
from medimg.train.errors import WeightsError
from medimg.train.fitting.options import FitOptions
from medimg.train.networks.build import Network, build
from medimg.train.networks.weights import load_weights

WEIGHTS_NAME = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"


@pytest.fixture
def network() -> Network:
    return build(FitOptions(image_size=32), 2, "float32")


@pytest.fixture
def changed(base_weights: Path, tmp_path: Path) -> Path:
    """A copy of the weights, to be damaged."""
    return Path(shutil.copy(base_weights, tmp_path / "weights.h5"))


def test_every_array_arrives_and_the_head_is_left_alone(network: Network, base_weights: Path) -> None:
    head = network.get_layer("probabilities").get_weights()
    loaded = load_weights(network, base_weights)
    assert loaded.file == base_weights.name
    assert loaded.sha256 == file_sha256(base_weights)
    with h5py.File(base_weights) as file:
        for name in ("block1_conv1", "block5_conv3"):
            kernel, bias = network.get_layer(name).get_weights()
            np.testing.assert_array_equal(kernel, file[name][f"{name}_W_1:0"])
            np.testing.assert_array_equal(bias, file[name][f"{name}_b_1:0"])
    np.testing.assert_array_equal(network.get_layer("probabilities").get_weights()[0], head[0])


def test_weights_out_of_a_saved_keras_file(network: Network, tmp_path: Path) -> None:
    other = build(FitOptions(image_size=32), 3, "float32")
    other.save(tmp_path / "model.h5")
    load_weights(network, tmp_path / "model.h5")
    np.testing.assert_array_equal(
        network.get_layer("block3_conv2").get_weights()[0],
        other.get_layer("block3_conv2").get_weights()[0],
    )


def test_a_model_for_images_of_another_size(network: Network, tmp_path: Path) -> None:
    build(FitOptions(image_size=64), 3, "float32").save(tmp_path / "model.h5")
    with pytest.raises(WeightsError, match="for images of 64x64 pixels, not 32x32: use --image-size 64"):
        load_weights(network, tmp_path / "model.h5")


def test_each_layer_is_hashed_as_it_is_held(network: Network, base_weights: Path) -> None:
    loaded = load_weights(network, base_weights)
    assert len(loaded.layers) == len({layer.sha256 for layer in loaded.layers}) == 13
    kernel, bias = network.get_layer("block1_conv1").get_weights()
    assert loaded.layers[0].sha256 == hashlib.sha256(kernel.tobytes() + bias.tobytes()).hexdigest()


def test_a_missing_file(network: Network, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.h5: no such file; weights are imagenet, none or"):
        load_weights(network, tmp_path / "absent.h5")


def test_a_missing_layer(network: Network, changed: Path) -> None:
    with h5py.File(changed, "r+") as file:
        del file["block4_conv2"]
    with pytest.raises(WeightsError, match="has no layer block4_conv2"):
        load_weights(network, changed)


def test_a_layer_of_another_shape(network: Network, changed: Path) -> None:
    with h5py.File(changed, "r+") as file:
        del file["block2_conv1"]["block2_conv1_W_1:0"]
        file["block2_conv1"]["kernel"] = np.zeros((5, 5, 8, 16), np.float32)
    with pytest.raises(WeightsError, match=r"block2_conv1 needs kernel of shape \(3, 3, 8, 16\)"):
        load_weights(network, changed)


def test_values_that_are_no_numbers(network: Network, changed: Path) -> None:
    with h5py.File(changed, "r+") as file:
        file["block1_conv2"]["block1_conv2_b_1:0"][3] = np.nan
    with pytest.raises(WeightsError, match="block1_conv2 holds values that are no numbers"):
        load_weights(network, changed)


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_a_truncated_file(network: Network, changed: Path, size: int) -> None:
    with changed.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(WeightsError, match="not an HDF5 file, or a damaged one"):
        load_weights(network, changed)


class Server(http.server.BaseHTTPRequestHandler):
    """Answers `/wrong` with other bytes, and anything else not at all."""

    silence = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/wrong":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Please log in to the hospital's network</html>")
        else:
            self.silence.wait(20)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        Server.silence.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras"


def test_the_cache_is_used_without_a_network(keras_home: Path) -> None:
    path = keras_home / "models" / WEIGHTS_NAME
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_imagenet_weights(url="http://127.0.0.1:9/") == path


def test_no_network_lists_the_choices(keras_home: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        find_imagenet_weights(url="http://127.0.0.1:9/")
    message = str(caught.value)
    for choice in ("--weights PATH", str(keras_home / "models"), "--weights none", "--arch vgg-bn"):
        assert choice in message
    assert not list(keras_home.rglob("*.h5"))


def test_a_silent_server_is_given_up(keras_home: Path, server: str) -> None:
    with pytest.raises(WeightsError, match="timed out"):
        find_imagenet_weights(limit_s=0.2, url=f"{server}/silent")


def test_a_page_instead_of_weights_is_not_kept(keras_home: Path, server: str) -> None:
    with pytest.raises(WeightsError, match="other bytes than Keras publishes"):
        find_imagenet_weights(url=f"{server}/wrong")
    assert not list(keras_home.rglob("*.h5"))
