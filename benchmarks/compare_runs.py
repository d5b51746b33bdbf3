"""Two records of ``seg-bench``, made apart from each other: what became slower, less right or larger.

A difference within a run's noise is none, and what makes two records hard to compare is said beside their figures.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from segship.benchmarks.distribution import Ratio, Verdict, is_stable, percentile, unpaired_ratio
from segship.benchmarks.quantities import MARGIN, TOLERANCE
from segship.benchmarks.record import PICTURE, Bench, BenchError, Entry, Failure, Subject
from segship.runtime.engine_table import printable

NETWORK: Final = "network"


@dataclass(frozen=True)
class TimeChange:
    """Of one stage.

    Attributes:
        old_ms: median milliseconds of a run, in the old record.
        new_ms: likewise in the new one.
        ratio: of the medians, new / old, with its confidence interval.
        verdict: of the ratio, given the margin.
    """

    old_ms: float
    new_ms: float
    ratio: Ratio
    verdict: Verdict


@dataclass(frozen=True)
class AccuracyChange:
    """Of the mean intersection over union, 0…1, on the same data; the verdict knows the tolerance."""

    old: float
    new: float
    verdict: Literal["better", "worse", "no difference"]


@dataclass(frozen=True)
class RowComparison:
    """What became of a row. What was not measured in both records is None.

    Attributes:
        name: of the row in the old record; in the new one if the old one has none.
        only_in: the record that alone has it; None: both do.
        failure: why the new record has none, or not its accuracy, as it tells itself; empty where it tells nothing.
        sha256: of the model, old and new.
        picture: time of a picture, from a file's bytes to a file's bytes.
        network: time of a run of the network alone.
        miou: its change.
        peak_rss_bytes: the most memory that the process used, old and new.
        device_bytes: memory of the GPU, old and new.
        warnings: why the figures may not be comparable.
    """

    name: str
    only_in: Literal["old", "new"] | None = None
    failure: str = ""
    sha256: tuple[str, str] | None = None
    picture: TimeChange | None = None
    network: TimeChange | None = None
    miou: AccuracyChange | None = None
    peak_rss_bytes: tuple[int, int] | None = None
    device_bytes: tuple[int, int] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def has_regressed(self) -> bool:
        """Whether it is slower, less right, or failed where it once ran."""
        is_slower = any(change.verdict == "slower" for change in (self.picture, self.network) if change)
        return is_slower or bool(self.failure) or (self.miou is not None and self.miou.verdict == "worse")


def compare_benches(
    old: Bench, new: Bench, margin: float = MARGIN, tolerance: float = TOLERANCE
) -> tuple[RowComparison, ...]:
    """Compare row by row.

    Rows belong together by the model's file name and network, the engine as it was asked for, its precision and device,
    the size and the batch. Of several such rows, those of the same path belong together first, then in their order.

    Args:
        old: what is compared with.
        new: what is compared.
        margin: what does not matter of time: 0.05 is 5 %; see :meth:`Ratio.verdict`. The records know nothing of what
            differs from day to day, so it should be what the machine is known to differ by.
        tolerance: what mIoU may fall by, 0…1.

    Returns:
        The rows of the old record in their order, then those that only the new one has.

    Raises:
        BenchError: if they have no row in common, or hold samples that are no times.
    """
    pairs = _paired(old.entries, new.entries)
    common = _bench_warnings(old, new)
    rows = []
    for before, after in pairs:
        if before is not None and after is not None:
            row = _compared(before, after, margin, tolerance, common)
            rows.append(dataclasses.replace(row, failure=_lost_accuracy(before, after, new.failures)))
        elif before is not None:
            rows.append(RowComparison(_name(before.subject), "old", _failure_of(before.subject, new.failures)))
        elif after is not None:
            rows.append(RowComparison(_name(after.subject), "new"))
    if all(row.only_in and not row.failure for row in rows):
        raise BenchError(
            f"the records have no row in common; the old one has {_names(old)}, the new one {_names(new)}; "
            "expected the same file name, network, engine, precision, device, size and batch"
        )
    return tuple(rows)


def has_regressed(rows: Sequence[RowComparison]) -> bool:
    """Tell whether any row is slower, less right, or failed where it once ran.

    A row of which two times are compared is called slower without being so by more than the margin in at most 5 % of
    the cases, at the very margin; where nothing changed, hardly ever.
    """
    return any(row.has_regressed for row in rows)


def plain_comparison(rows: Sequence[RowComparison]) -> list[dict[str, Any]]:
    """Return rows as plain values, for JSON, which knows no infinity: without an interval ``high`` is None."""
    plain = [dataclasses.asdict(row) | {"has_regressed": row.has_regressed} for row in rows]
    for row in plain:
        for ratio in (row[stage]["ratio"] for stage in ("picture", "network") if row[stage]):
            ratio["high"] = None if math.isinf(ratio["high"]) else ratio["high"]
    return plain


def _paired(old: Sequence[Entry], new: Sequence[Entry]) -> list[tuple[Entry | None, Entry | None]]:
    found: dict[int, Entry] = {}
    free = list(new)
    identities: tuple[Callable[[Subject], Hashable], ...] = (lambda one: (one.model, _identity(one)), _identity)
    for identity in identities:
        for number, entry in enumerate(old):
            for place, other in enumerate(free):
                if number not in found and identity(other.subject) == identity(entry.subject):
                    found[number] = free.pop(place)
                    break
    return [*((entry, found.get(number)) for number, entry in enumerate(old)), *((None, entry) for entry in free)]


def _identity(subject: Subject) -> Hashable:
    engine = subject.engine
    name = Path(subject.model).name
    return name, subject.arch, subject.asked, engine.precision, engine.device, subject.size, subject.batch


def _name(subject: Subject) -> str:
    height, width = subject.size
    return printable(f"{subject.name}, {subject.engine.device}, {height}×{width}")


def _names(bench: Bench) -> str:
    return "; ".join(_name(entry.subject) for entry in bench.entries) or "none"


def _failure_of(subject: Subject, failures: Sequence[Failure]) -> str:
    """Return why a record has no such row: what it says of this file in this engine, of whichever batch."""
    here = (Path(subject.model).name, subject.asked)
    return next((printable(one.error) for one in failures if (Path(one.model).name, one.asked) == here), "")


def _lost_accuracy(old: Entry, new: Entry, failures: Sequence[Failure]) -> str:
    """Return why accuracy that was measured once could not be any more; empty where it was, or was not asked for."""
    if old.accuracy is None or new.accuracy is not None:
        return ""
    return _failure_of(new.subject, [one for one in failures if one.error.startswith("accuracy: ")])


def _compared(old: Entry, new: Entry, margin: float, tolerance: float, common: Sequence[str]) -> RowComparison:
    memories = (old.memory, new.memory)
    peaks = [memory.peak_rss_bytes for memory in memories if memory is not None]
    devices = [memory.device_bytes for memory in memories if memory is not None and memory.device_bytes is not None]
    return RowComparison(
        _name(old.subject),
        sha256=(old.subject.sha256, new.subject.sha256),
        picture=_time_change(old, new, PICTURE, margin),
        network=_time_change(old, new, NETWORK, margin),
        miou=_accuracy_change(old, new, tolerance),
        peak_rss_bytes=(peaks[0], peaks[1]) if len(peaks) == 2 else None,
        device_bytes=(devices[0], devices[1]) if len(devices) == 2 else None,
        warnings=(*common, *_row_warnings(old, new)),
    )


def _time_change(old: Entry, new: Entry, stage: str, margin: float) -> TimeChange | None:
    before, after = (entry.latency.samples_ns.get(stage, ()) for entry in (old, new))
    if not before or not after:
        return None
    ratio = unpaired_ratio(before, after)
    return TimeChange(percentile(before, 0.5) / 1e6, percentile(after, 0.5) / 1e6, ratio, ratio.verdict(margin))


def _accuracy_change(old: Entry, new: Entry, tolerance: float) -> AccuracyChange | None:
    before, after = old.accuracy, new.accuracy
    if before is None or after is None or (before.data, before.images) != (after.data, after.images):
        return None
    gain = after.miou - before.miou
    verdict: Literal["better", "worse", "no difference"] = "better" if gain > tolerance else "no difference"
    return AccuracyChange(before.miou, after.miou, "worse" if gain < -tolerance else verdict)


def _bench_warnings(old: Bench, new: Bench) -> list[str]:
    """Return what is different about all rows of two records."""
    quick = [name for name, bench in (("old", old), ("new", new)) if bench.quick]
    said = [f"--quick: of the {' and the '.join(quick)} record too little was measured"] if quick else []
    said += _differences({"picture": old.picture}, {"picture": new.picture})
    # Facts "before" and "after" the run are readings of that moment, such as the load.
    before, after = (
        {name: fact for name, fact in bench.machine.items() if name.rpartition(" ")[2] not in ("before", "after")}
        for bench in (old, new)
    )
    said += [f"another machine: {difference}" for difference in _differences(before, after)]
    return said + [f"other versions: {difference}" for difference in _differences(old.versions, new.versions)]


def _row_warnings(old: Entry, new: Entry) -> Iterator[str]:
    """Yield what is different about this row, or doubtful in it."""
    yield from _differences(*map(_facts, (old, new)))
    for name, entry in (("old", old), ("new", new)):
        for stage in (PICTURE, NETWORK):
            samples = entry.latency.samples_ns.get(stage, ())
            if samples and not is_stable(samples):
                yield f"not stable: {stage} drifted in the {name} record, or has too few samples there"


def _facts(entry: Entry) -> dict[str, str]:
    """Return what should be the same in both records, for their figures to be of the same thing."""
    engine, accuracy = entry.subject.engine, entry.accuracy
    return {
        "engine": engine.engine,
        "threads": str(engine.threads),
        "streams": str(engine.streams),
        "nodes of each provider": ", ".join(f"{count} {name}" for name, count in engine.providers) or "untold",
        "stages": ", ".join(sorted(entry.latency.samples_ns)),
        "accuracy": "not measured" if accuracy is None else f"{accuracy.data}, {accuracy.images} pictures",
    }


def _differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    return [
        printable(f"{name}: {old.get(name, 'untold')} → {new.get(name, 'untold')}")
        for name in old | new
        if old.get(name) != new.get(name)
    ]
