import threading
import time
from collections.abc import Iterator

import pytest

from segship.training.data.parallel import in_parallel


def test_results_come_in_the_order_of_the_items() -> None:
    def work(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return item * item

    assert list(in_parallel(work, range(200))) == [item * item for item in range(200)]


def test_work_goes_on_side_by_side() -> None:
    both = threading.Barrier(2, timeout=10)
    assert list(in_parallel(lambda _: both.wait() >= 0, range(2))) == [True, True]


def test_items_are_taken_only_a_few_ahead_of_the_results() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(10_000):
            taken += 1
            yield item

    results = in_parallel(lambda item: item, items())
    for _ in range(10):
        next(results)
    assert taken < 100
    results.close()
    assert taken < 100


def test_what_the_work_raises_is_raised_in_its_turn_and_the_rest_is_left() -> None:
    done: list[int] = []

    def work(item: int) -> int:
        if item == 5:
            raise ValueError("five")
        done.append(item)
        return item

    results = in_parallel(work, range(10_000))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert len(done) < 100


def test_nothing_gives_nothing() -> None:
    assert list(in_parallel(lambda item: item, [])) == []
