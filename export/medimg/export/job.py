"""One export under way: what every precision shares, and how an artefact gets its name."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from onnx import ModelProto

from medimg.export.options import ExportOptions
from medimg.export.result import ArtefactFile
from medimg.export.verify import Comparison, Trial, compare
from medimg.runtime.errors import UsageError
from medimg.runtime.files.writing import replaced
from medimg.runtime.model.containers import Artefact, embed_in_onnx, file_sha256, open_onnx
from medimg.runtime.model.spec import ModelSpec, Precision

SUFFIXES: dict[Precision, str] = {"fp32": ".onnx", "fp16": ".fp16.onnx", "int8": ".int8.onnx"}


@dataclass
class Steps:
    """Tells a listener which step begins, and keeps how long each took."""

    tell: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block."""
        self.tell(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Job:
    """What the artefacts of one export have in common."""

    network: ModelProto
    """The checked float32 graph."""
    spec: ModelSpec
    trial: Trial
    rounding: Callable[[], float]
    """Tells Keras's own distance from float64 on the trial's images."""
    stem: Path
    """The artefacts' path without the suffix."""
    options: ExportOptions
    threads: int
    steps: Steps

    def compare(self, artefact: Artefact) -> Comparison:
        """Compare an artefact with Keras."""
        return compare(
            artefact,
            self.trial,
            rounding=self.rounding,
            max_drop=self.options.max_drop,
            threads=self.threads,
        )

    def place(
        self,
        model: ModelProto,
        precision: Precision,
        *,
        float_layers: tuple[str, ...] = (),
        force: bool | None = None,
    ) -> ArtefactFile:
        """Write to a temporary name, verify that file, and only then give it its name.

        Args:
            model: the finished graph.
            precision: what it is in.
            float_layers: layers that it keeps in float32.
            force: whether a failed artefact is written; the user's option unless given.

        Raises:
            UsageError: the file cannot be written; nothing is left of it.
        """
        spec = self.spec.with_(precision=precision, float_layers=float_layers)
        target = self.stem.with_name(self.stem.name + SUFFIXES[precision])
        content = model.SerializeToString(deterministic=True)
        try:
            with self.steps.step(f"verify {precision}"), replaced(target) as temporary:
                temporary.write_bytes(embed_in_onnx(content, spec))
                found = self.compare(open_onnx(temporary))
                temporary.write_bytes(embed_in_onnx(content, spec.with_(verification=found.verification)))
                size, sha256 = temporary.stat().st_size, file_sha256(temporary)
                forced = self.options.force if force is None else force
                written = found.verification.verdict != "failed" or forced
                if not written:
                    temporary.unlink()
        except OSError as error:
            raise UsageError(f"{target}: cannot be written ({error.strerror})") from None
        return ArtefactFile(
            str(target),
            "onnx",
            precision,
            size,
            sha256,
            found.verification,
            found.batch_max_abs_diff,
            found.recall,
            found.difference_counts,
            float_layers,
            found.reference_rounding,
            written,
            found.missed,
        )
