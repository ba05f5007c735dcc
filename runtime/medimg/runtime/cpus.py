"""How many processors this process may use."""

import os
from dataclasses import dataclass
from pathlib import Path

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus(quota_file: Path = CGROUP_QUOTA) -> int:
    """Count the processors that affinity and the cgroup quota leave to this process, at least one."""
    affinity = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):
        return affinity
    if quota == "max":
        return affinity
    return max(1, min(affinity, round(int(quota) / int(period))))


@dataclass(frozen=True)
class Division:
    """How many threads decode files and how many compute at the same time."""

    decoding: int
    inference: int


def divide(threads: int) -> Division:
    """Divide processors between decoding and inference: all to both, over bounded queues.

    Which of the two is the slower depends on the files, and may change within a folder. A thread that waits
    for the other side costs nothing, so the operating system divides better than a fixed rule would: the rate
    is within a few percent of the ideal whichever side is slower (`benchmarks/results/speed-files.json`).
    """
    return Division(threads, threads)
