"""Which engines may run.

An engine is native code, and a hash beside a file proves nothing against whoever brings both. One of three
must vouch for it: this user built it here, which is noted in a folder that nobody else can write to; the user
gave the SHA-256 of its record; or a key that the user has configured signed its record. Each of them pins the
record, with its labels and preprocessing, and the record pins the engine.
"""

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from hashlib import sha256 as hash_sha256
from pathlib import Path

from medimg.runtime.errors import MissingDependencyError, TrustError, UsageError
from medimg.runtime.files.writing import replaced
from medimg.runtime.model.containers import read_model_bytes
from medimg.runtime.optional import require as require_package

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_SIGNATURE_BYTES = 64
_MAX_NOTE_BYTES = 1 << 16


def cache_folder() -> Path:
    """Tell where this user's notes and timing caches lie: `medimg` in `XDG_CACHE_HOME`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medimg"


def keys_folder() -> Path:
    """Tell where this user's trusted public keys lie: `medimg/keys` in `XDG_CONFIG_HOME`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "medimg" / "keys"


def private_folder(name: str) -> Path:
    """Make a folder in the cache, readable and writable by this user alone.

    Raises:
        TrustError: it is another user's, or others can write to it.
    """
    for folder in (cache_folder(), cache_folder() / name):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder)
    return cache_folder() / name


def note_built(engine_sha256: str, record: bytes) -> None:
    """Note that this user built an engine here, and what its record was."""
    write_note("built", engine_sha256, {"record_sha256": hash_sha256(record).hexdigest()})


def was_built_here(engine_sha256: str) -> bool:
    """Tell whether this user built an engine here."""
    return read_note("built", engine_sha256) is not None


def require(path: Path, engine_sha256: str, record: bytes, trusted: Sequence[str] = ()) -> None:
    """Check that something vouches for an engine.

    Args:
        path: the engine's file, for messages and beside which a signature may lie.
        engine_sha256: what its bytes hash to.
        record: the bytes of its `.plan.json`.
        trusted: SHA-256 of records that the user vouches for.

    Raises:
        TrustError: nothing does.
    """
    for item in trusted:
        if not re.fullmatch("[0-9a-f]{64}", item.lower()):
            raise UsageError(f"--trust {item}: a SHA-256 has 64 hexadecimal digits")
    record_sha256 = hash_sha256(record).hexdigest()
    if record_sha256 in [item.lower() for item in trusted]:
        return
    note = read_note("built", engine_sha256)
    if note is not None:
        if note.get("record_sha256") != record_sha256:
            raise TrustError(f"{path}.json: was changed since the engine was built here: build it again")
        return
    signature = path.with_name(path.name + ".sig")
    if signature.exists():
        _verify(signature, record)
        return
    raise TrustError(
        f"{path}: an engine is native code, and this one was not built here by this user: build it from the "
        f".onnx, or vouch for it and its record with --trust {record_sha256}, or have it signed"
    )


def write_note(kind: str, name: str, note: Mapping[str, object]) -> None:
    """Keep something about an engine in this user's cache.

    Args:
        kind: the folder, `built` or `verified`.
        name: what it is about: hexadecimal digits.
        note: what to keep.
    """
    with replaced(private_folder(kind) / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(note), encoding="utf-8")


def read_note(kind: str, name: str) -> dict[str, object] | None:
    """Give what was kept, or None.

    Raises:
        TrustError: the folder is not this user's alone.
    """
    folder = cache_folder() / kind
    if not folder.exists():
        return None
    for place in (cache_folder(), folder):
        _check_private(place)
    try:
        with (folder / f"{name}.json").open("rb") as file:
            note = json.loads(file.read(_MAX_NOTE_BYTES))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def _check_private(folder: Path) -> None:
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise TrustError(f"{folder}: belongs to another user, so what it says of engines is not trusted")
    if found.st_mode & _WRITABLE_BY_OTHERS:
        raise TrustError(
            f"{folder}: others can write to it, so what it says of engines is not trusted: "
            f"chmod 700 {folder}, after a look at what is in it"
        )


def _verify(signature: Path, record: bytes) -> None:
    """Check an Ed25519 signature (RFC 8032) of a record with the configured keys."""
    content = _read_signature(signature)
    keys = sorted(keys_folder().glob("*.pem"))
    if not keys:
        raise TrustError(
            f"{signature}: no key to check it with: put the signer's public key into {keys_folder()}"
        )
    _check_private(keys_folder())
    try:
        require_package("cryptography", "signing")
    except MissingDependencyError as error:
        raise TrustError(f"{signature}: to check it, medimg {error}") from None
    if not any(_signed_by(key, content, record) for key in keys):
        names = ", ".join(key.name for key in keys)
        raise TrustError(f"{signature}: is not a signature of the record by any configured key ({names})")


def _read_signature(signature: Path) -> bytes:
    content = read_model_bytes(signature)
    if len(content) != _SIGNATURE_BYTES:
        raise TrustError(f"{signature}: an Ed25519 signature has {_SIGNATURE_BYTES} bytes")
    return content


def _signed_by(key_file: Path, signature: bytes, record: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    _check_private(key_file)
    try:
        key = load_pem_public_key(read_model_bytes(key_file))
    except ValueError:
        raise TrustError(f"{key_file}: not a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError(f"{key_file}: not an Ed25519 key")
    try:
        key.verify(signature, record)
    except InvalidSignature:
        return False
    return True
