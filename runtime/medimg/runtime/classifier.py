"""Images in, the most likely classes out."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.backends import Probabilities, open_backend
from medimg.runtime.containers import open_onnx
from medimg.runtime.cpus import usable_cpus
from medimg.runtime.errors import ImageError, ModelError, UsageError
from medimg.runtime.images import load_frames, prepare
from medimg.runtime.preprocess import Images
from medimg.runtime.spec import ImageRule, ModelSpec

Input: TypeAlias = "str | Path | NDArray[np.generic]"


@dataclass(frozen=True)
class ClassScore:
    """One class and its probability."""

    index: int
    label: str
    score: float


@dataclass(frozen=True)
class InputError:
    """Why an input has no answer."""

    type: str
    """Name of the error's class, such as `ImageError`."""
    message: str


@dataclass(frozen=True)
class Prediction:
    """The answer for one image, or for one frame of a file with several."""

    path: str | None
    """As given; None for an array."""
    frame: int | None
    """Frame number from 0; None if the file could not be read."""
    top_k: tuple[ClassScore, ...] = ()
    """Most likely class first."""
    error: InputError | None = None


@dataclass(frozen=True)
class _Decoded:
    path: str | None
    frame: int | None
    image: NDArray[np.uint8] | None
    error: InputError | None = None


class Classifier:
    """An exported classifier, ready to answer.

    One instance may be used by one thread at a time; it decodes in threads of its own.

    Args:
        model: an artefact of medimg-export.
        backend: `auto`, `openvino` or `onnxruntime`.
        device: `auto`, `cpu`, `gpu` or `gpu:N`; never anything else than what was asked for.
        threads: processor threads; all that this process may use unless given.

    Raises:
        ModelError: the file cannot be used.
        BackendError: the back end or device cannot be had.
    """

    def __init__(
        self, model: str | Path, *, backend: str = "auto", device: str = "auto", threads: int | None = None
    ) -> None:
        artefact = open_onnx(model)
        self._name = str(model)
        self._threads = threads or usable_cpus()
        self.spec: ModelSpec = artefact.spec
        self.backend = open_backend(artefact, backend=backend, device=device, threads=self._threads)

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the back end."""
        self.backend.close()

    def probabilities(self, images: Images) -> Probabilities:
        """Classify one batch.

        Args:
            images: `(batch, rows, columns, 3)` uint8 RGB, already of the network's size.

        Returns:
            `(batch, classes)` float32.

        Raises:
            ModelError: the artefact's preprocessing is unspecified.
        """
        if self.spec.intensity.rule == "unspecified":
            raise ModelError(
                f"{self._name}: its preprocessing is unspecified, so an image cannot be given to it: "
                "export it again with --preprocessing"
            )
        return self.backend.infer(images)

    def predict(
        self, inputs: Iterable[Input], *, top_k: int = 5, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """Classify files or arrays, in order; a file that cannot be read is a prediction with an error.

        Args:
            inputs: paths of image files, or arrays as `medimg.runtime.images.prepare` takes them.
            top_k: how many classes to report, most likely first.
            batch_size: images a call of the back end; batches are filled across files.

        Yields:
            One prediction an image or frame, in the order of the inputs.
        """
        if top_k < 1 or batch_size < 1:
            raise UsageError(f"top_k {top_k} and batch_size {batch_size} must be at least 1")
        with ThreadPoolExecutor(self._threads, thread_name_prefix="medimg-decode") as pool:
            decoded = _decode_in_order(pool, inputs, self.spec.image, ahead=2 * self._threads)
            for group in _groups(decoded, batch_size):
                yield from self._answer(group, top_k)

    def _answer(self, group: list[_Decoded], top_k: int) -> Iterator[Prediction]:
        images = [item.image for item in group if item.image is not None]
        answers = iter(
            best_classes(self.probabilities(np.stack(images)), self.spec.labels, top_k) if images else ()
        )
        for item in group:
            best = () if item.image is None else next(answers)
            yield Prediction(item.path, item.frame, best, item.error)


def best_classes(
    probabilities: Probabilities, labels: tuple[str, ...], top_k: int
) -> list[tuple[ClassScore, ...]]:
    """Pick the most likely classes of each image by partial selection.

    Args:
        probabilities: `(batch, classes)`.
        labels: the classes' names.
        top_k: how many to keep at most.
    """
    kept = min(top_k, len(labels))
    candidates = np.argpartition(-probabilities, kept - 1, axis=1)[:, :kept]
    scores = np.take_along_axis(probabilities, candidates, axis=1)
    # Equal scores are listed by index, so that the order does not depend on the selection.
    order = np.lexsort((candidates, -scores), axis=1)
    best = np.take_along_axis(candidates, order, axis=1)
    scores = np.take_along_axis(scores, order, axis=1)
    return [
        tuple(
            ClassScore(int(index), labels[index], float(score))
            for index, score in zip(row, values, strict=True)
        )
        for row, values in zip(best, scores, strict=True)
    ]


def _decode(item: Input, rule: ImageRule) -> list[_Decoded]:
    path = None if isinstance(item, np.ndarray) else str(item)
    try:
        frames = [prepare(item, rule)] if isinstance(item, np.ndarray) else list(load_frames(item, rule))
    except ImageError as error:
        return [_Decoded(path, None, None, InputError(type(error).__name__, str(error)))]
    return [_Decoded(path, number, frame) for number, frame in enumerate(frames)]


def _decode_in_order(
    pool: ThreadPoolExecutor, inputs: Iterable[Input], rule: ImageRule, *, ahead: int
) -> Iterator[_Decoded]:
    """Decode with a bounded number of files under way, so that memory does not grow with the inputs."""
    waiting: deque[Future[list[_Decoded]]] = deque()
    source = iter(inputs)
    try:
        waiting.extend(pool.submit(_decode, item, rule) for item in islice(source, ahead))
        while waiting:
            done = waiting.popleft()
            waiting.extend(pool.submit(_decode, item, rule) for item in islice(source, 1))
            yield from done.result()
    finally:
        for future in waiting:
            future.cancel()


def _groups(items: Iterator[_Decoded], batch_size: int) -> Iterator[list[_Decoded]]:
    """Cut the stream where a batch of images is full; errors travel with the images around them."""
    group: list[_Decoded] = []
    images = 0
    for item in items:
        group.append(item)
        images += item.image is not None
        if images == batch_size or len(group) == 4 * batch_size:
            yield group
            group, images = [], 0
    if group:
        yield group
