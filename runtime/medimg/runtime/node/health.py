"""Metrics, health and a status page, for this machine alone."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from medimg.runtime.errors import UsageError
from medimg.runtime.node.counters import Counters
from medimg.runtime.node.worker import NOT_DIAGNOSTIC
from medimg.runtime.report import Section, Table, page

_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Snapshot:
    """How the node is."""

    problem: str | None
    """What is wrong; None if all is well."""
    counts: dict[str, int]
    """Images waiting, series open, deliveries pending."""
    associations: int
    last_results: tuple[tuple[str, str, str | None, float], ...]
    """SOP instance UID, outcome, reason, time; newest first."""
    model_name: str
    model_sha256: str
    precision: str
    backend: str
    intended_use: str | None
    ae_title: str


class StatusServer:
    """Serves `/`, `/health` and `/metrics` on 127.0.0.1.

    Args:
        port: 0 for none.
        snapshot: how the node is.
        counters: what happened.
    """

    def __init__(self, port: int, snapshot: Callable[[], Snapshot], counters: Counters) -> None:
        self._server: ThreadingHTTPServer | None = None
        if port == 0:
            return
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(snapshot, counters))
        except OSError as error:
            raise UsageError(f"status_port {port} cannot be had ({error.strerror})") from None
        self._server.daemon_threads = True

    def start(self) -> None:
        """Begin to serve."""
        if self._server:
            threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """End."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()


def _handler(snapshot: Callable[[], Snapshot], counters: Counters) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
            if host not in _LOCAL_NAMES:
                # A page of another site must not read this one under a name of its own.
                self._answer(403, "text/plain", "only for this machine\n")
                return
            now = snapshot()
            if self.path == "/health":
                self._answer(503 if now.problem else 200, "text/plain", f"{now.problem or 'ok'}\n")
            elif self.path == "/metrics":
                gauges = {f"{name}_now": float(count) for name, count in now.counts.items()}
                text = counters.text({**gauges, "associations_now": now.associations})
                self._answer(200, "text/plain; version=0.0.4", text)
            elif self.path == "/":
                self._answer(200, "text/html", status_page(now, counters))
            else:
                self._answer(404, "text/plain", "/, /health and /metrics are here\n")

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode(errors="replace")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: a health check every few seconds is no news."""

    return Handler


def status_page(now: Snapshot, counters: Counters) -> str:
    """Write the status page."""
    warnings = [f"{NOT_DIAGNOSTIC}.", *([f"Problem: {now.problem}"] if now.problem else [])]
    totals = (
        *(("images received", counters.total("received")), ("images refused", counters.total("refused"))),
        *(
            ("images answered", counters.total("answered")),
            ("reports delivered", counters.total("delivered")),
        ),
        ("failed deliveries, tried again", counters.total("delivery_failed")),
    )
    under_way = (
        ("images waiting", now.counts["received"]),
        ("series without report", now.counts["series"]),
        ("deliveries pending", now.counts["undelivered"]),
        ("open associations", now.associations),
    )
    rate = f"{counters.images_per_s():.1f} images a second over the last minute"
    results = tuple(
        (
            datetime.fromtimestamp(at, timezone.utc).isoformat(" ", "seconds"),
            *(outcome, uid, reason or ""),
        )
        for uid, outcome, reason, at in now.last_results
    )
    model = (
        *(("file", now.model_name), ("SHA-256", now.model_sha256), ("runs in", now.precision)),
        *(("on", now.backend), ("intended use", now.intended_use or "not stated")),
        ("medimg", version("medimg")),
    )
    return page(
        f"{now.ae_title}: DICOM node",
        warnings,
        [
            Section("Under way", (Table("Now", ("what", "count"), _texts(under_way)),)),
            Section("Since the start", (rate, Table("Totals", ("what", "count"), _texts(totals)))),
            Section("Model", (Table("What answers", ("what", "value"), model),)),
            Section(
                "Last results",
                (Table("Newest first, UTC", ("time", "outcome", "SOP instance UID", "reason"), results),),
            ),
        ],
    )


def _texts(rows: tuple[tuple[str, int], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((name, f"{count:,}") for name, count in rows)
