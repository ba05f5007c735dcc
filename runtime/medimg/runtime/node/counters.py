"""Counts of what happened, in Prometheus's text format."""

import threading
import time
from collections import defaultdict, deque

_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_RATE_S = 60.0


class Counters:
    """Named counts with labels, and one histogram; any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, tuple[tuple[str, str], ...]], int] = defaultdict(int)
        self._latencies = [0] * (len(_BUCKETS_S) + 1)
        self._latency_sum_s = 0.0
        self._answered: deque[float] = deque(maxlen=10_000)

    def add(self, name: str, count: int = 1, **labels: str) -> None:
        """Add to a count."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += count

    def observe(self, latency_s: float) -> None:
        """Add an image's time from its last byte to its result."""
        with self._lock:
            self._latencies[sum(latency_s > bound for bound in _BUCKETS_S)] += 1
            self._latency_sum_s += latency_s
            self._answered.append(time.monotonic())

    def images_per_s(self) -> float:
        """Give the rate of answers over the last minute."""
        since = time.monotonic() - _RATE_S
        with self._lock:
            return sum(at >= since for at in self._answered) / _RATE_S

    def total(self, name: str) -> int:
        """Sum a count over its labels."""
        with self._lock:
            return sum(count for (found, _), count in self._counts.items() if found == name)

    def text(self, gauges: dict[str, float]) -> str:
        """Write everything in the text format, version 0.0.4."""
        with self._lock:
            counts, latencies = sorted(self._counts.items()), list(self._latencies)
            latency_sum_s = self._latency_sum_s
        lines = []
        seen = set()
        for (name, labels), count in counts:
            if name not in seen:
                lines.append(f"# TYPE medimg_{name}_total counter")
                seen.add(name)
            lines.append(f"medimg_{name}_total{_labels(labels)} {count}")
        for name, value in gauges.items():
            lines += [f"# TYPE medimg_{name} gauge", f"medimg_{name} {value:g}"]
        lines.append("# TYPE medimg_latency_seconds histogram")
        below = 0
        for bound, count in zip((*map(str, _BUCKETS_S), "+Inf"), latencies, strict=True):
            below += count
            lines.append(f'medimg_latency_seconds_bucket{{le="{bound}"}} {below}')
        lines += [f"medimg_latency_seconds_sum {latency_sum_s:g}", f"medimg_latency_seconds_count {below}"]
        return "\n".join(lines) + "\n"


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return ""
    escaped = (f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels)
    return "{" + ",".join(escaped) + "}"


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
