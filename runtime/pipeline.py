"""Stages that overlap: reading, what comes before the network, the network, and what comes after it.

One thread reads, and a few workers take the most advanced work there is: what is nearest to its end first, so that
little is under way at a time. On a CPU whose cores each run the network for themselves, the workers are as many as
cores, and each is busy with whatever is at hand; nothing waits for a stage.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Raw = TypeVar("Raw")
Done = TypeVar("Done")

_CLOSING_S: Final = 0.5
"""How long a closed stream waits for a source that blocks, such as a camera that sends nothing."""


@dataclass(frozen=True)
class Crew:
    """Who does the work.

    Attributes:
        workers: threads for all stages but reading.
        runs: of the network at once, each of one batch.
        batch: items that a run takes; fewer where no more come at the moment.
        keep_for_network: workers that do nothing else, so that an engine with threads of its own, or a GPU, never
            waits for one.
        reads_ahead: whether items are read while others still wait for the network. Of a live source each that waits
            grows old, and one that is prepared while the network runs is enough.
    """

    workers: int = 3
    runs: int = 1
    batch: int = 1
    keep_for_network: int = 1
    reads_ahead: bool = True

    @property
    def in_flight(self) -> int:
        """How many items may be under way: enough that nobody waits, and memory does not grow with their number.

        While one batch is in the network, the next one is made ready.
        """
        return 2 * (self.workers + self.runs * (self.batch - 1))


@dataclass(frozen=True)
class Outcome(Generic[Item, Done]):
    """An item that is through all stages.

    Attributes:
        item: as it was read, if there is an error; otherwise None, so that it goes as soon as it has been used.
        value: what the last stage made of it; None if there is an error.
        error: that a stage raised.
    """

    item: Item | None
    value: Done | None
    error: BaseException | None

    def result(self) -> Done:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # without an error it is what the last stage returned


def overlapped(
    items: Iterable[Item],
    before: Callable[[Item], Ready],
    network: Callable[[Sequence[Ready]], Sequence[Raw]],
    after: Callable[[Raw], Done],
    crew: Crew | None = None,
    interrupt: Callable[[], None] | None = None,
) -> Generator[Outcome[Item, Done], None, None]:
    """Run ``before``, ``network`` and ``after`` on each item, each stage beside the others.

    Memory does not grow with the number of items: they are read no faster than outcomes are taken. An error stays with
    its item; where a run of several fails, each is run alone, so that it stays with those that cause it, and with all
    where none does.

    Args:
        items: read in a thread of their own.
        before: the first stage, of one item.
        network: the second, of up to a batch of them.
        after: the last, of one.
        crew: who does the work; None: a small one.
        interrupt: ends the runs of ``network`` that are under way, which then raise something. Called, from this
            thread, where the program is to end, such as by Ctrl-C; without it the end waits for them.

    Yields:
        Outcomes, in the order of the items, each as soon as it is there.

    Raises:
        BaseException: what reading ``items`` raises, after the outcomes of those before.
    """
    road = _Road(iter(items), before, network, after, crew or Crew())
    hurry = None
    try:
        yield from road.outcomes()
    except (KeyboardInterrupt, SystemExit):
        hurry = interrupt
        raise
    finally:
        road.close(hurry)


class _Task(Generic[Item, Ready, Raw, Done]):
    """An item under way. What a stage has made goes as soon as the next one has used it."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.ready: Ready | None = None
        self.raw: Raw | None = None
        self.done: Outcome[Item, Done] | None = None


