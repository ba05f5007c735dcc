"""The Keras file: read, rebuilt in float32, and looked at."""

import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.export.errors import SourceError
from medimg.runtime.containers import HDF5_SUFFIXES, file_sha256
from medimg.runtime.errors import NoSpecError
from medimg.runtime.optional import require
from medimg.runtime.spec import Head, ModelSpec

_WEIGHTS_GROUPS = {"layers", "_layer_checkpoint_dependencies", "model_weights"}
"""What a file written by `save_weights` holds at its top."""
_HEADS: dict[str, Head] = {"softmax": "softmax", "linear": "logits"}


@dataclass(frozen=True)
class KerasSource:
    """A classifier loaded from a Keras file, computing in float32."""

    path: Path
    sha256: str
    keras_version: str
    model: Any
    """The `keras.Model`, every layer with a float32 policy."""
    spec: ModelSpec | None
    """What the file says about itself; None for a foreign file."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of the network's input."""
        rows, columns, channels = self.model.input_shape[1:]
        return rows, columns, channels

    @property
    def units(self) -> int:
        """Width of the last layer."""
        return int(self.model.output_shape[-1])

    def layer_names(self) -> tuple[str, ...]:
        """Names of all layers, those of nested models included."""
        return tuple(layer.name for layer in _flattened(self.model))

    def predict(self, network_input: NDArray[np.float32], batch_size: int = 32) -> NDArray[np.float32]:
        """Run Keras in float32.

        Args:
            network_input: `(batch, rows, columns, channels)`.
            batch_size: images at once.

        Returns:
            `(batch, units)` as the last layer gives them.
        """
        parts = [
            np.asarray(self.model(network_input[start : start + batch_size], training=False), np.float32)
            for start in range(0, len(network_input), batch_size)
        ]
        return np.concatenate(parts)


def quiet_tensorflow() -> Any:  # noqa: ANN401  the keras module
    """Import Keras on TensorFlow without its start-up messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    require("tensorflow", "export")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return require("keras", "export")


def load_source(path: Path) -> KerasSource:
    """Load a `.keras` or Keras-3 `.h5` file.

    Raises:
        SourceError: it is missing, damaged, no Keras model, or no image classifier with one input.
    """
    keras_version = _keras_version(path)
    keras = quiet_tensorflow()
    keras.config.disable_traceback_filtering()
    try:
        loaded = keras.models.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError, AttributeError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SourceError(f"{path}: Keras {keras.__version__} cannot load it: {first_line[:200]}") from error
    model = _in_float32(keras, loaded)
    _check_shapes(path, model)
    return KerasSource(path, file_sha256(path), keras_version, model, _spec_of(path))


def head_of(model: Any) -> Head | None:  # noqa: ANN401  keras has no types
    """Tell the head from the last activation; None if it is neither probabilities nor logits."""
    last = _flattened(model)[-1]
    name = getattr(getattr(last, "activation", None), "__name__", type(last).__name__.lower())
    if name == "sigmoid":
        return "sigmoid" if model.output_shape[-1] == 1 else "multilabel"
    return _HEADS.get(name)


def _keras_version(path: Path) -> str:
    """Read the writer's Keras version before any framework opens the file."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    if path.suffix == ".keras":
        return _version_in_archive(path)
    if path.suffix in HDF5_SUFFIXES:
        return _version_in_hdf5(path)
    raise SourceError(f"{path}: not a Keras file: .keras and .h5 are read")


def _version_in_archive(path: Path) -> str:
    import json

    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise SourceError(f"{path}: not a .keras archive, or a damaged one ({error})") from None


def _version_in_hdf5(path: Path) -> str:
    h5py = require("h5py", "export")
    try:
        with h5py.File(path, "r") as file:
            if "model_config" not in file.attrs:
                weights = "layer_names" in file.attrs or not _WEIGHTS_GROUPS.isdisjoint(file)
                what = "holds weights only" if weights else "holds no Keras model"
                raise SourceError(f"{path}: {what}: save the whole model with model.save(...)")
            version = str(file.attrs.get("keras_version", "unknown"))
    except OSError as error:
        raise SourceError(f"{path}: not an HDF5 file, or a damaged one ({error})") from None
    if not version.startswith("3."):
        raise SourceError(
            f"{path}: written by Keras {version}; files of Keras 3 are read: load and save it with Keras 3"
        )
    return version


def _in_float32(keras: Any, model: Any) -> Any:  # noqa: ANN401
    """Rebuild a model saved under a mixed policy: bfloat16 convolutions run in no back end."""
    if all(layer.dtype_policy.name == "float32" for layer in _flattened(model)):
        return model

    def clone(layer: Any) -> Any:  # noqa: ANN401
        config = layer.get_config()
        config["dtype"] = "float32"
        return type(layer).from_config(config)

    rebuilt = keras.models.clone_model(model, clone_function=clone, recursive=True)
    rebuilt.set_weights(model.get_weights())
    return rebuilt


def _check_shapes(path: Path, model: Any) -> None:  # noqa: ANN401
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise SourceError(
            f"{path}: has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
            "an image classifier has one of each"
        )
    shape = model.input_shape
    if len(shape) != 4 or shape[-1] not in (1, 3) or None in shape[1:]:
        raise SourceError(f"{path}: takes {shape}; an image classifier takes (None, rows, columns, 1 or 3)")
    if len(model.output_shape) != 2:
        raise SourceError(f"{path}: gives {model.output_shape}; a classifier gives (None, classes)")


def _spec_of(path: Path) -> ModelSpec | None:
    try:
        return ModelSpec.read(path)
    except NoSpecError:
        return None


def _flattened(model: Any) -> list[Any]:  # noqa: ANN401
    """List the layers in order, those of nested models in place of them."""
    return [
        leaf
        for layer in model.layers
        for leaf in (_flattened(layer) if hasattr(layer, "layers") else [layer])
    ]
