"""Data sets in every layout, hostile and damaged ones, splits, batches, walks."""

import errno
import os
import pickle
import pickletools
import threading
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medimg.runtime.data import DataSet, Sample, load_batches, read_data, stratified_split
from medimg.runtime.data import medmnist as medmnist_module
from medimg.runtime.data.table import unlisted_images
from medimg.runtime.errors import DataError, ImageError
from medimg.runtime.files.paths import walk_images
from medimg.runtime.images.load import load_image, prepare
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.tasks import TaskName

RULE = ImageRule(8, 10)


def picture(path: Path, level: int = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 10, 3), level, np.uint8))
    return path


def names(dataset: DataSet) -> list[str]:
    return [sample.name for sample in dataset.samples]


# A folder with a folder per class.


def test_a_folder_per_class(tmp_path: Path) -> None:
    for name in (
        "b/2.png",
        "b/10.PNG",
        "a/x.jpg",
        "a/patient 7/y.dcm",
        "a/.hidden.png",
        ".git/z.png",
        "b/notes.txt",
    ):
        picture(
            tmp_path / "set" / (name if name.endswith(("png", "PNG")) else name.replace(".", "_") + ".png")
        )
    root = tmp_path / "set"
    (root / "b" / "notes.txt").write_text("about b")
    (root / "DICOMDIR").write_bytes(b"the index of a DICOM medium")
    (root / "b" / "DICOMDIR").write_bytes(b"the index of a DICOM medium")
    (root / "b" / "1.2.840.113619.2").write_bytes(b"a DICOM file named by its UID")
    (root / "b" / "IM0001").write_bytes(b"a DICOM file without a suffix")
    found = read_data(root)
    assert found.labels == ("a", "b")
    assert names(found) == [
        "a/patient 7/y_dcm.png",
        "a/x_jpg.png",
        "b/1.2.840.113619.2",
        "b/10.PNG",
        "b/2.png",
        "b/IM0001",
        "b/notes_txt.png",
    ]
    assert found.truth.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert {sample.split for sample in found.samples} == {None}
    assert len(found) == 7


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (("train", "val", "test"), {"train": 2, "val": 2, "test": 2}),
        (("training", "validation", "testing"), {"train": 2, "val": 2, "test": 2}),
        (("Train", "valid"), {"train": 2, "val": 2, "test": 0}),
        (("test",), {"train": 0, "val": 0, "test": 2}),
    ],
)
def test_parts_by_the_names_of_folders(
    folders: tuple[str, ...], parts: dict[Any, int], tmp_path: Path
) -> None:
    for folder in folders:
        picture(tmp_path / folder / "cyst" / "1.png")
        picture(tmp_path / folder / "normal" / "1.png")
    found = read_data(tmp_path)
    assert {part: len(found.part(part)) for part in parts} == parts
    assert found.labels == found.part("test").labels == ("cyst", "normal")
    assert all(sample.name.startswith(folders) for sample in found.samples)


