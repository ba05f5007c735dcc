"""What a new process does for its first answer; `cold_start` starts it and reads what it prints."""

import json
import re
import sys
import time
from pathlib import Path


def answer_once(model: str, backend: str, device: str, threads: int, batch_size: int) -> list[float]:
    """Import, load and answer one batch.

    Returns:
        When each of the three was done, in seconds on the clock that all processes of the machine share, and
        the largest resident memory in MiB.
    """
    import numpy as np

    from medimg.runtime.backends import availability_of
    from medimg.runtime.classifier import Classifier

    availability_of(backend)
    imported = time.monotonic()
    with Classifier(model, backend=backend, device=device, threads=threads) as classifier:
        loaded = time.monotonic()
        rule = classifier.spec.image
        classifier.probabilities(np.zeros((batch_size, rule.rows, rule.columns, 3), np.uint8))
        answered = time.monotonic()
    return [imported, loaded, answered, _peak_memory_mib()]


def _peak_memory_mib() -> float:
    """Read it from the kernel; `getrusage` would count what the parent held when it forked."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer_once(*json.loads(sys.argv[1]))))
