"""Computing and consuming at the same time."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Semaphore
from typing import TypeVar

T = TypeVar("T")


def consume_beside(items: Iterable[T], consume: Callable[[Iterator[T]], None]) -> None:
    """Compute items in this thread while another one consumes the item before.

    Args:
        items: none is None.
        consume: takes all items. It sees an early end if computing fails.

    Raises:
        Exception: whatever computing or consuming raises; the other then ends, too.
    """
    # Given only when asked for: no more than two items exist.
    asked, given = Semaphore(0), SimpleQueue[T | None]()

    def received() -> Iterator[T]:
        while True:
            asked.release()
            if (item := given.get()) is None:
                return
            yield item

    with ThreadPoolExecutor(1) as other:
        done = other.submit(consume, received())
        done.add_done_callback(lambda _: asked.release())
        try:
            for item in items:
                asked.acquire()
                if done.done():
                    break
                given.put(item)
        finally:
            given.put(None)
        done.result()
