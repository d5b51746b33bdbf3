"""The search behind a recommendation: many settings run a little, few of them are measured whole."""

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segship.benchmarks.accuracy import check_classes, held_out, measure_accuracy
from segship.benchmarks.bench_picture import NOISE, chosen_picture, noise
from segship.benchmarks.distribution import percentile
from segship.benchmarks.engine_choice import Choice, open_choice, subject_of
from segship.benchmarks.one_picture import Road
from segship.benchmarks.process_cost import memory_of
from segship.benchmarks.record import PICTURE, Failure, Latency
from segship.benchmarks.sampling import Rules, sample_in_turns
from segship.benchmarks.throughput import measure_throughput
from segship.benchmarks.wishes import WISHES, Tried, Untried, Wish
from segship.runtime.errors import SegshipError, UnprovenWarning
from segship.runtime.segmenter import Segmenter
from segship.runtime.segmenter_plan import card_of

SCREEN: Final = Rules(warm_ups=2, runs=5, seconds=0.0)
SECOND_SCREEN: Final = Rules(warm_ups=2, runs=20, seconds=0.0)
WHOLE: Final = Rules(warm_ups=5, runs=100, seconds=0.0)

_SCREEN_SHARE: Final = 0.4
"""Of the time, after which nothing more is screened for the first time."""

_LATENCY_SHARE: Final = 0.65
"""Of the time, after which no latency is measured any more where more than latency is asked for."""

_TOO_SLOW: Final = 1.5
"""A model whose fastest run of a screen takes so many times the latency asked for is out; what takes less may only
have been slowed by something else on the machine."""

_HOPELESS: Final = 4.0
"""A model in an engine that takes so many times the latency asked for takes too long with other settings, too."""
THROUGHPUT_S: Final = 1.0
NO_TIME: Final = "time ran out"


@dataclass
class _Run:
    """A choice that is still in the race, with its newest figures."""

    choice: Choice
    tried: Tried
    fastest_ms: float

    @property
    def accuracy_key(self) -> tuple[str, str, str, str]:
        """What has the same accuracy."""
        engine = self.tried.engine
        return str(self.choice.model), engine.backend, engine.device, engine.precision

    @property
    def rate(self) -> float:
        """Pictures a second, if those that run at once do not get in each other's way."""
        return self.tried.batch * self.tried.engine.streams / self.tried.p50_ms

    def note(self, latency: Latency, *, is_screened: bool = True) -> None:
        """Put newer figures in the place of older ones."""
        samples = [nanoseconds / 1e6 for nanoseconds in latency.samples_ns[PICTURE]]
        self.fastest_ms = min(samples)
        p50, p95 = percentile(samples, 0.5), percentile(samples, 0.95)
        self.tried = dataclasses.replace(self.tried, runs=len(samples), p50_ms=p50, p95_ms=p95, is_screened=is_screened)

    def lack(self, what: str) -> None:
        """Note what it lacks."""
        self.tried = dataclasses.replace(self.tried, lacks=(*self.tried.lacks, what))


