"""What OpenVINO needs before threads come."""

import subprocess
import sys

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
