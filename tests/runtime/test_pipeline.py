import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segship.runtime.pipeline import Crew, overlapped

SECONDS = 30  # how long a test waits for what must happen before it fails
CREWS = [Crew(), Crew(2, 2, 1, 0), Crew(1, 1, 1, 0), Crew(4, 2, 3, 2), Crew(3, 1, 4, 1)]


def times_ten(values: Sequence[int]) -> list[int]:
    return [value * 10 for value in values]


def unchanged(values: Sequence[int]) -> Sequence[int]:
    return values


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(), max_size=30), st.sampled_from(CREWS))
def test_results_come_in_the_order_of_the_items(items: list[int], crew: Crew) -> None:
    outcomes = overlapped(items, before=lambda x: x + 1, network=times_ten, after=str, crew=crew)
    assert [one.result() for one in outcomes] == [str((item + 1) * 10) for item in items]


@pytest.mark.parametrize("crew", CREWS)
@pytest.mark.parametrize("broken", ["before", "network", "after"])
def test_an_error_stays_with_its_item(broken: str, crew: Crew) -> None:
    def stage(name: str, value: int) -> int:
        if name == broken and value == 2:
            raise ValueError(f"{name} of {value}")
        return value

    outcomes = overlapped(
        range(5),
        before=lambda value: stage("before", value),
        network=lambda values: [stage("network", value) for value in values],
        after=lambda value: stage("after", value),
        crew=crew,
    )
    found = [one.error or one.result() for one in outcomes]
    assert str(found.pop(2)) == f"{broken} of 2"
    assert found == [0, 1, 3, 4]


