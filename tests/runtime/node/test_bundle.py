"""Signed bundles and the bill of materials."""

import json
import shutil
from pathlib import Path

import pytest

from medimg.runtime.errors import CheckFailedError, MedimgError, ModelError, UsageError
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.node.bundle import MANIFEST, SIGNATURE, sign_bundle, verify_bundle
from medimg.runtime.node.service import Node

from .conftest import Start, make_config
from .test_audit import make_keys
from .tiny_model import write_tiny_model

MEMBERS = ("tiny.onnx", "report.html", "notes/validation.json", MANIFEST, SIGNATURE)


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Path]:
    """A signed bundle and its public key."""
    private, public = make_keys(tmp_path, "release")
    folder = tmp_path / "bundle"
    (folder / "notes").mkdir(parents=True)
    write_tiny_model(folder / "tiny.onnx")
    (folder / "report.html").write_text("<p>proven</p>")
    (folder / "notes" / "validation.json").write_text("{}")
    sign_bundle(folder, private)
    return folder, public


def refuses(folder: Path, public: Path, tmp_path: Path) -> None:
    """Neither verify nor listen takes it."""
    with pytest.raises(CheckFailedError):
        verify_bundle(folder, public)
    with pytest.raises(ModelError):
        Node(folder, make_config(tmp_path, public_key=str(public)), 1)
    shutil.rmtree(tmp_path / "state")


@pytest.mark.long
def test_a_node_runs_a_signed_bundle(start: Start, bundle: tuple[Path, Path], tmp_path: Path) -> None:
    folder, public = bundle
    manifest = verify_bundle(folder, public)
    assert set(manifest["sha256"]) == {"tiny.onnx", "report.html", "notes/validation.json"}
    assert manifest["specs"]["tiny.onnx"]["labels"] == ["cyst", "normal", "solid"]
    node = start(make_config(tmp_path, public_key=str(public)), model=folder)
    assert node.models.current.sha256 == file_sha256(folder / "tiny.onnx")


@pytest.mark.parametrize("member", MEMBERS)
def test_each_changed_member_is_found(bundle: tuple[Path, Path], member: str, tmp_path: Path) -> None:
    folder, public = bundle
    path = folder / member
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refuses(folder, public, tmp_path)


@pytest.mark.parametrize("member", MEMBERS)
def test_each_missing_member_is_found(bundle: tuple[Path, Path], member: str, tmp_path: Path) -> None:
    folder, public = bundle
    (folder / member).unlink()
    refuses(folder, public, tmp_path)


def test_an_added_file_is_found(bundle: tuple[Path, Path], tmp_path: Path) -> None:
    (bundle[0] / "extra.onnx").write_bytes(b"")
    refuses(*bundle, tmp_path)


def test_hashes_replaced_consistently_are_found(bundle: tuple[Path, Path], tmp_path: Path) -> None:
    """Another model with its own, right hashes everywhere; only the signature cannot be made."""
    folder, public = bundle
    other, _ = make_keys(tmp_path, "attacker")
    write_tiny_model(folder / "tiny.onnx", seed=1)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"]["tiny.onnx"] = file_sha256(folder / "tiny.onnx")
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    refuses(folder, public, tmp_path)
    sign_bundle(folder, other)
    refuses(folder, public, tmp_path)


def test_a_bare_artefact_is_refused_where_a_key_is_named(bundle: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not signed"):
        Node(bundle[0] / "tiny.onnx", make_config(tmp_path, public_key=str(bundle[1])), 1)


def test_links_are_refused(bundle: tuple[Path, Path]) -> None:
    (bundle[0] / "link").symlink_to("/etc/passwd")
    with pytest.raises(MedimgError, match="link is a link"):
        verify_bundle(*bundle)


def test_two_artefacts_need_a_choice(bundle: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "release")
    write_tiny_model(bundle[0] / "other.onnx", seed=1)
    with pytest.raises(UsageError, match="--artefact"):
        sign_bundle(bundle[0], private)
    sign_bundle(bundle[0], private, "other.onnx")
    assert verify_bundle(bundle[0], public)["artefact"] == "other.onnx"


@pytest.mark.long
def test_the_bill_of_materials_names_packages_and_model(tiny_model: Path) -> None:
    from cyclonedx.model.bom import Bom

    from medimg.runtime.node.sbom import bill_of_materials

    plain = json.loads(bill_of_materials(tiny_model))
    assert (plain["bomFormat"], plain["specVersion"]) == ("CycloneDX", "1.6")
    found = {component["name"]: component for component in plain["components"]}
    assert found["numpy"]["purl"].startswith("pkg:pypi/numpy@")
    assert [(held["name"], held["licenses"]) for held in found["opencv-python-headless"]["components"]] == [
        ("FFmpeg", [{"license": {"id": "LGPL-2.1-or-later"}}])
    ]
    model = found[tiny_model.name]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": file_sha256(tiny_model)}]
    again = Bom.from_json(plain)  # type: ignore[attr-defined]  # added by its serialiser
    assert len(again.components) == len(plain["components"])
