"""SavedModel folders: checked in a bounded process, loaded in the worker."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medimg.export.errors import SourceError
from medimg.export.sources.saved_model_check import FILE_NAME, RESAVE, SIGNATURE
from medimg.runtime.machine.bounded import Bounds, call
from medimg.runtime.model.containers import file_sha256

MAX_BYTES = 2**31 - 1
CHECK = "medimg.export.sources.saved_model_check:write_copy"


@dataclass(frozen=True)
class Checked:
    """What a checked folder says about itself."""

    layers: list[str]
    inputs: list[dict[str, Any]]
    """Of the serving signature: name, dims, dtype."""
    outputs: list[dict[str, Any]]


class SignatureNetwork:
    """The serving signature of a SavedModel."""

    def __init__(
        self,
        tensorflow: Any,  # noqa: ANN401
        path: Path,
        layers: list[str],
        output_name: str | None,
    ) -> None:
        """Load a checked copy.

        Args:
            tensorflow: the module.
            path: the copy that `checked_copy` made.
            layers: names of its layers.
            output_name: which output is meant, if there are several.
        """
        self._tensorflow, self._layers, self._output_name = tensorflow, layers, output_name
        # The signature lives only as long as what it was loaded with.
        self._loaded = tensorflow.saved_model.load(str(path), tags=["serve"])
        if SIGNATURE not in self._loaded.signatures:
            names = ", ".join(self._loaded.signatures) or "none"
            raise SourceError(f"has no signature {SIGNATURE} (it has: {names}): {RESAVE}")
        self._signature = self._loaded.signatures[SIGNATURE]

    def describe(self) -> dict[str, Any]:
        """Describe the signature."""
        inputs = self._signature.structured_input_signature[1]
        return {
            "inputs": [_tensor(name, tensor) for name, tensor in inputs.items()],
            "outputs": [_tensor(name, tensor) for name, tensor in self._signature.structured_outputs.items()],
            "layers": self._layers,
            "version": self._tensorflow.__version__,
        }

    def call(self, images: Any) -> Any:  # noqa: ANN401  tensors
        """Run the signature."""
        ((name, spec),) = self._signature.structured_input_signature[1].items()
        taken = self._tensorflow.convert_to_tensor(images)
        if spec.shape.rank == taken.shape.rank - 1:
            taken = self._tensorflow.squeeze(taken, -1)
        answers = self._signature(**{name: taken})
        return answers[self._output_name] if self._output_name else next(iter(answers.values()))


def folder_sha256(folder: Path) -> str:
    """Hash a folder: the hashes and names of its files, in sorted order, one a line as `sha256sum` writes."""
    digest = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        digest.update(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return digest.hexdigest()


def checked_copy(folder: Path, copy: Path) -> Checked:
    """Check a folder, and make the copy of it that TensorFlow loads, which links to its variables.

    Raises:
        SourceError: it holds links that lead out of it, is damaged, or does more than compute.
    """
    _check_files(folder)
    size = (folder / FILE_NAME).stat().st_size
    bounds = Bounds(
        memory_bytes=(2 << 30) + 8 * size, cpu_s=30 + size // (4 << 20), written_bytes=(1 << 20) + 2 * size
    )
    found = call(CHECK, str(folder), str(copy), bounds=bounds, subject=str(folder))
    (copy / "variables").symlink_to((folder / "variables").absolute())
    return Checked(**found)


def _check_files(folder: Path) -> None:
    whole = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(whole):
            raise SourceError(f"{path}: is a link to a file outside of the folder: refused")
        if not path.is_file() and not path.is_dir():
            raise SourceError(f"{path}: is neither a file nor a folder: refused")
    if not (folder / FILE_NAME).is_file():
        raise SourceError(f"{folder}: a folder without {FILE_NAME}: not a SavedModel")
    if (folder / FILE_NAME).stat().st_size > MAX_BYTES:
        raise SourceError(f"{folder / FILE_NAME}: larger than such a file can be (2 GiB)")


def _tensor(name: str, tensor: Any) -> dict[str, Any]:  # noqa: ANN401
    dims = tensor.shape.as_list() if tensor.shape.rank is not None else []
    return {"name": name, "dims": dims, "dtype": tensor.dtype.name}
