"""The model that answers, and the one before it."""

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medimg.runtime.classifier import Classifier
from medimg.runtime.errors import MedimgError, ModelError
from medimg.runtime.files.text import printable
from medimg.runtime.node.bundle import AcceptedVersions, verified_artefact
from medimg.runtime.node.files import make_folder, write_durable
from medimg.runtime.node.store import Store

_LOG = logging.getLogger(__name__)

ACCEPTED_VERSIONS = "bundles.json"
"""In the folder of state: which version of each signed bundle has run."""


@dataclass(frozen=True)
class Model:
    """A loaded artefact."""

    name: str
    sha256: str
    """Of the whole file."""
    classifier: Classifier


class Models:
    """Loads the artefact or bundle at a path, and keeps the one before for rollback.

    Args:
        source: an artefact, or a bundle's folder.
        public_key: with it, only a bundle that it verifies is loaded.
        store: is told of each model; a copy of the artefact is kept in its folder `models`.
        threads: processor threads for inference.

    Raises:
        MedimgError: the model cannot be used.
    """

    def __init__(self, source: Path, public_key: Path | None, store: Store, threads: int) -> None:
        self._source, self._public_key, self._store, self._threads = source, public_key, store, threads
        self._copies = make_folder(store.folder / "models")
        self._accepted = AcceptedVersions(store.folder / ACCEPTED_VERSIONS)
        self._lock = threading.Lock()
        self._current = self._load()
        self._previous: Model | None = None

    @property
    def current(self) -> Model:
        """The model that answers."""
        return self._current

    @contextmanager
    def in_use(self) -> Iterator[Model]:
        """Give the model for one batch, during which it is not replaced."""
        with self._lock:
            yield self._current

    def reload(self) -> bool:
        """Load the model anew; the present one stays if the new one is refused."""
        try:
            new = self._load()
        except MedimgError as error:
            _LOG.error("the model stays: %s", printable(str(error)))
            self._store.audit("model refused", reason=str(error))
            return False
        if new.sha256 == self._current.sha256:
            new.classifier.close()
            return True
        with self._lock:
            oldest, self._previous, self._current = self._previous, self._current, new
        if oldest:
            oldest.classifier.close()
        return True

    def rollback(self) -> bool:
        """Exchange the model for the one before it, if there is one."""
        with self._lock:
            if self._previous is None:
                return False
            self._current, self._previous = self._previous, self._current
        self._store.audit("rollback", model_sha256=self._current.sha256)
        return True

    def close(self) -> None:
        """Free both."""
        for model in (self._current, self._previous):
            if model:
                model.classifier.close()

    def _load(self) -> Model:
        found = verified_artefact(self._source, self._public_key)
        self._accepted.require_not_older(found)
        path = found.path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror}") from None
        sha256 = hashlib.sha256(content).hexdigest()
        if found.sha256 not in (None, sha256):
            raise ModelError(f"{path}: was changed while it was read: copy the bundle again")
        copy = self._copies / f"{sha256}.onnx"
        write_durable(copy, content)
        classifier = Classifier(copy, threads=self._threads, tuned_for="latency")
        if classifier.spec.intensity.rule == "unspecified":
            classifier.close()
            raise ModelError(
                f"{path}: its preprocessing is unspecified: export it again with --preprocessing"
            )
        self._accepted.accept(found)
        self._store.add_model(sha256, path.name, classifier.spec.to_json())
        return Model(path.name, sha256, classifier)
