"""Work done by threads ahead of its use: in order, and with a bounded number of items under way."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def worker_threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Give threads that, whatever ends the block, finish what they are at and begin nothing more."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=f"medimg-{name}")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Apply a function in threads and give its results in the order of the items.

    Args:
        pool: the threads.
        work: what is done to each item; what it raises is raised when the item's turn comes.
        items: taken one by one, in the caller's thread.
        ahead: items under way at most, so that memory does not grow with their number.
    """
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
