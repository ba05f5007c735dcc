"""Engine files that must not run: each is refused with its own message, before TensorRT sees a byte."""

import json
import os
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medimg.runtime.errors import IntegrityError, ModelError, NoSpecError, TrustError, UsageError
from medimg.runtime.model import trust
from medimg.runtime.model.containers import Artefact, open_artefact
from medimg.runtime.model.plan import EngineRecord, sidecar_of, write_plan
from medimg.runtime.model.spec import ModelSpec


@pytest.fixture
def artefact(make_engine: Any, tmp_path: Path, homes: Path) -> Artefact:
    """An engine that this user built, in its place."""
    made: Artefact = make_engine()
    path = tmp_path / made.path
    assert made.engine is not None
    write_plan(path, made.content, made.engine)
    return Artefact(path, made.spec, made.content, made.engine)


def record_of(artefact: Artefact) -> EngineRecord:
    assert artefact.engine is not None
    return artefact.engine


def foreign(artefact: Artefact) -> Path:
    """Forget that the engine was built here."""
    for note in (trust.cache_folder() / "built").iterdir():
        note.unlink()
    return artefact.path


def test_what_was_written_is_read(artefact: Artefact) -> None:
    found = open_artefact(artefact.path)
    assert (found.content, found.engine, found.spec) == (artefact.content, artefact.engine, artefact.spec)
    assert artefact.path.read_bytes() == artefact.content
    assert ModelSpec.read(artefact.path) == artefact.spec
    folder = trust.cache_folder()
    assert {place.stat().st_mode & 0o777 for place in (folder, folder / "built")} == {0o700}


def test_truncated(artefact: Artefact) -> None:
    artefact.path.write_bytes(artefact.content[:-9])
    with pytest.raises(IntegrityError, match=r"is truncated: \d+ of \d+ bytes: .*build it again"):
        open_artefact(artefact.path)


def test_every_changed_byte(artefact: Artefact) -> None:
    for place in range(len(artefact.content)):
        changed = bytearray(artefact.content)
        changed[place] ^= 1
        artefact.path.write_bytes(changed)
        with pytest.raises(IntegrityError, match="its bytes are not those of its record"):
            open_artefact(artefact.path)


def test_the_record_of_another_engine(artefact: Artefact, make_engine: Any) -> None:
    other = make_engine("10.99.0")
    content = other.content + b" "
    record = EngineRecord(**{**vars(other.engine), "engine_sha256": sha256(content).hexdigest()})
    place = artefact.path.with_name("other.plan")
    write_plan(place, content, record)
    place.write_bytes(artefact.content + b"    ")
    trust.note_built(sha256(artefact.content + b"    ").hexdigest(), b"")
    with pytest.raises(IntegrityError, match="the record beside it is another engine's"):
        open_artefact(place)


def test_no_record(artefact: Artefact) -> None:
    sidecar_of(artefact.path).unlink()
    for read in (open_artefact, ModelSpec.read):
        with pytest.raises(NoSpecError, match=r"has no model\.sm87\.fp16\.plan\.json beside it"):
            read(artefact.path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not the record of an engine"),
        (b"[" * 100_000, "not JSON"),
        (b'{"labels": ["a"]}', "not the record of an engine"),
        (b'{"schema": 9}', "schema 9, this version reads up to 1: pip install --upgrade"),
        (b'{"schema": 1, "engine": 1}', "unknown field 'engine'"),
        (b'{"schema": 1}', "missing"),
        (b'{"schema": 1, "profile": {"least": 9, "best": 1, "most": 1}}', "batch sizes 9,1,1"),
    ],
)
def test_records_that_are_none(artefact: Artefact, text: bytes, message: str) -> None:
    sidecar_of(artefact.path).write_bytes(text)
    with pytest.raises(ModelError, match=message) as caught:
        open_artefact(artefact.path)
    assert str(caught.value).startswith(str(artefact.path))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_records_are_refused_by_name(artefact: Artefact, data: st.DataObject) -> None:
    sidecar = sidecar_of(artefact.path)
    whole = sidecar.read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    sidecar.write_bytes(damaged)
    try:
        if bytes(damaged) == whole:
            open_artefact(artefact.path)
        else:
            with pytest.raises(ModelError, match=r"model\.sm87"):
                open_artefact(artefact.path)
    finally:
        sidecar.write_bytes(whole)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        open_artefact(tmp_path / "absent.plan")


# Trust.


def test_an_engine_that_nobody_vouches_for(artefact: Artefact) -> None:
    path = foreign(artefact)
    digest = sha256(sidecar_of(path).read_bytes()).hexdigest()
    with pytest.raises(TrustError, match=rf"not built here by this user.*--trust {digest}"):
        open_artefact(path)
    assert open_artefact(path, [digest.upper()]).content == artefact.content
    with pytest.raises(TrustError):
        open_artefact(path, ["0" * 64, record_of(artefact).engine_sha256])
    with pytest.raises(UsageError, match="--trust abc: a SHA-256 has 64"):
        open_artefact(path, ["abc"])
    # What it is may be read without running it.
    assert ModelSpec.read(path) == artefact.spec


