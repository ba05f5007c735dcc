"""The same scenarios, driven by MLPerf's LoadGen, whose logs are the record of what happened."""

import json
import re
import signal
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType, ModuleType
from typing import Any

from medimg.benchmarks.load import Load
from medimg.benchmarks.pipeline import Measurement
from medimg.benchmarks.results import ScenarioName, Validity
from medimg.benchmarks.system import System
from medimg.runtime.files.scratch import temporary_folder
from medimg.runtime.optional import require

PREFIX = "mlperf_log_"
_NAMES: Mapping[ScenarioName, str] = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "offline": "Offline",
    "server": "Server",
}
_SAMPLE = re.compile(
    r'"Sample","cat":"default","ph":"b".*?"ts":([\d.]+),"args":\{"sample_seq":\d+,"query_seq":(\d+),'
    r'"sample_idx":\d+,"issue_start_ns":(\d+),"complete_ns":(\d+)'
)
_LEAST_LATENCY_NS = 1000
FASTER, FASTER_OFFLINE = 4, 1.1
"""LoadGen makes its queries beforehand, for a speed that it is told: so many times what the warm-up showed,
or a system that speeds up would run out of them. In offline all of them are run."""


def installed() -> bool:
    """Whether LoadGen can be used here."""
    return find_spec("mlperf_loadgen") is not None


def drive(scenario: ScenarioName, system: System, load: Load, logs: Path | None = None) -> Measurement:
    """Run a scenario once.

    Args:
        scenario: which.
        system: answers the queries.
        load: what to send.
        logs: a folder for LoadGen's logs; without it they are removed once they have been read.

    Raises:
        MissingDependencyError: LoadGen is not installed.
    """
    loadgen = require("mlperf_loadgen", "bench")
    if logs is None:
        with temporary_folder("loadgen") as folder:
            return drive(scenario, system, load, folder)
    logs.mkdir(parents=True, exist_ok=True)
    requests = _Requests(loadgen, system, load)
    with _test(loadgen, requests.issuer(scenario), load.samples, system) as test, requests.serving(scenario):
        loadgen.StartTestWithLogSettings(
            *test, _settings(loadgen, scenario, load), _log_settings(loadgen, logs)
        )
        requests.close()
    requests.raise_failure()
    if load.every_image_once:
        requests.found.answers = read_answers(logs / f"{PREFIX}accuracy.json")
    else:
        _read_logs(scenario, logs, requests.found)
    return requests.found


