"""How single runs are sampled: warmed up, in turns, with the garbage collector off, and nothing left out."""

import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from segship.benchmarks.record import PICTURE, STAGES, Latency
from segship.runtime.errors import SegshipError

Tick = Callable[[float], None]
RoadCall = Callable[[], Mapping[str, int]]


@dataclass(frozen=True)
class Rules:
    """How much is measured.

    Attributes:
        warm_ups: runs of each road before its first sample.
        runs: samples of each road at least.
        seconds: that the samples of each road take together at least.
    """

    warm_ups: int = 10
    runs: int = 100
    seconds: float = 10.0


FULL: Final = Rules()
"""What a figure that is told to others is made by."""

QUICK: Final = Rules(warm_ups=5, runs=20, seconds=1.0)
"""To see where one stands."""

_STEP_S: Final = 0.002
_AT_REST: Final = 0.1
"""CPUs in use below which nothing spins any more."""
_LONGEST_REST_NS: Final = 200_000_000
_SILENCE_S: Final = 15.0


def sample_in_turns(
    roads: Sequence[RoadCall], rules: Rules, tick: Tick = lambda _: None
) -> list[Latency | SegshipError]:
    """Run roads in turns, A B A B …, each until it has both the runs and the seconds that the rules ask for.

    Whatever else the machine does falls on all of them alike: sample i of one was taken right beside sample i of every
    other, so that they can be compared pair by pair, as far as both go. A slow road has its seconds sooner and takes
    no part in later turns, so that nobody waits for hours where one is a hundred times as fast as another.

    Within a turn the order is drawn anew, since what a run leaves to the next one would fall on the same pair always.
    Before each run this process comes to rest, since engines let their threads spin for a while after a run,
    tens of milliseconds in ONNX Runtime, and these would take the cores from the next one. A single road rests too, so
    that its samples are those that it would have beside others. Every sample is kept, the
    slowest too. The garbage collector runs before and not during it. A road that fails takes no further part, and the
    others go on.

    Args:
        roads: what is measured; a call is one run, and returns its nanoseconds by stage, always the same stages.
        rules: how much of it.
        tick: called between turns with the share that is done, 0…1: 0 while it warms up. A thread that draws meanwhile
            would disturb the next run, so let it draw at once.

    Returns:
        Of each road its samples, or the error that it failed with, in the order of ``roads``.
    """
    runners = [_Runner(road) for road in roads]
    for _ in range(rules.warm_ups):
        for runner in runners:
            if runner.share < 1:
                runner.run()
        tick(0.0)
    draw = random.Random(0)  # noqa: S311  # an order, no secret
    with _no_garbage_collection():
        for turn in itertools.count(1):
            lacking = [runner for runner in runners if runner.share < 1]
            if not lacking:
                break
            draw.shuffle(lacking)
            for runner in lacking:
                _come_to_rest()
                runner.sample(turn, rules)
            tick(sum(runner.share for runner in runners) / len(runners))
    return [runner.error or runner.latency(rules) for runner in runners]


def sample_all(roads: Sequence[RoadCall], rules: Rules, tick: Tick = lambda _: None) -> list[Latency]:
    """Do as :func:`sample_in_turns` does, where nothing is of use unless all of it is.

    Raises:
        SegshipError: that the first of the roads to fail, in their order, failed with.
    """
    latencies = []
    for found in sample_in_turns(roads, rules, tick):
        if isinstance(found, SegshipError):
            raise found
        latencies.append(found)
    return latencies


def spoken(tell: Callable[[str], None], silence_s: float = _SILENCE_S) -> Tick:
    """Return a tick that tells how far it is in a line, after so many seconds without one."""
    last = time.monotonic()

    def tick(share: float) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= silence_s:
            last = now
            tell(f"{100 * share:.0f} % timed" if share else "warming up")

    return tick


def timed(stages: Mapping[str, Callable[[Any], Any]], value: Any = None) -> dict[str, int]:
    """Hand a value from stage to stage, and return the nanoseconds of each, and of all together as ``picture``."""
    stamps = [time.perf_counter_ns()]
    for stage in stages.values():
        value = stage(value)
        stamps.append(time.perf_counter_ns())
    taken = {name: end - start for name, (start, end) in zip(stages, itertools.pairwise(stamps), strict=True)}
    taken[PICTURE] = stamps[-1] - stamps[0]
    return taken


def measure_overhead_ns(runs: int = 200) -> int:
    """Measure what measuring adds to a sample of a whole picture: the same loop and stamps, and stages that do nothing.

    Args:
        runs: to take the median of.

    Returns:
        Nanoseconds. Of the smallest latency that is reported it must be less than 1 %.
    """
    nothing = dict.fromkeys(STAGES, lambda value: value)
    (latency,) = sample_all([lambda: timed(nothing)], Rules(FULL.warm_ups, runs, 0.0))
    return round(statistics.median(latency.samples_ns[PICTURE]))


@dataclass
class _Runner:
    """A road, its nanoseconds by stage so far, and the share of its runs that is done: all of them once it failed."""

    road: RoadCall
    samples: dict[str, list[int]] = field(default_factory=dict)
    own_ns: int = 0
    share: float = 0.0
    error: SegshipError | None = None

    def run(self) -> Mapping[str, int]:
        try:
            return self.road()
        except SegshipError as error:
            self.error, self.share = error, 1.0
            return {}

    def sample(self, turn: int, rules: Rules) -> None:
        start = time.perf_counter_ns()
        taken = self.run()
        self.own_ns += time.perf_counter_ns() - start
        for stage, nanoseconds in taken.items():
            self.samples.setdefault(stage, []).append(nanoseconds)
        if self.error is None:
            self.share = _share_done(turn, self.own_ns, rules)

    def latency(self, rules: Rules) -> Latency:
        return Latency({stage: tuple(each) for stage, each in self.samples.items()}, rules.warm_ups)


def _share_done(turns: int, own_ns: int, rules: Rules) -> float:
    of_runs = turns / rules.runs if rules.runs else 1.0
    of_time = own_ns / (rules.seconds * 1e9) if rules.seconds else 1.0
    return min(1.0, of_runs, of_time)


def _come_to_rest() -> None:
    """Wait until the threads of this process sleep, or do not come to it."""
    end = time.perf_counter_ns() + _LONGEST_REST_NS
    while (start := time.perf_counter_ns()) < end:
        used = time.process_time_ns()
        time.sleep(_STEP_S)
        if (time.process_time_ns() - used) / (time.perf_counter_ns() - start) < _AT_REST:
            return


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