def test_the_error_of_an_item_is_raised_by_its_result() -> None:
    (outcome,) = overlapped([1], before=int, network=unchanged, after=lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        outcome.result()


def test_an_error_of_the_items_themselves_is_raised_after_those_before() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the camera is gone")

    outcomes = overlapped(items(), before=int, network=unchanged, after=int)
    assert next(outcomes).result() == 1
    with pytest.raises(OSError, match="the camera is gone"):
        next(outcomes)


@pytest.mark.parametrize("crew", CREWS)
def test_an_endless_source_is_read_only_a_little_ahead(crew: Crew) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    outcomes = overlapped(items(), before=int, network=unchanged, after=int, crew=crew)
    for taken in range(1, 20):
        next(outcomes)
        assert len(read) <= taken + crew.in_flight
    outcomes.close()


def test_no_more_runs_of_the_network_are_made_at_once_than_there_may_be() -> None:
    at_once: list[int] = []
    lock, running = threading.Lock(), 0

    def network(values: Sequence[int]) -> Sequence[int]:
        nonlocal running
        with lock:
            running += 1
            at_once.append(running)
        threading.Event().wait(0.002)
        with lock:
            running -= 1
        return values

    list(overlapped(range(40), before=int, network=network, after=int, crew=Crew(6, 2, 1, 0)))
    assert max(at_once) == 2


def test_two_runs_of_the_network_go_on_at_once() -> None:
    meeting = threading.Barrier(2, timeout=SECONDS)

    def network(values: Sequence[int]) -> Sequence[int]:
        meeting.wait()
        return values

    list(overlapped(range(4), before=int, network=network, after=int, crew=Crew(2, 2, 1, 0)))


def test_batches_are_filled_and_the_rest_is_not_waited_for() -> None:
    sizes: list[int] = []
    fifth_is_ready = threading.Event()

    def before(value: int) -> int:
        if value == 5:
            fifth_is_ready.set()
        return value

    def network(values: Sequence[int]) -> Sequence[int]:
        assert fifth_is_ready.wait(SECONDS)  # meanwhile the next ones are prepared
        sizes.append(len(values))
        return values

    list(overlapped(range(10), before=before, network=network, after=int, crew=Crew(2, 1, 4, 1)))
    assert sum(sizes) == 10
    assert max(sizes) == 4


def test_one_item_that_breaks_a_batch_does_not_take_the_others_with_it() -> None:
    sizes: list[int] = []
    last_is_ready = threading.Event()

    def before(value: int) -> int:
        if value == 5:
            last_is_ready.set()
        return value

    def network(values: Sequence[int]) -> Sequence[int]:
        assert last_is_ready.wait(SECONDS)
        sizes.append(len(values))
        if 3 in values:
            raise ValueError("3")
        return values

    outcomes = list(overlapped(range(6), before=before, network=network, after=int, crew=Crew(2, 1, 6, 1)))
    assert [one.error is None for one in outcomes] == [True, True, True, False, True, True]
    assert max(sizes) > 1


def test_a_number_that_the_network_cannot_take_is_not_made_smaller_in_silence() -> None:
    all_are_ready = threading.Event()

    def before(value: int) -> int:
        if value == 3:
            all_are_ready.set()
        return value

    def network(values: Sequence[int]) -> Sequence[int]:
        assert all_are_ready.wait(SECONDS)
        if len(values) > 1:
            raise MemoryError("too many")
        return values

    outcomes = list(overlapped(range(4), before=before, network=network, after=int, crew=Crew(2, 1, 4, 1)))
    assert [str(one.error) for one in outcomes] == ["too many"] * 4


@pytest.mark.parametrize("stage", ["before", "network", "after", "items"])
def test_a_stage_that_wants_the_program_to_end_ends_the_stream(stage: str) -> None:
    def leave(*_: Any) -> Any:
        raise SystemExit(5)

    def leaving() -> Iterator[int]:
        yield 0
        leave()

    stages: dict[str, Any] = {"before": int, "network": list, "after": int} | {stage: leave}
    stages.pop("items", None)
    items = leaving() if stage == "items" else range(9)
    with pytest.raises(SystemExit):
        _ = [outcome.result() for outcome in overlapped(items, **stages)]


def test_a_whole_batch_is_made_ready_while_another_is_in_the_network() -> None:
    ready, two_batches = itertools.count(1), threading.Event()

    def before(value: int) -> int:
        if next(ready) == 16:
            two_batches.set()
        return value

    def network(values: Sequence[int]) -> Sequence[int]:
        assert two_batches.wait(SECONDS)
        return values

    outcomes = list(overlapped(range(16), before=before, network=network, after=int, crew=Crew(3, 1, 8, 1)))
    assert [one.result() for one in outcomes] == list(range(16))


def test_the_next_picture_is_read_while_the_network_runs() -> None:
    second_is_ready = threading.Event()

    def before(value: int) -> int:
        if value == 1:
            second_is_ready.set()
        return value

    def network(values: Sequence[int]) -> list[bool]:
        return [second_is_ready.wait(SECONDS) for _ in values]

    assert all(one.result() for one in overlapped(range(2), before=before, network=network, after=bool))


def test_a_result_is_finished_while_the_network_runs_on() -> None:
    first_is_done = threading.Event()

    def network(values: Sequence[int]) -> list[bool]:
        return [value == 0 or first_is_done.wait(SECONDS) for value in values]

    def after(raw: bool) -> bool:
        first_is_done.set()
        return raw

    assert all(one.result() for one in overlapped(range(2), before=int, network=network, after=after))


def test_a_result_is_handed_on_while_the_source_waits_for_its_next_picture() -> None:
    first_is_taken = threading.Event()

    def camera() -> Iterator[int]:
        yield 0
        assert first_is_taken.wait(SECONDS)
        yield 1

    outcomes = overlapped(camera(), before=int, network=unchanged, after=int)
    assert next(outcomes).result() == 0
    first_is_taken.set()
    assert next(outcomes).result() == 1


def test_closing_early_ends_the_threads_and_reads_no_further() -> None:
    before_count = threading.active_count()
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    outcomes = overlapped(items(), before=int, network=unchanged, after=int)
    next(outcomes)
    outcomes.close()
    count = len(read)
    assert count <= 1 + Crew().in_flight
    assert threading.active_count() == before_count
    assert len(read) == count


def test_closing_does_not_wait_for_a_source_that_sends_nothing() -> None:
    may_end = threading.Event()

    def camera() -> Iterator[int]:
        yield 0
        may_end.wait(SECONDS)

    outcomes = overlapped(camera(), before=int, network=unchanged, after=int)
    next(outcomes)
    outcomes.close()
    assert not may_end.is_set()
    may_end.set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_end_of_the_program_interrupts_the_network_and_nothing_is_tried_again(error: type[BaseException]) -> None:
    is_interrupted, is_running = threading.Event(), threading.Event()
    ends: list[bool] = []

    def network(values: Sequence[int]) -> Sequence[int]:
        if 0 not in values:
            is_running.set()
            ends.append(is_interrupted.wait(SECONDS))
            raise OSError("interrupted")
        return values

    crew = Crew(3, 1, 3, 1)
    outcomes = overlapped(range(99), int, network, int, crew, is_interrupted.set)
    next(outcomes)
    assert is_running.wait(SECONDS)
    with pytest.raises(error):
        outcomes.throw(error)
    assert ends == [True]


def test_a_stream_that_is_left_early_interrupts_nothing() -> None:
    outcomes = overlapped(range(9), int, unchanged, int, interrupt=lambda: pytest.fail("interrupted"))
    next(outcomes)
    outcomes.close()


@pytest.mark.parametrize("workers", [3, 9])
def test_of_a_live_source_one_item_at_most_waits_for_the_network(workers: int) -> None:
    read: list[int] = []
    behind: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            read.append(item)
            yield item

    def network(values: Sequence[int]) -> Sequence[int]:
        time.sleep(0.005)  # for the reader to run ahead, if it does
        behind.append(read[-1] - values[0])
        return values

    crew = Crew(workers, 1, 1, 1, reads_ahead=False)
    outcomes = list(overlapped(items(), before=lambda x: x, network=network, after=lambda x: x, crew=crew))
    assert [one.result() for one in outcomes] == list(range(20))
    assert max(behind) <= 1
