"""How long the first answer of a new process takes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from medimg.benchmarks.results import ColdStart
from medimg.runtime.errors import BackendError


def measure_cold_start(
    model: str | Path, batch_size: int, *, backend: str, device: str, threads: int
) -> ColdStart:
    """Start a process that loads an artefact and answers one batch.

    Args:
        model: the artefact; it has been read before, so that the disk's share is small.
        batch_size: images in the first batch.
        backend: the name of a back end, not `auto`.
        device: `cpu` or `gpu:N`.
        threads: for inference.

    Raises:
        BackendError: the process failed.
    """
    begin = time.monotonic()
    arguments = json.dumps([str(model), backend, device, threads, batch_size])
    child = subprocess.run(
        [sys.executable, "-m", "medimg.benchmarks.first_answer", arguments],
        # Or a file in the current folder could take the place of a package.
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or ["no message"]
        raise BackendError(
            f"{model}: {backend} failed in a new process (status {child.returncode}): {lines[-1]}"
        )
    imported, loaded, answered, peak_mib = json.loads(child.stdout.splitlines()[-1])
    return ColdStart(imported - begin, loaded - imported, answered - loaded, peak_mib)
