"""A signed folder: artefacts and what belongs to them, a manifest of hashes, and its Ed25519 signature."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medimg.runtime.errors import CheckFailedError, ModelError, UsageError
from medimg.runtime.files.text import printable
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.node.files import write_durable
from medimg.runtime.optional import require

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
_SCHEMA = 1


@dataclass(frozen=True)
class Verified:
    """What a node runs."""

    path: Path
    """The artefact."""
    sha256: str | None = None
    """As it was signed; None where nothing need be."""
    version: int = 0
    """Of the bundle; 0 where it has none."""


def sign_bundle(
    folder: Path, private_key: Path, artefact: str | None = None, version: int | None = None
) -> Path:
    """Write and sign the manifest of every file in a folder.

    Args:
        folder: holds one artefact (`.onnx`), and anything else that belongs to it.
        private_key: Ed25519, PEM, without a password.
        artefact: which `.onnx` file a node runs, where there are several.
        version: a node that ran this one refuses lower ones; the time in seconds unless given.

    Returns:
        The manifest.

    Raises:
        UsageError: there is no artefact, or no key.
        ModelError: the artefact carries no spec, or was changed.
    """
    key = read_private_key(private_key)
    names = _members(folder)
    artefacts = [name for name in names if name.endswith(".onnx")]
    chosen = artefact or (artefacts[0] if len(artefacts) == 1 else None)
    if chosen not in artefacts:
        raise UsageError(
            f"{folder}: holds {', '.join(artefacts) or 'no .onnx file'}: name one with --artefact"
        )
    specs = {name: json.loads(ModelSpec.read(folder / name).to_json()) for name in artefacts}
    manifest = {
        "schema": _SCHEMA,
        "artefact": chosen,
        "version": version or int(time.time()),
        "sha256": {name: file_sha256(folder / name) for name in names},
        "specs": specs,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
    write_durable(folder / MANIFEST, text)
    write_durable(folder / SIGNATURE, key.sign(text))
    return folder / MANIFEST


def verify_bundle(folder: Path, public_key: Path) -> dict[str, Any]:
    """Check signature, hashes and that nothing was added.

    Returns:
        The manifest.

    Raises:
        CheckFailedError: the bundle is not what was signed.
    """
    key = read_public_key(public_key)
    try:
        text, signature = (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes()
    except OSError as error:
        raise CheckFailedError(
            f"{folder}: not a signed bundle ({error.strerror}): sign it with medimg-run bundle sign"
        ) from None
    try:
        key.verify(signature, text)
    except require("cryptography.exceptions", "node").InvalidSignature:
        raise CheckFailedError(f"{folder}: the signature is not that of {public_key.name}") from None
    manifest: dict[str, Any] = json.loads(text)
    if manifest["schema"] != _SCHEMA:
        raise CheckFailedError(f"{folder}: its manifest has schema {manifest['schema']}: upgrade medimg")
    expected, found = manifest["sha256"], _members(folder)
    if odd := sorted(set(expected) ^ set(found)):
        raise CheckFailedError(f"{folder}: {printable(odd[0])} was added or removed after signing")
    for name, sha256 in expected.items():
        if file_sha256(folder / name) != sha256:
            raise CheckFailedError(f"{folder}: {printable(name)} was changed after signing")
    return manifest


def version_of(manifest: dict[str, Any]) -> int:
    """Give a bundle's version; 0 for one that was signed before there were any."""
    return int(manifest.get("version", 0))


def verified_artefact(source: Path, public_key: Path | None) -> Verified:
    """Give the artefact of a bundle with its signed hash, or what a path names where nothing need be signed.

    Raises:
        ModelError: a signature is wanted and missing or wrong.
    """
    if public_key is None:
        if source.is_dir():
            raise ModelError(f"{source}: a bundle needs public_key in the configuration to verify it")
        return Verified(source)
    if not source.is_dir():
        raise ModelError(f"{source}: is not signed, and the configuration names a public key: give a bundle")
    try:
        manifest = verify_bundle(source, public_key)
    except CheckFailedError as error:
        raise ModelError(str(error)) from None
    name = str(manifest["artefact"])
    return Verified(source / name, str(manifest["sha256"][name]), version_of(manifest))


class AcceptedVersions:
    """The newest version of each bundle, by its artefact's name, that a node has run.

    Args:
        path: the file that keeps them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def require_not_older(self, found: Verified) -> None:
        """Refuse a bundle that an older signature makes valid for ever.

        Raises:
            ModelError: a newer version of it has run.
        """
        newest = self._read().get(found.path.name, 0)
        if found.sha256 is not None and found.version < newest:
            raise ModelError(
                f"{found.path}: its version {found.version} is older than {newest}, which has run here: "
                "to go back to it, sign it again"
            )

    def accept(self, found: Verified) -> None:
        """Refuse older ones from now on."""
        versions = self._read()
        if found.version > versions.get(found.path.name, 0):
            text = json.dumps({**versions, found.path.name: found.version}, indent=1)
            write_durable(self._path, text.encode())

    def _read(self) -> dict[str, int]:
        try:
            return {str(name): int(version) for name, version in json.loads(self._path.read_bytes()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ModelError(f"{self._path}: cannot be read ({error}): restore it from a backup") from None


def read_private_key(path: Path) -> Any:  # noqa: ANN401  a key of cryptography, which is optional
    """Read an Ed25519 private key."""
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", "node")
    serialization = require("cryptography.hazmat.primitives.serialization", "node")
    return _read_key(
        path, lambda pem: serialization.load_pem_private_key(pem, None), ed25519.Ed25519PrivateKey, "private"
    )


def read_public_key(path: Path) -> Any:  # noqa: ANN401
    """Read an Ed25519 public key."""
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", "node")
    serialization = require("cryptography.hazmat.primitives.serialization", "node")
    return _read_key(path, serialization.load_pem_public_key, ed25519.Ed25519PublicKey, "public")


def _read_key(path: Path, load: Any, kind: Any, name: str) -> Any:  # noqa: ANN401
    try:
        key = load(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: no Ed25519 {name} key in PEM without a password ({error})") from None
    if not isinstance(key, kind):
        raise UsageError(f"{path}: not an Ed25519 {name} key: openssl genpkey -algorithm ed25519")
    return key


def _members(folder: Path) -> list[str]:
    """Name every file in a folder, at any depth, without manifest and signature."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ModelError(f"{folder}: {printable(name)} is a link: a bundle holds files")
        if path.is_file() and name not in (MANIFEST, SIGNATURE):
            names.append(name)
    return names