def test_trust_in_an_engine_is_trust_in_its_record(artefact: Artefact) -> None:
    path = foreign(artefact)
    sidecar = sidecar_of(path)
    trusted = [sha256(sidecar.read_bytes()).hexdigest()]
    sidecar.write_text(sidecar.read_text().replace("normal", "benign"))
    with pytest.raises(TrustError, match="vouch for it and its record"):
        open_artefact(path, trusted)


def test_labels_changed_after_the_build(artefact: Artefact) -> None:
    sidecar = sidecar_of(artefact.path)
    sidecar.write_text(sidecar.read_text().replace("normal", "benign"))
    with pytest.raises(TrustError, match=r"plan\.json: was changed since the engine was built here"):
        open_artefact(artefact.path)


@pytest.mark.parametrize("place", ["medimg", "medimg/built"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_notes_that_others_could_have_written(artefact: Artefact, homes: Path, place: str, mode: int) -> None:
    (homes / "cache" / place).chmod(mode)
    with pytest.raises(TrustError, match=r"others can write to it.*chmod 700"):
        open_artefact(artefact.path)
    with pytest.raises(TrustError, match="others can write"):
        trust.note_built("0" * 64, b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder away")
def test_notes_of_another_user(artefact: Artefact, homes: Path) -> None:
    os.chown(homes / "cache" / "medimg", 12345, 12345)
    with pytest.raises(TrustError, match="belongs to another user"):
        open_artefact(artefact.path)


@pytest.fixture
def signed(artefact: Artefact, homes: Path) -> Path:
    """A foreign engine with a signature made as the documentation says, and its key configured."""
    path, keys = foreign(artefact), homes / "config" / "medimg" / "keys"
    keys.mkdir(parents=True)
    private = homes / "private.pem"
    sign = ["pkeyutl", "-sign", "-rawin", "-inkey", private, "-in", sidecar_of(path), "-out", f"{path}.sig"]
    for command in (
        ["genpkey", "-algorithm", "ed25519", "-out", private],
        ["pkey", "-in", private, "-pubout", "-out", keys / "hospital.pem"],
        sign,
    ):
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
    return path


def test_a_signature_by_a_configured_key(signed: Path) -> None:
    assert open_artefact(signed).engine is not None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path, _keys: Path(f"{path}.sig").write_bytes(bytes(64)),
            r"by any configured key \(hospital\.pem\)",
        ),
        (lambda path, _keys: Path(f"{path}.sig").write_bytes(bytes(63)), "has 64 bytes"),
        (
            lambda path, _keys: sidecar_of(path).write_text(
                sidecar_of(path).read_text().replace("cyst", "mass")
            ),
            "is not a signature of the record",
        ),
        (lambda _path, keys: (keys / "hospital.pem").unlink(), "no key to check it with: put the signer's"),
        (lambda _path, keys: (keys / "hospital.pem").write_text("no key"), "not a public key in PEM"),
        (lambda _path, keys: keys.chmod(0o777), "others can write to it"),
        (lambda _path, keys: (keys / "hospital.pem").chmod(0o666), "others can write to it"),
        (lambda path, _keys: Path(f"{path}.sig").unlink(), "not built here by this user"),
    ],
)
def test_signatures_that_do_not_hold(signed: Path, homes: Path, spoil: Any, message: str) -> None:
    spoil(signed, homes / "config" / "medimg" / "keys")
    with pytest.raises(TrustError, match=message):
        open_artefact(signed)


def test_a_signed_record_does_not_vouch_for_other_bytes(signed: Path) -> None:
    signed.write_bytes(signed.read_bytes() + b" ")
    with pytest.raises(IntegrityError):
        open_artefact(signed)


def test_a_key_of_another_kind(signed: Path, homes: Path) -> None:
    key = homes / "config" / "medimg" / "keys" / "hospital.pem"
    command = ["openssl", "genpkey", "-algorithm", "x25519", "-out", str(homes / "x.pem")]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", str(homes / "x.pem"), "-pubout", "-out", str(key)], check=True)
    with pytest.raises(TrustError, match="not an Ed25519 key"):
        open_artefact(signed)


def test_without_cryptography_a_signature_does_not_hold(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    with pytest.raises(TrustError, match=r"pip install 'medimg\[signing\]'"):
        open_artefact(signed)


def test_notes_are_json_and_small(homes: Path) -> None:
    trust.write_note("built", "a" * 64, {"record_sha256": "b"})
    note = trust.cache_folder() / "built" / f"{'a' * 64}.json"
    assert json.loads(note.read_text()) == {"record_sha256": "b"}
    note.write_text("nonsense")
    assert not trust.was_built_here("a" * 64)
