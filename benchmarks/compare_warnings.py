"""What makes two records of ``seg-bench`` hard to compare."""

from collections.abc import Iterator
from typing import Final

from segship.benchmarks.distribution import is_stable
from segship.benchmarks.record import NETWORK, PICTURE, Bench, Entry
from segship.runtime.printable import printable

_OF_A_MOMENT: Final = (" before", " after", " under load")
"""What facts of the machine end in that are readings, such as clocks, and no properties."""


def bench_warnings(old: Bench, new: Bench) -> list[str]:
    """Return what is different about all rows of two records."""
    quick = [name for name, bench in (("old", old), ("new", new)) if bench.quick]
    said = [f"--quick: of the {' and the '.join(quick)} record too little was measured"] if quick else []
    said += _differences({"picture": old.picture}, {"picture": new.picture})
    if old.picture == new.picture and are_others(old.picture_digest, new.picture_digest):
        said.append(printable(f"picture: {old.picture} is another one of the same name"))
    before, after = (
        {name: fact for name, fact in bench.machine.items() if not name.endswith(_OF_A_MOMENT)} for bench in (old, new)
    )
    said += [f"another machine: {difference}" for difference in _differences(before, after)]
    return said + [f"other versions: {difference}" for difference in _differences(old.versions, new.versions)]


def row_warnings(old: Entry, new: Entry) -> Iterator[str]:
    """Yield what is different about this row, or doubtful in it."""
    yield from _differences(*map(_facts, (old, new)))
    if old.accuracy and new.accuracy and are_others(old.accuracy.names_digest, new.accuracy.names_digest):
        yield printable(f"accuracy: {new.accuracy.data} has other pictures than before")
    for name, entry in (("old", old), ("new", new)):
        for stage in (PICTURE, NETWORK):
            samples = entry.latency.samples_ns.get(stage, ())
            if samples and not is_stable(samples):
                yield f"not stable: {stage} drifted in the {name} record, or has too few samples there"


def are_others(old: str, new: str) -> bool:
    """Tell whether two digests differ; those of records that have none do not."""
    return bool(old and new) and old != new


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
