"""Pretrained VGG16 weights: from a file, from Keras's cache, or downloaded into it."""

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import ModelError
from medimg.runtime.files.scratch import temporary_folder
from medimg.runtime.files.writing import replaced
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.keras_files import configuration
from medimg.runtime.model.keras_files.reading import WEIGHTS_GROUP, Parts
from medimg.runtime.model.keras_files.whole import ARRAYS, read_parts
from medimg.runtime.optional import require
from medimg.train.errors import WeightsError
from medimg.train.networks.build import Network
from medimg.train.networks.known_answers import check_known_answer
from medimg.train.networks.options import NetworkOptions

IMAGENET_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
    "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
IMAGENET_MD5 = "6d6bbae143d832006294945121d1f1fc"
DOWNLOAD_LIMIT_S = 10.0
"""How long a download may stay silent."""

_CHOICES = (
    "give a file with --weights PATH, put {name} into {folder}, "
    "or train without any: --weights none, or --arch vgg-bn"
)


@dataclass(frozen=True)
class LoadedLayer:
    """What one layer holds after loading."""

    name: str
    sha256: str
    """Of its kernel and bias as float32."""


@dataclass(frozen=True)
class LoadedWeights:
    """Where a network's first weights came from, and what arrived."""

    file: str
    sha256: str
    layers: tuple[LoadedLayer, ...]
    known: str | None = None
    """The published weights that these are, by their hashes; their features were those expected."""


def imagenet_weights(limit_s: float = DOWNLOAD_LIMIT_S, url: str = IMAGENET_URL) -> Path:
    """Find VGG16's ImageNet weights in Keras's cache, or download them into it.

    Args:
        limit_s: seconds without an answer after which the download is given up.
        url: where from.

    Raises:
        WeightsError: they are not in the cache and cannot be downloaded; the message lists the choices.
    """
    folder = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
    path = folder / Path(IMAGENET_URL).name
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            _download(url, temporary, limit_s)
    except (OSError, urllib.error.URLError) as error:
        choices = _CHOICES.format(name=path.name, folder=folder)
        raise WeightsError(
            f"{url}: the ImageNet weights cannot be downloaded ({getattr(error, 'reason', error)}): {choices}"
        ) from None
    return path


def load_weights(network: Network, path: Path) -> LoadedWeights:
    """Load a VGG16 base from a file in Keras's layout, and check that every value has arrived.

    Args:
        network: built by `networks.build` for vgg16; its head is left alone.
        path: an HDF5 file with a group for each of the 13 convolutions, such as Keras's own `notop` file.

    Raises:
        WeightsError: the file is missing or damaged, or lacks a layer, or a layer has another shape, or
            values that are no numbers, or it is a model for images of another size, or the network does
            not give the features that are known of these weights.
    """
    require_file(path)
    with temporary_folder("weights") as folder:
        try:
            parts = read_parts(path, folder)
        except ModelError as error:
            raise WeightsError(str(error)) from None
        _require_input(parts, network.input_shape[1:3], path)
        with require("h5py", "train").File(folder / ARRAYS, "r") as file:
            layers = file.get(WEIGHTS_GROUP, file)
            loaded = tuple(
                _load_layer(network.get_layer(name), layers, path) for name in _convolution_names()
            )
    known = check_known_answer(network, tuple(layer.sha256 for layer in loaded), str(path))
    return LoadedWeights(path.name, file_sha256(path), loaded, known)


def require_file(path: Path) -> None:
    """Check that there is a file.

    Raises:
        WeightsError: there is none.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; weights are imagenet, none or the path of an .h5 file")


def _convolution_names() -> list[str]:
    blocks = enumerate(NetworkOptions().convolutions, start=1)
    return [f"block{index}_conv{number}" for index, (_, count) in blocks for number in range(1, count + 1)]


def _require_input(parts: Parts, size: tuple[int, int], path: Path) -> None:
    """Check that a whole model among the weights files is for images of the wanted size."""
    config = configuration.parse(path, parts.config) if parts.config is not None else None
    for shape in configuration.input_shapes(config):
        if shape and len(shape) == 4 and None not in shape[1:3] and tuple(shape[1:3]) != size:
            rows, columns = shape[1:3]
            raise WeightsError(
                f"{path}: is a model for images of {rows}x{columns} pixels, not {size[0]}x{size[1]}: "
                f"use --image-size {rows}, or weights without an image size, such as Keras's notop files"
            )


def _load_layer(layer: Any, layers: Any, path: Path) -> LoadedLayer:  # noqa: ANN401  Keras and h5py are untyped
    """Give a layer its arrays, and hash what it then holds."""
    if layer.name not in layers:
        raise WeightsError(f"{path}: has no layer {layer.name}: not VGG16 weights in Keras's layout")
    arrays = _arrays(layers[layer.name])
    digest = hashlib.sha256()
    for variable in layer.weights:
        value = arrays.get(len(variable.shape))
        if value is None or value.shape != tuple(variable.shape):
            found = "nothing" if value is None else str(value.shape)
            raise WeightsError(
                f"{path}: {layer.name} needs {variable.name} of shape {tuple(variable.shape)}, found {found}"
            )
        if not np.isfinite(value).all():
            raise WeightsError(f"{path}: {layer.name} holds values that are no numbers: the file is damaged")
        variable.assign(value)
        held = variable.numpy()
        if not np.array_equal(held, value):
            raise WeightsError(f"{path}: {layer.name} did not take its {variable.name}")
        digest.update(np.ascontiguousarray(held, "<f4").data)
    return LoadedLayer(layer.name, digest.hexdigest())


def _arrays(group: Any) -> dict[int, NDArray[np.float32]]:  # noqa: ANN401
    """Collect a layer's arrays by their number of axes: the kernel has four, the bias one."""
    h5py = require("h5py", "train")
    found: dict[int, NDArray[np.float32]] = {}

    def collect(_name: str, item: Any) -> None:  # noqa: ANN401
        if isinstance(item, h5py.Dataset):
            found[len(item.shape)] = np.asarray(item, np.float32)

    group.visititems(collect)
    return found


def _download(url: str, path: Path, limit_s: float) -> None:
    digest = hashlib.md5(usedforsecurity=False)  # the digest that Keras publishes
    with urllib.request.urlopen(url, timeout=limit_s) as answer, path.open("wb") as file:  # noqa: S310  a constant
        while block := answer.read(1 << 20):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != IMAGENET_MD5:
        raise WeightsError(f"{url}: gave other bytes than Keras publishes (MD5 {digest.hexdigest()})")
