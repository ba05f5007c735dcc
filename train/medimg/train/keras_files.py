"""Keras model files with a spec: written whole, read back in float32."""

import shutil
import zipfile
from copy import copy as copy_of
from pathlib import Path
from textwrap import shorten
from typing import Any

from medimg.runtime.containers import HDF5_SUFFIXES, KERAS_MEMBER, write_spec
from medimg.runtime.errors import ModelError, UsageError
from medimg.runtime.spec import ModelSpec
from medimg.runtime.writing import replaced, require_writable
from medimg.train.keras_setup import start_keras
from medimg.train.networks import Network

SUFFIXES = (".keras", *HDF5_SUFFIXES)


def check_output(path: Path) -> None:
    """Find out before the work whether a model can be written here.

    Raises:
        UsageError: the suffix is no Keras file's, or the folder cannot be written to.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: a Keras file ends in {', '.join(SUFFIXES)}")
    require_writable(path)


def save(network: Network, spec: ModelSpec, path: Path) -> None:
    """Save a float32 model with its spec; the file appears whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with replaced(path) as temporary:
            network.save(temporary)
            write_spec(temporary, spec)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from None


def rewrite_spec(model: Path, spec: ModelSpec, output: Path) -> None:
    """Copy a Keras file with another spec in it; the copy appears whole or not at all, also over the file.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with replaced(output) as temporary:
            copy = _copy_without_spec if model.suffix == ".keras" else shutil.copyfile
            copy(model, temporary)
            write_spec(temporary, spec)
    except OSError as error:
        raise UsageError(f"{output}: cannot be written ({error.strerror or error})") from None


def _copy_without_spec(archive: Path, copy: Path) -> None:
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(copy, "w") as new:
        for member in old.infolist():
            if member.filename != KERAS_MEMBER:
                with old.open(member) as source, new.open(copy_of(member), "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)


def load_float32(path: Path) -> Network:
    """Load a Keras model so that it computes in float32, whatever policy it was saved under.

    Raises:
        ModelError: Keras cannot load it.
    """
    keras = start_keras()
    try:
        model = keras.models.load_model(path, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path}: Keras {keras.__version__} cannot load it ({shorten(_first_line(error), 200)}): a file "
            "of Keras 2 can be saved anew: tf_keras.models.load_model(FILE, compile=False).save(NEW_FILE)"
        ) from None
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model
    rebuilt = type(model).from_config(_in_float32(model.get_config()))
    rebuilt.set_weights(model.get_weights())
    return rebuilt


def _in_float32(config: Any) -> Any:  # noqa: ANN401  nested JSON values
    """Replace each dtype policy in a configuration."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return "float32"
        return {key: "float32" if key == "dtype" else _in_float32(item) for key, item in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_in_float32(item) for item in config)
    return config


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
