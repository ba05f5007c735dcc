"""The model that is to be made smaller: read, checked, and asked about every image once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data import DataSet
from medimg.runtime.errors import DataError, ModelError, NoSpecError, UsageError
from medimg.runtime.images.rule import ImageRule
from medimg.runtime.model.containers import file_sha256
from medimg.runtime.model.preprocess import Images
from medimg.runtime.model.spec import HeldOut, Intensity, ModelSpec
from medimg.runtime.statistics.bootstrap import Resamples
from medimg.runtime.statistics.metrics import images_needed
from medimg.runtime.tasks import Head, Probabilities, TaskName, task_named, task_of_head
from medimg.train.compression.chain import Chain, read_chain
from medimg.train.compression.options import CompressOptions
from medimg.train.compression.passes import BATCH, grams, layer_answers, logits
from medimg.train.compression.reconstruction import SAMPLED
from medimg.train.compression.selection import Matrix
from medimg.train.data.array_store import ArrayStore, key_of
from medimg.train.data.augmentation import Copies
from medimg.train.data.decoded_images import DecodedImages, cache_images, images_key
from medimg.train.data.division import Division, read_labelled
from medimg.train.evaluation.answers import Answers, ask
from medimg.train.evaluation.keras_process import prove
from medimg.train.evaluation.scores import score
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.keras_files import load_float32, require_keras_file
from medimg.train.keras_setup import start_keras
from medimg.train.tasks import head_of, train_task

LOOKED_AT = 96
"""Images that channels are chosen by."""
LEAST_LOOKED_AT = 16

_HEADS: dict[str, Head] = {"softmax": "softmax", "linear": "logits"}


@dataclass(frozen=True)
class Parent:
    """A Keras model that was read as a chain."""

    name: str
    sha256: str
    """Of its file."""
    chain: Chain
    spec: ModelSpec
    image: ImageRule
    """What smaller models take."""


def known_spec(model: Path, options: CompressOptions) -> ModelSpec | None:
    """Look at a model's file before Keras starts, and give its spec; None where it has none.

    Raises:
        ModelError: it is not there, or its preprocessing is unspecified.
        UsageError: it is no Keras file, or the options do not say what its missing spec would.
    """
    require_keras_file(model, "compressed: give the Keras file")
    if not model.exists():
        raise ModelError(f"{model}: no such file")
    try:
        spec = ModelSpec.read(model)
    except NoSpecError:
        if options.preprocessing is None:
            raise UsageError(
                f"{model}: carries no spec, so say how its images were scaled, by --preprocessing caffe, "
                "torch, tf, unit or raw"
            ) from None
        return None
    if spec.intensity.rule == "unspecified":
        raise ModelError(f"{model}: its preprocessing is unspecified, so no image can be given to it")
    return spec


def read_parent(model: Path, data: Path, options: CompressOptions, threads: int) -> tuple[Parent, DataSet]:
    """Read a model, and the data with the model's labels.

    Raises:
        ChainError: it cannot be compressed.
        DataError: the data cannot be understood, or hold a class that the model does not know.
        ModelError: it cannot be used.
        UsageError: as in `known_spec`.
    """
    spec = known_spec(model, options)
    prove(model, threads)
    start_keras(threads, options.seed)
    chain = read_chain(load_float32(model), str(model))
    task = spec.task if spec else task_of_head(head_of(chain.activation, chain.classes)).name
    held_out = spec.held_out if spec else None
    dataset = read_labelled(data, fit_options(options, held_out, task), threads, task)
    spec = spec or _made_spec(chain, dataset, options, str(model))
    return Parent(
        str(model), file_sha256(model), chain, spec, _smaller(spec.image, chain, options)
    ), dataset.relabelled(spec.labels)


def fit_options(options: CompressOptions, held_out: HeldOut | None, task: TaskName) -> FitOptions:
    """Give what reading and dividing data take; what the original's spec says comes before the options."""
    said = held_out or HeldOut(options.validation_fraction, options.seed, options.group_by)
    return FitOptions(
        head=train_task(task).default_head,
        validation_fraction=said.fraction,
        group_by=said.group_by,
        seed=said.seed,
        max_unreadable=options.max_unreadable,
        allow_unlisted=options.allow_unlisted,
        batch_size=options.batch_size,
        augment=options.augment,
        augment_copies=options.augment_copies,
    )


