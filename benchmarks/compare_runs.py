"""Two records of ``seg-bench``, made apart from each other: what became slower, less right or larger.

A difference within a run's noise is none, and what makes two records hard to compare is said beside their figures.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segship.benchmarks.compare_warnings import are_others, bench_warnings, row_warnings
from segship.benchmarks.distribution import Ratio, Verdict, percentile, unpaired_ratio
from segship.benchmarks.model_names import distinct_names
from segship.benchmarks.quantities import MARGIN, TOLERANCE
from segship.benchmarks.record import NETWORK, NO_ROW, PICTURE, Bench, BenchError, Entry, Failure, Subject, of_batch
from segship.runtime.printable import printable


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
    common = bench_warnings(old, new)
    old_names, new_names = map(_names, (old, new))
    rows = []
    for before, after in pairs:
        if before is not None and after is not None:
            row = _compared(_name(before.subject, old_names), before, after, margin, tolerance)
            warnings = (*common, *row_warnings(before, after))
            failure = _lost_accuracy(before, after, new.failures)
            rows.append(dataclasses.replace(row, failure=failure, warnings=warnings))
        elif before is not None:
            whats = [of_batch(before.subject.batch) + what for what in NO_ROW]
            failure = _failure_of(before.subject, whats, new.failures, old_names)
            rows.append(RowComparison(_name(before.subject, old_names), "old", failure))
        elif after is not None:
            rows.append(RowComparison(_name(after.subject, new_names), "new"))
    if all(row.only_in and not row.failure for row in rows):
        raise BenchError(
            f"the records have no row in common; the old one has {_listed(old)}, the new one {_listed(new)}; "
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


def _name(subject: Subject, names: Mapping[str, str]) -> str:
    height, width = subject.size
    return printable(f"{subject.called(names[subject.model])}, {subject.engine.device}, {height}×{width}")


def _names(bench: Bench) -> dict[str, str]:
    return distinct_names(entry.subject.model for entry in bench.entries)


def _listed(bench: Bench) -> str:
    names = _names(bench)
    return "; ".join(_name(entry.subject, names) for entry in bench.entries) or "none"


def _failure_of(
    subject: Subject, whats: Sequence[str], failures: Sequence[Failure], others: Collection[str] = ()
) -> str:
    """Return what a record says of this file in this engine that failed; empty where it says nothing.

    Args:
        subject: file and engine.
        whats: failed, as the failure begins: another thing that failed is none of these.
        failures: of the record; those of this path come first.
        others: paths whose failures are their own, though the files have this one's name.
    """
    here = [one for one in failures if one.asked == subject.asked and one.error.partition(": ")[0] in whats]
    same = [one for one in here if one.model == subject.model]
    moved = [one for one in here if one.model not in others and Path(one.model).name == Path(subject.model).name]
    return next((printable(one.error) for one in (*same, *moved)), "")


def _lost_accuracy(old: Entry, new: Entry, failures: Sequence[Failure]) -> str:
    """Return why accuracy that was measured once could not be any more; empty where it was, or was not asked for."""
    if old.accuracy is None or new.accuracy is not None:
        return ""
    return _failure_of(new.subject, ["accuracy"], failures)


def _compared(name: str, old: Entry, new: Entry, margin: float, tolerance: float) -> RowComparison:
    memories = (old.memory, new.memory)
    peaks = [memory.peak_rss_bytes for memory in memories if memory is not None]
    devices = [memory.device_bytes for memory in memories if memory is not None and memory.device_bytes is not None]
    return RowComparison(
        name,
        sha256=(old.subject.sha256, new.subject.sha256),
        picture=_time_change(old, new, PICTURE, margin),
        network=_time_change(old, new, NETWORK, margin),
        miou=_accuracy_change(old, new, tolerance),
        peak_rss_bytes=(peaks[0], peaks[1]) if len(peaks) == 2 else None,
        device_bytes=(devices[0], devices[1]) if len(devices) == 2 else None,
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
    if are_others(before.names_digest, after.names_digest):
        return None
    gain = after.miou - before.miou
    verdict: Literal["better", "worse", "no difference"] = "better" if gain > tolerance else "no difference"
    return AccuracyChange(before.miou, after.miou, "worse" if gain < -tolerance else verdict)
