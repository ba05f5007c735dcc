"""What OpenVINO needs before threads come."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medimg.runtime.backends.with_openvino import OpenVinoBackend
from medimg.runtime.model.containers import open_artefact

PROGRAM = """
import sys, threading
from medimg.runtime.backends.with_openvino import import_openvino
openvino = import_openvino()
sys.setswitchinterval(1e-6)
together = threading.Barrier(4)
def use():
    together.wait()
    openvino.Type.u8.to_dtype()
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_use_it_first_together_do_not_hang() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)


@pytest.mark.parametrize("processors", [1, 64])
def test_threads_are_pinned_only_where_the_process_has_the_whole_machine(
    ready_artefact: Path, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a part of it, two processes would both pin themselves to the first processors and share those."""
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    backend = OpenVinoBackend(open_artefact(ready_artefact), 1, "latency")
    assert backend._compiled.get_property("ENABLE_CPU_PINNING") is (processors == 1)
    backend.close()
