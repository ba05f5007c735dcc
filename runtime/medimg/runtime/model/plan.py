"""Engine files: plain engine bytes in `NAME.<sm>.<precision>.plan`, and what they are in `.plan.json`.

The engine has no header of ours, so that any tool reads it. All of this happens before TensorRT sees a byte.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.errors import IntegrityError, ModelError, NoSpecError, UsageError
from medimg.runtime.files.plain import from_plain, to_plain
from medimg.runtime.files.writing import replaced
from medimg.runtime.model import trust
from medimg.runtime.model.containers import PLAN_SUFFIX, Artefact, read_model_bytes
from medimg.runtime.model.spec import MAX_SPEC_BYTES, ModelSpec

SCHEMA = 1
MAX_ENGINE_BYTES = 16 * 2**30
REBUILD = "build it again here: medimg-export MODEL.onnx --to tensorrt"


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes of an engine: it takes `least` to `most` images, and is tuned for `best`."""

    least: int = 1
    best: int = 8
    most: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most:
            raise UsageError(
                f"batch sizes {self.least},{self.best},{self.most}: the least, the best and the most images "
                "at once, in rising order"
            )


@dataclass(frozen=True)
class EngineRecord:
    """What an engine is and where it runs; the contents of `.plan.json`."""

    spec: ModelSpec
    """Of the ONNX file that it was built from."""
    engine_sha256: str
    engine_bytes: int
    onnx_sha256: str
    """Of the whole ONNX file."""
    tensorrt: str
    """The version that built it."""
    compute_capability: str
    """Of the GPU that it was built on and for."""
    gpu: str
    """That GPU's name."""
    profile: BatchProfile
    executed_precision: str
    """What most convolutions run in, as the engine's inspector tells it."""
    version_compatible: bool = False
    """Whether later versions of TensorRT, of the same major version, run it too."""
    other_precision: tuple[str, ...] = ()
    """Convolutions that do not run in the precision asked for; never any unless the build was forced."""
    unknown_precision: tuple[str, ...] = ()
    """Convolutions of which the engine's inspector does not tell it."""


def plan_name(stem: str, sm: str, spec: ModelSpec) -> str:
    """Name an engine file.

    Args:
        stem: the ONNX file's name without its suffixes.
        sm: the compute capability, such as `sm87`.
        spec: of the ONNX file.
    """
    return f"{stem}.{sm}.{spec.precision}{PLAN_SUFFIX}"


def sidecar_of(path: Path) -> Path:
    """Tell where an engine file's record lies."""
    return path.with_name(path.name + ".json")


def write_plan(path: Path, engine: bytes, record: EngineRecord) -> None:
    """Write an engine and its record, and note that this user built them here.

    Raises:
        OSError: a file cannot be written; neither is left behind.
        TrustError: the folder of notes is not this user's alone.
    """
    text = json.dumps({"schema": SCHEMA, **to_plain(record)}, indent=1, ensure_ascii=False).encode() + b"\n"
    with replaced(path) as temporary, replaced(sidecar_of(path)) as temporary_sidecar:
        temporary.write_bytes(engine)
        temporary_sidecar.write_bytes(text)
        trust.note_built(record.engine_sha256, text)


def read_record(path: Path) -> tuple[EngineRecord, bytes]:
    """Read the record beside an engine file; give it with its bytes.

    Raises:
        NoSpecError: there is none.
        ModelError: it is unreadable, or newer than this version.
    """
    sidecar = sidecar_of(path)
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if not sidecar.exists():
        raise NoSpecError(
            f"{path}: has no {sidecar.name} beside it, so nothing tells what it is: copy both files, "
            f"or {REBUILD}"
        )
    try:
        text = read_model_bytes(sidecar, MAX_SPEC_BYTES)
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{sidecar}: not JSON, or damaged ({error}): {REBUILD}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("schema"), int):
        raise ModelError(f"{sidecar}: not the record of an engine: {REBUILD}")
    if (schema := fields.pop("schema")) > SCHEMA:
        raise ModelError(
            f"{sidecar}: written with schema {schema}, this version reads up to {SCHEMA}: "
            "pip install --upgrade medimg"
        )
    return from_plain(EngineRecord, fields, str(sidecar)), text


def open_plan(path: Path, trusted: Sequence[str] = ()) -> Artefact:
    """Read an engine and its record, and check that they belong together and may run.

    Args:
        path: the `.plan` file.
        trusted: SHA-256 of records (`.plan.json`) of engines that the user vouches for.

    Raises:
        NoSpecError: the record is missing.
        IntegrityError: the engine is truncated, changed, or not the record's.
        TrustError: nothing vouches for the engine.
        ModelError: a file cannot be read.
    """
    record, sidecar = read_record(path)
    content = read_model_bytes(path, MAX_ENGINE_BYTES)
    found = hashlib.sha256(content).hexdigest()
    if found != record.engine_sha256:
        raise IntegrityError(
            f"{path}: {_why_not(content, found, record)}: copy both files again, or {REBUILD}"
        )
    trust.require(path, found, sidecar, trusted)
    return Artefact(path, record.spec, content, record)


def _why_not(content: bytes, sha256: str, record: EngineRecord) -> str:
    if len(content) < record.engine_bytes:
        return f"is truncated: {len(content)} of {record.engine_bytes} bytes"
    if trust.was_built_here(sha256):
        return "the record beside it is another engine's"
    return "its bytes are not those of its record: it was changed, or the record belongs to another engine"
