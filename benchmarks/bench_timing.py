"""The first half of a run of ``seg-bench``: everything is loaded, and timed in turns."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from segship.benchmarks.bench_options import BenchOptions, choices
from segship.benchmarks.bench_picture import Picture, noise
from segship.benchmarks.engine_choice import Choice, open_choice, subject_of
from segship.benchmarks.machine_facts import gpu_states_under
from segship.benchmarks.machine_peak import Peaks
from segship.benchmarks.model_names import distinct_names
from segship.benchmarks.one_picture import Road
from segship.benchmarks.record import DOES_NOT_RUN, FAILED_IN_TURNS, Failure, Latency, Subject, of_batch
from segship.benchmarks.sampling import FULL, QUICK, measure_overhead_ns, sample_in_turns, spoken
from segship.runtime.errors import SegshipError

Result = TypeVar("Result")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """A choice that runs, and what is run on it.

    Attributes:
        choice: what is measured.
        graph: the ONNX file; of a checkpoint, the one exported from it.
        subject: as the record tells of it.
        name: as messages do.
        encoded: the picture's bytes.
        is_tiled: whether the picture may be cut into tiles.
        lacks: what is not measured of it, and why; no failure.
    """

    choice: Choice
    graph: Path
    subject: Subject
    name: str
    encoded: bytes
    is_tiled: bool
    lacks: list[str] = field(default_factory=list)

    def lack(self, what: str, tell: Tell) -> None:
        """Note what is left out, since the engine does not have it or it would say nothing."""
        self.lacks.append(what)
        tell(f"{self.name}: {what}")


@dataclass(frozen=True)
class About:
    """What a run learns beside its rows.

    Attributes:
        tell: takes a line about what is done next.
        failures: what could not be measured.
        peaks: of the machine, by threads and device.
        under_load: facts of the machine while everything was loaded and ran, by name.
    """

    tell: Tell
    failures: list[Failure] = field(default_factory=list)
    peaks: dict[tuple[int, str], Peaks] = field(default_factory=dict)
    under_load: dict[str, str] = field(default_factory=dict)

    def fail(self, choice: Choice, what: str, error: SegshipError) -> None:
        """Note what could not be done with a choice, and why."""
        self.failures.append(Failure(str(choice.model), choice.asked, f"{what}: {error}"))

    def attempt(self, choice: Choice, what: str, measure: Callable[[], Result], otherwise: Result) -> Result:
        """Return what ``measure`` does, or note why it does not."""
        try:
            return measure()
        except SegshipError as error:
            self.fail(choice, what, error)
            return otherwise


def time_in_turns(
    options: BenchOptions, picture: Picture | None, about: About
) -> tuple[list[tuple[Row, Latency]], int]:
    """Load everything and run it in turns.

    Args:
        options: what is asked for.
        picture: that runs are of; None: noise of each network's size.
        about: takes what does not run or fails meanwhile, and what the GPUs are at under load.

    Returns:
        What ran with how long it took, and the nanoseconds that measuring adds to a run.

    Raises:
        BenchError: if the checkpoint is of none of the models.
    """
    loaded: list[tuple[Row, Road]] = []
    tries = choices(options)
    names = distinct_names(choice.model for choice, _ in tries)
    with contextlib.ExitStack() as opened:
        for choice, graph in tries:
            about.tell(f"loading {names[str(choice.model)]} into {choice.asked}")
            load = functools.partial(_loaded, choice, graph, picture, names[str(choice.model)])
            row_and_road = about.attempt(choice, of_batch(choice.batch) + DOES_NOT_RUN, load, None)
            if row_and_road is not None:
                opened.callback(row_and_road[1].segmenter.close)
                loaded.append(row_and_road)
        if not loaded:
            return [], 0
        rules = QUICK if options.quick else FULL
        about.tell(f"timing {len(loaded)} in turns: of each {rules.runs} runs and {rules.seconds:g} s at least")
        timed: list[tuple[Row, Latency]] = []
        on_gpu: list[tuple[Row, Road]] = []
        found = sample_in_turns([road for _, road in loaded], rules, spoken(about.tell))
        for (row, road), latency in zip(loaded, found, strict=True):
            if isinstance(latency, SegshipError):
                about.fail(row.choice, of_batch(row.choice.batch) + FAILED_IN_TURNS, latency)
                continue
            timed.append((row, latency))
            if row.subject.engine.device.startswith("cuda"):
                on_gpu.append((row, road))
        _note_gpus(on_gpu, about)
        return timed, measure_overhead_ns()


def _note_gpus(on_gpu: Sequence[tuple[Row, Road]], about: About) -> None:
    """Note what the GPUs are at while everything that runs on one takes turns, after that was timed."""
    running = list(on_gpu)

    def run() -> None:
        for row, road in tuple(running):
            if about.attempt(row.choice, f"{of_batch(row.choice.batch)}failed after it was timed", road, None) is None:
                running.remove((row, road))

    states = gpu_states_under(run) if on_gpu else ()
    about.under_load.update({f"GPU {number} under load": state for number, state in enumerate(states)})


def _loaded(choice: Choice, graph: Path, picture: Picture | None, name: str) -> tuple[Row, Road] | None:
    """Load a model into an engine and run it once."""
    with contextlib.ExitStack() as opened:
        segmenter = opened.enter_context(open_choice(choice))
        encoded = noise(segmenter.card) if picture is None else picture.encoded
        road = Road(segmenter, encoded, choice.batch)
        road()
        is_tiled = picture is not None and segmenter.processing.tiling is not None
        subject = subject_of(choice, segmenter)
        row = Row(choice, graph, subject, subject.called(name), encoded, is_tiled)
        opened.pop_all()
    return row, road
