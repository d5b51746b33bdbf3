"""One run of ``seg-bench``: every model in every engine, sampled in turns, and what else is measured of each.

Speed is measured first, with all of them loaded, so that whatever else the machine does falls on all alike; then each
is measured by itself. What cannot be measured is a row of failures that says why: nothing takes its place.
"""

import contextlib
import datetime
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from segship.benchmarks.accuracy import held_out, measure_accuracy
from segship.benchmarks.bench_options import BenchOptions, choices
from segship.benchmarks.bench_picture import NOISE, Picture, chosen_picture, noise
from segship.benchmarks.distribution import percentile
from segship.benchmarks.engine_choice import Choice, open_choice, subject_of
from segship.benchmarks.graph_cost import graph_cost
from segship.benchmarks.machine_facts import gpu_states, load_average, machine_facts, package_versions
from segship.benchmarks.machine_peak import Peaks, measure_peaks
from segship.benchmarks.one_picture import Road
from segship.benchmarks.operators import no_profile_of, profile_operators
from segship.benchmarks.process_cost import cold_starts, memory_of
from segship.benchmarks.record import (
    Accuracy,
    Bench,
    Entry,
    Failure,
    Latency,
    Operator,
    Roofline,
    Subject,
    Throughput,
)
from segship.benchmarks.roofline import roofline
from segship.benchmarks.sampling import FULL, QUICK, measure_overhead_ns, sample_in_turns
from segship.benchmarks.throughput import measure_throughput
from segship.runtime.errors import SegshipError, StreamsError
from segship.training.data import Dataset

Result = TypeVar("Result")
Tell = Callable[[str], None]

_COLD_STARTS: Final = 3
_THROUGHPUT_S: Final = 5.0
_QUICK_THROUGHPUT_S: Final = 1.0
_PROFILED_RUNS: Final = 20


@dataclass(frozen=True)
class _Row:
    """A choice that runs, and what is run on it.

    Attributes:
        choice: what is measured.
        graph: the ONNX file; of a checkpoint, the one exported from it.
        subject: as it is told of.
        encoded: the picture's bytes.
        precision: that the limit is of: the file's where it is int8, whatever the engine makes of the rest of it.
        is_tiled: whether the picture may be cut into tiles.
        lacks: what is not measured of it, and why; no failure.
    """

    choice: Choice
    graph: Path
    subject: Subject
    encoded: bytes
    precision: str
    is_tiled: bool
    lacks: list[str] = field(default_factory=list)

    def lack(self, what: str, tell: Tell) -> None:
        """Note what is left out, since the engine does not have it or it would say nothing."""
        self.lacks.append(what)
        tell(f"{self.subject.name}: {what}")


@dataclass(frozen=True)
class _About:
    """What a run learns beside its rows.

    Attributes:
        tell: takes a line about what is done next.
        failures: what could not be measured.
        peaks: of the machine, by threads and device.
    """

    tell: Tell
    failures: list[Failure] = field(default_factory=list)
    peaks: dict[tuple[int, str], Peaks] = field(default_factory=dict)

    def attempt(self, choice: Choice, what: str, measure: Callable[[], Result], otherwise: Result) -> Result:
        """Return what ``measure`` does, or note why it does not."""
        try:
            return measure()
        except SegshipError as error:
            self.failures.append(Failure(str(choice.model), choice.asked, f"{what}: {error}"))
            return otherwise


def run_bench(options: BenchOptions, tell: Tell) -> Bench:
    """Measure everything that is asked for.

    Args:
        options: what that is.
        tell: takes a line about what is done next.

    Returns:
        One entry each model, engine and batch, but for those among its failures.

    Raises:
        BenchError: if the checkpoint is of none of the models, or the picture cannot be read.
        DatasetError: if there is no such dataset, or its first picture cannot be read.
    """
    data = None if options.data is None else held_out(options.data, options.limit)
    picture = chosen_picture(options.picture, data)
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    machine = machine_facts() | {"load before": load_average()}
    about = _About(tell)
    rows, latencies, overhead_ns = _sample(options, picture, about)
    entries = [_measure_alone(row, latency, options, data, about) for row, latency in zip(rows, latencies, strict=True)]
    unknown = dict.fromkeys(note for peaks in about.peaks.values() for note in peaks.notes)
    machine |= {"peaks": "; ".join(unknown)} if unknown else {}
    machine |= {f"GPU {number} after": state for number, state in enumerate(gpu_states())}
    return Bench(
        made,
        options.command,
        options.quick,
        _picture_name(picture, rows),
        machine | {"load after": load_average()},
        package_versions(),
        overhead_ns,
        tuple(entries),
        tuple(about.failures),
    )


