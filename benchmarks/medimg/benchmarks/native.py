"""The scenarios of MLPerf Inference, driven from Python with LoadGen's semantics.

Source:
    V. J. Reddi et al., MLPerf Inference Benchmark, ISCA 2020, table II.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from medimg.benchmarks.load import Load
from medimg.benchmarks.pipeline import Measurement
from medimg.benchmarks.results import ScenarioName
from medimg.benchmarks.system import Indices, System
from medimg.benchmarks.validity import judge_bound, judge_latencies


def drive(scenario: ScenarioName, system: System, load: Load) -> Measurement:
    """Run a scenario once and judge whether it satisfies the rules."""
    found = SCENARIOS[scenario](system, load)
    latencies_ms = [latency / 1e6 for latency in found.latencies_ns]
    if scenario == "server":
        found.validity = judge_bound(latencies_ms, load.share, 1e3 * load.latency_bound_s)
    else:
        share = None if scenario == "offline" else load.share
        found.validity = judge_latencies(latencies_ms, share, load.duration_s, found.elapsed_ns / 1e9)
    return found


def follow_one_another(system: System, load: Load) -> Measurement:
    """Send each query when the one before it is answered: single-stream and multi-stream."""
    found = Measurement()
    now_ns = system.clock.now_ns
    begun = begin = now_ns()
    end = begin + round(load.duration_s * 1e9)
    for indices in load.queries():
        system.answer(indices, found)
        done = now_ns()
        found.latencies_ns.append(done - begun)
        found.begins_ns.append(begun - begin)
        begun = done
        if done >= end and len(found.latencies_ns) >= load.least_queries and not load.every_image_once:
            break
    found.elapsed_ns = begun - begin
    return found


def offline(system: System, load: Load) -> Measurement:
    """Answer images that are all there at the start."""
    found = Measurement()
    now_ns = system.clock.now_ns
    begun = begin = now_ns()
    end = begin + round(load.duration_s * 1e9)

    def enough(sent: int) -> bool:
        return not load.every_image_once and sent >= load.least_queries and now_ns() >= end

    for _ in system.answer_all(load.indices(), load.batch_size, found, enough):
        done = now_ns()
        found.latencies_ns.append(done - begun)
        found.begins_ns.append(begun - begin)
        begun = done
    found.elapsed_ns = begun - begin
    return found


@dataclass(frozen=True)
class _Group:
    """Queries that one worker answers together."""

    first: int
    """Number of the first query."""
    indices: Indices
    taken_ns: int


def server(system: System, load: Load) -> Measurement:
    """Answer images that arrive as a Poisson process, each counted from when it was due.

    Nobody issues the queries: the schedule is fixed beforehand, and each free worker takes the next query
    that is due. What waits for a busy system is therefore counted as waiting (no coordinated omission).
    """
    found = Measurement()
    due = load.arrivals_ns()
    indices = load.indices()
    drawn = [next(indices) for _ in due]
    clock = system.clock
    begin = clock.now_ns()
    begins = (begin + due).tolist()
    latencies = [0] * len(begins)
    taking = threading.Lock()
    next_query = 0

    def take() -> _Group | None:
        nonlocal next_query
        with taking:
            first = next_query
            if first == len(begins):
                return None
            # Other free workers wait at the lock, in their turn for the query after this one.
            clock.sleep_until_ns(begins[first])
            now, last = clock.now_ns(), first + 1
            while last < len(begins) and last - first < load.batch_size and begins[last] <= now:
                last += 1
            next_query = last
        return _Group(first, drawn[first:last], now)

    def answer(group: _Group) -> None:
        system.serve(group.indices, found)
        done = clock.now_ns()
        queries = range(group.first, group.first + len(group.indices))
        for query in queries:
            latencies[query] = done - begins[query]
        found.add([("queue", group.taken_ns - begins[query]) for query in queries], 0)

    with system.working(take, answer):
        pass
    found.latencies_ns = latencies
    found.begins_ns = due.tolist()
    found.elapsed_ns = max(at + latency for at, latency in zip(found.begins_ns, latencies, strict=True))
    return found


Scenario: TypeAlias = Callable[[System, Load], Measurement]
SCENARIOS: Mapping[ScenarioName, Scenario] = {
    "single-stream": follow_one_another,
    "multi-stream": follow_one_another,
    "offline": offline,
    "server": server,
}
