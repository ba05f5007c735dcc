"""Classifies what has been received, in batches over all associations."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np

from medimg.runtime.classifier import Prediction
from medimg.runtime.node.bell import Bell
from medimg.runtime.node.config import Inference
from medimg.runtime.node.counters import Counters
from medimg.runtime.node.models import Model, Models
from medimg.runtime.node.records import Result, Waiting
from medimg.runtime.node.store import Store
from medimg.runtime.spec import Allowed, ModelSpec

_LOG = logging.getLogger(__name__)

MAX_BATCH = 64
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
        self._store, self._models, self._rules, self._counters = store, models, rules, counters
        self._on_recorded = on_recorded
        self.bell = Bell()
        self._failures: dict[str, str] = {}
        self._image_s = rules.budget_ms / 1e3
        self._queue = threading.Condition()
        self._queued = store.counts()["received"]

    def note_arrival(self) -> None:
        """Tell that an image has been queued."""
        with self._queue:
            self._queued += 1
        self.bell.ring()

    def hold_back(self, limit_s: float) -> None:
        """Wait while more images are queued than are soon answered, so that a sender comes no faster."""
        if self._rules.queue_ms:
            with self._queue:
                self._queue.wait_for(lambda: self._queued <= self._fitting(self._rules.queue_ms), limit_s)

    @property
    def batch_size(self) -> int:
        """How many images are expected to fit the budget."""
        return min(MAX_BATCH, self._fitting(self._rules.budget_ms))

    def _fitting(self, time_ms: float) -> int:
        """Give how many images are expected to be answered in a time, at least one."""
        return max(1, int(time_ms / 1e3 / self._image_s))

    def work(self) -> int:
        """Answer one batch; give how many images were taken."""
        batch = self._store.take(self.batch_size)
        if not batch:
            return 0
        with self._models.in_use() as model:
            results = [result for result in self._answers(batch, model) if result]
        self._store.record(results)
        self._on_recorded()
        with self._queue:
            self._queued -= len(results)
            self._queue.notify_all()
        now, received = time.time(), {item.sop_uid: item.received_at for item in batch}
        for result in results:
            self._failures.pop(result.sop_uid, None)
            self._counters.add("answered", outcome=result.outcome)
            self._counters.observe(max(0.0, now - received[result.sop_uid]))
        return len(batch)

    def _answers(self, batch: Sequence[Waiting], model: Model) -> Iterator[Result | None]:
        """Give each image's answer, or nothing where it is to be tried again."""
        spec = model.classifier.spec
        to_classify = []
        for item in batch:
            line = _identity(item, model)
            if item.tries > self._rules.max_tries:
                last = "the process ended each time it was classified"
                reason = self._failures.get(item.sop_uid, last)
                yield Result(
                    item.sop_uid, "set aside", model.sha256, reason=reason, line={**line, "reason": reason}
                )
            elif refusal := not_applicable(item, spec.allowed):
                yield Result(
                    item.sop_uid,
                    "not applicable",
                    model.sha256,
                    reason=refusal,
                    line={**line, "reason": refusal},
                )
            else:
                to_classify.append(item)
        if to_classify:
            yield from self._classify(to_classify, model)

    def _classify(self, batch: Sequence[Waiting], model: Model) -> Iterator[Result | None]:
        classes = model.classifier.spec.classes
        started = time.perf_counter()
        try:
            predictions = list(model.classifier.predict([item.path for item in batch], top_k=classes))
        except Exception as error:  # noqa: BLE001  whatever it is, the images are tried again, alone
            _LOG.exception("a batch of %d failed", len(batch))
            self._failures.update(
                dict.fromkeys((item.sop_uid for item in batch), f"{type(error).__name__}: {error}")
            )
            return
        image_s = (time.perf_counter() - started) / len(predictions)
        self._image_s += 0.2 * (image_s - self._image_s)
        answers = {path: list(found) for path, found in groupby(predictions, lambda answer: answer.path)}
        for item in batch:
            yield self._result(item, answers[str(item.path)], model)

    def _result(self, item: Waiting, frames: Sequence[Prediction], model: Model) -> Result | None:
        line = _identity(item, model)
        error = frames[-1].error
        if error:
            reason = error.message.removeprefix(f"{item.path}: ")
            self._failures[item.sop_uid] = reason
            if item.tries < self._rules.max_tries:
                return None
            return Result(
                item.sop_uid, "unreadable", model.sha256, reason=reason, line={**line, "reason": reason}
            )
        spec = model.classifier.spec
        scores = combined([scores_of(frame, spec.classes) for frame in frames], self._rules.combine)
        answer = {"frames": len(frames), **describe_scores(scores, spec)}
        return Result(item.sop_uid, "classified", model.sha256, scores, line={**line, **answer})


def not_applicable(item: Waiting, allowed: Allowed) -> str | None:
    """Say why the model may not be given an image; nothing if it may."""
    for name, value, values in (
        ("modality", item.modality, allowed.modality),
        ("body part", item.body_part, allowed.body_part),
        ("photometric interpretation", item.photometric, allowed.photometric_interpretation),
    ):
        if values and value.upper() not in {entry.upper() for entry in values}:
            return f"its {name} is {value or 'not stated'}; the model is for {', '.join(values)}"
    return None


def scores_of(prediction: Prediction, classes: int) -> tuple[float, ...]:
    """Give a prediction's scores in the order of the labels."""
    scores = [0.0] * classes
    for best in prediction.top_k:
        scores[best.index] = best.score
    return tuple(scores)


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
