"""Successive halving: settings that are still in the race, their newest figures, and which of them go on."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from segship.benchmarks.distribution import percentile
from segship.benchmarks.engine_choice import Choice
from segship.benchmarks.record import PICTURE, Latency
from segship.benchmarks.wishes import Tried, Wish

_TOO_SLOW: Final = 1.5
"""A model whose fastest run of a screen takes so many times the latency asked for is out; what takes less may only
have been slowed by something else on the machine."""


@dataclass
class Contender:
    """A choice that is still in the race.

    Attributes:
        choice: what runs.
        tried: its newest figures.
        fastest_ms: fastest run of the newest stage.
        run_s: seconds by the wall clock that a run of that stage took, with the rest before it.
        has_failed: whether it ran before, and does not any more.
    """

    choice: Choice
    tried: Tried
    fastest_ms: float = 0.0
    run_s: float = 0.0
    has_failed: bool = False

    @property
    def accuracy_key(self) -> tuple[str, str, str, str]:
        """What has the same accuracy."""
        engine = self.tried.engine
        return str(self.choice.model), engine.backend, engine.device, engine.precision

    @property
    def rate(self) -> float:
        """Pictures a second, if those that run at once do not get in each other's way."""
        return self.tried.batch * self.tried.engine.streams / self.tried.p50_ms

    def note(self, latency: Latency, rest_s: float, *, is_screened: bool = True) -> None:
        """Put newer figures in the place of older ones; ``rest_s`` is what lies between two runs."""
        samples = [nanoseconds / 1e6 for nanoseconds in latency.samples_ns[PICTURE]]
        self.fastest_ms, self.run_s = min(samples), statistics.fmean(samples) / 1000 + rest_s
        p50, p95 = percentile(samples, 0.5), percentile(samples, 0.95)
        self.tried = dataclasses.replace(self.tried, runs=len(samples), p50_ms=p50, p95_ms=p95, is_screened=is_screened)

    def lack(self, what: str) -> None:
        """Note what it lacks."""
        self.tried = dataclasses.replace(self.tried, lacks=(*self.tried.lacks, what))

    def fail(self, why: str) -> None:
        """Note that it does not run any more."""
        self.has_failed = True
        self.lack(why)


def survivors(pool: Sequence[Contender], wish: Wish, *, by_accuracy: bool) -> list[Contender]:
    """Return what may keep to the latency and, of what has the same accuracy, the faster half.

    Where pictures a second are asked for, what may do the most of them stays too.

    Args:
        pool: what is in the race; what takes far too long lacks that from now on.
        wish: what is asked for.
        by_accuracy: whether accuracy counts; otherwise all are one group.
    """
    groups: dict[tuple[str, ...], list[Contender]] = {}
    limit = wish.max_latency_ms
    for one in pool:
        if limit is not None and one.fastest_ms > _TOO_SLOW * limit:
            one.lack(f"its fastest of {one.tried.runs} runs took {one.fastest_ms:.2f} ms")
        else:
            groups.setdefault(one.accuracy_key if by_accuracy else (), []).append(one)
    chosen = []
    for group in groups.values():
        group.sort(key=lambda one: one.tried.p50_ms)
        kept = group[: (len(group) + 1) // 2]
        fullest = max(group, key=lambda one: one.rate)
        if wish.min_images_per_s is not None and fullest not in kept:
            kept.append(fullest)
        chosen += kept
    return chosen
