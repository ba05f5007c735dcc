"""What is read of a model file, in a process with bounded memory and time.

`read` and `read_spec` are the callers' side; `read_file` and `read_entry` run in that process.
"""

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medimg.runtime.errors import ModelError
from medimg.runtime.machine.bounded import Bounds, call
from medimg.runtime.model.containers import KERAS_MEMBER, KEY
from medimg.runtime.model.keras_files import archive, hdf5
from medimg.runtime.model.spec import MAX_SPEC_BYTES
from medimg.runtime.optional import require

CONFIG, VERSION, WEIGHTS_GROUP = "model_config", "keras_version", "model_weights"
_KERAS_2 = ("layer_names", "layer_names0")
_KERAS_3 = ("layers", "_layer_checkpoint_dependencies")
_BYTES_PER_S = 20 * 2**20
"""Slower than any disk that is read; bounds the time by the file's size."""


@dataclass(frozen=True)
class Parts:
    """What a Keras file holds."""

    layout: Literal[".keras", ".h5"]
    """What the file is, whatever it is called."""
    version: str
    """The Keras that wrote it; empty where it does not say."""
    config: str | None
    """The configuration's text; None in a file with weights only."""
    spec: str | None
    """The medimg entry's text."""
    weights: Literal["keras-2", "keras-3"] | None
    """How the arrays are filed: by the lists `layer_names`, or by paths; None if neither."""
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of each array."""
    training: str | None = None
    """The text of an HDF5 file's configuration of the training; an archive has it in `config`."""


def read(path: Path, copy: Path) -> Parts:
    """Read a file, and write its arrays anew.

    Args:
        path: a `.keras` archive or an HDF5 file.
        copy: a new HDF5 file: the arrays of an archive, or of weights filed by paths, at its root, all
            others in the group `WEIGHTS_GROUP`.

    Raises:
        ModelError: it is damaged, holds what no Keras file has, or cannot be read within bounds.
    """
    require("h5py", "export")
    size = path.stat().st_size
    if shutil.disk_usage(copy.parent).free < size:
        # Libraries report a full disk in many ways, most of which look like a damaged file.
        raise ModelError(
            f"{copy.parent.parent}: no room for a working copy of {path}: name a folder with more in TMPDIR"
        )
    found = call(f"{__name__}:read_file", str(path), str(copy), bounds=_bounds(size), subject=str(path))
    arrays = tuple((name, tuple(shape)) for name, shape in found.pop("arrays"))
    return Parts(arrays=arrays, **found)


def read_spec(path: Path) -> str | None:
    """Read the text of a Keras file's medimg entry; None if it has none.

    Raises:
        ModelError: as in `read`.
    """
    if not is_archive(path):
        require("h5py", "export")
    found: str | None = call(
        f"{__name__}:read_entry", str(path), bounds=_bounds(path.stat().st_size), subject=str(path)
    )
    return found


def is_archive(path: Path) -> bool:
    """Whether a file is an archive by its first bytes, or by its name where they tell nothing."""
    with path.open("rb") as file:
        start = file.read(len(hdf5.SIGNATURE))
    return start.startswith(archive.SIGNATURE) or (path.suffix == ".keras" and start != hdf5.SIGNATURE)


def read_file(path: str, copy: str) -> dict[str, Any]:
    """Read a file within bounds; see `read`."""
    read_kind = _read_archive if is_archive(Path(path)) else _read_hdf5
    return read_kind(Path(path), Path(copy))


def read_entry(path: str) -> str | None:
    """Read the medimg entry within bounds; see `read_spec`."""
    file = Path(path)
    if is_archive(file):
        return _archived_entry(file)
    h5py = require("h5py", "export")
    with hdf5.damage_named(file, file), h5py.File(file, "r") as opened:
        return hdf5.text_attribute(file, opened, KEY)


def _bounds(size: int) -> Bounds:
    unfolded = hdf5.FREE_BYTES + hdf5.MAX_EXPANSION * size
    return Bounds(cpu_s=20 + size // _BYTES_PER_S, written_bytes=unfolded + 64 * 2**20)


def _read_archive(path: Path, copy: Path) -> dict[str, Any]:
    packed = copy.with_name("packed.h5")
    with archive.opened(path) as opened:
        version = archive.read_json(path, opened, "metadata.json").get(VERSION, "")
        config = opened.read("config.json").decode("utf-8", "replace")
        names = opened.namelist()
        spec = opened.read(KERAS_MEMBER).decode("utf-8", "replace") if KERAS_MEMBER in names else None
        with opened.open(archive.WEIGHTS) as source, packed.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    with hdf5.opened(packed, path) as file:
        arrays = _copied(path, file, copy, "/")
    packed.unlink()
    return _parts(".keras", str(version), config, spec, "keras-3", arrays)


def _read_hdf5(path: Path, copy: Path) -> dict[str, Any]:
    with hdf5.opened(path) as file, hdf5.damage_named(path, path):
        config = hdf5.text_attribute(path, file, CONFIG)
        spec, training = (hdf5.text_attribute(path, file, name) for name in (KEY, "training_config"))
        group = file.get(WEIGHTS_GROUP, file)
        version = hdf5.text_attribute(path, file, VERSION) or hdf5.text_attribute(path, group, VERSION)
        if config is not None and WEIGHTS_GROUP not in file:
            raise ModelError(f"{path}: holds no Keras model: save the whole model with model.save(...)")
        by_lists = any(name in group.attrs for name in _KERAS_2)
        by_paths = not by_lists and any(name in group for name in _KERAS_3)
        arrays = _copied(path, group, copy, "/" if by_paths and config is None else WEIGHTS_GROUP)
    weights = "keras-2" if by_lists else "keras-3" if by_paths else None
    return _parts(".h5", version or "", config, spec, weights, arrays, training)


def _copied(path: Path, group: Any, copy: Path, place: str) -> list[tuple[str, list[int]]]:  # noqa: ANN401
    with require("h5py", "export").File(copy, "w") as file, hdf5.damage_named(path, path):
        return hdf5.copy_plainly(group, file.require_group(place))


def _parts(
    layout: str,
    version: str,
    config: str | None,
    spec: str | None,
    weights: str | None,
    arrays: list[tuple[str, list[int]]],
    training: str | None = None,
) -> dict[str, Any]:
    return {
        "training": training,
        "layout": layout,
        "version": version,
        "config": config,
        "spec": spec,
        "weights": weights,
        "arrays": arrays,
    }


def _archived_entry(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as opened:
            if KERAS_MEMBER not in opened.namelist():
                return None
            with opened.open(KERAS_MEMBER) as member:
                return member.read(MAX_SPEC_BYTES + 1).decode("utf-8", "replace")
    except archive.DAMAGE as error:
        raise ModelError(f"{path}: not a .keras archive, or a damaged one ({error})") from None
