"""A model on a server: Triton, or another one of the KServe v2 protocol, through `tritonclient`.

Files are decoded and resized here, by the spec of the model's own file; the server gets what the network
takes. Protocol: https://github.com/kserve/open-inference-protocol, and Triton's extensions for configurations
and binary tensors, where a server has them.
"""

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.errors import BackendError, ModelError, UsageError
from medimg.runtime.model.containers import read_spec
from medimg.runtime.model.spec import ModelSpec
from medimg.runtime.optional import require
from medimg.runtime.tasks import PROBABILITIES, Arrays

IDENTITY = "medimg_artefact_sha256"
"""Parameter of a model's configuration that says which file the server runs."""
_PROTOCOLS = ("http", "https", "grpc", "grpcs")
_TIMEOUT_S = 60.0


def served_name(path: Path) -> str:
    """Name that a model file has on a server: its own, without the suffix and with plain characters."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)


class TritonBackend:
    """A model on a server, asked by several threads at once."""

    name = "triton"
    parallel = 4
    """Requests under way, which hide the network's delay; the server joins them into batches."""

    def __init__(self, url: str, path: Path, spec: ModelSpec) -> None:
        """Connect, and see that the server has this model.

        Args:
            url: `http://host:port`, or `https`, `grpc`, `grpcs`; the model's name there may follow as a path.
            path: the model's file, which gives the name otherwise.
            spec: of that file.

        Raises:
            BackendError: the server cannot be reached, or has no such model.
            ModelError: it has another one under this name.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PROTOCOLS or not parts.netloc:
            raise UsageError(
                f"--triton {url}: a URL such as http://host:8000 or grpc://host:8001/model is wanted"
            )
        self.device = f"{parts.scheme}://{parts.netloc}"
        self.precision: str = spec.precision
        self.batch_size = 8
        self.notes: tuple[str, ...] = ()
        self._model = parts.path.strip("/") or served_name(path)
        self._grpc = parts.scheme.startswith("grpc")
        self._address, self._secure = parts.netloc, parts.scheme.endswith("s")
        self._library = require("tritonclient.grpc" if self._grpc else "tritonclient.http", "triton")
        self._of_thread = threading.local()
        self.spec = spec
        with self._explained():
            extensions = self._fetch("get_server_metadata").get("extensions", [])
            metadata = self._fetch("get_model_metadata", self._model)
        self._binary = self._grpc or "binary_tensor_data" in extensions
        self._check(metadata)
        self._check_identity("model_configuration" in extensions)

    def infer(self, images: NDArray[np.generic], outputs: Sequence[str] = (PROBABILITIES,)) -> Arrays:
        """Run one batch on the server."""
        request = self._library.InferInput("image", list(images.shape), "UINT8")
        binary = {} if self._grpc else {"binary_data": self._binary}
        request.set_data_from_numpy(images, **binary)
        wanted = [self._library.InferRequestedOutput(name, **binary) for name in outputs]
        options: dict[str, Any] = {"client_timeout": _TIMEOUT_S} if self._grpc else {}
        with self._explained():
            answer = self._client().infer(self._model, [request], outputs=wanted, **options)
            return {name: self._checked(answer.as_numpy(name), len(images)) for name in outputs}

    def _checked(self, found: NDArray[Any] | None, images: int) -> NDArray[np.float32]:
        """Check one output: a row an image, and a value or a map a class."""
        if (
            found is None
            or found.dtype != np.float32
            or (*found.shape[:1], *found.shape[-1:])
            != (
                images,
                self.spec.classes,
            )
        ):
            got = "nothing" if found is None else f"{found.dtype} of shape {found.shape}"
            shape = (images, self.spec.classes)
            raise BackendError(f"{self._where}: answered {got}; float32 of shape {shape} is wanted")
        return np.asarray(found)

    def close(self) -> None:
        """End this thread's connection; those of others end with their threads."""
        if hasattr(self._of_thread, "client"):
            self._of_thread.client.close()
            del self._of_thread.client

    @property
    def _where(self) -> str:
        return f"{self.device}, model {self._model!r}"

    def _client(self) -> Any:  # noqa: ANN401  a class of either library
        """Give this thread's client: the libraries' are not to be shared."""
        if not hasattr(self._of_thread, "client"):
            options: dict[str, Any] = {"ssl": self._secure}
            if not self._grpc:
                options |= {"connection_timeout": _TIMEOUT_S, "network_timeout": _TIMEOUT_S}
            self._of_thread.client = self._library.InferenceServerClient(self._address, **options)
        return self._of_thread.client

    def _fetch(self, method: str, *arguments: str) -> dict[str, Any]:
        options = {"as_json": True, "client_timeout": _TIMEOUT_S} if self._grpc else {}
        found: dict[str, Any] = getattr(self._client(), method)(*arguments, **options)
        return found

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the network or the server did into one message."""
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            raise BackendError(f"{self._where}: {error.message()}") from None
        except OSError as error:
            raise BackendError(f"{self._where}: cannot be reached ({error.strerror or error})") from None

    def _check(self, metadata: dict[str, Any]) -> None:
        """Compare what the server says of inputs and outputs, if anything, with the file's spec."""
        image, spec = self.spec.image, self.spec
        wanted = {
            "inputs": ("image", "UINT8", [image.rows, image.columns, 3]),
            "outputs": ("probabilities", "FP32", [spec.classes]),
        }
        for side, (name, datatype, dims) in wanted.items():
            tensors = {tensor["name"]: tensor for tensor in metadata.get(side, [])}
            if not tensors:
                continue
            tensor = tensors.get(name, {"datatype": "nothing", "shape": []})
            # gRPC's JSON has whole numbers of 64 bits as text.
            shape = [int(size) for size in tensor["shape"]]
            if tensor["datatype"] != datatype or shape[1:] != dims:
                raise ModelError(
                    f"{self._where}: {name} is {tensor['datatype']} {shape[1:]} there, and {datatype} {dims} "
                    "in the file: it is another model"
                )

    def _check_identity(self, has_configuration: bool) -> None:
        config: dict[str, Any] = {}
        if has_configuration:
            with self._explained():
                config = self._fetch("get_model_config", self._model)
            config = config.get("config", config)
        self.batch_size = min(self.batch_size, int(config.get("max_batch_size") or self.batch_size))
        there = config.get("parameters", {}).get(IDENTITY, {}).get("string_value")
        if there is None:
            self.notes = (f"{self._where} does not tell which file it runs; the labels are this file's",)
        elif there != self.spec.artefact_sha256:
            raise ModelError(f"{self._where}: runs another file than this one: its SHA-256 is {there}")


def connect(url: str, path: Path) -> TritonBackend:
    """Connect to the server of a model.

    Args:
        url: see `TritonBackend`.
        path: the model's file (`.onnx`, or `.plan` with its record), of which only the spec is used.

    Raises:
        ModelError: it is no artefact of medimg-export.
        MedimgError: see `TritonBackend`.
    """
    spec = read_spec(path)
    if spec.artefact_sha256 is None:
        raise ModelError(f"{path}: is no exported model: the file that medimg-export made of it is wanted")
    return TritonBackend(url, path, spec)
