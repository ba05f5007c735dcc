"""Model files of every kind, each as a `Source`: what it computes, and what it says about itself.

The kind and the version are read first; they alone decide what opens the file. What a file may hold is on
the lists of `allowed`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from medimg.export.errors import SourceError
from medimg.export.sources import archive, hdf5, keras_file, saved_model, weights_file
from medimg.export.sources.base import Origin, Request, Source
from medimg.export.sources.framework import FrameworkSource
from medimg.export.sources.keras_file import KerasFile
from medimg.runtime.containers import HDF5_SUFFIXES, file_sha256
from medimg.runtime.errors import NoSpecError
from medimg.runtime.spec import ModelSpec

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
    chosen = request or Request()
    if not path.exists():
        raise SourceError(f"{path}: no such file")
    if path.is_dir():
        return _saved_model(path, chosen)
    with path.open("rb") as file:
        start = file.read(16)
    is_archive = start.startswith(archive.SIGNATURE)
    if start.startswith(hdf5.SIGNATURE) or (path.suffix in HDF5_SUFFIXES and not is_archive):
        return _hdf5(path, chosen)
    if is_archive or path.suffix == ".keras":
        return _whole_model(keras_file.read_archive(path), chosen)
    if path.suffix == ".onnx":
        from medimg.export.sources.onnx_file import OnnxSource

        return OnnxSource(path, chosen)
    hint = ": give its folder" if path.name == "saved_model.pb" else ""
    raise SourceError(f"{path}: not a Keras file (.keras, .h5), a SavedModel folder or an .onnx file{hint}")


def _hdf5(path: Path, request: Request) -> Source:
    found = weights_file.read_weights(path)
    if found is None:
        return _whole_model(keras_file.read_hdf5(path), request)
    if request.architecture is None:
        raise SourceError(
            f"{path}: holds weights only, no model: save the whole model with model.save(...), or say what "
            "they belong to with --arch vgg16 --classes N"
        )
    with TemporaryDirectory() as folder:
        built, said = weights_file.build(found, request, Path(folder))
        origin = Origin(path, "weights", file_sha256(path), found.keras_version, warnings=(said,))
        return FrameworkSource(origin, "keras", built, request)


def _whole_model(file: KerasFile, request: Request) -> Source:
    path = file.path
    if request.architecture is not None:
        raise SourceError(f"{path}: is a whole model: leave --arch out, which is for files with weights only")
    named = ", ".join(map(str, file.foreign))
    if named and not request.allow_code:
        raise SourceError(
            f"{path}: holds or needs code that is not Keras's own: {named}: refused; --allow-code lets it "
            "run, if you trust whoever made the file"
        )
    origin = Origin(
        path,
        file.layout,
        file_sha256(path),
        file.keras_version,
        _spec_of(file),
        (f"--allow-code let in {named}",) if named else (),
    )
    imports = tuple((item.class_name, item.module) for item in file.foreign if item.module)
    with TemporaryDirectory() as folder:
        copy = keras_file.write_copy(file, Path(folder))
        return FrameworkSource(origin, file.framework, copy, request, imports)


def _saved_model(path: Path, request: Request) -> Source:
    if not (path / saved_model.FILE_NAME).is_file():
        raise SourceError(f"{path}: a folder without {saved_model.FILE_NAME}: not a SavedModel")
    saved_model.check_folder(path)
    origin = Origin(path, "SavedModel", saved_model.folder_sha256(path))
    return FrameworkSource(origin, "saved_model", path, request)


def _spec_of(file: KerasFile) -> ModelSpec | None:
    """Read the medimg entry, where the file's name says the layout that it has."""
    if file.path.suffix not in ((".keras",) if file.layout == ".keras" else HDF5_SUFFIXES):
        return None
    try:
        return ModelSpec.read(file.path)
    except NoSpecError:
        return None
