"""What was measured of segship and its rivals, as it is kept in JSON, and as a table."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.table import Table

from segship.benchmarks.distribution import Ratio, paired_ratio
from segship.runtime.files import write_text

FORMAT: Final = 1

FIGURES: Final[dict[str, tuple[str, float, str]]] = {
    "files": ("files in, files out, ms a picture", 1000, ".1f"),
    "network": ("bare network, ms a run", 1000, ".1f"),
    "at_once": ("bare network, several runs at once, ms a run", 1000, ".1f"),
    "cold_start": ("start to first file, s", 1, ".2f"),
    "peak": ("peak memory, MB", 1e-6, ".0f"),
    "install": ("installed, MB", 1e-6, ".0f"),
}
"""What is measured, by name: in words and the unit it is shown in, what seconds or bytes are multiplied with for that,
and how it is printed."""

_COLUMNS: Final = ("rival", "figure", "segship", "rival's", "times segship's", "interval of 95 %")


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        name: of the program.
        writes: which files, in words.
        versions: of its packages.
        samples: seconds or bytes by figure (:data:`FIGURES`), one for each round; memory and size once.
    """

    name: str
    writes: str
    versions: dict[str, str]
    samples: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Match:
    """segship against a rival.

    Attributes:
        rival: its name on the command line.
        pictures: in a turn.
        ours: None: it was never made ready.
        theirs: None: it was never made ready.
        error: why it, or a part of it, was not measured; None: all of it was.
    """

    rival: str
    pictures: int
    ours: Side | None = None
    theirs: Side | None = None
    error: str | None = None

    def ratio(self, figure: str) -> Ratio | None:
        """Return how many times as much the rival takes, round by round; None where not both were measured."""
        if self.ours is None or self.theirs is None:
            return None
        ours, theirs = self.ours.samples.get(figure, ()), self.theirs.samples.get(figure, ())
        rounds = min(len(ours), len(theirs))  # an error may have ended the last one half-way
        return paired_ratio(ours[:rounds], theirs[:rounds]) if rounds else None


@dataclass(frozen=True)
class RivalReport:
    """All matches of a run, and what it ran on."""

    made: str
    command: str
    rounds: int
    machine: dict[str, str]
    matches: tuple[Match, ...] = ()
    format: int = field(default=FORMAT)


def rival_table(report: RivalReport) -> Table:
    """Draw a report for a terminal."""
    table = Table(title=f"segship and its rivals, {report.rounds} rounds in turns: median (smallest to largest)")
    for number, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if number < 2 else "right", overflow="fold", no_wrap=number == 0)
    for match in report.matches:
        table.add_section()
        for row in _rows(match):
            table.add_row(*row)
    return table


def notes(report: RivalReport) -> Iterator[str]:
    """Yield what must be known to read the table, a line each."""
    for match in report.matches:
        sides = (side for side in (match.ours, match.theirs) if side is not None)
        told = [
            f"{side.name} ({', '.join(f'{name} {version}' for name, version in side.versions.items())}) "
            f"writes {side.writes}"
            for side in sides
        ]
        yield f"{match.rival}: {match.pictures} pictures. {'; '.join(told)}." if told else f"{match.rival}: no figures."
        if match.error is not None:
            yield f"{match.rival} was not measured to the end: {match.error}"


def write_report(report: RivalReport, out: Path) -> None:
    """Write ``rivals.json`` with every sample, and ``rivals.md``."""
    write_text(out / "rivals.json", json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=1))
    head = [f"# segship and its rivals, {report.made}", "", f"`{report.command}`", ""]
    head += [f"- {name}: {value}" for name, value in report.machine.items()]
    rules = ["---" if number < 2 else "---:" for number in range(len(_COLUMNS))]
    cells = [_COLUMNS, rules, *(row for match in report.matches for row in _rows(match))]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells]
    title = f"{report.rounds} rounds in turns; median (smallest to largest). Ratios are taken round by round."
    told = [f"- {note}" for note in notes(report)]
    write_text(out / "rivals.md", "\n".join([*head, "", title, "", *lines, "", *told]) + "\n")


def _rows(match: Match) -> Iterator[tuple[str, ...]]:
    for figure, (words, scale, form) in FIGURES.items():
        ratio = match.ratio(figure)
        if ratio is None:
            continue
        assert match.ours is not None
        assert match.theirs is not None
        ours, theirs = match.ours.samples[figure], match.theirs.samples[figure]
        ratios = [second / first for first, second in zip(ours, theirs, strict=False)]
        interval = f"{ratio.low:.2f} to {ratio.high:.2f}" if math.isfinite(ratio.high) else "–"
        shown = [_spread([scale * value for value in side], form) for side in (ours, theirs)]
        yield match.rival, words, *shown, _spread(ratios, ".2f"), interval
    if match.error is not None:
        yield match.rival, f"not measured: {match.error}", "–", "–", "–", "–"


def _spread(values: list[float], form: str) -> str:
    median = f"{statistics.median(values):{form}}"
    return median if len(values) == 1 else f"{median} ({min(values):{form}} to {max(values):{form}})"