class _Requests:
    """LoadGen's queries on their way through the system; none may raise into LoadGen, which is C++."""

    def __init__(self, loadgen: ModuleType, system: System, load: Load) -> None:
        self.found = Measurement()
        self._loadgen = loadgen
        self._system = system
        self._load = load
        self._failure: BaseException | None = None
        self._waiting: SimpleQueue[tuple[int, int, int] | None] = SimpleQueue()
        """Response id, index of the sample, and when it was issued."""

    def issuer(self, scenario: ScenarioName) -> Callable[[Sequence[Any]], None]:
        """Give what LoadGen calls with a query."""
        issue = {"offline": self._issue_all, "server": self._issue_one}.get(scenario, self._issue_and_wait)

        def guarded(query: Sequence[Any]) -> None:
            ids = [sample.id for sample in query]
            try:
                if self._failure is None:
                    issue(ids, [sample.index for sample in query])
                    return
            except BaseException as error:  # noqa: BLE001  raised again when LoadGen has returned
                self._failure = error
            self._complete(ids)

        return guarded

    @contextmanager
    def serving(self, scenario: ScenarioName) -> Iterator[None]:
        """Answer what `server` issues; let Ctrl-C end the run between two queries."""
        with self._interruptible():
            if scenario != "server":
                yield
                return
            try:
                with self._system.working(self._take, self._serve):
                    yield
            finally:
                self.close()

    def close(self) -> None:
        """Tell the workers that no more queries come."""
        for _ in range(self._system.pipeline.parallel):
            self._waiting.put(None)

    def raise_failure(self) -> None:
        """Raise what a query raised."""
        if self._failure is not None:
            raise self._failure

    def _issue_and_wait(self, ids: list[int], indices: list[int]) -> None:
        self._complete(ids, self._system.answer(indices, self.found))

    def _issue_all(self, ids: list[int], indices: list[int]) -> None:
        now_ns = self._system.clock.now_ns
        begun = begin = now_ns()
        completed = 0
        try:
            for numbers, classes in self._system.answer_all(indices, self._load.batch_size, self.found):
                self._complete(ids[completed : completed + len(numbers)], classes)
                completed += len(numbers)
                done = now_ns()
                self.found.latencies_ns.append(done - begun)
                self.found.begins_ns.append(begun - begin)
                begun = done
                if self._failure is not None:
                    break
        finally:
            # LoadGen waits for every sample, also where the run is given up.
            self._complete(ids[completed:])
            del ids[:]
        self.found.elapsed_ns = begun - begin

    def _issue_one(self, ids: list[int], indices: list[int]) -> None:
        self._waiting.put((ids[0], indices[0], self._system.clock.now_ns()))

    def _take(self) -> list[tuple[int, int, int]] | None:
        first = self._waiting.get()
        if first is None:
            return None
        taken = [first]
        try:
            while len(taken) < self._load.batch_size:
                item = self._waiting.get_nowait()
                if item is None:
                    self._waiting.put(None)
                    break
                taken.append(item)
        except Empty:
            pass
        now = self._system.clock.now_ns()
        self.found.add([("queue", now - issued) for _, _, issued in taken], 0)
        return taken

    def _serve(self, taken: list[tuple[int, int, int]]) -> None:
        ids = [item[0] for item in taken]
        classes: list[int] = []
        try:
            if self._failure is None:
                classes = self._system.serve([item[1] for item in taken], self.found)
        except BaseException as error:  # noqa: BLE001  raised again when LoadGen has returned
            self._failure = error
        self._complete(ids, classes)

    def _complete(self, ids: Sequence[int], classes: Sequence[int] = ()) -> None:
        """Answer with the first classes as 32-bit integers; LoadGen copies them in accuracy mode only."""
        if not ids:
            return
        answers = array("i", classes or [-1] * len(ids))
        address, size = answers.buffer_info()[0], answers.itemsize
        self._loadgen.QuerySamplesComplete(
            [
                self._loadgen.QuerySampleResponse(number, address + place * size, size)
                for place, number in enumerate(ids)
            ]
        )

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Have Ctrl-C noted, since an exception must not reach LoadGen, and raised afterwards."""
        is_main = threading.current_thread() is threading.main_thread()
        # Ignored is what a shell has it where it starts a command in the background.
        if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            yield
            return

        def note(_number: int, _frame: FrameType | None) -> None:
            self._failure = self._failure or KeyboardInterrupt()

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _test(
    loadgen: ModuleType, issue: Callable[[Sequence[Any]], None], performance_samples: int, system: System
) -> Iterator[tuple[int, int]]:
    """Register what LoadGen calls, for as long as a test takes."""
    tested = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(
        len(system.samples), performance_samples, lambda _indices: None, lambda _indices: None
    )
    try:
        yield tested, library
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(tested)


def _settings(loadgen: ModuleType, scenario: ScenarioName, load: Load) -> Any:  # noqa: ANN401  LoadGen's class
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, _NAMES[scenario])
    mode = loadgen.TestMode
    settings.mode = mode.AccuracyOnly if load.every_image_once else mode.PerformanceOnly
    settings.min_duration_ms = round(1e3 * load.duration_s)
    settings.min_query_count = load.least_queries
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = load.seed
    expected_ns = max(_LEAST_LATENCY_NS, 1e9 * load.expected_query_s / FASTER)
    settings.single_stream_expected_latency_ns = expected_ns
    settings.single_stream_target_latency_percentile = load.share
    settings.multi_stream_expected_latency_ns = expected_ns
    settings.multi_stream_target_latency_percentile = load.share
    settings.multi_stream_samples_per_query = load.batch_size
    settings.offline_expected_qps = load.batch_size / load.expected_query_s * FASTER_OFFLINE
    if scenario == "server":
        settings.server_target_qps = load.rate_per_s
        settings.server_target_latency_ns = round(1e9 * load.latency_bound_s)
        settings.server_target_latency_percentile = load.share
    return settings


def _log_settings(loadgen: ModuleType, folder: Path) -> Any:  # noqa: ANN401  LoadGen's class
    settings = loadgen.LogSettings()
    settings.log_output.outdir = str(folder)
    settings.log_output.prefix = PREFIX
    settings.log_output.copy_summary_to_stdout = False
    # The trace holds every sample's latency, counted as LoadGen counts it.
    settings.enable_trace = True
    return settings


def _read_logs(scenario: ScenarioName, folder: Path, found: Measurement) -> None:
    detail = read_detail(folder / f"{PREFIX}detail.txt")
    if scenario == "offline":
        found.elapsed_ns = round(1e9 * found.images / detail.values["result_samples_per_second"])
    else:
        _read_trace(folder / f"{PREFIX}trace.json", found)
    found.validity = detail.validity()


@dataclass(frozen=True)
class Detail:
    """What LoadGen's detail log says."""

    values: Mapping[str, Any]
    """The last value of each key."""
    errors: tuple[str, ...]

    def validity(self) -> Validity:
        """Say whether LoadGen finds the run valid, and why not."""
        bound = self.values.get("early_stopping_latency_ss") or self.values.get("early_stopping_latency_ms")
        if self.values["result_validity"] == "VALID" and not self.errors:
            return Validity(True, (), bound / 1e6 if bound else None)
        met = ("result_min_duration_met", "result_min_queries_met", "result_perf_constraints_met")
        reasons = [self.values.get("result_invalid_reason", "").strip()] if not all(
            self.values.get(key, True) for key in met
        ) else []  # fmt: skip
        if not self.values.get("early_stopping_met", True):
            reasons.append(" ".join(self.values["early_stopping_result"].replace("*", "").split()))
        return Validity(False, (*self.errors, *(reason for reason in reasons if reason)), None)


