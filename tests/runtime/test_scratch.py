"""Temporary folders: private, and removed by the next run where one was killed."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from medimg.runtime.errors import UsageError
from medimg.runtime.files.scratch import remove_left_behind, temporary_folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_private_and_goes_at_the_end(place: Path) -> None:
    with temporary_folder("test") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.parent == place
    assert list(place.iterdir()) == []


def test_what_a_killed_run_left_goes_and_what_a_living_one_uses_stays(place: Path) -> None:
    code = (
        "import time; from medimg.runtime.files.scratch import temporary_folder\n"
        "with temporary_folder('test') as folder:\n"
        "    (folder / 'patient').touch(); print(flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "TMPDIR": str(place)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        (used,) = place.iterdir()
        remove_left_behind()
        assert (used / "patient").exists()
        run.kill()
    assert used.exists()
    remove_left_behind()
    assert not used.exists()


def test_a_link_in_the_place_of_a_folder_leads_to_no_removal(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "in-use").touch()
    (place / "medimg-test-1").symlink_to(elsewhere)
    (place / "medimg-test-2").mkdir()
    (place / "medimg-test-2" / "in-use").symlink_to(elsewhere / "in-use")
    remove_left_behind()
    assert (elsewhere / "in-use").exists()
    assert (place / "medimg-test-2").exists()


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    with pytest.raises(UsageError, match="name another folder in TMPDIR"), temporary_folder("test"):
        pass