def _sample(options: BenchOptions, picture: Picture | None, about: _About) -> tuple[list[_Row], list[Latency], int]:
    """Load everything, run it in turns; return what runs, how long it took, and what measuring adds in nanoseconds."""
    rows: list[_Row] = []
    roads: list[Road] = []
    with contextlib.ExitStack() as opened:
        for choice, graph in choices(options):
            about.tell(f"loading {choice.model.name} into {choice.asked}")
            load = functools.partial(_loaded, choice, graph, picture)
            what = "does not run" if choice.batch == 1 else f"batch {choice.batch} does not run"
            loaded = about.attempt(choice, what, load, None)
            if loaded is not None:
                row, road = loaded
                opened.callback(road.segmenter.close)
                rows.append(row)
                roads.append(road)
        if not roads:
            return [], [], 0
        rules = QUICK if options.quick else FULL
        about.tell(f"timing {len(roads)} in turns: of each {rules.runs} runs and {rules.seconds:g} s at least")
        return rows, sample_in_turns(roads, rules), measure_overhead_ns()


def _loaded(choice: Choice, graph: Path, picture: Picture | None) -> tuple[_Row, Road] | None:
    """Load a model into an engine and run it once."""
    with contextlib.ExitStack() as opened:
        segmenter = opened.enter_context(open_choice(choice))
        encoded = noise(segmenter.card) if picture is None else picture.encoded
        road = Road(segmenter, encoded, choice.batch)
        road()
        opened.pop_all()
    is_tiled = picture is not None and segmenter.processing.tiling is not None
    subject = subject_of(choice, segmenter)
    precision = "int8" if segmenter.card.precision == "int8" else subject.engine.precision
    return _Row(choice, graph, subject, encoded, precision, is_tiled), road


def _measure_alone(
    row: _Row, latency: Latency, options: BenchOptions, data: tuple[Dataset, str] | None, about: _About
) -> Entry:
    """Measure all of a row but its speed in turns."""
    choice, encoded = row.choice, row.encoded

    def attempt(what: str, measure: Callable[[], Result], otherwise: Result) -> Result:
        about.tell(f"{row.subject.name}: {what}")
        return about.attempt(choice, what, measure, otherwise)

    starts = 1 if options.quick else _COLD_STARTS
    return Entry(
        row.subject,
        latency,
        attempt("throughput", lambda: _throughput(row, options, about), ()),
        attempt("cold start", lambda: cold_starts(choice, encoded, starts), ()),
        attempt("memory", lambda: memory_of(choice, encoded), None),
        None if data is None else attempt("accuracy", lambda: _accuracy(choice, *data), None),
        attempt("roofline", lambda: _roofline(row, latency, about), None),
        attempt("operators", lambda: _operators(row, about.tell), ()) if options.profile else (),
        tuple(row.lacks),
    )


def _throughput(row: _Row, options: BenchOptions, about: _About) -> tuple[Throughput, ...]:
    """Measure each number of runs at once; what the engine does not have is a failure only where it was asked for."""
    seconds = _QUICK_THROUGHPUT_S if options.quick else _THROUGHPUT_S
    measured: list[Throughput] = []
    for many in options.concurrencies:
        try:
            measured += measure_throughput(row.choice, row.encoded, (many,), seconds)
        except SegshipError as error:
            what = f"throughput, {many} at once: "
            if isinstance(error, StreamsError) and options.concurrency is None:
                row.lack(what + str(error).partition("; ")[0], about.tell)
            else:
                about.failures.append(Failure(str(row.choice.model), row.choice.asked, f"{what}{error}"))
            break
    return tuple(measured)


def _accuracy(choice: Choice, dataset: Dataset, data_name: str) -> Accuracy:
    with open_choice(choice) as segmenter:
        return measure_accuracy(segmenter, dataset, data_name)


def _roofline(row: _Row, latency: Latency, about: _About) -> Roofline | None:
    subject, peaks = row.subject, about.peaks
    if row.is_tiled:
        row.lack("roofline: the time may be that of several tiles, and the roofline is of one run", about.tell)
        return None
    cost = graph_cost(row.graph, subject.size, subject.batch)
    ran_on = subject.engine.threads, subject.engine.device
    if ran_on not in peaks:
        peaks[ran_on] = measure_peaks(*ran_on)
    return roofline(cost, peaks[ran_on], row.precision, percentile(latency.samples_ns["network"], 0.5))


def _operators(row: _Row, tell: Tell) -> tuple[Operator, ...]:
    if reason := no_profile_of(row.subject.engine):
        row.lack(f"operators: {reason}", tell)
        return ()
    return profile_operators(row.choice, row.encoded, _PROFILED_RUNS)


def _picture_name(picture: Picture | None, rows: Sequence[_Row]) -> str:
    if picture is not None:
        return picture.name
    sizes = dict.fromkeys("×".join(map(str, row.subject.size)) for row in rows)
    return f"{NOISE}, {', '.join(sizes)}" if sizes else NOISE
