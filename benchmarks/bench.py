"""One run of ``seg-bench``: every model in every engine, sampled in turns, and what else is measured of each.

Speed is measured first, with all of them loaded, so that whatever else the machine does falls on all alike; then each
is measured by itself. What cannot be measured is a row of failures that says why: nothing takes its place.
"""

import contextlib
import dataclasses
import datetime
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from segship.benchmarks.accuracy import held_out, measure_accuracy
from segship.benchmarks.distribution import percentile
from segship.benchmarks.engine_choice import Choice, check_checkpoint, open_choice, subject_of
from segship.benchmarks.graph_cost import graph_cost
from segship.benchmarks.machine_facts import gpu_states, load_average, machine_facts, package_versions
from segship.benchmarks.machine_peak import Peaks, measure_peaks
from segship.benchmarks.one_picture import Road
from segship.benchmarks.operators import no_profile_of, profile_operators
from segship.benchmarks.process_cost import cold_starts, memory_of
from segship.benchmarks.record import (
    Accuracy,
    Bench,
    BenchError,
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
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, SegshipError
from segship.runtime.png import encode_png
from segship.runtime.preprocess import FULL_SCALE
from segship.training.data import Dataset

Result = TypeVar("Result")
Tell = Callable[[str], None]

TORCH: Final = "torch"
NOISE: Final = "noise"
_COLD_STARTS: Final = 3
_THROUGHPUT_S: Final = 5.0
_QUICK_THROUGHPUT_S: Final = 1.0
_PROFILED_RUNS: Final = 20


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and how.

    Attributes:
        models: exported files.
        backends: engines, ``NAME[:KEY=VALUE,…]``; ``torch`` runs ``checkpoint``.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        batches: pictures in a run.
        threads: of each engine; None: as many as it would take by itself.
        checkpoint: that one of the models was exported from.
        data: dataset whose validation part accuracy is measured on, ``KIND:DIR``; None: none is.
        limit: of its pictures, spread evenly; None: all.
        picture: file that single runs are of; None: noise of the network's size.
        quick: measure less.
        profile: also tell the operators' shares, of ONNX Runtime.
        concurrency: most runs of the network at once; None: the CPUs that this process may use.
        command: as it was typed.
    """

    models: tuple[Path, ...]
    backends: tuple[str, ...]
    device: str = "auto"
    batches: tuple[int, ...] = (1,)
    threads: int | None = None
    checkpoint: Path | None = None
    data: str | None = None
    limit: int | None = None
    picture: Path | None = None
    quick: bool = False
    profile: bool = False
    concurrency: int | None = None
    command: str = ""

    @property
    def engine_of_update(self) -> str | None:
        """The engine in which an old and a new model are compared; None unless they are two, with data."""
        if len(self.models) != 2 or self.data is None:
            return None
        return next((asked for asked in self.backends if asked.partition(":")[0] != TORCH), None)

    @property
    def concurrencies(self) -> tuple[int, ...]:
        """1, 2, 4 … and the most."""
        most = self.concurrency or available_cpus()
        return (*(1 << power for power in range((most - 1).bit_length())), most)


@dataclass(frozen=True)
class _Row:
    """A choice that runs, and what is run on it.

    Attributes:
        choice: what is measured.
        graph: the ONNX file; of a checkpoint, the one exported from it.
        subject: as it is told of.
        encoded: the picture's bytes.
        is_tiled: whether the picture may be cut into tiles.
    """

    choice: Choice
    graph: Path
    subject: Subject
    encoded: bytes
    is_tiled: bool


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
        DatasetError: if there is no such dataset.
    """
    data = None if options.data is None else held_out(options.data, options.limit)
    picture = None if options.picture is None else read_picture(options.picture)
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
        _picture_name(options, rows),
        machine | {"load after": load_average()},
        package_versions(),
        overhead_ns,
        tuple(entries),
        tuple(about.failures),
    )


def choices(options: BenchOptions) -> list[tuple[Choice, Path]]:
    """Return what is measured, in the order asked for, each with its ONNX file.

    Raises:
        BenchError: if PyTorch is asked for without a checkpoint, or with one of none of the models.
    """
    found: list[tuple[Choice, Path]] = []
    asks_torch = any(asked.partition(":")[0] == TORCH for asked in options.backends)
    graph = _graph_of(options) if asks_torch else None
    for model in options.models:
        for asked in options.backends:
            for batch in options.batches:
                choice = Choice(model, asked, options.device, batch, options.threads)
                if choice.backend != TORCH:
                    found.append((choice, model))
                elif model == graph and options.checkpoint is not None:
                    found.append((dataclasses.replace(choice, model=options.checkpoint), model))
    return found