def test_a_part_may_lack_a_class_but_not_the_training_part(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png"):
        picture(tmp_path / name)
    assert read_data(tmp_path).part("test").truth.tolist() == [0]
    picture(tmp_path / "test" / "c" / "1.png")
    with pytest.raises(DataError, match="class 'c' has images, but none in the training part"):
        read_data(tmp_path)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((), "holds no images"),
        (("a/notes.txt", "b/notes.txt"), "holds no images"),
        (("a/1.png",), "shows only the class 'a'; two or more are wanted"),
        (("1.png", "2.png"), r"holds 2 image\(s\) outside any class's folder \(1.png, 2.png\)"),
        (("a/1.png", "b/1.png", "1.png"), r"holds 1 image\(s\) outside any class's folder"),
        (("train/a/1.png", "train/b/1.png", "c/1.png"), "has 'c' beside train: move it into one of them"),
        (("train/1.png", "train/2.png"), "outside any class's folder"),
    ],
)
def test_folders_that_are_no_labelled_set(files: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    for name in files:
        picture(tmp_path / name) if name.endswith("png") else (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=reason) as caught:
        read_data(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_without_labels_any_folder_will_do(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "deeper/c.png"):
        picture(tmp_path / name)
    found = read_data(tmp_path, labelled=False)
    assert names(found) == ["a.png", "b.png", "deeper/c.png"]
    assert found.labels == ()
    with pytest.raises(DataError, match=r"a\.png: has no label"):
        _ = found.truth
    for name in ("val/1.png", "train/2.png"):
        picture(tmp_path / "parts" / name)
    flat = read_data(tmp_path / "parts", labelled=False)
    assert [(sample.name, sample.split) for sample in flat.samples] == [
        ("train/2.png", "train"),
        ("val/1.png", "val"),
    ]
    assert read_data(tmp_path / "parts" / "val", labelled=False).labels == ()


def test_labels_are_kept_where_they_are_not_needed(tmp_path: Path) -> None:
    picture(tmp_path / "only" / "1.png")
    assert read_data(tmp_path, labelled=False).labels == ("only",)


@pytest.mark.parametrize("name", ["missing", "notes.txt"])
def test_what_is_no_data_set(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(DataError, match=r"no such file or folder|not a data set"):
        read_data(tmp_path / name)


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines", b"\xe2\x80\xaeturned"])
def test_a_class_whose_name_cannot_be_shown(name: bytes, tmp_path: Path) -> None:
    for folder in (name, b"b"):
        (tmp_path / os.fsdecode(folder)).mkdir()
        (tmp_path / os.fsdecode(folder) / "1.png").touch()
    with pytest.raises(DataError, match="rename it") as caught:
        read_data(tmp_path)
    assert str(caught.value).isprintable()


# A table.


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    for name in ("a.png", "b.png", "sub/c.png", "d.png"):
        picture(folder / name)
    path = folder / "set.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_table_with_everything(tmp_path: Path) -> None:
    text = (
        "Path, label ,patient,split,site\r\nsub/c.png,cyst,P1,train,x\r\n\r\na.png,normal,P2,validation,y\r\n"
    )
    found = read_data(table(tmp_path, text, "utf-8-sig"))
    assert found.labels == ("cyst", "normal")
    assert found.samples == (
        Sample("sub/c.png", tmp_path / "sub/c.png", 0, "P1", "train"),
        Sample("a.png", tmp_path / "a.png", 1, "P2", "val"),
    )
    assert [sample.source for sample in found.samples] == [tmp_path / "sub/c.png", tmp_path / "a.png"]


def test_a_table_keeps_its_order_and_numbers_sort_as_numbers(tmp_path: Path) -> None:
    found = read_data(table(tmp_path, "path,label\nd.png,10\na.png,2\nb.png,1\na.png,2\n"))
    assert names(found) == ["d.png", "a.png", "b.png"]
    assert found.labels == ("1", "2", "10")
    assert found.truth.tolist() == [2, 1, 0]


def test_a_table_of_paths_alone(tmp_path: Path) -> None:
    path = table(tmp_path, "path\na.png\nb.png\n")
    assert names(read_data(path, labelled=False)) == ["a.png", "b.png"]
    with pytest.raises(DataError, match="has no column 'label'"):
        read_data(path)


def test_a_table_may_name_files_anywhere(tmp_path: Path) -> None:
    elsewhere = picture(tmp_path / "elsewhere" / "z.png")
    path = table(tmp_path / "set", f"path,label\n{elsewhere},x\n../elsewhere/../set/a.png,y\n")
    assert [sample.load(RULE).shape for sample in read_data(path).samples] == [(8, 10, 3)] * 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no column 'path'"),
        ("file,label\na.png,x\n", "has no column 'path'"),
        ("path,label,label\na.png,x,y\n", "has the column 'label' twice"),
        ("path,label\n", "holds no images"),
        ("path,label\na.png,x\nb.png\n", "line 3 has no label"),
        ("path,label\n,x\n", "line 2 has no path"),
        ("path,label\na.png,x\nb.png,x\n", "shows only the class 'x'"),
        ("path,label\na.png,x\nsub/../a.png,y\n", "lines 2 and 3 say different things of sub/../a.png"),
        ("path,label\nq.png,x\nr.png,y\na.png,y\n", "2 of 3 files do not exist: q.png, r.png"),
        (
            "path,label\n" + "".join(f"{n}.png,x\n" for n in range(9)),
            "0.png, 1.png, 2.png, 3.png, 4.png and 4 more",
        ),
        ("path,label\nsub,x\n", "1 of 1 files do not exist: sub"),
        (
            "path,label,split\na.png,x,holdout\n",
            "line 2 has the split 'holdout'; train, val and test are known",
        ),
        ("path,label,split\na.png,x,train\nb.png,y,\n", "1 of 2 rows have no split"),
        (
            "path,label,patient,split\na.png,x,DOE^JANE,train\nb.png,y,DOE^JANE,test\n",
            r"^((?!DOE).)*: a\.png \(in train\) and b\.png \(in test\) are of one patient((?!DOE).)*$",
        ),
        ('path,label\n"a.png,x\n', "not a CSV file"),
        ("path,label\na\0.png,x\n", "zero byte|NUL"),
    ],
)
def test_tables_that_are_wrong(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_data(table(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path))


MANY = "path,label,patient\na.png,mass | edema,P1\nb.png,,P2\nsub/c.png,edema,P3\na.png,edema|mass,P1\n"


def test_a_table_with_several_labels_an_image(tmp_path: Path) -> None:
    found = read_data(table(tmp_path, MANY), task="multilabel")
    assert (found.task, found.labels) == ("multilabel", ("edema", "mass"))
    assert [sample.classes for sample in found.samples] == [(0, 1), (), (0,)]
    assert found.targets.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert found.part("train").task == "multilabel"
    with pytest.raises(DataError, match=r"any number of classes .* exactly one is wanted"):
        _ = found.truth
    wider = found.relabelled(("cyst", "mass", "edema"))
    assert wider.targets.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 1]]
    for text in ("path,label\na.png,\nb.png,|\n", "path,label\na.png,x\nb.png,x\n"):
        with pytest.raises(DataError, match="no class is shown by some of the images and not by others"):
            read_data(table(tmp_path, text), task="multilabel")
    with pytest.raises(DataError, match="line 3 has no label"):
        read_data(table(tmp_path, MANY))


