"""Reports a series when nothing has been added to it for a while."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.node import sr
from medimg.runtime.node.config import Inference, LabelCode
from medimg.runtime.node.files import write_durable
from medimg.runtime.node.overlay import Overlays
from medimg.runtime.node.records import Member, Report, Series
from medimg.runtime.node.store import Store
from medimg.runtime.node.worker import combined, describe_scores

_LOOK_S = 2.0
"""How often the database is asked for series that nobody told of."""


@dataclass(frozen=True)
class _Written:
    """A report that may still turn out to be there already."""

    report_uid: str
    file: bytes
    content: sr.ReportContent
    line: Mapping[str, object]


class SeriesReporter:
    """Watches the series that have images no report names yet.

    Args:
        store: the queue.
        rules: when a series is idle, and how scores are combined.
        codes: of labels.
        overlays: what draws one for each report, if that is wanted.
        on_reported: called after a report has been queued.
        clock: seconds that never jump.
    """

    def __init__(
        self,
        store: Store,
        rules: Inference,
        codes: Mapping[str, LabelCode],
        overlays: Overlays | None,
        on_reported: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._rules, self._codes = store, rules, codes
        self._overlays, self._on_reported, self._clock = overlays, on_reported, clock
        self._lock = threading.Lock()
        self._touched = dict.fromkeys(store.unreported_series(), clock())
        self._next_look = clock() + _LOOK_S

    def follow(self, rules: Inference, codes: Mapping[str, LabelCode], overlays: Overlays | None) -> None:
        """Report by other rules from now on."""
        self._rules, self._codes, self._overlays = rules, codes, overlays

    def touch(self, series_key: str) -> None:
        """Note that an image was added."""
        with self._lock:
            self._touched[series_key] = self._clock()

    def work(self) -> int:
        """Report every series that is idle and answered; give how many."""
        self._look()
        idle_since = self._clock() - self._rules.series_idle_s
        with self._lock:
            idle = [uid for uid, touched in self._touched.items() if touched <= idle_since]
        ready = [uid for uid in idle if self._store.is_answered(uid)]
        for uid in ready:
            # Before its images are looked up, so that one that comes meanwhile opens the series anew.
            with self._lock:
                self._touched.pop(uid, None)
            try:
                self._report(uid)
            except BaseException:
                self.touch(uid)
                raise
        if ready:
            self._on_reported()
        return len(ready)

    def _look(self) -> None:
        """Find series that the command `queue` has opened again."""
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + _LOOK_S
            with self._lock:
                for key in self._store.unreported_series():
                    self._touched.setdefault(key, self._clock())

    def _report(self, series_key: str) -> None:
        members = self._store.members(series_key)
        if not members:
            return
        series, groups = self._store.series(series_key), tuple(self._groups(members))
        latest, before = self._store.latest_report(series_key) or (None, None)
        # An answer that was asked for again and is the same needs no report of its own.
        written = self._written(series, groups, before)
        if latest and written.report_uid != latest:
            written = self._written(series, groups, latest)
        path = self._store.report_path(written.report_uid)
        if not path.exists():
            self._write_overlay(written)
            write_durable(path, written.file, self._store.folder)
        self._store.add_report(
            Report(
                *(written.report_uid, series_key, written.content.predecessor),
                *(tuple(member.sop_uid for member in members), written.line),
            )
        )

    def _written(self, series: Series, groups: tuple[sr.Group, ...], predecessor: str | None) -> _Written:
        content = sr.ReportContent(series, groups, predecessor, self._codes)
        line = {
            "series_instance_uid": series.series_uid,
            "study_instance_uid": series.study_uid,
            "received_at": sr.received_at(content),
            "predecessor": predecessor,
            "contradictions": list(series.contradictions),
            "answers": [_describe(group) for group in groups],
        }
        return _Written(*sr.write_report(content, line), content, line)

    def _write_overlay(self, written: _Written) -> None:
        """Write a report's overlay, which is sent with it, unless it is there already."""
        path = self._store.overlay_path(written.report_uid)
        if self._overlays and not path.exists():
            overlay = self._overlays.write(written.content, written.report_uid)
            if overlay:
                write_durable(path, overlay, self._store.folder)

    def _groups(self, members: Sequence[Member]) -> list[sr.Group]:
        """Put together what one model answered in one way, in an order that depends on nothing else."""
        parts: dict[tuple[str, str], list[Member]] = defaultdict(list)
        for member in members:
            parts[member.model, member.outcome].append(member)
        groups = []
        for (model, outcome), part in sorted(parts.items()):
            name, spec = self._store.model(model)
            scores = [member.scores for member in part if member.scores is not None]
            series_scores = combined(scores, self._rules.combine) if outcome == "classified" else None
            groups.append(
                sr.Group(
                    name,
                    model,
                    ModelSpec.from_json(spec, name),
                    tuple(part),
                    series_scores,
                    self._rules.combine,
                )
            )
        return groups


def _describe(group: sr.Group) -> dict[str, object]:
    described: dict[str, object] = {
        "outcome": group.members[0].outcome,
        "instances": [member.sop_uid for member in group.members],
        "model_sha256": group.model_sha256,
    }
    if group.scores is not None:
        described |= {"combined_by": group.combine, **describe_scores(group.scores, group.spec)}
    if group.notes:
        described["notes"] = [
            {"note": note, "instances": [member.sop_uid for member in members]}
            for note, members in group.notes.items()
        ]
    return described
