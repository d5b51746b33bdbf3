import gc
import time
from collections.abc import Iterator

import pytest

from segship.benchmarks.record import PICTURE, STAGES
from segship.benchmarks.sampling import (
    FULL,
    QUICK,
    Rules,
    measure_overhead_ns,
    sample_all,
    sample_in_turns,
    spoken,
    timed,
)
from segship.runtime.errors import BackendError


class Counted:
    """A road that says which of its calls it was, and notes its name in a list that several share."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order, self.calls = name, order, 0

    def __call__(self) -> dict[str, int]:
        self.calls += 1
        self.order.append(self.name)
        return {"network": self.calls, PICTURE: 10 * self.calls}


def test_roads_take_turns_and_keep_every_sample_after_the_warm_ups() -> None:
    order: list[str] = []
    first, second = sample_all([Counted("a", order), Counted("b", order)], Rules(2, 3, 0.0))
    turns = ["".join(order[start : start + 2]) for start in range(0, len(order), 2)]
    assert turns[:2] == ["ab", "ab"]
    assert {"".join(sorted(turn)) for turn in turns} == {"ab"}
    assert first == second
    assert first.samples_ns == {"network": (3, 4, 5), PICTURE: (30, 40, 50)}
    assert first.warm_ups == 2


def test_the_order_within_a_turn_is_drawn_anew() -> None:
    order: list[str] = []
    sample_in_turns([Counted("a", order), Counted("b", order)], Rules(0, 20, 0.0))
    assert {"".join(order[start : start + 2]) for start in range(0, 40, 2)} == {"ab", "ba"}


def test_each_goes_on_until_it_has_its_seconds() -> None:
    def road(seconds: float) -> dict[str, int]:
        start = time.perf_counter_ns()
        time.sleep(seconds)
        return {PICTURE: time.perf_counter_ns() - start}

    roads = [lambda: road(0.002), lambda: road(0.008)]
    fast, slow = (latency.samples_ns[PICTURE] for latency in sample_all(roads, Rules(0, 1, 0.02)))
    assert len(fast) > len(slow)
    assert max(sum(fast[:-1]), sum(slow[:-1])) < 20_000_000
    assert min(sum(fast), sum(slow)) > 19_000_000  # a little lies between its own stamps and those around them


def test_no_road_has_fewer_runs_than_asked_for() -> None:
    order: list[str] = []
    fast, slow = sample_all([Counted("a", order), Counted("b", order)], Rules(0, 4, 0.0))
    assert len(fast.samples_ns[PICTURE]) == len(slow.samples_ns[PICTURE]) == 4
    assert sample_in_turns([], Rules(1, 4, 0.0)) == []


def test_the_share_that_is_done_grows_to_one() -> None:
    shares: list[float] = []
    sample_in_turns([Counted("a", [])], Rules(1, 4, 0.0), shares.append)
    assert shares == [0, 0.25, 0.5, 0.75, 1]


class Failing(Counted):
    """A road that fails at one of its calls."""

    def __init__(self, name: str, order: list[str], fails_at: int) -> None:
        super().__init__(name, order)
        self.fails_at = fails_at

    def __call__(self) -> dict[str, int]:
        taken = super().__call__()
        if self.calls == self.fails_at:
            raise BackendError(f"{self.name} on purpose")
        return taken


def test_a_road_that_fails_takes_no_further_part_and_the_others_go_on() -> None:
    order: list[str] = []
    roads = [Failing("a", order, 4), Counted("b", order), Failing("c", order, 1)]
    first, second, third = sample_in_turns(roads, Rules(2, 3, 0.0))
    assert [str(error) for error in (first, third)] == ["a on purpose", "c on purpose"]
    assert second == sample_all([Counted("b", [])], Rules(2, 3, 0.0))[0]
    assert [order.count(name) for name in "abc"] == [4, 5, 1]
    with pytest.raises(BackendError, match="a on purpose"):
        sample_all([Counted("b", []), Failing("a", [], 4)], Rules(2, 3, 0.0))


def test_how_far_it_is_is_told_after_some_silence() -> None:
    told: list[str] = []
    for silence_s in (0.0, 3600.0):
        tick = spoken(told.append, silence_s)
        for share in (0.0, 0.25, 1.0):
            tick(share)
    assert told == ["warming up", "25 % timed", "100 % timed"]


@pytest.fixture
def collector() -> Iterator[None]:
    was_enabled = gc.isenabled()
    yield
    (gc.enable if was_enabled else gc.disable)()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("was_enabled", [True, False])
def test_no_garbage_is_collected_meanwhile_and_all_is_as_before_after_an_error(was_enabled: bool) -> None:
    (gc.enable if was_enabled else gc.disable)()
    seen: list[bool] = []

    def road() -> dict[str, int]:
        seen.append(gc.isenabled())
        if len(seen) == 3:
            raise ValueError("on purpose")
        return {PICTURE: 1}

    with pytest.raises(ValueError, match="on purpose"):
        sample_in_turns([road], Rules(1, 9, 0.0))
    assert seen == [was_enabled, False, False]
    assert gc.isenabled() is was_enabled


def test_a_value_goes_from_stage_to_stage_and_their_times_are_the_whole() -> None:
    seen: list[object] = []
    taken = timed({"a": lambda value: value + 1, "b": lambda value: value * 10, "c": seen.append}, 2)
    assert seen == [30]
    assert list(taken) == ["a", "b", "c", PICTURE]
    assert taken[PICTURE] == taken["a"] + taken["b"] + taken["c"] > 0


def test_measuring_itself_takes_some_time() -> None:
    assert measure_overhead_ns(20) > len(STAGES)


def test_the_rules_ask_for_enough() -> None:
    assert (FULL.warm_ups, FULL.runs, FULL.seconds) == (10, 100, 10)
    assert (QUICK.warm_ups, QUICK.runs, QUICK.seconds) == (5, 20, 1)
