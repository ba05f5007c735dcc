"""What the export tests share: pictures, and the processes that the frameworks run in."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from medimg.export.sources import framework
from medimg.runtime.model.process import Message, ModelProcess, Reply

LABELS = ("cyst", "normal", "solid")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class, each with pictures of one texture."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for place, label in enumerate(LABELS):
        (folder / label).mkdir()
        for number in range(8):
            noise = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / label / f"{number}.png"), cv2.GaussianBlur(noise, (0, 0), 1 + 2 * place))
    return folder


class KeptProcess(ModelProcess):
    """A worker that stays for the next source, unless a file's code or an error was in it."""

    idle: ClassVar[dict[tuple[str | None, ...], "KeptProcess"]] = {}

    def __init__(self, module: str, name: str, environment: Mapping[str, str]) -> None:
        super().__init__(module, name, environment)
        self.key = (name, environment.get("PYTHONPATH"))
        self.foreign = False

    @classmethod
    def taken(cls, module: str, name: str, environment: Mapping[str, str]) -> "KeptProcess":
        waiting = cls.idle.pop((name, environment.get("PYTHONPATH")), None)
        return waiting if waiting and waiting.alive else cls(module, name, environment)

    def ask(self, subject: Path, message: Message, *blobs: bytes) -> Reply:
        self.foreign = self.foreign or bool(message.get("allow_code"))
        try:
            # TensorFlow takes a number of threads once.
            return super().ask(subject, {**message, "threads": None}, *blobs)
        except BaseException:
            self.end()
            raise

    def close(self) -> None:
        if self.alive and not self.foreign:
            self.idle[self.key] = self
        else:
            self.end()

    def end(self) -> None:
        super().close()


@pytest.fixture(scope="session")
def _kept_processes() -> Iterator[type[KeptProcess]]:
    yield KeptProcess
    for process in KeptProcess.idle.values():
        process.end()


@pytest.fixture(scope="module")
def kept_workers(_kept_processes: type[KeptProcess]) -> Iterator[None]:
    """Have sources share workers: TensorFlow's start costs more than all else of a small model's export.

    One test of the command, and those of full disks, have workers of their own, as users have.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framework, "ModelProcess", _kept_processes.taken)
        yield


@pytest.fixture
def own_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next source has a worker of its own."""
    monkeypatch.setattr(framework, "ModelProcess", ModelProcess)