def _made_spec(chain: Chain, dataset: DataSet, options: CompressOptions, name: str) -> ModelSpec:
    """Make the spec of a model of other origin, whose classes are those of the data, in their order."""
    assert options.preprocessing is not None
    rows, columns, channels = chain.shape
    classes = 2 if chain.classes == 1 else chain.classes
    if classes != len(dataset.labels):
        raise DataError(f"{name}: has {classes} classes, the data have {', '.join(dataset.labels)}")
    return ModelSpec(
        dataset.labels,
        ImageRule(rows, columns),
        Intensity.named(
            options.preprocessing, channels=1 if channels == 1 else 3, color_order=options.color_order
        ),
        task=dataset.task,
        head=head_of(chain.activation, chain.classes),
    )


def _smaller(image: ImageRule, chain: Chain, options: CompressOptions) -> ImageRule:
    if options.image_size is None:
        return image
    if chain.flattens:
        raise UsageError(
            "--image-size: the model flattens its last image, so its dense layers take that size alone"
        )
    if options.image_size > min(image.rows, image.columns):
        raise UsageError(
            f"--image-size {options.image_size}: the original takes {image.rows}x{image.columns}; give less"
        )
    return replace(image, rows=options.image_size, columns=options.image_size)


@dataclass(frozen=True)
class Lesson:
    """The images of a part, what they show, and what the original says of them.

    All hold one copy of each image after another; the first copy is the image itself.
    """

    images: Images
    """`(copies · images, …)`, as smaller models take them."""
    truth: NDArray[Any]
    """`(copies · images,)` true classes, or `(copies · images, labels)` 0 and 1."""
    logits: NDArray[np.float32]
    """`(copies · images, classes)`, what the original answers."""
    copies: int = 1


@dataclass(frozen=True)
class Taught:
    """All that is known of the original before any model is made smaller."""

    train: Lesson
    validation: Lesson
    grams: tuple[Matrix, ...]
    looked_at: NDArray[np.int64]
    """The training images that channels are chosen by."""
    layer_answers: NDArray[np.float32]
    """What each layer says of those, as smaller models see them: `by_unit` divides it."""


def require_images(division: Division, test: DataSet, max_drop: float) -> None:
    """Check that there are enough images to choose channels by, and for the gate.

    Raises:
        DataError: there are not.
    """
    if len(division.train) < LEAST_LOOKED_AT:
        raise DataError(
            f"{len(division.train)} training images are too few to choose channels by: at least "
            f"{LEAST_LOOKED_AT} are needed, {LOOKED_AT} are better"
        )
    needed = images_needed(max_drop)
    drawn = Resamples([sample.patient for sample in test.samples]).resampling
    if drawn.units < needed:
        raise DataError(
            f"the part test has {drawn.units} {drawn.unit}, and the gate needs at least {needed} that chose "
            f"nothing: fewer cannot prove a drop of at most {max_drop:g}; give more, or a larger --max-drop"
        )


