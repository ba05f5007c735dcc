import pytest

from commands import CommandFailedError
from memory import run_measured

GRANDCHILD = """
import subprocess, sys
hold = "import time; held = b'x' * (200 << 20); time.sleep(1); print('held', flush=True)"
subprocess.run([sys.executable, "-c", hold], check=True)
"""


def test_memory_of_processes_that_a_command_starts_counts() -> None:
    cost = run_measured("python", "-c", GRANDCHILD)
    assert 200 < cost.peak_mib < 400
    assert cost.output == "held\n"
    assert cost.figures() == {"seconds": round(cost.seconds, 1), "peak_mib": round(cost.peak_mib)}


def test_an_unexpected_status_is_an_error_and_an_expected_one_is_kept() -> None:
    fail = ("python", "-c", "raise SystemExit(1)")
    assert run_measured(*fail, accepted=(0, 1)).status == 1
    with pytest.raises(CommandFailedError, match="ended with status 1"):
        run_measured(*fail)
