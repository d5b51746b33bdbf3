"""segship beside its rivals: the same pictures on the same cores, in turns, each in an environment of its own.

    python -m segship.benchmarks.rivals --pictures DIR --model realtime.onnx --binary binary_u2netp.onnx

The rivals are the script that people write, rembg, Ultralytics and OpenVINO's ``benchmark_app``. Each is installed into
a virtual environment, which is kept; segship too, with nothing but itself and the same engine. Both of a pair are
loaded and warm in processes of their own and do the same pictures in turns, from files to files of the same kind, then
the bare network for some seconds; then their command lines start anew for one picture. ``benchmark_app`` alone starts
anew in each turn, warms itself up by one run and measures itself. Times are means of a turn. A rival that cannot be
installed or run is a row that says why. The first run downloads several GB, most of it PyTorch for Ultralytics.
"""

import contextlib
import math
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from segship.benchmarks.machine_facts import load_average, machine_facts
from segship.benchmarks.rival_contenders import DUELS, NETWORK_S, Contender, Duel, Workshop
from segship.benchmarks.rival_process import Contestant, RivalError, seconds_to_first_picture
from segship.benchmarks.rival_report import Match, RivalReport, Side, notes, rival_table, write_report
from segship.runtime.console import run
from segship.runtime.errors import SegshipError
from segship.runtime.source_files import find_images

_NETWORK_RUNS: Final = 20
_WARM_UPS: Final = 3

Samples = defaultdict[str, list[float]]


@click.command()
@click.option("--pictures", type=click.Path(path_type=Path), required=True, help="Folder of pictures.")
@click.option("--model", type=click.Path(path_type=Path), required=True, help="A network in real time.")
@click.option("--binary", type=click.Path(path_type=Path), help="A binary U²-NetP at 320×320, for rembg.")
@click.option("--environments", type=click.Path(path_type=Path), help="Where they are kept.  [default: in OUT]")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="Turns of each; of fewer than 6 no interval follows.",
)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Pictures in a turn, at most.")
@click.option("--rival", "names", multiple=True, type=click.Choice(list(DUELS)), help="Only this one; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/rivals"), show_default=True, help="Folder.")
def rivals(
    pictures: Path,
    model: Path,
    binary: Path | None,
    environments: Path | None,
    rounds: int,
    limit: int,
    names: Sequence[str],
    out: Path,
) -> None:
    """Measure segship and its rivals on the CPU; write rivals.json and rivals.md."""
    from rich.console import Console

    paths = tuple(file.path.resolve() for file in find_images([pictures]))[:limit]
    made = datetime.now(UTC).isoformat(timespec="seconds")
    machine = machine_facts() | {"load before": load_average()}
    matches: list[Match] = []
    with tempfile.TemporaryDirectory() as folder:
        places = Path(folder), (environments or out / "environments").resolve()
        workshop = Workshop(model.resolve(), binary and binary.resolve(), paths, *places)
        for name in names or tuple(DUELS):
            matches.append(play(name, DUELS[name], workshop, rounds))
            report = RivalReport(made, " ".join(sys.argv), rounds, machine, tuple(matches))
            write_report(report, out)  # what is measured is kept, whatever comes
    Console().print(rival_table(report))
    for note in notes(report):
        click.echo(note)
    click.echo(f"wrote {out / 'rivals.md'} and rivals.json")


def play(name: str, prepare: Callable[[Workshop], Duel], workshop: Workshop, rounds: int) -> Match:
    """Make a rival ready and measure it beside segship; what goes wrong is told on stderr and in the match."""
    ours: Samples = defaultdict(list)
    theirs: Samples = defaultdict(list)
    duel = None
    error = None
    try:
        click.echo(f"{name}: making ready …", err=True)
        duel = prepare(workshop)
        click.echo(f"{name}: {duel.count} pictures, {rounds} rounds …", err=True)
        measure(duel, workshop.folder, rounds, ours, theirs)
    except (SegshipError, OSError) as fault:
        if isinstance(fault, RivalError) and fault.told:
            click.echo(fault.told, err=True)
        error = str(fault)
        click.echo(f"{name}: {error}", err=True)
    if duel is None:
        return Match(name, 0, error=error)
    return Match(name, duel.count, _side(duel.ours, ours), _side(duel.theirs, theirs), error)


def measure(duel: Duel, folder: Path, rounds: int, ours: Samples, theirs: Samples) -> None:
    """Add samples of both contenders, in turns; what was added before an error stays.

    Raises:
        RivalError: if one of them fails.
    """
    if duel.ours.environment != duel.theirs.environment:
        for side, samples in ((duel.ours, ours), (duel.theirs, theirs)):
            samples["install"].append(side.environment.install_bytes)
    with contextlib.ExitStack() as stack:
        pair = []
        for side, samples in ((duel.ours, ours), (duel.theirs, theirs)):
            contestant = side.open()
            stack.callback(contestant.close)
            pair.append((contestant, samples))
        for task in duel.tasks:
            for contestant, _ in pair:
                contestant.run(task, min(duel.count, _WARM_UPS))
            _take_turns(pair, task, duel.count if task == "files" else _runs_of(pair[0][0], task), rounds)
    if duel.ours.command is not None and duel.theirs.command is not None:
        _start_in_turns(((duel.ours, ours), (duel.theirs, theirs)), folder / "cold", rounds)


def _runs_of(contestant: Contestant, task: str) -> int:
    """Return how many runs of the network a turn takes, so that its start and end weigh nothing."""
    seconds = contestant.run(task, _NETWORK_RUNS).seconds
    return max(_NETWORK_RUNS, math.ceil(_NETWORK_RUNS * NETWORK_S / seconds))


def _take_turns(pair: Sequence[tuple[Contestant, Samples]], task: str, count: int, rounds: int) -> None:
    peaks: dict[int, int | None] = {}
    for turn in range(rounds):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            contestant, samples = pair[index]
            done = contestant.run(task, count)
            samples[task].append(done.seconds / count)
            peaks[index] = done.peak_bytes
    for index, (_, samples) in enumerate(pair):
        peak = peaks[index]
        if peak is not None and "peak" not in samples:  # of the first task: later ones load the network once more
            samples["peak"].append(peak)


def _start_in_turns(sides: Sequence[tuple[Contender, Samples]], folder: Path, rounds: int) -> None:
    """Time command lines; the first start of each fills the disk's cache and is left out."""
    for turn in range(rounds + 1):
        for side, samples in sides if turn % 2 == 0 else reversed(sides):
            assert side.command is not None
            shutil.rmtree(folder, ignore_errors=True)
            seconds = seconds_to_first_picture(side.command(folder), folder, side.variables)
            if turn:
                samples["cold_start"].append(seconds)


def _side(contender: Contender, samples: Samples) -> Side:
    versions = contender.environment.versions(contender.packages)
    return Side(contender.name, contender.writes, versions, {name: tuple(each) for name, each in samples.items()})


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it ends what it started
    run(rivals)
