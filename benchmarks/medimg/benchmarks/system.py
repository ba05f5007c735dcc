"""The system under test: what answers the queries, whichever driver sends them."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from types import TracebackType
from typing import TypeAlias, TypeVar

from medimg.benchmarks.clock import Clock
from medimg.benchmarks.pipeline import Fetched, Measurement, Pipeline
from medimg.runtime.data import Sample
from medimg.runtime.ordered import in_order, worker_threads

Indices: TypeAlias = Sequence[int]
"""Numbers of samples."""
Work = TypeVar("Work")


class System:
    """A pipeline and the samples that queries name by index; use it in a `with` block.

    Args:
        pipeline: answers batches.
        samples: all images.
        threads: for decoding.
    """

    def __init__(self, pipeline: Pipeline, samples: Sequence[Sample], threads: int) -> None:
        self.pipeline = pipeline
        self.samples = samples
        self.threads = threads
        self.clock: Clock = pipeline.clock
        self._stack = ExitStack()

    def __enter__(self) -> "System":
        self._decoders = self._stack.enter_context(worker_threads(self.threads, "decode"))
        self._runners = self._stack.enter_context(worker_threads(self.pipeline.parallel, "infer"))
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def answer(self, indices: Indices, found: Measurement) -> list[int]:
        """Answer one query at once; its images are decoded side by side.

        Returns:
            The first class of each image.
        """
        if len(indices) == 1:
            fetched = [self._fetch(indices[0])]
        else:
            fetched = list(self._decoders.map(self._fetch, indices))
        return self._answer(indices, fetched, found)

    def answer_all(
        self,
        indices: Iterable[int],
        batch_size: int,
        found: Measurement,
        enough: Callable[[int], bool] = lambda _sent: False,
    ) -> Iterator[tuple[Indices, list[int]]]:
        """Answer many images in batches, decoding ahead in threads as `predict` does.

        Args:
            indices: of the images; those decoded ahead when it is enough are not answered.
            batch_size: images a batch.
            found: where times are counted.
            enough: asked before each batch, with the number of those sent.

        Yields:
            Each batch's indices and first classes, in order, when it is answered.
        """
        ahead = batch_size + 2 * self.threads
        fetched = in_order(self._decoders, lambda index: (index, self._fetch(index)), indices, ahead)

        def batches() -> Iterator[list[tuple[int, Fetched]]]:
            sent = 0
            while not enough(sent) and (batch := list(islice(fetched, batch_size))):
                yield batch
                sent += 1

        def answer(batch: list[tuple[int, Fetched]]) -> tuple[Indices, list[int]]:
            numbers, images = zip(*batch, strict=True)
            return numbers, self._answer(numbers, images, found)

        yield from in_order(self._runners, answer, batches(), self.pipeline.parallel)

    @contextmanager
    def working(self, take: Callable[[], Work | None], begin: Callable[[Work], None]) -> Iterator[None]:
        """Serve, in as many threads as keep the back end busy, until there is no more work.

        Args:
            take: waits for the next work and gives it, or None when there is no more.
            begin: does it; what it raises ends the serving, and is raised when the block ends.
        """
        stop = threading.Event()

        def loop() -> None:
            try:
                while not stop.is_set() and (work := take()) is not None:
                    begin(work)
            finally:
                stop.set()

        loops = [self._runners.submit(loop) for _ in range(self.pipeline.parallel)]
        try:
            yield
            for running in loops:
                running.result()
        finally:
            stop.set()

    def serve(self, indices: Indices, found: Measurement) -> list[int]:
        """Answer a query from a worker's own thread, decoding there."""
        return self._answer(indices, list(map(self._fetch, indices)), found)

    def _fetch(self, index: int) -> Fetched:
        return self.pipeline.fetch(self.samples[index])

    def _answer(self, indices: Indices, fetched: Sequence[Fetched], found: Measurement) -> list[int]:
        classes = self.pipeline.answer(fetched, found)
        found.answers.update(zip(indices, classes, strict=True))
        return classes
