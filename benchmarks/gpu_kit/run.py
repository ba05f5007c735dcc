"""Runs the kit: `python3 run.py --output RESULTS [--step NAME]…`; needs Python and the kit alone.

Unpacks the packages, puts the libraries that PyTorch brings on the loader's path, and runs each step in a
process of its own with a time limit. RESULTS/gpu-kit.json is written anew after each step, so a run that is
cut off keeps what it has; RESULTS/STEP.log has what a step printed.
"""

import argparse
import json
import os
import site
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGES, MODELS, PACKAGES, STEPS_PACKAGE, TESTS = "images", "models", "packages.tar.xz", "gpu_kit", "tests"
KIT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Step:
    """One part of the check."""

    name: str
    """A function of `gpu_kit.steps`."""
    limit_s: float
    """After so many seconds it is ended."""


STEPS = (
    Step("machine", 30),
    Step("answers", 60),
    Step("speed", 100),
    Step("peers", 120),
    Step("decoding", 40),
    Step("files", 60),
    Step("tests", 60),
    Step("memory", 330),
)
"""By value, the most valuable first."""


def main(arguments: Sequence[str] | None = None, steps: Sequence[Step] = STEPS) -> int:
    """Run the steps; returns 0 if all of them ended well."""
    options = _parse(arguments)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    environment = _environment(_unpack(options.packages))
    chosen = [step for step in steps if not options.step or step.name in options.step]
    results: dict[str, dict[str, Any]] = {}
    for step in chosen:
        result = results[step.name] = run_step(step, output, environment, options.seconds)
        _write(output / "gpu-kit.json", {"schema": 1, "steps": results})
        print(f"{step.name}: {result['status']}, {result['seconds']:.1f} s", flush=True)
    return 0 if all(result["status"] == "done" for result in results.values()) else 1


def run_step(step: Step, output: Path, environment: dict[str, str], seconds: float) -> dict[str, Any]:
    """Run one step in a process of its own.

    Returns:
        `status` (`done`, `failed` or `timed out`), `seconds`, and what the step found, as far as it came.
    """
    report = output / f"{step.name}.json"
    report.unlink(missing_ok=True)
    start, status = time.perf_counter(), "done"
    command = [sys.executable, "-u", "-m", f"{STEPS_PACKAGE}.steps", step.name, str(report), str(seconds)]
    with (output / f"{step.name}.log").open("wb") as log:
        try:
            subprocess.run(command, env=environment, stdout=log, stderr=log, check=True, timeout=step.limit_s)
        except subprocess.TimeoutExpired:
            status = "timed out"
        except subprocess.CalledProcessError:
            status = "failed"
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
    return {"status": status, "seconds": time.perf_counter() - start, "found": found}


def _unpack(folder: Path) -> Path:
    """Unpack the kit's packages once."""
    if not folder.exists() and (KIT / PACKAGES).exists():
        partly = folder.with_name(f"{folder.name}.{os.getpid()}")
        with tarfile.open(KIT / PACKAGES) as packed:
            packed.extractall(partly, filter="data")
        partly.rename(folder)
    return folder


def _environment(packages: Path) -> dict[str, str]:
    """Give the variables under which the steps find the kit's packages and PyTorch's libraries."""
    folders = [*map(Path, site.getsitepackages()), packages]
    libraries = [str(path) for folder in folders for path in sorted(folder.glob("nvidia/*/lib"))]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [*libraries, os.environ.get("LD_LIBRARY_PATH")])),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(KIT), str(packages), os.environ.get("PYTHONPATH")])),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _write(path: Path, found: object) -> None:
    partly = path.with_suffix(".partly")
    partly.write_text(json.dumps(found, indent=1), encoding="utf-8")
    partly.replace(path)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="RESULTS")
    parser.add_argument("--packages", type=Path, default=KIT / "packages", metavar="FOLDER")
    parser.add_argument("--step", action="append", default=[], metavar="NAME", help="Run this step alone.")
    parser.add_argument("--seconds", type=float, default=300, help="Length of the memory check.")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