def test_a_folder_per_class_has_no_several_labels(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        picture(tmp_path / name)
    with pytest.raises(DataError, match="a folder gives every image one class"):
        read_data(tmp_path, task="multilabel")
    assert read_data(tmp_path).targets.tolist() == [[1, 0], [0, 1]]


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_data(table(tmp_path, "path,label\na.png,tumör\n", "latin-1"))


# CIFAR-10.


def cifar_batch(labels: list[int], *, python2: bool, data: object = None) -> bytes:
    """Pickle a batch as the published files (written by Python 2) or their later copies do."""
    generator = np.random.default_rng(len(labels))
    pixels = generator.integers(0, 256, (len(labels), 3072), np.uint8) if data is None else data
    content = pickle.dumps({b"data": pixels, b"labels": labels, b"batch_label": b"a batch"}, protocol=2)
    if python2:
        content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    return content


@pytest.fixture
def cifar(tmp_path: Path) -> Callable[..., Path]:
    def make(first: bytes | None = None, *, python2: bool = False) -> Path:
        meta = {b"label_names": [b"cat", b"dog", b"ship"]}
        (tmp_path / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
        (tmp_path / "data_batch_1").write_bytes(first or cifar_batch([2, 0, 1], python2=python2))
        (tmp_path / "data_batch_2").write_bytes(cifar_batch([1], python2=python2))
        (tmp_path / "test_batch").write_bytes(cifar_batch([0, 1], python2=python2))
        return tmp_path

    return make


@pytest.mark.parametrize("python2", [True, False])
def test_cifar(cifar: Callable[..., Path], python2: bool) -> None:
    folder = cifar(python2=python2)
    module = b"numpy.core.multiarray" if python2 else b"numpy._core.multiarray"
    assert module in (folder / "data_batch_1").read_bytes()
    found = read_data(folder)
    assert found.labels == ("cat", "dog", "ship")
    assert names(found) == ["train[0]", "train[1]", "train[2]", "train[3]", "test[0]", "test[1]"]
    assert found.truth.tolist() == [2, 0, 1, 1, 0, 1]
    planes = np.random.default_rng(3).integers(0, 256, (3, 3072), np.uint8)
    first = found.samples[0].load(ImageRule(32, 32))
    assert np.array_equal(first, planes[0].reshape(3, 32, 32).transpose(1, 2, 0))


@pytest.mark.real
def test_the_real_cifar(real_data: Path) -> None:
    found = read_data(real_data / "images/cifar-10-batches-py")
    assert found.labels[0] == "airplane"
    assert found.labels[9] == "truck"
    assert (len(found.part("train")), len(found.part("val")), len(found.part("test"))) == (3000, 0, 1000)


class Hostile:
    """Unpickles to a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


def test_a_hostile_pickle_runs_nothing(cifar: Callable[..., Path], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile = [
        Hostile(os.system, f"touch {canary}"),
        Hostile(eval, f"open({str(canary)!r}, 'w')"),
        Hostile(Path.touch, canary),
        Hostile(np.load, str(canary), None, True),
        Hostile(np.ndarray, (2**40,)),
        Hostile(getattr, "a", "b"),
    ]
    for item in hostile:
        for content in (pickle.dumps(item), pickle.dumps({b"data": item, b"labels": [0]}, protocol=2)):
            with pytest.raises(DataError, match="data_batch_1: "):
                read_data(cifar(content))
        assert not canary.exists()


@pytest.mark.parametrize("name", ["_codecs\nencode", "numpy\nndarray", "numpy\ndtype"])
def test_a_hostile_pickle_changes_nothing(name: str, cifar: Callable[..., Path]) -> None:
    """It cannot set the state of what it names without calling it."""
    state = b"(N}V__doc__\nVtampered\nst"
    with pytest.raises(DataError, match="data_batch_1: "):
        read_data(cifar(b"c" + name.encode() + b"\n" + state + b"b."))


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """The same pickle does act when it is trusted, so the test above can fail."""
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Hostile(Path.touch, canary)))
    assert canary.exists()


def only_allowed_names(content: bytes) -> set[str]:
    """Which functions a pickle names."""
    return {str(argument) for code, argument, _ in pickletools.genops(content) if code.name == "GLOBAL"}


def test_the_published_files_name_five_functions(cifar: Callable[..., Path]) -> None:
    content = (cifar() / "data_batch_1").read_bytes()
    assert only_allowed_names(content) == {
        "numpy._core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
        "_codecs encode",
    }


ZEROS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps([1, 2]), "not a CIFAR-10 file"),
        (pickle.dumps({}), "has no data and labels"),
        (cifar_batch([0, 3], python2=False), "holds labels outside 0 to 2"),
        (cifar_batch([0, -1], python2=False), "holds labels outside 0 to 2"),
        (cifar_batch([0, "x"], python2=False), "holds labels outside 0 to 2"),  # type: ignore[list-item]
        (cifar_batch([0, True], python2=False), "holds labels outside 0 to 2"),
        (cifar_batch([0], python2=False, data=ZEROS), "are not 1 rows of 3072 bytes"),
        (cifar_batch([0, 1], python2=False, data=ZEROS.astype(np.float64)), "are not 2 rows of 3072 bytes"),
        (cifar_batch([0, 1], python2=False, data=ZEROS.T.copy()), "are not 2 rows of 3072 bytes"),
        (cifar_batch([0, 1], python2=False, data=np.asfortranarray(ZEROS)), "are not 2 rows of 3072 bytes"),
        (cifar_batch([0, 1], python2=False, data=b"bytes"), "has no data and labels"),
        (cifar_batch([0, 1], python2=False, data=np.array([None])), "are not 2 rows of 3072 bytes"),
        (cifar_batch([0, 1], python2=False)[:-40], "not a CIFAR-10 file, or a damaged one"),
        (b"plain text", "not a CIFAR-10 file, or a damaged one"),
        (b"\x80\x02r\xff\xff\xff\xff.", "not a CIFAR-10 file, or a damaged one"),
    ],
)
def test_cifar_batches_that_are_wrong(content: bytes, reason: str, cifar: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=f"data_batch_1: .*{reason}"):
        read_data(cifar(content))


PAIR = b"h\0h\0\x86q\0"


COSTLY = {
    "memo": (b"\x80\x02}r" + (2**32 - 1).to_bytes(4, "little") + b".", "has no data and labels"),
    "hash": (b"\x80\x02)q\0" + PAIR * 60 + b"0}h\0K\1s.", "has a key that is no text"),
    "steps": (b"\x80\x02" + b"N" * 600_000 + b"(t" * 600_000 + b".", "more than 1048576 steps"),
    "marks": (b"\x80\x02" + b"N" * 400_000 + b"(t0" * 200_000 + b".", "not a CIFAR"),
    "bytes": (
        b"\x80\x02X" + (2**20).to_bytes(4, "little") + bytes(2**20) + b"q\0U\6latin1q\1"
        + b"c_codecs\nencode\nh\0h\1\x86R" * 300 + b".",
        "makes more bytes than it has",
    ),
    "number": (b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"\1.", "not a CIFAR"),
    "objects": (b"\x80\x02" + b"}" * 2**20, "more than 1048576 steps|not a CIFAR"),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("content", "reason"), COSTLY.values(), ids=COSTLY.keys())
def test_small_pickles_that_would_cost_much(content: bytes, reason: str, cifar: Callable[..., Path]) -> None:
    started = time.process_time()
    with pytest.raises(DataError, match=f"data_batch_1: .*({reason})"):
        read_data(cifar(content))
    assert time.process_time() - started < 10


def test_an_array_that_lies_about_its_shape(cifar: Callable[..., Path]) -> None:
    honest = cifar_batch([0, 1], python2=False, data=ZEROS)
    assert honest.count(b"K\x02M\x00\x0c\x86") == 1
    with pytest.raises(DataError, match="are not 2 rows of 3072 bytes"):
        read_data(cifar(honest.replace(b"K\x02M\x00\x0c\x86", b"J\xff\xff\xff\x7fM\x00\x0c\x86")))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_cifar_batches_have_a_reason(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from medimg.runtime.data.cifar import read_batch

    content = bytearray(cifar_batch([0, 1], python2=False, data=ZEROS[:, :3072]))
    skeleton = [index for index, byte in enumerate(content) if byte != 0]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.sampled_from(skeleton))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged_batch"
    path.write_bytes(content)
    try:
        images = read_batch(path, 10).images
    except DataError:
        return
    assert images.shape[1:] == (32, 32, 3)


@pytest.mark.parametrize(
    "meta", [{}, {b"label_names": [b"one"]}, {b"label_names": [1, 2]}, {b"label_names": b"ab"}]
)
def test_cifar_without_names(meta: dict[bytes, object], cifar: Callable[..., Path]) -> None:
    folder = cifar()
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    with pytest.raises(DataError, match="has no list of label names"):
        read_data(folder)


# MedMNIST.


def medmnist(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


GREYS = np.arange(4 * 28 * 28, dtype=np.uint16).reshape(4, 28, 28).astype(np.uint8)
COLOURS = np.repeat(GREYS[..., None], 3, axis=3)
BINARY = np.array([[0], [1], [1], [0]], np.uint8)


def test_medmnist(tmp_path: Path) -> None:
    path = medmnist(
        tmp_path / "pneumoniamnist_28.npz",
        train_images=GREYS,
        train_labels=BINARY,
        test_images=COLOURS[:2],
        test_labels=BINARY[:2],
    )
    found = read_data(path)
    assert found.labels == ("normal", "pneumonia")
    assert names(found) == ["train[0]", "train[1]", "train[2]", "train[3]", "test[0]", "test[1]"]
    assert found.part("train").truth.tolist() == [0, 1, 1, 0]
    rule = ImageRule(14, 14)
    assert np.array_equal(found.samples[1].load(rule), prepare(GREYS[1], rule))


def test_medmnist_of_an_unknown_name_has_numbered_classes(tmp_path: Path) -> None:
    labels = np.array([[0], [1], [2], [0]], np.int64)
    assert read_data(medmnist(tmp_path / "mine.npz", train_images=GREYS, train_labels=labels)).labels == (
        "0",
        "1",
        "2",
    )
    surplus = medmnist(tmp_path / "pneumoniamnist.npz", train_images=GREYS, train_labels=labels)
    assert read_data(surplus).labels == ("0", "1", "2")


@pytest.mark.long
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_large_archive_is_not_held_in_memory(save: Callable[..., None], tmp_path: Path) -> None:
    path, images = tmp_path / "a.npz", np.zeros((5000, 256, 256), np.uint8)
    images[4999] = 7
    save(path, train_images=images, train_labels=np.arange(5000) % 2)
    expected = images[[0, 4999]].copy()
    del images
    before = own_memory()
    found = read_data(path)
    assert own_memory() - before < 2**26
    rule = ImageRule(256, 256)
    shown = [found.samples[number].load(rule)[..., 0] for number in (0, 4999)]
    np.testing.assert_array_equal(np.stack(shown), expected)
    assert len(found) == 5000


def own_memory() -> int:
    """Bytes that belong to this process alone, without the mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(kib) * 1024


def test_large_archives_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medmnist_module, "MAX_BYTES_IN_MEMORY", 0)
    path = medmnist(tmp_path / "a.npz", train_images=GREYS, train_labels=BINARY)
    shown = [sample.load(ImageRule(28, 28))[..., 0] for sample in read_data(path).samples]
    np.testing.assert_array_equal(np.stack(shown), GREYS)
    content = bytearray(path.read_bytes())
    content[content.index(b"\x93NUMPY") + 500] ^= 1
    (tmp_path / "b.npz").write_bytes(content)
    medmnist(tmp_path / "c.npz", train_images=np.array([None]))
    for name, reason in (("b.npz", "Bad CRC-32"), ("c.npz", "holds Python objects")):
        with pytest.raises(DataError, match=reason):
            read_data(tmp_path / name)
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(DataError, match=r"cannot be unpacked into .*: No space left on device; the variable"):
        read_data(path)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_medmnist_without_labels(tmp_path: Path) -> None:
    path = medmnist(tmp_path / "a.npz", test_images=GREYS)
    assert len(read_data(path, labelled=False)) == 4
    with pytest.raises(DataError, match=r"4 image\(s\) have no label"):
        read_data(path)


def test_medmnist_with_several_labels_an_image(tmp_path: Path) -> None:
    shown = np.zeros((4, 14), np.uint8)
    shown[0, [3, 13]] = shown[2, 0] = 1
    path = medmnist(tmp_path / "chestmnist.npz", train_images=GREYS, train_labels=shown)
    found = read_data(path, task="multilabel")
    assert found.labels[3] == "infiltration"
    assert len(found.labels) == 14
    np.testing.assert_array_equal(found.targets, shown)
    for labels, reason in ((BINARY * 2, "holds 0 to 2"), (BINARY[:3], "4 rows"), (BINARY[:, 0], "4 rows")):
        wrong = medmnist(tmp_path / "wrong.npz", train_images=GREYS, train_labels=labels)
        with pytest.raises(DataError, match=reason):
            read_data(wrong, task="multilabel")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"pixels": GREYS}, "holds no train_images"),
        ({"train_images": GREYS.astype(np.float32)}, "train_images is float32"),
        ({"train_images": np.zeros((2, 28, 28, 28), np.uint8)}, "volumes are not read"),
        ({"train_images": np.array([None])}, "not a MedMNIST archive, or a damaged one"),
        ({"train_images": GREYS, "train_labels": np.zeros((4, 14), np.uint8)}, "14 labels an image"),
        ({"train_images": GREYS, "train_labels": np.zeros((3, 1), np.uint8)}, "4 integers are wanted"),
        ({"train_images": GREYS, "train_labels": np.zeros((4, 1), np.float32)}, "4 integers are wanted"),
        ({"train_images": GREYS, "train_labels": np.full((4, 1), -1)}, "classes count from 0"),
        ({"train_images": GREYS, "train_labels": np.zeros((4, 1), np.uint8)}, "shows only the class '0'"),
        ({"train_images": GREYS[:0], "train_labels": BINARY[:0]}, "holds no images"),
    ],
)
def test_medmnist_archives_that_are_wrong(arrays: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        read_data(medmnist(tmp_path / "a.npz", **arrays))


def packed(path: Path, **members: tuple[tuple[int, ...], str, int]) -> Path:
    """Write an archive of zeros: for each array its shape, its type and how many bytes follow its header."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, kind, size_bytes) in members.items():
            header = BytesIO()
            fields = {"descr": kind, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(header, fields)
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(size_bytes))
    return path


TWO = ((2, 8, 8), "|u1", 128)


@pytest.mark.parametrize(
    ("task", "members", "reason"),
    [
        (
            "multiclass",
            {"train_images": TWO, "train_labels": ((2**24, 1), "|u1", 2**24)},
            "2 integers are wanted",
        ),
        ("multilabel", {"train_images": TWO, "train_labels": ((2, 2**23), "|u1", 2**24)}, "2 rows"),
        ("multiclass", {"train_images": ((2, 8, 8), "|u1", 2**24)}, "has 167.* bytes, and its header says"),
        ("multiclass", {"train_images": ((2, 8, 8), "|u1", 100)}, "its header says"),
        ("multiclass", {"train_images": TWO, "train_labels": ((2**40, 1), "|u1", 2)}, "its header says"),
        ("multiclass", {"train_images": TWO, "train_labels": ((2, 1), "|u1", 2**24)}, "its header says"),
        ("multiclass", {"train_images": ((2**24, 1, 1), "|u1", 2**24)}, "at most 1,048,576 images"),
        ("multiclass", {"train_images": ((2**40, 0, 8), "|u1", 0)}, "at most 1,048,576 images of 1 to"),
        ("multiclass", {"train_images": ((-2, -8, 8), "|u1", 128)}, "is wanted|at most"),
    ],
)
def test_archives_that_would_cost_much(
    task: TaskName,
    members: dict[str, tuple[tuple[int, ...], str, int]],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(medmnist_module._Array, "read", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(DataError, match=reason):
        read_data(packed(tmp_path / "a.npz", **members), task=task)


def test_an_archive_for_which_the_disk_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medmnist_module, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(DataError, match="No space left on device"):
        read_data(medmnist(tmp_path / "a.npz", train_images=GREYS, train_labels=BINARY))


def test_medmnist_damage_has_a_reason(tmp_path: Path) -> None:
    buffer = BytesIO()
    np.savez_compressed(buffer, train_images=GREYS, train_labels=BINARY)
    whole, generator = buffer.getvalue(), np.random.default_rng(0)
    path = tmp_path / "a.npz"
    refused = 0
    for _ in range(200):
        content = bytearray(whole)
        for position in generator.integers(0, len(content), 3):
            content[position] ^= 1 << generator.integers(8)
        path.write_bytes(
            content[: generator.integers(1, len(content))] if generator.random() < 0.2 else content
        )
        try:
            read_data(path)
        except DataError:
            refused += 1
    assert refused > 150
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match="not a MedMNIST archive"):
        read_data(path)


@pytest.mark.real
def test_real_sets(real_data: Path) -> None:
    brain = read_data(real_data / "images/brain-mri")
    assert brain.labels == ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
    assert (len(brain.part("train")), len(brain.part("test"))) == (1200, 394)
    assert brain.samples[0].name == "test/glioma_tumor/image(1).jpg"
    chest = read_data(real_data / "images/pneumoniamnist-subset.npz")
    assert chest.labels == ("normal", "pneumonia")
    assert [len(chest.part(part)) for part in ("train", "val", "test")] == [3882, 524, 624]
    assert np.bincount(chest.part("test").truth).tolist() == [234, 390]


# One sample.


def test_a_sample_loads_what_the_loader_loads(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 99)
    assert np.array_equal(Sample("a.png", path).load(RULE), load_image(path, RULE))
    with pytest.raises(ImageError, match=r"train\[3\]: an array of shape \(3,\)"):
        Sample("train[3]", np.zeros(3, np.uint8)).load(RULE)


# Batches.


def levels(count: int) -> list[Sample]:
    return [Sample(f"train[{level}]", np.full((8, 10), level, np.uint8), 0) for level in range(count)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("count", "size"), [(0, 4), (1, 4), (8, 4), (10, 4), (5, 100)])
def test_batches_come_in_order(count: int, size: int, threads: int) -> None:
    batches = list(load_batches(levels(count), RULE, size, threads))
    assert [len(batch) for batch in batches] == [min(size, count - start) for start in range(0, count, size)]
    assert [int(image.max()) for batch in batches for image in batch] == list(range(count))


class Counting(Sample):
    """A sample that counts how often it is loaded."""

    loaded = 0
    lock = threading.Lock()

    def load(self, rule: ImageRule) -> NDArray[np.uint8]:
        with Counting.lock:
            Counting.loaded += 1
        return super().load(rule)


def test_batches_look_ahead_a_little_and_stop_when_told() -> None:
    samples = [Counting(item.name, item.source) for item in levels(200)]
    before = threading.active_count()
    batches = load_batches(samples, RULE, 4, 2)
    next(batches)
    assert Counting.loaded <= 4 + 8
    batches.close()  # type: ignore[attr-defined]  # a generator
    assert threading.active_count() == before


def test_a_bad_image_ends_the_batches_with_its_name() -> None:
    samples = [*levels(6), Sample("train[6]", np.zeros((2, 2), np.int16)), *levels(6)]
    batches = load_batches(samples, RULE, 4, 2)
    assert len(next(batches)) == 4
    with pytest.raises(ImageError, match=r"train\[6\]: samples are int16"):
        next(batches)


# Splits.


def labelled(labels: list[int], patients: list[str | None] | None = None) -> DataSet:
    who = patients or [None] * len(labels)
    samples = [
        Sample(f"train[{index}]", Path(f"{index}.png"), label, patient)
        for index, (label, patient) in enumerate(zip(labels, who, strict=True))
    ]
    return DataSet(tuple(map(str, range(max(labels) + 1))), tuple(samples))


@given(
    counts=st.lists(st.integers(2, 60), min_size=1, max_size=5),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32),
)
def test_a_split_keeps_every_class_s_share(counts: list[int], fraction: float, seed: int) -> None:
    dataset = labelled([label for label, count in enumerate(counts) for _ in range(count)])
    larger, smaller = stratified_split(dataset, fraction, seed)
    assert sorted(names(larger) + names(smaller)) == sorted(names(dataset))
    for label, count in enumerate(counts):
        taken = int((smaller.truth == label).sum())
        assert taken == min(max(taken, 1), count - 1)
        assert abs(taken - fraction * count) <= 0.5 or taken in (1, count - 1)
    order = {name: index for index, name in enumerate(names(dataset))}
    assert all(
        [order[name] for name in names(part)] == sorted(order[name] for name in names(part))
        for part in (larger, smaller)
    )


def test_a_split_is_the_same_for_the_same_seed() -> None:
    dataset = labelled([0, 1] * 50)
    assert stratified_split(dataset, seed=3) == stratified_split(dataset, seed=3)
    assert stratified_split(dataset, seed=3) != stratified_split(dataset, seed=4)
    assert [len(part) for part in stratified_split(dataset)] == [70, 30]


@settings(max_examples=200)
@given(
    images=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([None, *"ABCDEFGHIJ"])), min_size=6, max_size=80
    ),
    seed=st.integers(0, 100),
)
def test_a_patient_is_never_on_both_sides(images: list[tuple[int, str | None]], seed: int) -> None:
    labels = [label for label, _ in images]
    dataset = labelled(labels, [patient for _, patient in images])
    try:
        sides = stratified_split(dataset, 0.3, seed)
    except DataError as error:
        assert "to be in both parts" in str(error)  # noqa: PT017  either outcome is right, each with its claim
        return
    patients = [{sample.patient for sample in side.samples} - {None} for side in sides]
    assert not patients[0] & patients[1]
    assert set(sides[0].truth) == set(sides[1].truth) >= set(labels)


def test_patients_are_shared_out_near_the_fraction() -> None:
    patients = [f"P{index // 5}" for index in range(400)]
    dataset = labelled([index // 200 for index in range(400)], list(patients))
    larger, smaller = stratified_split(dataset, 0.3, 1)
    assert (len(larger), len(smaller)) == (280, 120)
    assert np.bincount(smaller.truth).tolist() == [60, 60]


@settings(max_examples=50)
@given(st.integers(0, 1000))
def test_a_multi_label_split_keeps_shares_and_patients(seed: int) -> None:
    random = np.random.default_rng(seed)
    shown = random.random((600, 6)) < (0.5, 0.3, 0.2, 0.1, 0.05, 0.03)
    shown[:12, 5] = True
    samples = tuple(
        Sample(f"{index}", Path(f"{index}.png"), patient=f"P{index // 3}", classes=tuple(np.flatnonzero(row)))
        for index, row in enumerate(shown)
    )
    dataset = DataSet(tuple("abcdef"), samples, "multilabel")
    sides = stratified_split(dataset, 0.3, seed)
    assert sides == stratified_split(dataset, 0.3, seed)
    assert sorted(names(sides[0]) + names(sides[1])) == sorted(names(dataset))
    patients = [{sample.patient for sample in side.samples} for side in sides]
    assert not patients[0] & patients[1]
    shares = sides[1].targets.sum(axis=0) / dataset.targets.sum(axis=0)
    np.testing.assert_allclose(shares[:4], 0.3, atol=0.05)
    np.testing.assert_allclose(shares[4:], 0.3, atol=0.15)
    assert len(sides[1]) / 600 == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
    ("labels", "patients"), [([0, 0, 1], None), ([0, 0, 1, 1], ["A", "B", "C", "C"]), ([0, 0, 2, 2], None)]
)
def test_a_class_too_small_to_split(labels: list[int], patients: list[str | None] | None) -> None:
    with pytest.raises(DataError, match="class '1' has"):
        stratified_split(labelled(labels, patients))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_a_share_that_is_none(fraction: float) -> None:
    with pytest.raises(DataError, match="is not between 0 and 1"):
        stratified_split(labelled([0, 0, 1, 1]), fraction)


# Walks.


def test_a_walk_is_sorted_follows_links_and_ends(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.txt", "a.png", "c.png", ".hidden.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "self").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "d.png").symlink_to(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe")
    found = [path.relative_to(tmp_path).as_posix() for path in walk_images([tmp_path])]
    assert found == ["a.png", "b/1.txt", "b/2.png", "b/broken", "c.png", "d.png", "pipe"]


def test_a_walk_takes_files_as_they_are_named(tmp_path: Path) -> None:
    named = [
        tmp_path / "missing.png",
        picture(tmp_path / "x" / ".hidden.png"),
        picture(tmp_path / "y" / "1.png"),
    ]
    assert list(walk_images([named[0], named[1], tmp_path / "y", str(named[0])])) == [*named, named[0]]


def test_a_folder_that_may_not_be_opened_is_given_to_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "open" / "1.png")
    closed = tmp_path / "closed"
    closed.mkdir()
    listed = Path.iterdir

    def iterdir(path: Path) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert list(walk_images([tmp_path])) == [closed, tmp_path / "open" / "1.png"]
    with pytest.raises(ImageError, match="is a folder"):
        load_image(closed, RULE)
    with pytest.raises(DataError, match="Permission denied"):
        read_data(closed)


def test_a_set_with_linked_folders(tmp_path: Path) -> None:
    picture(tmp_path / "store" / "1.png")
    picture(tmp_path / "set" / "a" / "1.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "store")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set")
    assert names(read_data(tmp_path / "set")) == ["a/1.png", "a/loop/b/1.png", "b/1.png"]


def test_further_columns_of_a_table_are_attributes(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").touch()
    (tmp_path / "table.csv").write_text("path,Label,Sex,scanner\na.png,x,F,\nb.png,y, M ,s 1\n")
    first, second = read_data(tmp_path / "table.csv").samples
    assert first.attributes == {"sex": "F", "scanner": ""}
    assert second.attributes == {"sex": "M", "scanner": "s 1"}


def test_a_folder_that_a_table_names_in_two_ways_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "table.csv").write_text(f"path,label\n{tmp_path}/a.png,x\nb.png,y\n")
    monkeypatch.chdir(tmp_path)
    path = Path("table.csv")
    assert unlisted_images(path, read_data(path)) == ["c.png"]
