"""The search behind a recommendation: many settings run a little, few of them are measured whole."""

import contextlib
import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from segship.benchmarks.accuracy import check_classes, held_out, measure_accuracy
from segship.benchmarks.bench_picture import NOISE, chosen_picture, noise
from segship.benchmarks.candidates import in_batches
from segship.benchmarks.engine_choice import Choice, open_choice, subject_of
from segship.benchmarks.halving import Contender, survivors
from segship.benchmarks.one_picture import Road
from segship.benchmarks.process_cost import memory_of
from segship.benchmarks.record import PICTURE, Failure, Latency
from segship.benchmarks.sampling import Rules, sample_in_turns, spoken
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

_HOPELESS: Final = 4.0
"""A model in an engine that takes so many times the latency asked for takes too long with other settings, too."""

THROUGHPUT_S: Final = 1.0
NO_TIME: Final = "time ran out"


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
        self._runs: list[Contender] = []
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
            if self._wish.min_images_per_s is not None:
                fullest = max((run for run in self._runs if run.choice in variants), key=lambda run: run.rate)
                for choice in in_batches(fullest.choice):
                    self._screen(choice)
        pool = self._runs
        asks_more = self._data is not None or self._wish.min_images_per_s or self._wish.max_memory_mb
        for rules in (SECOND_SCREEN, WHOLE):
            pool = self._halved(pool, rules, _LATENCY_SHARE if asks_more else 1.0)
        for run in pool:
            self._judge(run, "max_latency_ms")
        fitting = sorted((run for run in pool if not run.tried.lacks), key=self._promise)
        for number, run in enumerate(fitting):
            self._measure_rest(run, is_due=number == 0)

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

    def _screen(self, choice: Choice) -> Contender | None:
        threads = f", {choice.threads} thread{'s' if choice.threads > 1 else ''}" if choice.threads else ""
        batch = f", batch {choice.batch}" if choice.batch > 1 else ""
        name = f"{choice.model.name}, {choice.asked}{threads}{batch}"
        if self._runs and self._left_s(_SCREEN_SHARE) <= 0:  # one is tried, however little time there is
            self.untried.append(Untried(name, NO_TIME))
            return None
        self._tell(f"screening {name}")
        try:
            with _opened(choice) as segmenter:
                subject = subject_of(choice, segmenter)
                (latency,), rest_s = self._timed([Road(segmenter, self._encoded, choice.batch)], SCREEN)
            if isinstance(latency, SegshipError):
                raise latency
        except SegshipError as error:
            what = f"batch {choice.batch}: " if choice.batch > 1 else ""
            self.failures.append(Failure(str(choice.model), choice.asked, f"{what}{error}"))
            return None
        tried = Tried(str(choice.model), choice.asked, choice.batch, subject.engine, subject.certificate, 0, 0.0, 0.0)
        run = Contender(choice, tried)
        run.note(latency, rest_s)
        self._runs.append(run)
        return run

    def _promise(self, run: Contender) -> tuple[float, float]:
        """Order by what the file's card says of its accuracy, then by latency."""
        return -self._promised_miou[run.choice.model], run.tried.p50_ms

    def _halved(self, pool: Sequence[Contender], rules: Rules, share: float) -> list[Contender]:
        """Run the better half more often; where something of it fails, what it had beaten gets another chance."""
        ran: list[Contender] = []
        while True:
            better = survivors(pool, self._wish, by_accuracy=self._data is not None)
            new = [run for run in better if run not in ran]
            ran += self._sample(new, rules, share)
            if not any(run.has_failed for run in new):
                break
            pool = [run for run in pool if not run.tried.lacks]
        for run in pool:
            if not (run in ran or run.tried.lacks):
                run.lack(f"slower than others, after {run.tried.runs} runs")
        return [run for run in ran if not run.tried.lacks]

    def _sample(self, pool: Sequence[Contender], rules: Rules, share: float) -> list[Contender]:
        """Load what can be run in a share of the time, the most promising first, and run it in turns; return what ran.

        The first one is begun if there is any time. Loading is timed as it goes on, since an engine that is built on
        first use is built only once.
        """
        roads: list[tuple[Contender, Road]] = []
        needed_s = 0.0
        with contextlib.ExitStack() as opened:
            for run in sorted(pool, key=self._promise):
                own_s = (rules.warm_ups + rules.runs) * run.run_s
                if self._left_s(share) <= (needed_s + own_s if roads else 0.0):
                    run.lack(f"{NO_TIME} after {run.tried.runs} runs")
                    continue
                try:
                    segmenter = opened.enter_context(_opened(run.choice))
                except SegshipError as error:  # alone it ran: there is no memory for all
                    run.fail(f"does not run beside the others: {error}")
                    continue
                roads.append((run, Road(segmenter, self._encoded, run.choice.batch)))
                needed_s += own_s
            if roads:
                self._tell(f"timing {len(roads)} in turns, {rules.runs} runs of each")
            latencies, rest_s = self._timed([road for _, road in roads], rules)
        ran = []
        for (run, _), latency in zip(roads, latencies, strict=True):
            if isinstance(latency, SegshipError):
                run.fail(f"failed while it was timed beside the others: {latency}")
                continue
            run.note(latency, rest_s, is_screened=rules != WHOLE)
            ran.append(run)
        return ran

    def _timed(self, roads: Sequence[Road], rules: Rules) -> tuple[list[Latency | SegshipError], float]:
        """Run roads in turns; return also the seconds that this took between two runs, for the process to rest."""
        say, turns = spoken(self._tell), list[float]()

        def tick(share: float) -> None:
            if share > 0:
                turns.append(time.perf_counter())
            say(share)

        found = sample_in_turns(roads, rules, tick)
        samples = [one.samples_ns[PICTURE][1:] for one in found if isinstance(one, Latency)]  # from the first turn on
        runs, own_s = sum(map(len, samples)), sum(map(sum, samples)) / 1e9
        return found, max(0.0, turns[-1] - turns[0] - own_s) / runs if runs else 0.0

    def _measure_rest(self, run: Contender, *, is_due: bool) -> None:
        """Measure what is asked for beside latency; accuracy last, and only of what fulfils all else.

        What is due is measured however little time there is, so that one is measured in all that is asked for.
        """
        choice, wish = run.choice, self._wish
        streams = (run.tried.engine.streams,)
        measure = functools.partial(self._measure, run, is_due=is_due)
        if wish.min_images_per_s is not None:
            measure(
                "min_images_per_s",
                lambda: measure_throughput(choice, self._encoded, streams, THROUGHPUT_S)[0].images_per_s,
            )
        if wish.max_memory_mb is not None:
            measure("max_memory_mb", lambda: memory_of(choice, self._encoded).peak_rss_bytes / 1e6)
        if self._data is not None:
            measure("min_miou", lambda: self._miou(run))

    def _measure(self, run: Contender, wish: str, measure: Callable[[], float], *, is_due: bool) -> None:
        """Measure what a wish is about, if nothing lacks so far and there is time, and judge it."""
        if run.tried.lacks:
            return
        kind = WISHES[wish]
        if is_due or self._left_s() > 0 or (kind.figure == "miou" and run.accuracy_key in self._accuracy):
            self._tell(f"{run.tried.name}: {kind.text}")
            try:
                with _unproven_is_said_later():
                    found: dict[str, Any] = {kind.figure: measure()}
                    run.tried = dataclasses.replace(run.tried, **found)
            except SegshipError as error:
                self.failures.append(Failure(str(run.choice.model), run.choice.asked, f"{kind.text}: {error}"))
        else:
            self.untried.append(Untried(run.tried.name, f"{kind.text}: {NO_TIME}"))
            if getattr(self._wish, wish) is not None:
                run.lack(f"{NO_TIME}: {kind.text} not measured")
        self._judge(run, wish)

    def _miou(self, run: Contender) -> float:
        if run.accuracy_key not in self._accuracy and self._data is not None:
            with open_choice(run.choice) as segmenter:
                self._accuracy[run.accuracy_key] = measure_accuracy(segmenter, *self._data).miou
        return self._accuracy[run.accuracy_key]

    def _judge(self, run: Contender, name: str) -> None:
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
