"""Images in, answers out: order, batches, bad files, refusals."""

import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medimg.runtime import classifier as classifier_module
from medimg.runtime.backends import NAMES, Tuning
from medimg.runtime.classifier import Classifier, best_classes
from medimg.runtime.errors import (
    BackendError,
    ImageError,
    IntegrityError,
    ModelError,
    NoSpecError,
    UsageError,
)
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import embed_in_onnx, open_onnx
from medimg.runtime.model.spec import Intensity


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(1)
    paths = [folder / f"{number:02}.png" for number in range(11)]
    for path in paths:
        cv2.imwrite(str(path), generator.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    return paths


@pytest.mark.parametrize("backend", NAMES)
def test_answers_do_not_depend_on_the_batch(ready_artefact: Path, pictures: list[Path], backend: str) -> None:
    with Classifier(ready_artefact, backend=backend) as classifier:
        by_size = {
            size: [p.top_k for p in classifier.predict(pictures, batch_size=size)] for size in (1, 3, 11, 64)
        }
    for answers in by_size.values():
        for alone, together in zip(by_size[1], answers, strict=True):
            assert alone[0].label == together[0].label
            assert alone[0].score == pytest.approx(together[0].score, abs=1e-6)


def test_back_ends_agree(ready_artefact: Path, pictures: list[Path]) -> None:
    scores: list[NDArray[np.float32]] = []
    for backend in NAMES:
        with Classifier(ready_artefact, backend=backend, device="cpu") as classifier:
            assert (classifier.backend.name, classifier.backend.precision) == (backend, "fp32")
            answers = classifier.predict(pictures)
            scores.append(np.array([[best.score for best in answer.top_k] for answer in answers], np.float32))
    assert np.abs(scores[0] - scores[1]).max() <= 1e-5


def test_order_is_the_inputs_and_bad_files_are_results(
    ready_artefact: Path, pictures: list[Path], tmp_path: Path
) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    inputs = [pictures[2], empty, pictures[0], tmp_path / "absent.png", pictures[1]]
    with Classifier(ready_artefact) as classifier:
        answers = list(classifier.predict(inputs, batch_size=2))
    assert [answer.path for answer in answers] == [str(path) for path in inputs]
    assert [answer.error is None for answer in answers] == [True, False, True, False, True]
    assert answers[1].error is not None
    assert answers[1].error.type == "ImageError"
    assert str(empty) in answers[1].error.message


def test_arrays_give_the_answers_of_their_files(ready_artefact: Path, pictures: list[Path]) -> None:
    arrays = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in pictures]
    with Classifier(ready_artefact) as classifier:
        from_files = [answer.top_k for answer in classifier.predict(pictures)]
        from_arrays = [
            answer.top_k for answer in classifier.predict(array for array in arrays if array is not None)
        ]
    assert from_arrays == from_files


def test_inputs_are_read_as_they_are_needed(ready_artefact: Path, pictures: list[Path]) -> None:
    taken, before = 0, {*threading.enumerate()}

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield pictures[0]

    with Classifier(ready_artefact, threads=2) as classifier:
        answers = classifier.predict(endless(), batch_size=4)
        for _ in range(20):
            next(answers)
        assert isinstance(answers, Generator)
        answers.close()
        batches_ahead = classifier.backend.parallel
    assert taken <= 20 + batches_ahead * 4 + (2 * 2 + 4) + 1
    assert not {thread for thread in threading.enumerate() if "medimg" in thread.name} - before


def test_several_threads_may_use_one_classifier(ready_artefact: Path, pictures: list[Path]) -> None:
    with Classifier(ready_artefact) as classifier:
        expected = [answer.top_k for answer in classifier.predict(pictures)]
        with ThreadPoolExecutor(4) as threads:
            found = list(
                threads.map(
                    lambda size: [answer.top_k for answer in classifier.predict(pictures, batch_size=size)],
                    (1, 2, 3, 5) * 5,
                )
            )
    for answers in found:
        for ours, theirs in zip(answers, expected, strict=True):
            assert [best.index for best in ours] == [best.index for best in theirs]
            assert ours[0].score == pytest.approx(theirs[0].score, abs=1e-6)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("tuned_for", ["latency", "throughput"])
def test_tuning_changes_no_answer(
    ready_artefact: Path, pictures: list[Path], backend: str, tuned_for: Tuning
) -> None:
    with Classifier(ready_artefact, backend=backend) as classifier:
        expected = [answer.top_k for answer in classifier.predict(pictures)]
    with Classifier(ready_artefact, backend=backend, tuned_for=tuned_for) as classifier:
        found = [answer.top_k for answer in classifier.predict(pictures)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0].score == pytest.approx(theirs[0].score, abs=1e-6)


