"""Counts of what happened, in Prometheus's text format."""

import threading
import time
from collections import deque
from typing import Any

from medimg.runtime.optional import require

_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_RATE_S = 60.0


class Counters:
    """Named counts with labels, and one histogram; any thread may add."""

    def __init__(self) -> None:
        self._client: Any = require("prometheus_client", "node")
        self._client.disable_created_metrics()
        self._registry = self._client.CollectorRegistry()
        self._lock = threading.Lock()
        self._metrics: dict[str, Any] = {}
        self._latency = self._client.Histogram(
            "medimg_latency_seconds", "last byte to result", buckets=_BUCKETS_S, registry=self._registry
        )
        self._answered: deque[float] = deque(maxlen=10_000)

    def add(self, name: str, count: int = 1, **labels: str) -> None:
        """Add to a count."""
        counter = self._metric(self._client.Counter, name, tuple(labels))
        (counter.labels(**labels) if labels else counter).inc(count)

    def observe(self, latency_s: float) -> None:
        """Add an image's time from its last byte to its result."""
        self._latency.observe(latency_s)
        with self._lock:
            self._answered.append(time.monotonic())

    def images_per_s(self) -> float:
        """Give the rate of answers over the last minute."""
        since = time.monotonic() - _RATE_S
        with self._lock:
            return sum(at >= since for at in self._answered) / _RATE_S

    def total(self, name: str) -> int:
        """Sum a count over its labels."""
        found = self._registry.restricted_registry([f"medimg_{name}_total"]).collect()
        return int(sum(sample.value for metric in found for sample in metric.samples))

    def text(self, gauges: dict[str, float]) -> str:
        """Write everything in the text format, version 0.0.4."""
        for name, value in gauges.items():
            self._metric(self._client.Gauge, name).set(value)
        return str(self._client.generate_latest(self._registry).decode())

    def _metric(self, kind: Any, name: str, labels: tuple[str, ...] = ()) -> Any:  # noqa: ANN401
        """Give the metric of a name, which its first use makes."""
        with self._lock:
            if name not in self._metrics:
                told = name.replace("_", " ")
                self._metrics[name] = kind(f"medimg_{name}", told, labels, registry=self._registry)
            return self._metrics[name]
