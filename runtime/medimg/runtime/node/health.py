"""Metrics, health and a status page, for this machine alone or for those who have the token."""

import hmac
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medimg.runtime.errors import CheckFailedError, UsageError
from medimg.runtime.node.counters import Counters
from medimg.runtime.node.worker import NOT_DIAGNOSTIC
from medimg.runtime.report import Section, Table, page

_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
_MAX_REQUESTS = 16
"""Answered at a time; the connections of others are closed."""
_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Snapshot:
    """How the node is."""

    problem: str | None
    """What is wrong; None if all is well."""
    counts: dict[str, int]
    """Images waiting, series open, deliveries pending."""
    gauges: Mapping[str, float]
    """Further figures by the names of their metrics."""
    associations: int
    last_results: tuple[tuple[str, str, str | None, float], ...]
    """SOP instance UID, outcome, reason, time; newest first."""
    model_name: str
    model_sha256: str
    precision: str
    backend: str
    intended_use: str | None
    ae_title: str


def read_token(path: Path) -> str:
    """Read the secret that readers of the status must send.

    Raises:
        UsageError: it cannot be read, or would be guessed.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    if len(token) < _SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise UsageError(
            f"{path}: a token has at least {_SHORTEST_TOKEN} characters and no spaces: openssl rand -hex 32"
        )
    return token


class _Handler(BaseHTTPRequestHandler):
    server: "_BoundedServer"
    timeout = 10

    def do_GET(self) -> None:
        status = self.server.status
        if refusal := self._refusal(status.token):
            self._answer(*refusal)
            return
        now = status.snapshot()
        if self.path == "/health":
            self._answer(503 if now.problem else 200, "text/plain", f"{now.problem or 'ok'}\n")
        elif self.path == "/metrics":
            gauges = {f"{name}_now": float(count) for name, count in now.counts.items()}
            text = status.counters.text({**gauges, "associations_now": now.associations, **now.gauges})
            self._answer(200, "text/plain; version=0.0.4", text)
        elif self.path == "/":
            self._answer(200, "text/html", status_page(now, status.counters))
        else:
            self._answer(404, "text/plain", "/, /health and /metrics are here\n")

    def _refusal(self, token: str | None) -> tuple[int, str, str] | None:
        if token is not None:
            sent = (self.headers.get("Authorization") or "").encode(errors="replace")
            if hmac.compare_digest(sent, f"Bearer {token}".encode()):
                return None
            return 401, "text/plain", "the token is wanted: Authorization: Bearer ...\n"
        host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
        if host not in _LOCAL_NAMES:
            # A page of another site must not read this one under a name of its own.
            return 403, "text/plain", "only for this machine\n"
        return None

    def _answer(self, code: int, kind: str, text: str) -> None:
        body = text.encode(errors="replace")
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if code == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a health check every few seconds is no news."""


class _BoundedServer(ThreadingHTTPServer):
    """Answers a few requests at a time, whoever asks."""

    daemon_threads = True

    def __init__(self, address: str, port: int, status: "StatusServer") -> None:
        self.status = status
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._free = threading.BoundedSemaphore(_MAX_REQUESTS)
        super().__init__((address, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answer in a thread of its own, if one is free."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answer, and let another begin."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Say nothing: whoever asked has gone."""


class StatusServer:
    """Serves `/`, `/health` and `/metrics`.

    Args:
        address: where; `port` 0 is for nowhere.
        port: see `address`.
        token: what readers must send; None: whoever is on this machine may read.
        snapshot: how the node is.
        counters: what happened.
    """

    def __init__(
        self,
        address: str,
        port: int,
        token: str | None,
        snapshot: Callable[[], Snapshot],
        counters: Counters,
    ) -> None:
        self.token, self.snapshot, self.counters = token, snapshot, counters
        self._server: ThreadingHTTPServer | None = None
        if port == 0:
            return
        try:
            self._server = _BoundedServer(address, port, self)
        except OSError as error:
            raise CheckFailedError(
                f"status_port {port} of {address} cannot be had ({error.strerror or error})"
            ) from None

    def start(self) -> None:
        """Begin to serve."""
        if self._server:
            threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """End."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()


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