class _Road(Generic[Item, Ready, Raw, Done]):
    def __init__(
        self,
        items: Iterator[Item],
        before: Callable[[Item], Ready],
        network: Callable[[Sequence[Ready]], Sequence[Raw]],
        after: Callable[[Raw], Done],
        crew: Crew,
    ) -> None:
        self._before, self._network, self._after, self._crew = before, network, after, crew
        self._changed = threading.Condition()
        self._in_order: deque[_Task[Item, Ready, Raw, Done]] = deque()
        self._fresh: deque[_Task[Item, Ready, Raw, Done]] = deque()
        self._ready: deque[_Task[Item, Ready, Raw, Done]] = deque()
        self._raw: deque[_Task[Item, Ready, Raw, Done]] = deque()
        self._preparing = self._running = self._beside = 0
        self._has_ended = self._is_closed = False
        self._reading_error: BaseException | None = None
        self._reader = threading.Thread(target=self._read, args=(items,), name="segship-reader", daemon=True)
        self._workers = [
            threading.Thread(target=self._work, name=f"segship-worker-{i}", daemon=True) for i in range(crew.workers)
        ]
        for thread in (self._reader, *self._workers):
            thread.start()

    def outcomes(self) -> Iterator[Outcome[Item, Done]]:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_news)
                if not self._in_order:
                    break
                outcome = self._in_order.popleft().done
                self._changed.notify_all()  # there is room for another item
            if outcome is not None:
                yield outcome
        if self._reading_error is not None:
            raise self._reading_error

    def close(self, interrupt: Callable[[], None] | None) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if interrupt is not None:
            interrupt()
        for worker in self._workers:
            worker.join()
        self._reader.join(_CLOSING_S)

    def _has_news(self) -> bool:
        return self._in_order[0].done is not None if self._in_order else self._has_ended

    def _read(self, items: Iterator[Item]) -> None:
        try:
            while self._may_read():
                try:
                    task: _Task[Item, Ready, Raw, Done] = _Task(next(items))
                except StopIteration:
                    break
                with self._changed:
                    self._in_order.append(task)
                    self._fresh.append(task)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  # handed on to whoever takes the outcomes
            self._reading_error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _may_read(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._has_room())
            return not self._is_closed

    def _has_room(self) -> bool:
        is_one_waiting = bool(self._fresh or self._preparing or self._ready)
        return len(self._in_order) < self._crew.in_flight and (self._crew.reads_ahead or not is_one_waiting)

    def _work(self) -> None:
        while (step := self._next_step()) is not None:
            step()

    def _next_step(self) -> Callable[[], None] | None:
        """Wait for work; the most advanced first. None when there is no more."""
        with self._changed:
            while True:
                if self._is_closed or (self._has_ended and self._is_all_done()):
                    self._changed.notify_all()
                    return None
                if step := self._possible_step():
                    return step
                self._changed.wait()

    def _is_all_done(self) -> bool:
        return not (self._fresh or self._ready or self._raw or self._preparing or self._running)

    def _possible_step(self) -> Callable[[], None] | None:
        may_do_else = self._beside < self._crew.workers - self._crew.keep_for_network
        if self._raw and may_do_else:
            self._beside += 1
            finished = self._raw.popleft()
            return lambda: self._finish(finished)
        if self._ready and self._running < self._crew.runs and self._is_batch_full():
            self._running += 1
            batch = [self._ready.popleft() for _ in range(min(self._crew.batch, len(self._ready)))]
            if not self._crew.reads_ahead:
                self._changed.notify_all()  # there is room for another item
            return lambda: self._run(batch)
        if self._fresh and may_do_else:
            self._beside += 1
            self._preparing += 1
            fresh = self._fresh.popleft()
            return lambda: self._prepare(fresh)
        return None

    def _is_batch_full(self) -> bool:
        """Tell whether there is a whole batch, or nothing is coming that it could wait for."""
        is_coming = self._preparing or self._fresh
        return len(self._ready) >= self._crew.batch or not is_coming

    def _prepare(self, task: _Task[Item, Ready, Raw, Done]) -> None:
        try:
            task.ready = self._before(task.item)
        except BaseException as error:  # noqa: BLE001  # handed on with its item
            self._fail(task, error)
        with self._changed:
            self._preparing -= 1
            self._beside -= 1
            if task.done is None:
                self._ready.append(task)
            self._changed.notify_all()

    def _run(self, batch: list[_Task[Item, Ready, Raw, Done]]) -> None:
        try:
            raws = self._network([task.ready for task in batch])  # type: ignore[misc]  # all have been prepared
            for task, raw in zip(batch, raws, strict=True):
                task.raw = raw
        except BaseException as error:  # noqa: BLE001  # handed on with the item that causes it
            if len(batch) > 1 and not self._is_closed:
                for task in batch:
                    self._run_alone(task)
            if all(task.done is None for task in batch):  # it is their number, and one by one would go on in silence
                for task in batch:
                    self._fail(task, error)
        with self._changed:
            self._running -= 1
            for task in batch:
                task.ready = None
                if task.done is None:
                    self._raw.append(task)
            self._changed.notify_all()

    def _run_alone(self, task: _Task[Item, Ready, Raw, Done]) -> None:
        try:
            (task.raw,) = self._network([task.ready])  # type: ignore[list-item]
        except BaseException as error:  # noqa: BLE001  # handed on with its item
            self._fail(task, error)

    def _finish(self, task: _Task[Item, Ready, Raw, Done]) -> None:
        try:
            task.done = Outcome(None, self._after(task.raw), None)  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001  # handed on with its item
            self._fail(task, error)
        with self._changed:
            task.raw = None
            self._beside -= 1
            self._changed.notify_all()

    def _fail(self, task: _Task[Item, Ready, Raw, Done], error: BaseException) -> None:
        task.done = Outcome(task.item, None, error)
