"""Which head a network has: what its graph, its loss and its answers show, or a question to the user.

A softmax too many changes every probability, and no comparison with Keras would notice, since the reference
would get the same. So whatever is not shown is asked.
"""

import numpy as np
from numpy.typing import NDArray

from medimg.export.errors import SourceError
from medimg.export.sources.base import Source
from medimg.export.sources.clues import QUANTITY_LOSSES
from medimg.export.synthetic import synthetic_images
from medimg.runtime.errors import UsageError
from medimg.runtime.model.preprocess import to_network_input
from medimg.runtime.model.spec import Intensity, ModelSpec
from medimg.runtime.tasks import Head, Probabilities, task_named
from medimg.runtime.tasks.probabilities import RANGE_TOLERANCE, lie_within, sum_to_one

TRIED = 8
"""Synthetic images that an undecided network is asked about, in each scaling."""
_SAY = "say what they are with --head softmax|sigmoid|multilabel|logits"
_NO_LABELS = (
    "one unit tells nothing by a softmax, which is then always 1: such a model cannot tell classes apart"
)


def choose_head(source: Source, intensity: Intensity) -> tuple[Head, list[str]]:
    """Tell the head from what Keras itself shows.

    Args:
        source: the model.
        intensity: how images are scaled, as far as that is known.

    Returns:
        The head, and what had to be concluded.

    Raises:
        SourceError: it cannot be told.
    """
    nature, units = source.ending.nature, source.units
    if source.ending.direct and nature.kind == "softmax":
        return "softmax", []
    if source.ending.direct:
        return ("sigmoid" if units == 1 else "multilabel"), _doubts_of_sigmoids(source)
    outputs = _answers(source, intensity)
    within, whole = bool(lie_within(outputs).all()), bool(sum_to_one(outputs).all())
    if whole and units > 1 and nature.kind != "linear":
        said = "" if nature.is_probable else ", which no last activation shows"
        return "softmax", [
            f"its outputs sum to 1 on every trial image{said}: taken for probabilities as they are"
        ]
    if nature.kind == "sigmoid" and nature.most <= 1 + RANGE_TOLERANCE:
        return ("sigmoid" if units == 1 else "multilabel"), []
    if nature.kind == "linear" and not within:
        return _of_free_numbers(source)
    raise SourceError(_question(source, outputs))


def refuse_softmax_of_one(source: Source) -> None:
    """Refuse a softmax over one unit, whatever the user says of it.

    Raises:
        SourceError: the network ends in such.
    """
    if source.units == 1 and source.ending.nature.kind == "softmax" and source.ending.direct:
        raise SourceError(f"{source.origin.path}: ends in a softmax over one unit: {_NO_LABELS}")


def check_answers(spec: ModelSpec, reference: Probabilities, where: str) -> None:
    """Check that Keras's answers on the trial images are probabilities, as the head says.

    Args:
        spec: the artefact's.
        reference: `(images, classes)`: what an artefact must give.
        where: the model file, for the message.

    Raises:
        UsageError: they are not.
    """
    finite, task = reference[np.isfinite(reference).all(axis=1)], task_named(spec.task)
    wrong = finite[~task.are_answers(finite)]
    if not len(wrong):
        return
    raise UsageError(
        f"{where}: its head is said to be {spec.head}, which gives values {task.range_of_answers}, but Keras "
        f"gives {_shown(wrong[0])} on a trial image: {_SAY}"
    )


def _answers(source: Source, intensity: Intensity) -> NDArray[np.float32]:
    """Ask Keras about synthetic images; in every range that networks are trained in, if that is not known."""
    rows, columns, channels = source.input_shape
    images = synthetic_images(rows, columns, TRIED)
    if intensity.rule != "unspecified":
        inputs = [to_network_input(images, intensity)]
    else:
        values = images[..., :channels].astype(np.float32)
        inputs = [values, values / np.float32(255), values / np.float32(127.5) - np.float32(1)]
    outputs = np.concatenate([source.predict(item) for item in inputs])
    finite: NDArray[np.float32] = outputs[np.isfinite(outputs).all(axis=1)]
    if not len(finite):
        raise SourceError(f"{source.origin.path}: Keras gives no number for any trial image")
    return finite


def _of_free_numbers(source: Source) -> tuple[Head, list[str]]:
    """Tell logits from quantities by the loss, where the file says one."""
    path, units, clues = source.origin.path, source.units, source.origin.clues
    if clues.loss in QUANTITY_LOSSES:
        raise SourceError(
            f"{path}: ends in {units} linear unit(s) and was trained with {clues.loss}: quantities, not "
            "classes; --head logits if they are classes all the same"
        )
    if clues.loss == "binary_crossentropy" and units > 1:
        raise SourceError(
            f"{path}: ends in {units} linear units and was trained with {clues.loss}: logits of labels that "
            "do not exclude one another: add keras.layers.Activation('sigmoid') to it and save it again; "
            "--head logits if exactly one class is right"
        )
    if units == 1 and not (clues.from_logits and clues.loss == "binary_crossentropy"):
        raise SourceError(
            f"{path}: ends in one unit without a sigmoid: a quantity, or a logit (--head logits adds it)"
        )
    return "logits", []


def _doubts_of_sigmoids(source: Source) -> list[str]:
    loss = source.origin.clues.loss
    if source.units == 1 or loss not in {"categorical_crossentropy", "sparse_categorical_crossentropy"}:
        return []
    return [
        f"the model ends in {source.units} sigmoids but was trained with {loss}: each class's probability is "
        "given by itself (multilabel), and they need not sum to 1"
    ]


def _question(source: Source, outputs: NDArray[np.float32]) -> str:
    """Say what was seen, and ask."""
    nature = source.ending.nature
    what = {
        "softmax": "its last layers combine the outputs of a softmax",
        "sigmoid": "its last layers combine the outputs of sigmoids",
        "linear": "it ends without an activation, but its outputs lie within 0 and 1 on every trial image",
        "other": "its last activation gives neither probabilities nor logits",
    }[nature.kind]
    row = outputs[int(np.abs(outputs.sum(axis=1) - 1).argmax())]
    return f"{source.origin.path}: {what} (one image gives {_shown(row)}): {_SAY}"


def _shown(row: NDArray[np.float32]) -> str:
    return ", ".join(f"{value:.3g}" for value in row[:4]) + (", …" if len(row) > 4 else "")
