"""The program in docs/embedding.md: compiled as it says, it gives the answers that medimg gives."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medimg.runtime import Classifier

DOCS = Path(__file__).parent.parent / "docs" / "embedding.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


@pytest.mark.long
def test_the_program_in_the_docs_answers_as_medimg_does(small_artefact: Path, tmp_path: Path) -> None:
    (tmp_path / "classify.cpp").write_text(block("cpp"), encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", block("sh")], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (tmp_path / "pixels").write_bytes(image.tobytes())
    command = [str(tmp_path / "classify"), str(small_artefact), str(tmp_path / "pixels"), "32", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [float(line.split()[1]) for line in done.stdout.splitlines()]
    with Classifier(small_artefact, backend="openvino") as classifier:
        (expected,) = classifier.probabilities(image[np.newaxis])
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
