"""Where each kind of model file keeps its spec.

ONNX: the `metadata_props` entry (field 14 of `ModelProto`) with the key `medimg`. Protocol Buffers allow a
repeated field anywhere in the message, so the entry is appended to the finished file; the spec pins the
SHA-256 of the bytes before it and ends in its own. `.keras`: the archive member `medimg.json`. `.h5`: the
attribute `medimg`. `.plan`: the file `.plan.json` beside it.
"""

import errno
import hashlib
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medimg.runtime.errors import IntegrityError, ModelError, NoSpecError
from medimg.runtime.files.downloads import what_it_is
from medimg.runtime.files.protobuf import field, fields, tag_of
from medimg.runtime.model.onnx_check import check_graph
from medimg.runtime.model.spec import MAX_SPEC_BYTES, ModelSpec
from medimg.runtime.optional import require

if TYPE_CHECKING:
    from medimg.runtime.model.plan import EngineRecord

KEY = "medimg"
KERAS_MEMBER = "medimg.json"
ENTRY_HASH = "entry_sha256"
"""Last field of the JSON in an ONNX file: the SHA-256 of the object without this field."""
HDF5_SUFFIXES = (".h5", ".hdf5")
KERAS_SUFFIXES = (".keras", *HDF5_SUFFIXES)
PLAN_SUFFIX = ".plan"
MAX_ONNX_BYTES = 2**31 - 1
"""A protobuf message cannot be larger."""

_CHANGED = (
    "its bytes are not those that were verified at export (SHA-256 differs): "
    "copy the file again, or export it again"
)
_METADATA_TAG = tag_of(14)


@dataclass(frozen=True)
class Artefact:
    """A model file whose bytes have been checked against its spec."""

    path: Path
    spec: ModelSpec
    content: bytes
    """The whole file, as a back end takes it."""
    engine: "EngineRecord | None" = None
    """What a TensorRT engine is and where it runs; None for ONNX."""


def read_spec(path: Path) -> ModelSpec:
    """Read the spec of a model file; see `ModelSpec.read`."""
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    require_model_file(path)
    text: str | bytes
    if path.suffix == ".onnx":
        entry, _ = _find_entry(read_model_bytes(path, MAX_ONNX_BYTES), path)
        text = _checked(entry, path)
    elif path.suffix in KERAS_SUFFIXES:
        text = _read_entry(path)
    elif path.suffix == PLAN_SUFFIX:
        from medimg.runtime.model.plan import read_record

        return read_record(path)[0].spec
    else:
        raise ModelError(f"{path}: not a model file (.onnx, .plan, .keras, .h5 and .hdf5 are)")
    return ModelSpec.from_json(text, str(path))


def open_artefact(path: str | Path, trusted: Sequence[str] = ()) -> Artefact:
    """Read an artefact that a back end can run, and check its bytes.

    Args:
        path: an exported `.onnx` file, or a TensorRT engine (`.plan`).
        trusted: SHA-256 of records (`.plan.json`) of engines that the user vouches for.

    Raises:
        IntegrityError: the bytes are not those of its spec or record.
        TrustError: it is an engine, and nothing vouches for it.
        ModelError: it cannot be used.
    """
    path = Path(path)
    if path.suffix != PLAN_SUFFIX:
        return open_onnx(path)
    from medimg.runtime.model.plan import open_plan

    return open_plan(path, trusted)


def open_onnx(path: str | Path) -> Artefact:
    """Read an exported ONNX file and check it against its own SHA-256.

    Raises:
        IntegrityError: the bytes are not those that the spec pins.
        NoSpecError: the file was not made by medimg-export.
        ModelError: it is no ONNX file, or its graph holds what medimg-export never writes.
    """
    path = Path(path)
    content = read_model_bytes(path, MAX_ONNX_BYTES)
    text, (start, end) = _find_entry(content, path)
    spec = ModelSpec.from_json(_checked(text, path), str(path))
    digest = hashlib.sha256(content[:start])
    digest.update(content[end:])
    if digest.hexdigest() != spec.artefact_sha256:
        raise IntegrityError(f"{path}: {_CHANGED}")
    check_graph(content, path)
    return Artefact(path, spec, content)


