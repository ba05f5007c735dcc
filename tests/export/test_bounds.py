"""What several exports at once, and a model that wants all memory, do to one another."""

from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from medimg.export import pipeline
from medimg.export.bounds import within_allowance
from medimg.export.errors import SourceError
from medimg.runtime.machine import memory


def probe_often(folder: Path) -> None:
    for _ in range(300):
        pipeline._writable(folder)


@pytest.mark.long
def test_exports_that_begin_together_do_not_remove_each_others_probe(tmp_path: Path) -> None:
    folder = tmp_path / "artefacts"
    with get_context("spawn").Pool(2) as pool:
        pool.map(probe_often, [folder] * 2)
    assert list(folder.iterdir()) == []


def test_memory_beyond_the_allowance_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BASE_BYTES", 2**26)
    path = tmp_path / "model"
    path.mkdir()
    (path / "part").write_bytes(bytes(2**20))
    with (
        pytest.raises(SourceError, match=r"refused: it takes more than 0\.1 GB of memory"),
        within_allowance(path),
    ):
        np.ones(2**27, np.uint8)
