"""Model files of every kind, each as a `Source`: what it computes, and what it says about itself.

The kind and the version are read first; they alone decide what opens the file. What a file may hold is on
the lists of `allowed`.
"""

from pathlib import Path

from medimg.export.errors import SourceError
from medimg.export.sources import saved_model, weights_file
from medimg.export.sources.architecture import joined
from medimg.export.sources.base import Origin, Request, Source
from medimg.export.sources.clues import Clues, read_clues
from medimg.export.sources.early import check_configuration
from medimg.export.sources.framework import FrameworkSource, described
from medimg.runtime.errors import ModelError
from medimg.runtime.files.downloads import what_it_is
from medimg.runtime.files.scratch import temporary_folder
from medimg.runtime.model.containers import KERAS_SUFFIXES, file_sha256
from medimg.runtime.model.keras_files import archive, hdf5, whole
from medimg.runtime.model.keras_files.code import advice
from medimg.runtime.model.keras_files.reading import Parts
from medimg.runtime.model.keras_files.whole import KerasFile

__all__ = ["Origin", "Request", "Source", "load_source"]


def load_source(path: Path, request: Request | None = None) -> Source:
    """Load a model file.

    Args:
        path: a `.keras`, `.h5` or `.onnx` file, or a SavedModel folder.
        request: what the user says about it.

    Returns:
        The model, which the caller closes.

    Raises:
        SourceError: it is missing, damaged, refused, or no image classifier with one input.
    """
    try:
        return _load(path, request or Request())
    except SourceError:
        raise
    except ModelError as error:
        raise SourceError(str(error)) from None


def _load(path: Path, request: Request) -> Source:
    if not path.exists():
        raise SourceError(f"{path}: no such file")
    if path.is_dir():
        return _saved_model(path, request)
    if not path.is_file():
        raise SourceError(f"{path}: is no file")
    with path.open("rb") as file:
        start = file.read(16)
    if path.suffix in KERAS_SUFFIXES or start.startswith((archive.SIGNATURE, hdf5.SIGNATURE)):
        return _keras(path, request)
    if path.suffix == ".onnx":
        from medimg.export.sources.onnx_file import OnnxSource

        return OnnxSource(path, request)
    hint = ": give its folder" if path.name == "saved_model.pb" else what_it_is(path)
    raise SourceError(f"{path}: not a Keras file (.keras, .h5), a SavedModel folder or an .onnx file{hint}")


def _keras(path: Path, request: Request) -> Source:
    with temporary_folder("model") as folder:
        parts = whole.read_parts(path, folder)
        if parts.config is None:
            return _weights(path, parts, request, folder)
        if request.architecture or request.architecture_file:
            option = "--arch" if request.architecture else "--architecture"
            raise SourceError(
                f"{path}: is a whole model: leave {option} out, which is for files with weights only"
            )
        clues = read_clues(parts.training or parts.config)
        return _whole_model(whole.judged(path, parts), clues, request, folder)


def _weights(path: Path, parts: Parts, request: Request, folder: Path) -> Source:
    if parts.weights is None:
        raise SourceError(f"{path}: holds no Keras model: save the whole model with model.save(...)")
    if request.architecture_file is not None:
        return _whole_model(joined(path, parts, request.architecture_file), Clues(), request, folder)
    found = weights_file.read_weights(path, parts, folder / whole.ARRAYS)
    if request.architecture is None:
        raise SourceError(
            f"{path}: holds weights only, no model: save the whole model with model.save(...), or give the "
            "architecture that model.to_json() wrote with --architecture model.json"
            + weights_file.offer(found)
        )
    built, said = weights_file.build(found, request, folder)
    origin = Origin(path, "weights", file_sha256(path), found.keras_version, warnings=(said,))
    return FrameworkSource(origin, "keras", built, request)


def _whole_model(file: KerasFile, clues: Clues, request: Request, folder: Path) -> Source:
    path = file.path
    if file.foreign and not request.allow_code:
        raise SourceError(
            f"{path}: holds or needs code that is not Keras's own: {file.named}: refused; "
            f"{advice(file.foreign)}"
        )
    check_configuration(path, file.config, request)
    origin = Origin(
        path,
        file.layout,
        file_sha256(path),
        file.keras_version,
        file.spec,
        (f"--allow-code let in {file.named}",) if file.foreign else (),
        clues,
    )
    imports = tuple((item.class_name, item.module) for item in file.foreign if item.module)
    return FrameworkSource(origin, file.framework, whole.write_copy(file, folder), request, imports)


def _saved_model(path: Path, request: Request) -> Source:
    with temporary_folder("model") as copy:
        checked = saved_model.checked_copy(path, copy)
        described(path, checked.inputs, checked.outputs, request)
        origin = Origin(path, "SavedModel", saved_model.folder_sha256(path))
        return FrameworkSource(origin, "saved_model", copy, request, layers=checked.layers)
