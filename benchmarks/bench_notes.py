"""What must be known to read the tables of ``seg-bench``, a line each."""

import statistics
from collections.abc import Iterator
from typing import Final

from segship.benchmarks.distribution import is_stable
from segship.benchmarks.record import PICTURE, Bench, Entry

UNSTABLE: Final = "unstable"
"""What a row is called whose time drifted."""

NOT_KNOWN: Final = "n/a"
"""What stands in cells of the roofline that nothing is known for."""

_OVERHEAD: Final = 0.01
"""Share of the smallest median above which what measuring adds is told."""

_ABOVE_THE_ROOF: Final = (
    "something else ran while the peak was measured, the engine needs fewer products than are counted (Winograd's "
    "convolutions), or tensors stay in caches, which are faster than memory"
)
_NO_PEAK: Final = (
    "peaks are measured on the CPU alone, in fp32 and int8, and in bf16 where OpenVINO is installed and the CPU has it"
)


def notes(bench: Bench) -> list[str]:
    """Return what must be known to read the tables, a line each."""
    lines = [f"Picture: {bench.picture}."]
    engines: dict[str, list[str]] = {}
    for number, entry in enumerate(bench.entries, 1):
        engines.setdefault(str(entry.subject.engine), []).append(str(number))
    lines += [f"{_rows(rows).capitalize()}: {engine}." for engine, rows in engines.items()]
    if len(bench.entries) > 1:
        lines.append(
            "× row 1: median time of a picture over that of row 1, turn by turn, with its interval of 95 % confidence."
        )
    if batches := sorted({entry.subject.batch for entry in bench.entries} - {1}):
        many = ", ".join(map(str, batches))
        lines.append(f"Milliseconds of a batch of {many} are of all its pictures; × row 1 and images/s of one.")
    if any(entry.throughput for entry in bench.entries):
        lines.append("images/s: of decoded pictures to labels, at the fastest number of runs at once.")
    if any(is_unstable(entry) for entry in bench.entries):
        lines.append(f"{UNSTABLE}: the medians of three parts of the run differ by more than 10 %; measure again.")
    smallest = min((statistics.median(entry.latency.samples_ns[PICTURE]) for entry in bench.entries), default=0.0)
    if smallest and bench.overhead_ns / smallest >= _OVERHEAD:
        lines.append(
            f"Measuring itself adds {bench.overhead_ns / 1000:.0f} µs to each run, "
            f"{bench.overhead_ns / smallest:.1%} of the smallest median."
        )
    lines += _about_rooflines(bench)
    lines += [f"Left out of row {row}: {lack}." for row, entry in enumerate(bench.entries, 1) for lack in entry.lacks]
    return lines + [f"Not measured: {failed.model}, {failed.asked}: {failed.error}" for failed in bench.failures]


def is_unstable(entry: Entry) -> bool:
    """Tell whether a row's time of a picture drifted while it was measured."""
    return not is_stable(entry.latency.samples_ns[PICTURE])


def _about_rooflines(bench: Bench) -> Iterator[str]:
    """Yield why shares are missing, and why they are above all."""
    missing: dict[str, list[str]] = {}
    for row, entry in enumerate(bench.entries, 1):
        if entry.roofline is not None and entry.roofline.share is None:
            missing.setdefault(f"{entry.subject.arithmetic} on {entry.subject.engine.device}", []).append(str(row))
    for what, rows in missing.items():
        yield f"{NOT_KNOWN} ({_rows(rows)}): no peak of {what} is known; {_NO_PEAK}."
    shares = [0.0 if entry.roofline is None else entry.roofline.share or 0.0 for entry in bench.entries]
    if above := [str(row) for row, share in enumerate(shares, 1) if round(share, 2) > 1]:
        yield f"A share above 100 % ({_rows(above)}): {_ABOVE_THE_ROOF}."


def _rows(numbers: list[str]) -> str:
    return f"row{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