def read_detail(path: Path) -> Detail:
    """Read LoadGen's detail log."""
    values: dict[str, Any] = {}
    errors: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith(":::MLLOG"):
            continue
        entry = json.loads(line.removeprefix(":::MLLOG"))
        values[entry["key"]] = entry["value"]
        if entry["metadata"]["is_error"]:
            errors.append(f"{entry['key']}: {entry['value']}")
    return Detail(values, tuple(errors))


def _read_trace(path: Path, found: Measurement) -> None:
    """Take each query's latency, and how late it was issued, from the trace."""
    queries: dict[int, tuple[float, int, int]] = {}
    for match in _SAMPLE.finditer(path.read_text(encoding="utf-8")):
        number, complete = int(match[2]), int(match[4])
        slowest = max(complete, queries[number][2]) if number in queries else complete
        queries[number] = (float(match[1]), int(match[3]), slowest)
    ordered = [queries[number] for number in sorted(queries)]
    first_us = ordered[0][0]
    found.latencies_ns = [latency for _, _, latency in ordered]
    found.begins_ns = [round(1e3 * (at_us - first_us)) for at_us, _, _ in ordered]
    if "queue" in found.stages_ns:
        found.add([("queue", late) for _, late, _ in ordered], 0)
    found.elapsed_ns = max(
        at + latency for at, latency in zip(found.begins_ns, found.latencies_ns, strict=True)
    )


def read_answers(path: Path) -> dict[int, int]:
    """Read the first class of each sample from the accuracy log."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {entry["qsl_idx"]: array("i", bytes.fromhex(entry["data"]))[0] for entry in entries}