class Search:
    """A search under way: what was tried, what was left out, and how much time is left.

    Args:
        models: exported files.
        wish: what is asked for.
        seconds: after which nothing new is begun.
        tell: takes a line about what is done next.
        data: dataset for accuracy; None: none is measured.
        limit: of its pictures.
        picture: file that is timed; None: the first one of the data, otherwise noise.

    Raises:
        BenchError: if a model and the data do not have the same classes, or the picture cannot be read.
        DatasetError: if there is no such dataset, or its first picture cannot be read.
        ModelError: if a file is missing or damaged.
    """

    def __init__(
        self,
        models: Sequence[Path],
        wish: Wish,
        seconds: float,
        tell: Callable[[str], None],
        *,
        data: str | None,
        limit: int | None,
        picture: Path | None,
    ) -> None:
        self._start, self._seconds = time.monotonic(), seconds
        self._wish, self._tell = wish, tell
        self._data = None if data is None else held_out(data, limit)
        cards = {model: card_of(model) for model in models}
        self._promised_miou = {model: card.provenance.metrics.get("miou", 0.0) for model, card in cards.items()}
        if self._data is not None:
            for model, card in cards.items():
                check_classes(model, card, self._data[0])
        shown = chosen_picture(picture, self._data)
        largest = max(cards.values(), key=lambda card: math.prod(card.preprocess.size))
        self._encoded = noise(largest) if shown is None else shown.encoded
        self.picture = NOISE if shown is None else shown.name
        self._accuracy: dict[tuple[str, ...], float] = {}
        self._runs: list[_Run] = []
        self.untried: list[Untried] = []
        self.failures: list[Failure] = []

    @property
    def found(self) -> list[tuple[Choice, Tried]]:
        """Everything that ran, in the order in which it was tried."""
        return [(run.choice, run.tried) for run in self._runs]

    def run(self, tries: Sequence[Sequence[Choice]]) -> None:
        """Search.

        Args:
            tries: of each model in each engine its settings, the usual ones first; the most promising first.
        """
        hopeful = [variants for variants in tries if self._is_hopeful(variants[0], len(variants) - 1)]
        for variants in hopeful:
            for choice in variants[1:]:
                self._screen(choice)
        pool = self._runs
        asks_more = self._data is not None or self._wish.min_images_per_s or self._wish.max_memory_mb
        for rules in (SECOND_SCREEN, WHOLE):
            left = self._left_s(_LATENCY_SHARE if asks_more else 1.0)
            pool = self._affordable(self._survivors(pool), rules, left)
            self._sample(pool, rules)
        pool.sort(key=self._promise)
        for run in pool:
            if not run.tried.lacks:
                self._measure_rest(run)

    def _left_s(self, share: float = 1.0) -> float:
        return self._start + share * self._seconds - time.monotonic()

    def _is_hopeful(self, choice: Choice, others: int) -> bool:
        """Screen the usual settings of a model in an engine; tell whether the others may be worth a try."""
        run = self._screen(choice)
        if run is None:
            return False
        twins = [one for one in self._runs if one is not run and one.accuracy_key == run.accuracy_key]
        if twins and "precision=engine" in choice.asked:
            self._runs.remove(run)
            self.untried.append(Untried(run.tried.name, f"it computes in {run.tried.engine.precision} as without"))
            return False
        limit = self._wish.max_latency_ms
        if limit is None or run.fastest_ms <= _HOPELESS * limit:
            return True
        if others:
            why = f"with the usual ones its fastest run took {run.fastest_ms:.2f} ms"
            self.untried.append(Untried(f"{choice.model.name}, {choice.asked}, {others} other settings", why))
        return False

    def _screen(self, choice: Choice) -> _Run | None:
        threads = f", {choice.threads} thread{'s' if choice.threads > 1 else ''}" if choice.threads else ""
        name = f"{choice.model.name}, {choice.asked}{threads}"
        if self._runs and self._left_s(_SCREEN_SHARE) <= 0:  # one is tried, however little time there is
            self.untried.append(Untried(name, NO_TIME))
            return None
        self._tell(f"screening {name}")
        try:
            with _opened(choice) as segmenter:
                subject = subject_of(choice, segmenter)
                (latency,) = sample_in_turns([Road(segmenter, self._encoded, choice.batch)], SCREEN)
        except SegshipError as error:
            self.failures.append(Failure(str(choice.model), choice.asked, str(error)))
            return None
        tried = Tried(str(choice.model), choice.asked, choice.batch, subject.engine, subject.certificate, 0, 0.0, 0.0)
        run = _Run(choice, tried, 0.0)
        run.note(latency)
        self._runs.append(run)
        return run

    def _survivors(self, pool: Sequence[_Run]) -> list[_Run]:
        """Return what may keep to the latency and, of what has the same accuracy, the faster half."""
        groups: dict[tuple[str, ...], list[_Run]] = {}
        limit = self._wish.max_latency_ms
        for run in pool:
            if limit is not None and run.fastest_ms > _TOO_SLOW * limit:
                run.lack(f"its fastest of {run.tried.runs} runs took {run.fastest_ms:.2f} ms")
            else:
                groups.setdefault(run.accuracy_key if self._data else (), []).append(run)
        survivors = []
        for group in groups.values():
            group.sort(key=lambda run: run.tried.p50_ms)
            kept = group[: (len(group) + 1) // 2]
            fullest = max(group, key=lambda run: run.rate)
            if self._wish.min_images_per_s is not None and fullest not in kept:
                kept.append(fullest)
            for run in group:
                if run not in kept:
                    run.lack(f"slower than others, after {run.tried.runs} runs")
            survivors += kept
        return survivors

    def _affordable(self, pool: list[_Run], rules: Rules, left: float) -> list[_Run]:
        """Return those that can be begun within ``left`` seconds, the most promising first."""
        kept = []
        for run in sorted(pool, key=self._promise):
            if left > 0:
                kept.append(run)
            else:
                run.lack(f"{NO_TIME} after {run.tried.runs} runs")
            left -= (rules.runs + rules.warm_ups) * run.tried.p50_ms / 1000
        return kept

    def _promise(self, run: _Run) -> tuple[float, float]:
        """Order by what the file's card says of its accuracy, then by latency."""
        return -self._promised_miou[run.choice.model], run.tried.p50_ms

    def _sample(self, pool: Sequence[_Run], rules: Rules) -> None:
        if not pool:
            return
        self._tell(f"timing {len(pool)} in turns, {rules.runs} runs of each")
        roads: list[tuple[_Run, Road]] = []
        with contextlib.ExitStack() as opened:
            for run in pool:
                try:
                    segmenter = opened.enter_context(_opened(run.choice))
                except SegshipError as error:  # alone it ran: there is no memory for all
                    run.lack(f"does not run beside the others: {error}")
                    continue
                roads.append((run, Road(segmenter, self._encoded, run.choice.batch)))
            latencies = sample_in_turns([road for _, road in roads], rules)
        for (run, _), latency in zip(roads, latencies, strict=True):
            run.note(latency, is_screened=rules != WHOLE)

    def _measure_rest(self, run: _Run) -> None:
        """Measure what is asked for beside latency; accuracy last, and only of what fulfils all else."""
        choice, wish = run.choice, self._wish
        streams = (run.tried.engine.streams,)
        self._judge(run, "max_latency_ms")
        if wish.min_images_per_s is not None:
            self._measure(
                run,
                "min_images_per_s",
                lambda: measure_throughput(choice, self._encoded, streams, THROUGHPUT_S)[0].images_per_s,
            )
        if wish.max_memory_mb is not None:
            self._measure(run, "max_memory_mb", lambda: memory_of(choice, self._encoded).peak_rss_bytes / 1e6)
        if self._data is not None:
            self._measure(run, "min_miou", lambda: self._miou(run))

    def _measure(self, run: _Run, wish: str, measure: Callable[[], float]) -> None:
        """Measure what a wish is about, if nothing lacks so far and there is time, and judge it."""
        if run.tried.lacks:
            return
        kind = WISHES[wish]
        if self._left_s() > 0 or (kind.figure == "miou" and run.accuracy_key in self._accuracy):
            self._tell(f"{run.tried.name}: {kind.text}")
            try:
                with _unproven_is_said_later():
                    found: dict[str, Any] = {kind.figure: measure()}
                    run.tried = dataclasses.replace(run.tried, **found)
            except SegshipError as error:
                self.failures.append(Failure(str(run.choice.model), run.choice.asked, f"{kind.text}: {error}"))
        else:
            self.untried.append(Untried(run.tried.name, f"{kind.text}: {NO_TIME}"))
        self._judge(run, wish)

    def _miou(self, run: _Run) -> float:
        if run.accuracy_key not in self._accuracy and self._data is not None:
            with open_choice(run.choice) as segmenter:
                self._accuracy[run.accuracy_key] = measure_accuracy(segmenter, *self._data).miou
        return self._accuracy[run.accuracy_key]

    def _judge(self, run: _Run, name: str) -> None:
        """Note if a wish is not fulfilled, or not known to be."""
        kind, wished = WISHES[name], getattr(self._wish, name)
        if wished is None or run.tried.lacks:
            return
        value = getattr(run.tried, kind.figure)
        if value is None:
            run.lack(f"{kind.text} not measured")
        elif (value > wished) if kind.is_upper else (value < wished):
            run.lack(f"{run.tried.figure(name)}, {'more' if kind.is_upper else 'less'} than {wished:g}")


@contextlib.contextmanager
def _opened(choice: Choice) -> Iterator[Segmenter]:
    with _unproven_is_said_later(), open_choice(choice) as segmenter:
        yield segmenter


@contextlib.contextmanager
def _unproven_is_said_later() -> Iterator[None]:
    """Keep back the warning of each try; the answer says what the certificate covers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnprovenWarning)
        yield
