"""Whole-model Keras files: judged, then copied for a framework to open.

What a framework opens is never the user's file but a copy that holds the checked configuration, in float32
and without what only training needs, and the arrays. Nothing that was not judged can reach it.
"""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medimg.runtime.errors import ModelError
from medimg.runtime.files.scratch import temporary_folder
from medimg.runtime.model.keras_files import archive, configuration, reading
from medimg.runtime.model.keras_files.configuration import Foreign
from medimg.runtime.model.keras_files.reading import CONFIG, VERSION, Parts
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.optional import require

Framework = Literal["keras", "tf_keras"]
ARRAYS = "arrays.h5"
"""The plain copy of a file's arrays, in the folder that `read_parts` is given."""
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
    spec: ModelSpec | None = None
    """The medimg entry."""

    @property
    def framework(self) -> Framework:
        """Which framework loads it: Keras 3, or tf-keras for everything of Keras 2."""
        return "keras" if self.keras_version.startswith("3.") else "tf_keras"

    @property
    def named(self) -> str:
        """What in it is foreign, in words."""
        return ", ".join(map(str, self.foreign))


@contextmanager
def checked_copy(path: Path) -> Iterator[tuple[KerasFile, Path]]:
    """Check a whole-model file, and give it with the copy of it that may be opened, gone afterwards.

    Raises:
        ModelError: it is missing, damaged, holds weights only or what no Keras model has, or names code that
            is not Keras's own.
    """
    with temporary_folder("model") as folder:
        parts = read_parts(path, folder)
        if parts.config is None:
            raise ModelError(f"{path}: holds no Keras model: save the whole model with model.save(...)")
        file = judged(path, parts)
        if file.foreign:
            raise ModelError(
                f"{path}: holds or needs code that is not Keras's own: {file.named}: refused; save the model "
                "without it"
            )
        yield file, write_copy(file, folder)


def read_parts(path: Path, folder: Path) -> Parts:
    """Read a Keras file; the copy of its arrays is `ARRAYS` in the folder.

    Raises:
        ModelError: it is missing or no file, or as `reading.read` says.
    """
    if not path.is_file():
        raise ModelError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
    try:
        return reading.read(path, folder / ARRAYS)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None


def judged(path: Path, parts: Parts) -> KerasFile:
    """Judge the configuration of a whole-model file.

    Raises:
        ModelError: it is none, or of another Keras than 2 or 3.
    """
    assert parts.config is not None, "weights only"
    _check_version(path, parts.version)
    try:
        config = configuration.without_training(configuration.parse(path, parts.config))
        if parts.version.startswith("3."):
            config = configuration.with_plain_outputs(config)
        found = configuration.foreign(config)
    except RecursionError:
        raise ModelError(f"{path}: its model configuration is nested too deeply: refused") from None
    spec = ModelSpec.from_json(parts.spec, str(path)) if parts.spec is not None else None
    return KerasFile(path, parts.layout, parts.version, config, found, spec)


def write_copy(file: KerasFile, folder: Path) -> Path:
    """Make the copy that a framework opens of the arrays that `read_parts` left in the folder."""
    arrays, copy = folder / ARRAYS, folder / f"model{file.layout}"
    if file.layout == ".keras":
        with zipfile.ZipFile(copy, "w") as target:
            target.writestr("metadata.json", json.dumps({VERSION: file.keras_version}))
            target.writestr("config.json", json.dumps(file.config))
            target.write(arrays, archive.WEIGHTS)
        arrays.unlink()
        return copy
    with require("h5py", "export").File(arrays, "r+") as opened:
        describe(opened, file.keras_version, file.config)
    return arrays.rename(copy)


def describe(opened: Any, version: str, config: dict[str, Any]) -> None:  # noqa: ANN401  h5py has no types
    """Give an `.h5` with weights what makes it a whole model."""
    opened.attrs[VERSION], opened.attrs["backend"] = version, "tensorflow"
    opened.attrs[CONFIG] = json.dumps(config)


def _check_version(path: Path, version: str) -> None:
    if version.startswith(("2.", "3.")):
        return
    if version.startswith(("0.", "1.")) or not version:
        said = f"Keras {version}" if version else "a Keras that did not write its version, as before 1.1"
        raise ModelError(f"{path}: written by {said}, which nothing of today reads: {_KERAS_1}")
    raise ModelError(f"{path}: written by Keras {version[:40]}; files of Keras 2 and 3 are read")