@pytest.mark.parametrize("backend", NAMES)
def test_a_closed_classifier_says_so(ready_artefact: Path, pictures: list[Path], backend: str) -> None:
    with Classifier(ready_artefact, backend=backend) as classifier:
        pass
    with pytest.raises(BackendError, match="closed"):
        list(classifier.predict(pictures))


def test_frames_of_a_long_file_are_decoded_as_they_are_needed(
    ready_artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0

    def endless_frames(_path: Path, rule: ImageRule, note: object = None) -> Iterator[NDArray[np.uint8]]:
        nonlocal decoded
        while True:
            decoded += 1
            yield np.zeros((rule.rows, rule.columns, 3), np.uint8)

    monkeypatch.setattr(classifier_module, "load_frames", endless_frames)
    with Classifier(ready_artefact, threads=1) as classifier:
        answers = classifier.predict([Path("long.dcm")], batch_size=4)
        frames = [next(answers).frame for _ in range(40)]
        batches_ahead = classifier.backend.parallel
    assert frames == list(range(40))
    assert decoded <= 40 + classifier_module.FRAMES_AHEAD + 4 * (batches_ahead + 1)


def test_frames_before_a_damaged_one_are_answered(
    ready_artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_good_frames(path: Path, rule: ImageRule, note: object = None) -> Iterator[NDArray[np.uint8]]:
        for _ in range(2):
            yield np.zeros((rule.rows, rule.columns, 3), np.uint8)
        raise ImageError(f"{path}: a damaged frame")

    monkeypatch.setattr(classifier_module, "load_frames", two_good_frames)
    with Classifier(ready_artefact) as classifier:
        answers = list(classifier.predict([Path("a.dcm")]))
    assert [answer.frame for answer in answers] == [0, 1, None]
    assert answers[2].error is not None
    assert answers[2].error.message == "a.dcm: a damaged frame"


def test_top_k_is_limited_to_the_classes(ready_artefact: Path, pictures: list[Path]) -> None:
    with Classifier(ready_artefact) as classifier:
        (answer,) = classifier.predict(pictures[:1], top_k=50)
        with pytest.raises(UsageError, match="top_k 0"):
            next(classifier.predict(pictures[:1], top_k=0))
    assert len(answer.top_k) == 3
    assert sum(best.score for best in answer.top_k) == pytest.approx(1, abs=1e-5)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_best_classes_equal_a_full_sort(images: int, classes: int, top_k: int, seed: int) -> None:
    probabilities = np.random.default_rng(seed).random((images, classes), dtype=np.float32)
    labels = tuple(str(number) for number in range(classes))
    expected = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    found = best_classes(probabilities, labels, top_k)
    assert [[best.index for best in row] for row in found] == expected.tolist()
    assert [[best.label for best in row] for row in found] == [[labels[i] for i in row] for row in expected]


def test_a_changed_byte_is_refused_before_a_back_end_sees_it(ready_artefact: Path, tmp_path: Path) -> None:
    content = bytearray(ready_artefact.read_bytes())
    content[len(content) // 3] ^= 1
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(content)
    with pytest.raises((IntegrityError, ModelError), match=r"changed\.onnx"):
        Classifier(changed)


def test_files_that_are_no_artefacts_are_refused(ready_artefact: Path, tmp_path: Path) -> None:
    artefact = open_onnx(ready_artefact)
    stripped = tmp_path / "stripped.onnx"
    stripped.write_bytes(
        artefact.content[: artefact.content.rindex(b"\x72", 0, artefact.content.index(b"medimg\x12"))]
    )
    with pytest.raises(NoSpecError, match="no medimg entry"):
        Classifier(stripped)
    with pytest.raises(ModelError, match="No such file"):
        Classifier(tmp_path / "absent.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    with pytest.raises(ModelError, match="not an ONNX file"):
        Classifier(text)


def test_unspecified_preprocessing_is_refused(
    ready_artefact: Path, pictures: list[Path], tmp_path: Path
) -> None:
    artefact = open_onnx(ready_artefact)
    start = artefact.content.rindex(b"\x72", 0, artefact.content.index(b"medimg\x12"))
    unknown = tmp_path / "unknown.onnx"
    unknown.write_bytes(
        embed_in_onnx(artefact.content[:start], artefact.spec.with_(intensity=Intensity("unspecified")))
    )
    with Classifier(unknown) as classifier, pytest.raises(ModelError, match="--preprocessing"):
        list(classifier.predict(pictures[:1]))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"device": "gpu"}, "cannot be had"),
        ({"device": "gpu:1", "backend": "onnxruntime"}, "onnxruntime offers cpu"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"backend": "tflite"}, "no back end 'tflite'"),
    ],
)
def test_a_device_that_cannot_be_had_is_an_error(
    ready_artefact: Path, choice: dict[str, str], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        Classifier(ready_artefact, **choice)  # type: ignore[arg-type]
