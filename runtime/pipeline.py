"""Three stages that overlap, in order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Raw = TypeVar("Raw")
Done = TypeVar("Done")

MAX_IN_FLIGHT = 6


def overlapped(
    items: Iterable[Item],
    before: Callable[[Item], Ready],
    network: Callable[[Ready], Raw],
    after: Callable[[Raw], Done],
    *,
    workers: int = 2,
) -> Generator[tuple[Item, Future[Done]], None, None]:
    """Run ``before``, ``network`` and ``after`` on each item, each stage beside the others.

    ``network`` runs in one thread, one item at a time and in order; ``before`` and ``after`` share ``workers`` threads.
    At most six items are on their way, so memory does not grow with their number, and ``items`` is read no faster
    than results are taken.

    Yields:
        Each item, in order, with its finished future: the result of ``after``, or whatever a stage raised.
    """
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(1) as single:

        def through_network(ready: Future[Ready]) -> Future[Done]:
            return pool.submit(after, network(ready.result()))

        in_flight: deque[tuple[Item, Future[Future[Done]]]] = deque()

        def oldest() -> tuple[Item, Future[Done]]:
            item, handed_on = in_flight.popleft()
            return item, _flattened(handed_on)

        try:
            for item in items:
                in_flight.append((item, single.submit(through_network, pool.submit(before, item))))
                if len(in_flight) >= MAX_IN_FLIGHT:
                    yield oldest()
            while in_flight:
                yield oldest()
        finally:
            for _, handed_on in in_flight:
                handed_on.cancel()


def _flattened(handed_on: Future[Future[Done]]) -> Future[Done]:
    """Wait for a future of a future, and return one finished future with its result or error."""
    done: Future[Done] = Future()
    try:
        done.set_result(handed_on.result().result())
    except Exception as error:  # noqa: BLE001  # handed on to whoever takes the result
        done.set_exception(error)
    return done