def embed_in_onnx(model: bytes, spec: ModelSpec) -> bytes:
    """Append the spec to a serialised ONNX model that carries none, with the SHA-256 of both in it."""
    text = spec.with_(artefact_sha256=hashlib.sha256(model).hexdigest()).to_json().encode()
    entry = field(1, KEY.encode()) + field(2, text[:-1] + _closing(text))
    return model + field(14, entry)


def write_spec(path: Path, spec: ModelSpec) -> None:
    """Write the spec into a Keras file (`.keras`, `.h5`, `.hdf5`) that `model.save` has just made."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path, "a") as archive:
            if KERAS_MEMBER in archive.namelist():
                raise ModelError(f"{path}: already carries a medimg entry")
            archive.writestr(zipfile.ZipInfo(KERAS_MEMBER), spec.to_json())
    elif path.suffix in HDF5_SUFFIXES:
        with require("h5py", "train").File(path, "r+") as file:
            file.attrs[KEY] = spec.to_json()
    else:
        raise ModelError(f"{path}: a Keras file ends in .keras, .h5 or .hdf5")


def file_sha256(path: Path) -> str:
    """Hash a file, in hexadecimal.

    Raises:
        OSError: it cannot be read, or may have no end.
    """
    digest = hashlib.sha256()
    _require_end(path)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_model_bytes(path: Path, most_bytes: int = MAX_SPEC_BYTES) -> bytes:
    """Read a model file, or one that belongs to it, whole.

    Raises:
        ModelError: it cannot be read, is no regular file, or is larger than `most_bytes`.
    """
    try:
        _require_end(path)
        if (size := path.stat().st_size) > most_bytes:
            raise ModelError(f"{path}: has {size:,} bytes; such a file has {most_bytes:,} at most")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None


def require_model_file(path: Path) -> None:
    """Refuse what may have no end.

    Raises:
        ModelError: it is a device or a pipe, or cannot be looked at.
    """
    try:
        _require_end(path)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None


def _require_end(path: Path) -> None:
    """Refuse devices and pipes, which may have no end, before they are opened."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "is a device or a pipe, and no regular file")


def _find_entry(content: bytes, path: Path) -> tuple[bytes, tuple[int, int]]:
    """Find the medimg entry of a serialised ModelProto: its JSON text and the byte range of its field."""
    found: list[tuple[bytes, tuple[int, int]]] = []
    try:
        for tag, start, body, end in fields(memoryview(content)):
            if tag == _METADATA_TAG:
                pair = {
                    inner: bytes(content[body:end][a:b])
                    for inner, _, a, b in fields(memoryview(content)[body:end])
                }
                if pair.get(tag_of(1)) == KEY.encode():
                    found.append((pair.get(tag_of(2), b""), (start, end)))
    except (IndexError, ValueError):
        raise ModelError(f"{path}: not an ONNX file, or a damaged one{what_it_is(path)}") from None
    if not found:
        raise NoSpecError(f"{path}: carries no medimg entry: export it with medimg-export")
    if len(found) > 1:
        raise ModelError(f"{path}: carries {len(found)} medimg entries; exactly one is allowed")
    return found[0]


def _closing(text: bytes) -> bytes:
    """Give what stands in place of the last brace of an entry: its hash, and the brace."""
    return f',"{ENTRY_HASH}":"{hashlib.sha256(text).hexdigest()}"}}'.encode()


def _checked(entry: bytes, path: Path) -> bytes:
    """Give an entry without its hash, which must be its own."""
    text = entry[: -len(_closing(b""))] + b"}"
    if not entry.endswith(_closing(text)):
        raise IntegrityError(f"{path}: {_CHANGED}")
    return text


def _read_entry(path: Path) -> str:
    """Read the medimg entry of a Keras file, in a process that the file can do no harm to."""
    from medimg.runtime.model.keras_files.reading import read_spec

    text = read_spec(path)
    if text is None:
        raise NoSpecError(f"{path}: carries no medimg entry: it was not saved by medimg-train")
    return text
