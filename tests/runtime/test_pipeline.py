import itertools
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segship.runtime.pipeline import overlapped

SECONDS = 30  # how long a test waits for what must happen before it fails


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(), max_size=30))
def test_results_come_in_the_order_of_the_items(items: list[int]) -> None:
    stages = overlapped(items, before=lambda x: x + 1, network=lambda x: x * 10, after=str)
    assert [(item, done.result()) for item, done in stages] == [(item, str((item + 1) * 10)) for item in items]


@pytest.mark.parametrize("broken", ["before", "network", "after"])
def test_an_error_stays_with_its_item(broken: str) -> None:
    def stage(name: str, value: int) -> int:
        if name == broken and value == 2:
            raise ValueError(f"{name} of {value}")
        return value

    stages = overlapped(
        range(5),
        before=lambda value: stage("before", value),
        network=lambda value: stage("network", value),
        after=lambda value: stage("after", value),
    )
    outcomes = [done.exception() or done.result() for _, done in stages]
    assert str(outcomes.pop(2)) == f"{broken} of 2"
    assert outcomes == [0, 1, 3, 4]


def test_an_error_of_the_items_themselves_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"):
        list(overlapped(items(), before=int, network=int, after=int))


def test_an_endless_source_is_read_only_a_little_ahead() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    stages = overlapped(items(), before=int, network=int, after=int)
    for taken in range(1, 20):
        next(stages)
        assert len(read) < taken + 6
    stages.close()


def test_the_network_runs_in_one_thread_and_in_order() -> None:
    threads: set[int] = set()
    order: list[int] = []

    def network(value: int) -> int:
        threads.add(threading.get_ident())
        order.append(value)
        return value

    list(overlapped(range(40), before=int, network=network, after=int))
    assert order == list(range(40))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_the_next_picture_is_read_while_the_network_runs() -> None:
    second_is_ready = threading.Event()

    def before(value: int) -> int:
        if value == 1:
            second_is_ready.set()
        return value

    def network(value: int) -> bool:
        return second_is_ready.wait(SECONDS)

    assert all(done.result() for _, done in overlapped(range(2), before=before, network=network, after=bool))


def test_a_result_is_finished_while_the_network_runs_on() -> None:
    first_is_done = threading.Event()

    def network(value: int) -> bool:
        return value == 0 or first_is_done.wait(SECONDS)

    def after(raw: bool) -> bool:
        first_is_done.set()
        return raw

    assert all(done.result() for _, done in overlapped(range(2), before=int, network=network, after=after))


def test_closing_early_ends_the_threads_and_reads_no_further() -> None:
    before_count = threading.active_count()
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    stages = overlapped(items(), before=int, network=int, after=int)
    next(stages)
    stages.close()
    assert len(read) <= 6
    assert threading.active_count() == before_count


def test_no_items_give_no_results() -> None:
    assert list(overlapped([], before=int, network=int, after=int)) == []
