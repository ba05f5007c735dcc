"""A source whose framework runs in a worker process."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from medimg.export.errors import SourceError
from medimg.export.sources import protocol
from medimg.export.sources.base import Origin, Request, TensorShape, classifier_shape
from medimg.export.sources.heads import head_of
from medimg.runtime.spec import Head

Framework: TypeAlias = Literal["keras", "tf_keras", "saved_model"]
NAMES: Mapping[Framework, str] = {"keras": "Keras", "tf_keras": "tf-keras", "saved_model": "TensorFlow"}
PREDICTED_AT_ONCE = 64
"""Images in one message."""


class Worker:
    """A process with one framework in it."""

    def __init__(self, path: Path, framework: Framework) -> None:
        self._path, self._name = path, NAMES[framework]
        # A file, not a pipe: nobody reads it unless the worker dies, and a full pipe would stop the worker.
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "medimg.export.sources.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(framework),
            cwd=sys.prefix,
        )

    def ask(self, message: dict[str, Any], *blobs: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Send a request and wait for the answer.

        Raises:
            SourceError: the framework refused, or the process died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            protocol.send(self._process.stdin, message, *blobs)
            answer = protocol.receive(self._process.stdout)
        except (BrokenPipeError, EOFError):
            answer = None
        if answer is None:
            raise SourceError(
                f"{self._path}: the process that {self._name} ran in died: {self._last_words()}"
            )
        if "error" in answer[0]:
            self.close()
            raise SourceError(f"{self._path}: {self._name} cannot {message['do']} it: {answer[0]['error']}")
        return answer

    def close(self) -> None:
        """End the process, and wait for that."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue
        self._log.close()

    def _last_words(self) -> str:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            self.close()
            return "it was killed, as the system does when memory runs out"
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        self.close()
        return f"{lines[-1][:200]} (exit status {status})"


class FrameworkSource:
    """A classifier that TensorFlow computes, in a worker process of its own."""

    def __init__(
        self,
        origin: Origin,
        framework: Framework,
        opened: Path,
        request: Request,
        imports: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Start the worker and load the model.

        Args:
            origin: where the model comes from.
            framework: what loads it.
            opened: the file or folder that the framework opens; needed no more afterwards.
            request: what the user says.
            imports: names, each with its module, that the user let in.
        """
        self.origin = origin
        self._worker = Worker(origin.path, framework)
        try:
            described, _ = self._worker.ask(
                {
                    "do": "open",
                    "path": str(opened.absolute()),
                    "framework": framework,
                    "allow_code": request.allow_code,
                    "imports": imports,
                    "threads": request.threads,
                    "float64": request.float64,
                }
            )
            inputs, outputs = (
                [TensorShape(item["name"], tuple(item["dims"]), item["dtype"]) for item in described[side]]
                for side in ("inputs", "outputs")
            )
            self.input_shape, self.units = classifier_shape(origin.path, inputs, outputs, request.input_size)
        except SourceError:
            self._worker.close()
            raise
        self._layers = tuple(described["layers"])

    @property
    def head(self) -> Head | None:
        """What the last activation gives; None if it is neither probabilities nor logits."""
        return head_of(self._converted, self.units)

    def layer_names(self) -> tuple[str, ...]:
        """Names of all layers, those of nested models included."""
        return self._layers

    def predict(self, network_input: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the framework; see `Source.predict`."""
        parts = []
        for start in range(0, len(network_input), PREDICTED_AT_ONCE):
            blob = protocol.array_bytes(network_input[start : start + PREDICTED_AT_ONCE])
            _, blobs = self._worker.ask({"do": "predict"}, blob)
            parts.append(protocol.bytes_array(blobs[0]))
        return np.concatenate(parts)

    def convert(self) -> ModelProto:
        """Give the network as ONNX; see `Source.convert`."""
        copy = ModelProto()
        copy.CopyFrom(self._converted)
        return copy

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    @cached_property
    def _converted(self) -> ModelProto:
        _, blobs = self._worker.ask({"do": "convert", "shape": self.input_shape})
        model: ModelProto = ModelProto.FromString(blobs[0])
        return model


def _environment(framework: Framework) -> dict[str, str]:
    """Make the worker's environment, in which no module is imported from the current folder."""
    # A fixed hash seed: the order of sets shows in what the converter gives.
    chosen = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0"}
    if framework == "tf_keras":
        chosen["TF_USE_LEGACY_KERAS"] = "1"
    else:
        chosen.pop("TF_USE_LEGACY_KERAS", None)
    return chosen
