"""The figures by name, and where they are measured."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SCRATCH = Path("build") / "figures"
"""Ignored by git; relative to the repository's root, where the commands run."""

REAL_SETS = {
    "brain-mri": "images/brain-mri",
    "pneumoniamnist": "images/pneumoniamnist-subset.npz",
    "cifar-10": "images/cifar-10-batches-py",
}
"""In the folder that MEDIMG_TEST_DATA points to."""

Figure = Callable[[], dict[str, Any]]
FIGURES: dict[str, Figure] = {}


def commit() -> str:
    """Name the commit that is checked out, and whether files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = " with changes" if git("status", "--porcelain", "--", ".", ":!benchmarks/results") else ""
    return (git("rev-parse", "HEAD") or "none") + changed


def figure(name: str) -> Callable[[Figure], Figure]:
    """Register a function that measures something and returns plain values."""

    def register(function: Figure) -> Figure:
        FIGURES[name] = function
        return function

    return register
