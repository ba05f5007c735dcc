"""Whole-model Keras files: read and judged here, then copied for a framework to open.

What a framework opens is never the user's file but a copy that holds the checked configuration, in float32
and without what only training needs, and the weights. Nothing that was not judged can reach it.
"""

import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medimg.export.errors import SourceError
from medimg.export.sources import archive, configuration, hdf5
from medimg.export.sources.configuration import Foreign
from medimg.runtime.optional import require

Framework = Literal["keras", "tf_keras"]
CONFIG, VERSION, WEIGHTS_GROUP = "model_config", "keras_version", "model_weights"
_KERAS_1 = (
    "open it where `pip install keras==2.2.4 'h5py<3' tensorflow==1.15` works (Python 3.7), "
    "save it there with load_model(...).save(...), and export that file"
)


@dataclass(frozen=True)
class KerasFile:
    """A whole-model file whose configuration has been read as JSON."""

    path: Path
    layout: Literal[".keras", ".h5"]
    """What the file is, whatever it is called."""
    keras_version: str
    config: dict[str, Any]
    """In float32, without what only training needs."""
    foreign: tuple[Foreign, ...]
    """What in it is not the frameworks' own."""

    @property
    def framework(self) -> Framework:
        """Which framework loads it: Keras 3, or tf-keras for everything of Keras 2."""
        return "keras" if self.keras_version.startswith("3.") else "tf_keras"


def read_archive(path: Path) -> KerasFile:
    """Read the version and the configuration of a `.keras` archive.

    Raises:
        SourceError: it is damaged, holds more than a Keras model has, or is of another Keras than 2 or 3.
    """
    with archive.opened(path) as opened:
        version = str(archive.read_json(path, opened, "metadata.json").get(VERSION, ""))
        text = opened.read("config.json").decode("utf-8", "replace")
    return _judged(path, ".keras", version, text)


def read_hdf5(path: Path) -> KerasFile:
    """Read the version and the configuration of a whole-model `.h5`.

    Raises:
        SourceError: it is damaged, holds more than a Keras model has, or is of another Keras than 2 or 3.
    """
    with hdf5.opened(path) as file:
        text = hdf5.text_attribute(path, file, CONFIG)
        version = hdf5.text_attribute(path, file, VERSION) or ""
        if text is None or WEIGHTS_GROUP not in file:
            raise SourceError(f"{path}: holds no Keras model: save the whole model with model.save(...)")
    return _judged(path, ".h5", version, text)


def write_copy(file: KerasFile, folder: Path) -> Path:
    """Write the copy that a framework opens.

    Args:
        file: the judged file.
        folder: where the copy goes; gone when the caller is done.

    Raises:
        SourceError: the weights hold what no Keras file has, or there is no room for a copy.
    """
    # Libraries report a full disk in many ways, most of which look like a damaged file.
    if shutil.disk_usage(folder).free < file.path.stat().st_size:
        raise SourceError(
            f"{folder.parent}: no room for a working copy of {file.path}: name a folder with more in TMPDIR"
        )
    copy = folder / f"model{file.layout}"
    write = _copy_archive if file.layout == ".keras" else _copy_hdf5
    write(file, copy)
    return copy


def write_hdf5(copy: Path, version: str, config: dict[str, Any]) -> Any:  # noqa: ANN401  h5py has no types
    """Begin a whole-model `.h5`; the caller adds the weights and closes it."""
    file = require("h5py", "export").File(copy, "w")
    file.attrs[VERSION], file.attrs["backend"] = version, "tensorflow"
    file.attrs[CONFIG] = json.dumps(config)
    return file


def _judged(path: Path, layout: Literal[".keras", ".h5"], version: str, text: str) -> KerasFile:
    _check_version(path, version)
    try:
        config = configuration.without_training(configuration.parse(path, text))
        return KerasFile(path, layout, version, config, configuration.foreign(config))
    except RecursionError:
        raise SourceError(f"{path}: its model configuration is nested too deeply: refused") from None


def _check_version(path: Path, version: str) -> None:
    if version.startswith(("2.", "3.")):
        return
    if version.startswith(("0.", "1.")) or not version:
        said = f"Keras {version}" if version else "a Keras that did not write its version, as before 1.1"
        raise SourceError(f"{path}: written by {said}, which nothing of today reads: {_KERAS_1}")
    raise SourceError(f"{path}: written by Keras {version}; files of Keras 2 and 3 are read")


def _copy_archive(file: KerasFile, copy: Path) -> None:
    with archive.opened(file.path) as source, zipfile.ZipFile(copy, "w") as target:
        target.writestr("metadata.json", source.read("metadata.json"))
        target.writestr("config.json", json.dumps(file.config))
        weights = copy.with_name(archive.WEIGHTS)
        with source.open(archive.WEIGHTS) as packed, weights.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        with hdf5.opened(weights):
            target.write(weights, archive.WEIGHTS)
        weights.unlink()


def _copy_hdf5(file: KerasFile, copy: Path) -> None:
    with hdf5.opened(file.path) as source, write_hdf5(copy, file.keras_version, file.config) as target:
        try:
            source.copy(WEIGHTS_GROUP, target)
        except (OSError, RuntimeError) as error:
            raise SourceError(
                f"{file.path}: its weights cannot be read, or not copied to {copy.parent} ({error})"
            ) from None
