"""Keras model files with a spec: written whole, read back in float32."""

import shutil
import zipfile
from copy import copy as copy_of
from pathlib import Path
from textwrap import shorten

from medimg.runtime.errors import ModelError, UsageError
from medimg.runtime.files.writing import replaced, require_writable
from medimg.runtime.model.containers import KERAS_MEMBER, KERAS_SUFFIXES, PLAN_SUFFIX, write_spec
from medimg.runtime.model.keras_files.whole import checked_copy
from medimg.runtime.model.process import sense
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.optional import require
from medimg.train.keras_setup import start_keras
from medimg.train.networks.build import Network

SUFFIXES = KERAS_SUFFIXES
AGAIN = (
    "; a file of Keras 2 can be saved anew: tf_keras.models.load_model(FILE, compile=False).save(NEW_FILE)"
)


def require_keras_file(path: Path, instead: str) -> None:
    """Check that a model's name is a Keras file's.

    Args:
        path: the model.
        instead: what an exported artefact is not, and the way out.

    Raises:
        UsageError: it is not.
    """
    if path.suffix in (".onnx", PLAN_SUFFIX):
        raise UsageError(f"{path}: an exported artefact is not {instead}")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: not a Keras file ({', '.join(SUFFIXES)} are)")


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

    Keras opens a checked copy, never the file: see `medimg.runtime.model.keras_files`. A file of other
    origin is opened first by `keras_process.opened`, whose process bears what it may do to memory and
    processor.

    Raises:
        ModelError: it is refused, or Keras cannot load it.
    """
    with checked_copy(path) as (_, copy):
        errors = require("tensorflow", "train").errors
        try:
            return load_copy(copy)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, errors.OpError) as error:
            raise ModelError(f"{path}: Keras cannot open it: {shorten(sense(error), 200)}{AGAIN}") from error


def load_copy(copy: Path) -> Network:
    """Load the checked copy of a file; Keras raises what it likes."""
    return start_keras().models.load_model(copy, compile=False, safe_mode=True)