def teach(parent: Parent, division: Division, job: Job, kept: ArrayStore) -> Taught:
    """Ask the original about every image, and collect what channels are chosen by.

    Args:
        parent: the original.
        division: training and validation images.
        job: options; its store is for decoded images.
        kept: the store that outlives a kill; it holds no images.

    Raises:
        DataError: too many images cannot be read.
        ModelError: the original decides no better than chance.
    """

    def copied(seen: DecodedImages, copies: Copies | None) -> Images:
        if copies is None:
            return seen.images
        tracked = job.progress.track(
            copies.batches(seen.images, BATCH),
            "make copies of training images",
            copies.number * math.ceil(len(seen.images) / BATCH),
        )
        key = key_of("copies", seen.key, repr(copies))
        return job.store.array(key, copies.number * len(seen.images), tracked).values

    def lesson(dataset: DataSet, part: str, copies: Copies | None = None) -> tuple[Lesson, DecodedImages]:
        seen = cache_images(dataset, parent.spec.image, job.options, job, f"{part} images")
        images = copied(seen, copies)
        given = logits(parent.chain, images, parent.spec.intensity, job.progress, f"{part} images")
        key = key_of("logits", parent.sha256, seen.key, repr(parent.spec.intensity), repr(copies))
        known = kept.array(key, len(images), given).values
        smaller = cache_images(dataset, parent.image, job.options, job, f"{part} images")
        number, read = copies.number if copies else 1, seen.dataset
        truth = np.concatenate([train_task(read.task).truth_of(read)] * number)
        return Lesson(copied(smaller, copies), truth, np.asarray(known), number), seen

    validation, validated = lesson(division.validation, "validation")
    require_trained(parent, validation, validated.dataset)
    train, seen = lesson(division.train, "training", job.options.copies)
    places = np.unique(np.linspace(0, len(seen.images) - 1, LOOKED_AT).astype(np.int64))

    def sums() -> Iterator[Matrix]:
        found = grams(parent.chain, seen.images, places, parent.spec.intensity, job.progress)
        yield np.concatenate([gram.ravel() for gram in found])[None]

    key = key_of("grams", parent.sha256, seen.key, repr(parent.spec.intensity), str(LOOKED_AT))
    flat = kept.array(key, 1, sums()).values[0]
    sides = [unit.outputs for unit in parent.chain.units[:-1]]
    ends = np.cumsum([side * side for side in sides])
    pieces = np.split(np.asarray(flat), ends[:-1])
    matrices = tuple(piece.reshape(side, side) for piece, side in zip(pieces, sides, strict=True))
    layers = layer_answers(parent.chain, train.images, places, parent.spec.intensity, job.progress)
    settings = (parent.spec.intensity, parent.image, LOOKED_AT, SAMPLED)
    key = key_of("layers", parent.sha256, seen.key, repr(settings))
    return Taught(train, validation, matrices, places, kept.array(key, len(places), layers).values)


def require_trained(parent: Parent, lesson: Lesson, dataset: DataSet) -> None:
    """Check that the original decides better than chance.

    Raises:
        ModelError: it does not.
    """
    probabilities = _probabilities(lesson.logits, parent.spec)
    given = Answers(
        parent.spec.labels,
        parent.spec.task,
        dataset.targets > 0,
        probabilities,
        dataset.samples,
        "keras",
        "fp32",
    )
    found = score(given, Resamples(given.patients)).balanced_accuracy
    chance = train_task(parent.spec.task).chance(parent.spec.classes)
    if not found.low > chance:
        raise ModelError(
            f"{parent.name}: its balanced accuracy on {len(dataset)} validation images is {found}, which "
            f"chance may give ({chance:.3f}): train it first, or name the preprocessing that it has"
        )


def _probabilities(logits: NDArray[np.float32], spec: ModelSpec) -> Probabilities:
    return task_named(spec.task).of_logits(logits)


def reference(parent: Parent, path: Path, test: DataSet, job: Job, kept: ArrayStore) -> Answers:
    """Give the original's answers in float32 on the images of the gate.

    Args:
        parent: the original.
        path: its float32 copy, with the spec.
        test: images that chose nothing.
        job: threads and progress.
        kept: where probabilities stay.
    """

    def given() -> Iterator[Probabilities]:
        yield ask(
            path,
            parent.spec,
            test,
            batch_size=8,
            backend="auto",
            threads=job.threads,
            progress=job.progress,
        ).probabilities

    content = images_key(test, parent.spec.image, job.threads)
    key = key_of("reference", parent.sha256, content, parent.spec.to_json())
    probabilities = np.asarray(kept.array(key, len(test), given()).values)
    return Answers(
        parent.spec.labels, parent.spec.task, test.targets > 0, probabilities, test.samples, "keras", "fp32"
    )
