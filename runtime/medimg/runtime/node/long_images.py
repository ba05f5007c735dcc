"""Images of several frames: classified some frames at a time, so that no other image waits for them all."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.classifier import Prediction
from medimg.runtime.errors import ImageError
from medimg.runtime.images.load import load_frames
from medimg.runtime.node.models import Model
from medimg.runtime.node.records import Waiting
from medimg.runtime.node.store import Store

AT_ONCE = 3
"""Images that are under way together: a short one need not wait for a long one, and each takes memory."""


class Combination:
    """The scores of an image's frames, put together class by class as they come.

    Args:
        frames: the first.
        classes: how many the model has.
    """

    def __init__(self, frames: Sequence[Prediction], classes: int) -> None:
        self.count = 0
        self.notes: list[str] = []
        self._sum, self._largest = np.zeros(classes), np.zeros(classes)
        self.add(frames)

    def add(self, frames: Sequence[Prediction]) -> None:
        """Add frames, each with the scores of all classes."""
        for frame in frames:
            scores = np.array(scores_of(frame, len(self._sum)))
            self.note(*frame.notes)
            self._sum += scores
            np.maximum(self._largest, scores, out=self._largest)
        self.count += len(frames)

    def note(self, *notes: str) -> None:
        """Keep what a user must know about the image, once."""
        self.notes += [note for note in dict.fromkeys(notes) if note not in self.notes]

    def scores(self, rule: str) -> tuple[float, ...]:
        """Give the image's scores by `mean` or `max`.

        Raises:
            ImageError: there was no frame.
        """
        if not self.count:
            raise ImageError("holds no frame")
        return tuple(float(value) for value in (self._largest if rule == "max" else self._sum / self.count))


class LongImage:
    """One image that is under way, with the model that answers all of its frames."""

    def __init__(self, item: Waiting, model: Model) -> None:
        self.item, self.model = item, model
        self.answers = Combination((), model.classifier.spec.classes)
        self._frames: Iterator[NDArray[np.uint8]] = load_frames(
            item.path, model.classifier.spec.image, note=self.answers.note
        )

    def classify(self, count: int) -> list[Prediction]:
        """Classify as many more frames, or fewer where it ends.

        Raises:
            ImageError: it cannot be read.
        """
        classifier = self.model.classifier
        # Frames are decoded in this thread, one after another, while others are classified.
        predictions = list(classifier.predict(islice(self._frames, count), top_k=classifier.spec.classes))
        if failure := next((frame.error for frame in predictions if frame.error), None):
            raise ImageError(failure.message)
        self.answers.add(predictions)
        return predictions


class LongImages:
    """Chooses whose frames come next: of the image of which the fewest were classified.

    Args:
        store: the queue.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: list[LongImage] = []

    def next(self, model: Model) -> LongImage | None:
        """Give the image to go on with; one that another model began is begun anew."""
        self._open = [each if each.model is model else LongImage(each.item, model) for each in self._open]
        if len(self._open) < AT_ONCE and (self._open == [] or self._open[-1].item.tries == 1):
            item = self._store.take_long({each.item.sop_uid for each in self._open})
            if item:
                self._open.append(LongImage(item, model))
        return min(self._open, key=lambda each: each.answers.count, default=None)

    def end(self, image: LongImage) -> None:
        """Forget an image that has its answer, or is tried again."""
        self._open = [each for each in self._open if each is not image]


def scores_of(prediction: Prediction, classes: int) -> tuple[float, ...]:
    """Give a prediction's scores in the order of the labels."""
    scores = [0.0] * classes
    for best in prediction.top_k:
        scores[best.index] = best.score
    return tuple(scores)
