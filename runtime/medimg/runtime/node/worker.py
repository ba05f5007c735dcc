"""Classifies what has been received, in batches over all associations."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np

from medimg.runtime.errors import DecoderError, MedimgError
from medimg.runtime.model.applicability import refusal
from medimg.runtime.model.spec import Allowed, ModelSpec
from medimg.runtime.node.bell import Bell
from medimg.runtime.node.config import Inference
from medimg.runtime.node.counters import Counters
from medimg.runtime.node.long_images import Combination, LongImage, LongImages
from medimg.runtime.node.models import Model, Models
from medimg.runtime.node.records import Outcome, Result, Waiting
from medimg.runtime.node.store import Store

_LOG = logging.getLogger(__name__)

MAX_BATCH = 64
_MAX_COUNT = 10_000
"""More queued images need not be told apart."""
_LONGEST_WAIT_S = 3600.0
_MOST_NOTES = 8
"""Notes on an image that its report repeats; its results line has all."""
NOT_DIAGNOSTIC = "Not for diagnostic use"


class Worker:
    """Takes images from the queue and commits their answers.

    Args:
        store: the queue.
        models: what answers.
        rules: budget, tries and how frames are combined.
        counters: of answers and of their latency.
        on_recorded: called after answers have been committed.
    """

    def __init__(
        self,
        store: Store,
        models: Models,
        rules: Inference,
        counters: Counters,
        on_recorded: Callable[[], None],
    ) -> None:
        self._store, self._models, self.rules, self._counters = store, models, rules, counters
        self._on_recorded = on_recorded
        self.bell = Bell()
        self._failures: dict[str, str] = {}
        self._image_s = rules.budget_ms / 1e3
        self._queue = threading.Condition()
        self._queued = 0
        self._long = LongImages(store)
        self._count_queued()

    def note_arrival(self, frames: int) -> None:
        """Tell that an image has been queued."""
        with self._queue:
            self._queued += frames == 1
        self.bell.ring()

    def hold_back(self, limit_s: float) -> None:
        """Wait while more images are queued than are soon answered, so that a sender comes no faster."""
        if self.rules.queue_ms:
            with self._queue:
                self._queue.wait_for(lambda: self._queued <= self._fitting(self.rules.queue_ms), limit_s)

    @property
    def batch_size(self) -> int:
        """How many images are expected to fit the budget."""
        return min(MAX_BATCH, self._fitting(self.rules.budget_ms))

    def _fitting(self, time_ms: float) -> int:
        """Give how many images are expected to be answered in a time, at least one."""
        return max(1, int(time_ms / 1e3 / self._image_s))

    def work(self) -> int:
        """Answer one batch of images, and as many frames of an image of several; give how many were taken."""
        batch = self._store.take(self.batch_size)
        if batch:
            with self._models.in_use() as model:
                results = [result for result in self._answers(batch, model) if result]
            self._record(results, batch)
        with self._models.in_use() as model:
            long = self._long.next(model)
            result = self._refusal(long.item, model) or self._go_on(long, model) if long else None
        if long and result:
            self._long.end(long)
            self._record([result], [long.item])
        return len(batch) + (long is not None)

    def _record(self, results: Sequence[Result], batch: Sequence[Waiting]) -> None:
        self._store.record(results)
        self._on_recorded()
        self._count_queued()
        now, received = time.time(), {item.sop_uid: item.received_at for item in batch}
        for result in results:
            self._failures.pop(result.sop_uid, None)
            self._counters.add("answered", outcome=result.outcome)
            self._counters.observe(max(0.0, now - received[result.sop_uid]))

    def _count_queued(self) -> None:
        """Count anew what senders wait for: not what is tried later, nor what has more than one frame."""
        queued = self._store.ready_count(_MAX_COUNT)
        with self._queue:
            self._queued = queued
            self._queue.notify_all()

    def _answers(self, batch: Sequence[Waiting], model: Model) -> Iterator[Result | None]:
        """Give each image's answer, or nothing where it is to be tried again."""
        to_classify = []
        for item in batch:
            if refusal := self._refusal(item, model):
                yield refusal
            else:
                to_classify.append(item)
        if to_classify:
            yield from self._classify(to_classify, model)

    def _refusal(self, item: Waiting, model: Model) -> Result | None:
        """Give the answer of an image that is not to be classified."""
        if item.tries > self.rules.max_tries:
            last = "the process ended each time it was classified"
            return _unclassified(item, model, "set aside", self._failures.get(item.sop_uid, last))
        if refusal := not_applicable(item, model.classifier.spec.allowed):
            return _unclassified(item, model, "not applicable", refusal)
        if item.frames > self.rules.max_frames:
            return _unclassified(item, model, "set aside", self._too_long(item.frames))
        return None

    def _classify(self, batch: Sequence[Waiting], model: Model) -> Iterator[Result | None]:
        classes = model.classifier.spec.classes
        started = time.perf_counter()
        try:
            predictions = list(model.classifier.predict([item.path for item in batch], top_k=classes))
        except Exception as error:  # noqa: BLE001  whatever it is, the images are tried again, alone
            self._failed(batch, error)
            return
        self._measured(len(predictions), time.perf_counter() - started)
        answers = {path: list(found) for path, found in groupby(predictions, lambda answer: answer.path)}
        for item in batch:
            frames = answers[str(item.path)]
            if failure := next((frame.error for frame in frames if frame.error), None):
                yield self._unreadable(item, model, failure.type, failure.message)
            else:
                yield self._classified(item, model, Combination(frames, model.classifier.spec.classes))

    def _go_on(self, long: LongImage, model: Model) -> Result | None:
        """Classify some more frames of an image; give its answer once there is one."""
        item, count = long.item, self.batch_size
        started = time.perf_counter()
        try:
            predictions = long.classify(count)
        except MedimgError as error:
            self._long.end(long)
            return self._unreadable(item, model, type(error).__name__, str(error))
        except Exception as error:  # noqa: BLE001  whatever it is, the image is tried again
            self._long.end(long)
            self._failed([item], error)
            return None
        self._measured(len(predictions), time.perf_counter() - started)
        if long.answers.count > self.rules.max_frames:
            return _unclassified(item, model, "set aside", self._too_long(long.answers.count))
        if len(predictions) == count:
            return None
        return self._classified(item, model, long.answers)

    def _too_long(self, frames: int) -> str:
        return f"it has {frames:,} frames or more; inference.max_frames is {self.rules.max_frames:,}"

    def _measured(self, images: int, took_s: float) -> None:
        if images:
            self._image_s += 0.2 * (took_s / images - self._image_s)

    def _failed(self, batch: Sequence[Waiting], error: Exception) -> None:
        """Have images tried again: alone at once, and later if one has failed alone."""
        _LOG.exception("a batch of %d failed", len(batch))
        for item in batch:
            self._failures[item.sop_uid] = f"{type(error).__name__}: {error}"
        if len(batch) == 1:
            self._postpone(batch[0])

    def _unreadable(self, item: Waiting, model: Model, kind: str, message: str) -> Result | None:
        reason = message.removeprefix(f"{item.path}: ")
        self._failures[item.sop_uid] = reason
        may_pass = kind == DecoderError.__name__
        if item.tries >= self.rules.max_tries:
            return _unclassified(item, model, "set aside" if may_pass else "unreadable", reason)
        if may_pass:
            self._postpone(item)
        return None

    def _postpone(self, item: Waiting) -> None:
        wait_s = min(self.rules.retry_s * 6 ** (item.tries - 1), _LONGEST_WAIT_S)
        self._counters.add("postponed")
        self._store.postpone(item.sop_uid, wait_s)

    def _classified(self, item: Waiting, model: Model, answers: Combination) -> Result:
        scores = answers.scores(self.rules.combine)
        answer = {"frames": answers.count, **describe_scores(scores, model.classifier.spec)}
        line = {**_identity(item, model), **answer, **({"notes": answers.notes} if answers.notes else {})}
        notes = "\n".join(answers.notes[:_MOST_NOTES]) or None
        return Result(item.sop_uid, "classified", model.sha256, scores, notes, line)


