"""Where the demo's pre-trained weights come from; after this it uses no network."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DOWNLOAD_S = 10.0

_FIND = """
import sys
from medimg.runtime.errors import MedimgError
from medimg.train.networks.weights import imagenet_weights
try:
    print(imagenet_weights())
except MedimgError as error:
    sys.exit(str(error).partition(": ")[2].partition(": give a file")[0])
"""


@dataclass(frozen=True)
class Weights:
    """What the fit starts from."""

    path: Path | None
    """A weights file; None to start from random numbers."""
    words: str
    """The same for people."""


def find_weights(given: str | None, limit_s: float = DOWNLOAD_S) -> Weights:
    """Take the file given, else Keras's cache, else one try to download into it, else none.

    Args:
        given: a file, or `none` to start from scratch.
        limit_s: seconds for the whole download.
    """
    if given == "none":
        return Weights(None, "no pre-trained weights, as asked")
    if given:
        return Weights(Path(given), f"pre-trained weights from {given}")
    found, reason = _cached_or_downloaded(limit_s)
    if found:
        return Weights(found, "ImageNet weights from Keras's cache")
    return Weights(None, f"no pre-trained weights: WEIGHTS=FILE not given, Keras's cache empty, {reason}")


def _cached_or_downloaded(limit_s: float) -> tuple[Path | None, str]:
    """Look in a process of its own, because name look-up knows no time limit; path, or why there is none."""
    print(f"Looking for ImageNet weights (a download is given up after {limit_s:g} s) …", flush=True)
    with subprocess.Popen(
        [sys.executable, "-c", _FIND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            found, reason = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            # As on Ctrl-C: the half-written file is removed.
            child.send_signal(signal.SIGINT)
            try:
                child.communicate(timeout=1)
            except subprocess.TimeoutExpired:
                child.kill()
            return None, f"the download took longer than {limit_s:g} s"
    if child.returncode != 0:
        return None, reason.strip().splitlines()[-1]
    return Path(found.strip()), ""
