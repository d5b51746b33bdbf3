"""One run of ``seg-bench``: every model in every engine, sampled in turns, and what else is measured of each.

Speed is measured first, with all of them loaded, so that whatever else the machine does falls on all alike; then each
is measured by itself. What cannot be measured is a row of failures that says why: nothing takes its place.
"""

import datetime
from collections.abc import Callable, Sequence
from typing import Final

from segship.benchmarks.accuracy import held_out, measure_accuracy
from segship.benchmarks.bench_options import BenchOptions
from segship.benchmarks.bench_picture import NOISE, Picture, chosen_picture
from segship.benchmarks.bench_timing import About, Result, Row, Tell, time_in_turns
from segship.benchmarks.distribution import percentile
from segship.benchmarks.engine_choice import Choice, open_choice
from segship.benchmarks.graph_cost import graph_cost
from segship.benchmarks.machine_facts import gpu_states, load_average, machine_facts, package_versions
from segship.benchmarks.machine_peak import measure_peaks
from segship.benchmarks.operators import no_profile_of, profile_operators
from segship.benchmarks.process_cost import cold_starts, memory_of
from segship.benchmarks.record import (
    Accuracy,
    Bench,
    Entry,
    Latency,
    Memory,
    Operator,
    Roofline,
    Throughput,
)
from segship.benchmarks.roofline import roofline
from segship.benchmarks.throughput import measure_throughput
from segship.runtime.errors import SegshipError, StreamsError
from segship.training.data import Dataset

_COLD_STARTS: Final = 3
_THROUGHPUT_S: Final = 5.0
_QUICK_THROUGHPUT_S: Final = 1.0
_PROFILED_RUNS: Final = 20


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
    about = About(tell)
    timed, overhead_ns = time_in_turns(options, picture, about)
    entries = [_measure_alone(row, latency, options, data, about) for row, latency in timed]
    unknown = dict.fromkeys(note for peaks in about.peaks.values() for note in peaks.notes)
    machine |= {"peaks": "; ".join(unknown)} if unknown else {}
    machine |= about.under_load | {f"GPU {number} after": state for number, state in enumerate(gpu_states())}
    return Bench(
        made,
        options.command,
        options.quick,
        _picture_name(picture, [row for row, _ in timed]),
        machine | {"load after": load_average()},
        package_versions(),
        overhead_ns,
        tuple(entries),
        tuple(about.failures),
        picture_digest="" if picture is None else picture.digest,
    )


def _measure_alone(
    row: Row, latency: Latency, options: BenchOptions, data: tuple[Dataset, str] | None, about: About
) -> Entry:
    """Measure all of a row but its speed in turns."""
    choice, encoded = row.choice, row.encoded

    def attempt(what: str, measure: Callable[[], Result], otherwise: Result) -> Result:
        about.tell(f"{row.name}: {what}")
        return about.attempt(choice, what, measure, otherwise)

    starts = 1 if options.quick else _COLD_STARTS
    return Entry(
        row.subject,
        latency,
        attempt("throughput", lambda: _throughput(row, options, about), ()),
        attempt("cold start", lambda: cold_starts(choice, encoded, starts), ()),
        attempt("memory", lambda: _memory(row, about.tell), None),
        None if data is None else attempt("accuracy", lambda: _accuracy(choice, *data), None),
        attempt("roofline", lambda: _roofline(row, latency, about), None),
        attempt("operators", lambda: _operators(row, about.tell), ()) if options.profile else (),
        tuple(row.lacks),
    )


def _throughput(row: Row, options: BenchOptions, about: About) -> tuple[Throughput, ...]:
    """Measure each number of runs at once; what the engine does not have is a failure only where it was asked for."""
    seconds = _QUICK_THROUGHPUT_S if options.quick else _THROUGHPUT_S
    measured: list[Throughput] = []
    for many in options.concurrencies:
        try:
            measured += measure_throughput(row.choice, row.encoded, (many,), seconds)
        except SegshipError as error:
            what = f"throughput, {many} at once"
            if isinstance(error, StreamsError) and options.concurrency is None:
                row.lack(f"{what}: {str(error).partition('; ')[0]}", about.tell)
            else:
                about.fail(row.choice, what, error)
            break
    return tuple(measured)


def _memory(row: Row, tell: Tell) -> Memory:
    memory = memory_of(row.choice, row.encoded)
    if row.subject.engine.device.startswith("cuda") and memory.device_bytes is None:
        row.lack("memory of the GPU: nvidia-smi does not tell it of this process", tell)
    return memory


def _accuracy(choice: Choice, dataset: Dataset, data_name: str) -> Accuracy:
    with open_choice(choice) as segmenter:
        return measure_accuracy(segmenter, dataset, data_name)


def _roofline(row: Row, latency: Latency, about: About) -> Roofline | None:
    subject, peaks = row.subject, about.peaks
    if row.is_tiled:
        row.lack("roofline: the time may be that of several tiles, and the roofline is of one run", about.tell)
        return None
    cost = graph_cost(row.graph, subject.size, subject.batch)
    ran_on = subject.engine.threads, subject.engine.device
    if ran_on not in peaks:
        peaks[ran_on] = measure_peaks(*ran_on)
    return roofline(cost, peaks[ran_on], subject.arithmetic, percentile(latency.samples_ns["network"], 0.5))


def _operators(row: Row, tell: Tell) -> tuple[Operator, ...]:
    if reason := no_profile_of(row.subject.engine):
        row.lack(f"operators: {reason}", tell)
        return ()
    return profile_operators(row.choice, row.encoded, _PROFILED_RUNS)


def _picture_name(picture: Picture | None, rows: Sequence[Row]) -> str:
    if picture is not None:
        return picture.name
    sizes = dict.fromkeys("×".join(map(str, row.subject.size)) for row in rows)
    return f"{NOISE}, {', '.join(sizes)}" if sizes else NOISE