def _graph_of(options: BenchOptions) -> Path:
    """Return the first of the models that was exported from the checkpoint."""
    if options.checkpoint is None:
        raise BenchError(
            "torch runs checkpoints, not exported files; name the models' by --checkpoint FILE.safetensors"
        )
    refusals = []
    for model in options.models:
        try:
            check_checkpoint(model, options.checkpoint)
        except SegshipError as error:
            refusals.append(error)
            continue
        return model
    raise refusals[0]


def _sample(options: BenchOptions, picture: bytes | None, about: _About) -> tuple[list[_Row], list[Latency], int]:
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


def _loaded(choice: Choice, graph: Path, picture: bytes | None) -> tuple[_Row, Road] | None:
    """Load a model into an engine and run it once."""
    with contextlib.ExitStack() as opened:
        segmenter = opened.enter_context(open_choice(choice))
        encoded = noise(segmenter.card) if picture is None else picture
        road = Road(segmenter, encoded, choice.batch)
        road()
        opened.pop_all()
    is_tiled = picture is not None and segmenter.tiling is not None
    return _Row(choice, graph, subject_of(choice, segmenter), encoded, is_tiled), road


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
        attempt("roofline", lambda: _roofline(row, latency, about.peaks), None),
        attempt("operators", lambda: _operators(row, about.tell), ()) if options.profile else (),
    )


def _throughput(row: _Row, options: BenchOptions, about: _About) -> tuple[Throughput, ...]:
    """Measure each number of runs at once; what was not asked for and the engine does not have is only told."""
    seconds = _QUICK_THROUGHPUT_S if options.quick else _THROUGHPUT_S
    measured: list[Throughput] = []
    for many in options.concurrencies:
        try:
            measured += measure_throughput(row.choice, row.encoded, (many,), seconds)
        except BackendError as error:
            if many == 1:
                raise
            if options.concurrency is not None:
                about.failures.append(Failure(str(row.choice.model), row.choice.asked, f"throughput: {error}"))
            about.tell(f"{row.subject.name}: leaving out {many} runs at once, since {error}")
            break
    return tuple(measured)


def _accuracy(choice: Choice, dataset: Dataset, data_name: str) -> Accuracy:
    with open_choice(choice) as segmenter:
        return measure_accuracy(segmenter, dataset, data_name)


def _roofline(row: _Row, latency: Latency, peaks: dict[tuple[int, str], Peaks]) -> Roofline:
    subject = row.subject
    if row.is_tiled:
        raise BenchError("the time is that of several tiles, and the roofline is of one run; leave out --picture")
    cost = graph_cost(row.graph, subject.size, subject.batch)
    ran_on = subject.engine.threads, subject.engine.device
    if ran_on not in peaks:
        peaks[ran_on] = measure_peaks(*ran_on)
    return roofline(cost, peaks[ran_on], subject.engine.precision, percentile(latency.samples_ns["network"], 0.5))


def _operators(row: _Row, tell: Tell) -> tuple[Operator, ...]:
    if reason := no_profile_of(row.subject.engine):
        tell(f"leaving out operators, since {reason}")
        return ()
    return profile_operators(row.choice, row.encoded, _PROFILED_RUNS)


def noise(card: ModelCard) -> bytes:
    """Return a picture of noise of the network's size: the bytes of a JPEG, of 16 bits of a PNG."""
    form = card.preprocess
    size = card.frame or form.size
    pixels = np.random.default_rng(0).integers(0, FULL_SCALE[form.depth], (*size, form.channels), form.depth)
    if form.depth == "uint16":
        return encode_png(pixels)
    import cv2

    return bytes(cv2.imencode(".jpg", pixels)[1])


def read_picture(picture: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        BenchError: if it cannot be read.
    """
    try:
        return picture.read_bytes()
    except OSError as error:
        raise BenchError(f"cannot read {picture}: {error.strerror}") from error


def _picture_name(options: BenchOptions, rows: Sequence[_Row]) -> str:
    if options.picture is not None:
        return options.picture.name
    sizes = dict.fromkeys("×".join(map(str, row.subject.size)) for row in rows)
    return f"{NOISE}, {', '.join(sizes)}" if sizes else NOISE