def _unclassified(item: Waiting, model: Model, outcome: Outcome, reason: str) -> Result:
    line = {**_identity(item, model), "reason": reason}
    return Result(item.sop_uid, outcome, model.sha256, reason=reason, line=line)


def not_applicable(item: Waiting, allowed: Allowed) -> str | None:
    """Say why the model may not be given an image; nothing if it may."""
    return refusal(allowed, item.modality, item.body_part, item.photometric)


def combined(scores: Sequence[tuple[float, ...]], rule: str) -> tuple[float, ...]:
    """Combine the scores of several images, class by class.

    Args:
        scores: one tuple an image.
        rule: `mean` or `max`.
    """
    values = np.array(scores, np.float64)
    return tuple(float(value) for value in (values.max(axis=0) if rule == "max" else values.mean(axis=0)))


def describe_scores(scores: Sequence[float], spec: ModelSpec) -> dict[str, object]:
    """Say scores, and how they stand to the operating points, as fields of a results line."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    by_label = dict(zip(spec.labels, scores, strict=True))
    return {
        "top_k": [{"index": n, "label": spec.labels[n], "score": round(scores[n], 6)} for n in order],
        "operating_points": [
            {
                "label": point.label,
                "threshold": point.threshold,
                "chosen_for": point.chosen_for,
                "reached": by_label[point.label] >= point.threshold,
            }
            for point in spec.operating_points
            if point.label in by_label
        ],
        "intended_use": spec.intended_use,
        "notice": NOT_DIAGNOSTIC,
    }


def _identity(item: Waiting, model: Model) -> dict[str, object]:
    return {
        "series_instance_uid": item.series_uid,
        "study_instance_uid": item.study_uid,
        "received_at": item.received_at,
        "model_sha256": model.sha256,
    }
