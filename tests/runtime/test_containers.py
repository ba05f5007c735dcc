"""The spec inside each kind of model file, against the libraries that own the formats."""

import json
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg.runtime.errors import IntegrityError, ModelError, NoSpecError
from medimg.runtime.files.protobuf import field
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model import containers
from medimg.runtime.model.containers import embed_in_onnx, file_sha256, open_artefact, open_onnx, write_spec
from medimg.runtime.model.spec import Intensity, ModelSpec

SPEC = ModelSpec(
    ("cyst", "solide Läsion", "正常"), ImageRule(4, 5), Intensity.named("caffe"), tools={"onnx": "1"}
)


def model() -> onnx.ModelProto:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["image", "one"], ["sum"])],
        "add",
        [info("image", onnx.TensorProto.FLOAT, ["batch", 3])],
        [info("sum", onnx.TensorProto.FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(np.ones(3, np.float32), "one")],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("local", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


PLAIN = model().SerializeToString()


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return path


def test_an_artefact_is_read_back_and_is_onnx_to_onnx(tmp_path: Path) -> None:
    path = write(tmp_path, embed_in_onnx(PLAIN, SPEC))
    artefact = open_onnx(path)
    assert artefact.spec.with_(artefact_sha256=None) == SPEC
    assert ModelSpec.read(path) == ModelSpec.read(str(path)) == artefact.spec
    assert artefact.content == path.read_bytes()
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded)
    (entry,) = loaded.metadata_props
    fields = json.loads(entry.value)
    assert entry.key == "medimg"
    assert next(iter(fields)) == "schema"
    del fields["entry_sha256"]
    assert fields == json.loads(artefact.spec.to_json())


@pytest.mark.long
def test_every_changed_bit_is_refused(tmp_path: Path) -> None:
    content = embed_in_onnx(PLAIN, SPEC)
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            with pytest.raises(ModelError):
                open_onnx(write(tmp_path, bytes(changed)))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = embed_in_onnx(PLAIN, SPEC)
    for length in range(len(content)):
        with pytest.raises(ModelError):
            open_onnx(write(tmp_path, content[:length]))


def test_the_entry_may_lie_between_other_fields(tmp_path: Path) -> None:
    """Other tools may write a field of a later version of ONNX behind it."""
    later = field(15, b"later")
    pinned = embed_in_onnx(PLAIN + later, SPEC)
    rewritten = PLAIN + pinned.removeprefix(PLAIN + later) + later
    assert rewritten != pinned
    assert open_onnx(write(tmp_path, rewritten)).spec.labels == SPEC.labels


def test_a_changed_weight_says_what_to_do(tmp_path: Path) -> None:
    content = embed_in_onnx(PLAIN, SPEC)
    weight = np.ones(3, np.float32).tobytes()
    assert content.count(weight) == 1
    with pytest.raises(IntegrityError, match="copy the file again, or export it again"):
        open_onnx(write(tmp_path, content.replace(weight, np.full(3, 2, np.float32).tobytes())))


def test_a_model_of_another_tool_carries_no_spec(tmp_path: Path) -> None:
    for content in (PLAIN, b""):
        with pytest.raises(NoSpecError, match="export it with medimg-export"):
            open_onnx(write(tmp_path, content))


def test_two_entries_are_one_too_many(tmp_path: Path) -> None:
    twice = embed_in_onnx(embed_in_onnx(PLAIN, SPEC), SPEC)
    with pytest.raises(ModelError, match="carries 2 medimg entries"):
        open_onnx(write(tmp_path, twice))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_by_name(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = embed_in_onnx(PLAIN, SPEC)
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    size = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = write(tmp_path_factory.getbasetemp(), bytes(content[:size]))
    if content[:size] == whole:
        assert open_onnx(path).spec.labels == SPEC.labels
        return
    with pytest.raises(ModelError) as caught:
        open_onnx(path)
    assert str(caught.value).startswith(str(path))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_model_or_an_error(content: bytes) -> None:
    path = Path("any.onnx")
    with pytest.raises(ModelError, match=r"^any\.onnx: "):
        containers._find_entry(content, path)


@pytest.mark.parametrize(
    "content", [b"plain text of no model", b"\x08", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b\x0c", b"\x80" * 20]
)
def test_what_is_no_protobuf(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not an ONNX file, or a damaged one"):
        open_onnx(write(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="No such file"):
        open_onnx(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match="no such file"):
        ModelSpec.read(tmp_path / "missing.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ModelError, match="Is a directory"):
        ModelSpec.read(tmp_path / "folder.onnx")
    (tmp_path / "model.pt").touch()
    with pytest.raises(ModelError, match=r"not a model file \(\.onnx, \.plan, \.keras, \.h5"):
        ModelSpec.read(tmp_path / "model.pt")
    monkeypatch.setattr(containers, "MAX_ONNX_BYTES", 10)
    with pytest.raises(ModelError, match="such a file has"):
        open_onnx(write(tmp_path, PLAIN))


# Keras files.


def test_keras_archive(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(NoSpecError, match="was not saved by medimg-train"):
        ModelSpec.read(path)
    write_spec(path, SPEC)
    assert ModelSpec.read(path) == SPEC
    with pytest.raises(ModelError, match="already carries a medimg entry"):
        write_spec(path, SPEC)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("config.json") == b"{}"


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_hdf5_attribute(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"
    with pytest.raises(NoSpecError, match="was not saved by medimg-train"):
        ModelSpec.read(path)
    write_spec(path, SPEC)
    assert ModelSpec.read(path) == SPEC


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".onnx"])
def test_a_spec_of_many_long_labels_fits(suffix: str, tmp_path: Path) -> None:
    """An HDF5 attribute that is stored in its object's header ends at 64 KiB; this one is not."""
    spec = SPEC.with_(labels=tuple(f"class {index:05} of a long list of classes" for index in range(10_000)))
    path = tmp_path / f"model{suffix}"
    if suffix == ".onnx":
        path.write_bytes(embed_in_onnx(PLAIN, spec))
    elif suffix == ".h5":
        h5py.File(path, "w").close()
        write_spec(path, spec)
    else:
        zipfile.ZipFile(path, "w").close()
        write_spec(path, spec)
    assert ModelSpec.read(path).labels == spec.labels


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_damaged_keras_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    for content in (b"", b"plain text", b"PK\x03\x04" + bytes(40), b"\x89HDF\r\n\x1a\n" + bytes(90)):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"not a \.keras archive|not an HDF5 file") as caught:
            ModelSpec.read(path)
        assert str(caught.value).startswith(str(path))


def test_a_keras_entry_that_inflates_without_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("medimg.json", b" " * 50_000_000)
    with pytest.raises(ModelError, match="is larger than"):
        ModelSpec.read(path)


def test_only_keras_files_take_a_spec_this_way(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a Keras file ends in"):
        write_spec(tmp_path / "model.onnx", SPEC)


def test_file_sha256(tmp_path: Path) -> None:
    path = write(tmp_path, b"abc")
    assert containers.file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("suffix", [".onnx", ".plan", ".keras", ".h5"])
def test_a_model_without_an_end_is_refused(suffix: str, tmp_path: Path) -> None:
    endless, pipe = tmp_path / f"endless{suffix}", tmp_path / f"pipe{suffix}"
    endless.symlink_to("/dev/zero")
    os.mkfifo(pipe)
    for path in (endless, pipe):
        for read in (ModelSpec.read, open_artefact):
            with pytest.raises(ModelError, match=r"no regular file|has no .* beside it"):
                read(path)
        with pytest.raises(OSError, match="no regular file"):
            file_sha256(path)


def test_an_engine_or_record_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.plan").write_bytes(b"engine")
    (tmp_path / "a.plan.json").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match=r"a\.plan\.json: is a device or a pipe"):
        open_artefact(tmp_path / "a.plan")
