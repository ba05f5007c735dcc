"""`make gpu-check` where there is no GPU: it says that nothing was checked, and does not pass."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


def test_without_a_gpu_nothing_is_checked(tmp_path: Path) -> None:
    report = tmp_path / "gpu-check.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--json", str(report)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("nothing was checked")
    assert "Traceback" not in done.stderr
    assert not report.exists()
