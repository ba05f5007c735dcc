"""An engine file held against its golden inputs on this GPU."""

from collections.abc import Sequence
from pathlib import Path

from medimg.runtime.backends.with_tensorrt import TensorRtBackend
from medimg.runtime.classifier import Classifier
from medimg.runtime.engines.golden import GoldenCheck, check
from medimg.runtime.engines.verified import note_check
from medimg.runtime.errors import UsageError


def verify_engine(model: Path, golden: Path, trusted: Sequence[str] = ()) -> GoldenCheck:
    """Run golden inputs through an engine file on this GPU, and keep the outcome.

    Args:
        model: the `.plan` file.
        golden: the golden inputs.
        trusted: SHA-256 of records (`.plan.json`) of engines that the user vouches for.

    Raises:
        UsageError: it is no engine.
        MedimgError: see `medimg.runtime.classifier.Classifier`.
    """
    with Classifier(model, trusted=trusted) as classifier:
        backend = classifier.backend
        if not isinstance(backend, TensorRtBackend):
            raise UsageError(f"{model}: golden inputs verify TensorRT engines (.plan)")
        found = check(backend.infer, classifier.spec, golden, backend.record.profile.most)
        note_check(backend.record.engine_sha256, backend.gpu, found)
    return found
