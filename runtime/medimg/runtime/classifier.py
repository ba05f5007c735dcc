"""Images in, the most likely classes out."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.backends import Backend, Choice, Tuning, choose_backend
from medimg.runtime.errors import BackendError, ImageError, MedimgError, ModelError, UsageError
from medimg.runtime.images.gpu import GpuDecoder, open_decoder
from medimg.runtime.images.load import load_frames, prepare
from medimg.runtime.machine.cpus import divide, usable_cpus
from medimg.runtime.model.applicability import require_applicable
from medimg.runtime.model.containers import open_artefact
from medimg.runtime.model.preprocess import Images
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.ordered import in_order, worker_threads
from medimg.runtime.tasks import ACTIVATION_MAP, PROBABILITIES, Probabilities
from medimg.runtime.tasks.probabilities import NO_NUMBER, answered, require_columns

Input: TypeAlias = "str | Path | NDArray[np.generic]"
Decode: TypeAlias = Literal["cpu", "gpu"]
"""Where JPEG files are decoded."""


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
    notes: tuple[str, ...] = ()
    """What a user must know about the image, such as that its elements contradict each other."""


FRAMES_AHEAD = 16
"""Frames of one file that are decoded before they are needed."""


@dataclass(frozen=True)
class _Decoded:
    path: str | None
    frame: int | None
    image: NDArray[np.uint8] | None
    error: InputError | None = None
    notes: tuple[str, ...] = ()
    jpeg: bytes | None = None
    """A file that the GPU is to decode; then `image` is None until it has."""


class Classifier:
    """An exported classifier, ready to answer.

    Several threads may use one instance at once; each call of `predict` has decoding threads of its own.

    Args:
        model: an artefact of medimg-export.
        backend: `auto`, `openvino`, `onnxruntime` or `tensorrt`.
        device: `auto`, `cpu`, `gpu` or `gpu:N`; never anything else than what was asked for.
        threads: processor threads; all that this process may use unless given.
        tuned_for: `throughput` for many images a call of `predict`, `latency` for one at a time.
        dicom_window: another window of DICOM files than the artefact's own: `first`, `window-N` or `min-max`.
        trusted: SHA-256 of records (`.plan.json`) of TensorRT engines that the user vouches for.
        decode: `gpu` decodes JPEG files on the GPU that answers, as far as its pixels are the CPU's; this
            machine's processors decode the other files, and with `cpu` all of them.
        server: URL of a server that runs this model, in place of a back end here; see
            `medimg.runtime.backends.with_triton`.

    Raises:
        ModelError: the file cannot be used.
        BackendError: the back end or device cannot be had.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        tuned_for: Tuning = "throughput",
        dicom_window: str | None = None,
        trusted: Sequence[str] = (),
        decode: Decode = "cpu",
        server: str | None = None,
    ) -> None:
        self._name = str(model)
        self._division = divide(threads or usable_cpus())
        self.backend: Backend
        if server is not None:
            from medimg.runtime.backends.with_triton import connect

            if (backend, device) != ("auto", "auto"):
                raise UsageError("a server chooses its own back end and device: leave them out")
            remote = connect(server, Path(model))
            self.spec: ModelSpec = remote.spec
            self.backend, self.choice = remote, Choice(remote.name, remote.device, "")
        else:
            artefact = open_artefact(model, trusted)
            self.spec = artefact.spec
            self.choice = choose_backend(
                artefact.spec.precision, backend, device, engine=artefact.engine is not None
            )
            self.backend = self.choice.open(artefact, self._division.inference, tuned_for)
        if dicom_window is not None:
            self.spec = self.spec.with_(image=replace(self.spec.image, dicom_window=dicom_window))
        self._decoder = open_decoder(self.backend.device, self.spec.image) if decode == "gpu" else None

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        # A lost device fails once more when it is freed; what lost it is what the user must hear.
        with contextlib.suppress(*(() if value is None else (BackendError,))):
            self.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know about the answers, such as that nothing has verified them on this GPU."""
        # Of the back ends, those alone have notes that have something to say.
        return tuple(getattr(self.backend, "notes", ()))

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
            ModelError: the artefact's preprocessing is unspecified, or it gives not a column a class.
        """
        if self.spec.intensity.rule == "unspecified":
            raise ModelError(
                f"{self._name}: its preprocessing is unspecified, so an image cannot be given to it: "
                "export it again with --preprocessing"
            )
        return require_columns(self.backend.infer(images)[PROBABILITIES], self.spec, self._name)

    def activation_map(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Say of each place of an image how it speaks for each class; the mean over the places is the logit.

        Args:
            image: `(rows, columns, 3)` uint8 RGB, already of the network's size.

        Returns:
            `(rows, columns, classes)` float32, of the last feature map's size.

        Raises:
            ModelError: the artefact has no heat maps.
            BackendError: the back end gives none.

        Source:
            B. Zhou et al., Learning deep features for discriminative localization, CVPR 2016.
        """
        if not self.spec.heatmap:
            raise ModelError(f"{self._name}: has no heat maps: export it with --heatmap")
        (found,) = self.backend.infer(image[np.newaxis], (ACTIVATION_MAP,))[ACTIVATION_MAP]
        return np.asarray(found, np.float32)

    def predict(
        self, inputs: Iterable[Input], *, top_k: int = 5, batch_size: int | None = None
    ) -> Iterator[Prediction]:
        """Classify files or arrays, in order; a file that cannot be read is a prediction with an error.

        Files are decoded in threads while the back end runs; both work a bounded number of images ahead, so
        memory does not grow with the number of inputs.

        Args:
            inputs: paths of image files, or arrays as `medimg.runtime.images.load.prepare` takes them.
            top_k: how many classes to report, most likely first.
            batch_size: images a call of the back end, filled across files; what suits it best unless given.

        Yields:
            One prediction an image or frame, in the order of the inputs. A file whose later frames cannot be
            read gives those before them, and then the error. A DICOM file that the model is not for, by the
            values that its spec allows, is an error too.
        """
        size = self.backend.batch_size if batch_size is None else batch_size
        if top_k < 1 or size < 1:
            raise UsageError(f"top_k {top_k} and batch_size {size} must be at least 1")
        parallel = self.backend.parallel
        with (
            worker_threads(self._division.decoding, "decode") as decoders,
            worker_threads(parallel, "infer") as runners,
        ):
            work = partial(_decode, spec=self.spec, decoder=self._decoder)
            files = in_order(decoders, work, inputs, 2 * self._division.decoding + size)
            groups = _groups(chain.from_iterable(chain.from_iterable(files)), size)
            answers = in_order(runners, partial(self._answer, top_k=top_k), groups, parallel)
            yield from chain.from_iterable(answers)

    def _answer(self, group: list[_Decoded], top_k: int) -> list[Prediction]:
        if self._decoder is not None:
            group = _decoded_on_gpu(group, self._decoder)
        images = [item.image for item in group if item.image is not None]
        if not images:
            return [_prediction(item) for item in group]
        found = self.probabilities(np.stack(images))
        best = iter(best_classes(found, self.spec.labels, top_k))
        numbers = iter(answered(found).tolist())
        return [
            _prediction(item)
            if item.image is None
            else _prediction(item, next(best), is_number=next(numbers))
            for item in group
        ]


def _prediction(item: _Decoded, best: tuple[ClassScore, ...] = (), *, is_number: bool = True) -> Prediction:
    """Give an image its answer, which is an error where the model gives no number."""
    if is_number:
        return Prediction(item.path, item.frame, best, item.error, item.notes)
    name = "this array" if item.path is None else item.path
    failure = InputError("NoNumberError", f"{name}: {NO_NUMBER}")
    return Prediction(item.path, item.frame, (), failure, item.notes)


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


def _decoded_on_gpu(group: list[_Decoded], decoder: GpuDecoder) -> list[_Decoded]:
    """Decode the files of a batch that are left to the GPU, all at once."""
    images = iter(decoder.decode([item.jpeg for item in group if item.jpeg is not None]))
    return [item if item.jpeg is None else _of_gpu(item, next(images)) for item in group]


def _of_gpu(item: _Decoded, image: NDArray[np.uint8] | None) -> _Decoded:
    if image is not None:
        return replace(item, image=image, jpeg=None)
    reason = f"{item.path}: the GPU cannot decode it: a damaged JPEG, or one for --decode cpu"
    return _Decoded(item.path, None, None, InputError(ImageError.__name__, reason))


def _decode(item: Input, spec: ModelSpec, decoder: GpuDecoder | None) -> Iterator[list[_Decoded]]:
    """Decode a file's first frames at once; those of a long one follow as they are needed."""
    frames = _frames(item, spec, decoder)
    first = list(islice(frames, FRAMES_AHEAD))
    return chain((first,), ([frame] for frame in frames))


def _frames(item: Input, spec: ModelSpec, decoder: GpuDecoder | None) -> Iterator[_Decoded]:
    path = None if isinstance(item, np.ndarray) else str(item)
    notes: list[str] = []
    try:
        jpeg = None if decoder is None or isinstance(item, np.ndarray) else decoder.read(Path(item))
        if jpeg is not None:
            yield _Decoded(path, 0, None, jpeg=jpeg)
            return
        for number, frame in enumerate(_pixels(item, spec, notes)):
            yield _Decoded(path, number, frame, notes=tuple(notes))
            notes.clear()
    except MedimgError as error:
        yield _Decoded(path, None, None, InputError(type(error).__name__, str(error)))


def _pixels(item: Input, spec: ModelSpec, notes: list[str]) -> Iterator[NDArray[np.uint8]]:
    if isinstance(item, np.ndarray):
        yield prepare(item, spec.image)
        return
    if not str(item):
        raise ImageError("an empty name is no input")
    require_applicable(Path(item), spec.allowed)
    yield from load_frames(item, spec.image, note=notes.append)


def _groups(items: Iterator[_Decoded], batch_size: int) -> Iterator[list[_Decoded]]:
    """Cut the stream where a batch of images is full; errors travel with the images around them."""
    group: list[_Decoded] = []
    images = 0
    for item in items:
        group.append(item)
        images += item.image is not None or item.jpeg is not None
        if images == batch_size or len(group) == 4 * batch_size:
            yield group
            group, images = [], 0
    if group:
        yield group
