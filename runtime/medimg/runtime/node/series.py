"""Reports a series when nothing has been added to it for a while."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from medimg.runtime.node import sr
from medimg.runtime.node.config import Inference, LabelCode
from medimg.runtime.node.files import write_durable
from medimg.runtime.node.overlay import Overlays
from medimg.runtime.node.records import Member, Report
from medimg.runtime.node.store import Store
from medimg.runtime.node.worker import combined, describe_scores
from medimg.runtime.spec import ModelSpec


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

    def touch(self, series_uid: str) -> None:
        """Note that an image was added."""
        with self._lock:
            self._touched[series_uid] = self._clock()

    def work(self) -> int:
        """Report every series that is idle and answered; give how many."""
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

    def _report(self, series_uid: str) -> None:
        members = self._store.members(series_uid)
        if not members:
            return
        uid = sr.report_uid(series_uid, members)
        path = self._store.report_path(uid)
        latest = self._store.latest_report(series_uid)
        predecessor = latest if latest != uid else None
        groups = tuple(self._groups(members))
        if not path.exists():
            content = sr.ReportContent(
                report_uid=uid,
                series_uid=series_uid,
                study_uid=members[0].study_uid,
                header=self._store.header(series_uid),
                groups=groups,
                predecessor=predecessor,
                codes=self._codes,
            )
            self._write_overlay(content)
            write_durable(path, sr.write_report(content))
        line = {
            "series_instance_uid": series_uid,
            "study_instance_uid": members[0].study_uid,
            "predecessor": predecessor,
            "answers": [_describe(group) for group in groups],
        }
        self._store.add_report(
            Report(uid, series_uid, predecessor, tuple(member.sop_uid for member in members), line)
        )

    def _write_overlay(self, content: sr.ReportContent) -> None:
        """Write a report's overlay, which is sent with it, unless it is there already."""
        path = self._store.overlay_path(content.report_uid)
        if self._overlays and not path.exists() and (overlay := self._overlays.write(content)):
            write_durable(path, overlay)

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
    return described
