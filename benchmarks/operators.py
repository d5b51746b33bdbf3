"""Which kinds of nodes a network's time goes into, by ONNX Runtime's own profile."""

import bisect
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.benchmarks.engine_choice import Choice, open_choice
from segship.benchmarks.model_names import distinct_names
from segship.benchmarks.record import BenchError, Entry, Operator
from segship.runtime.backends import EngineInfo
from segship.runtime.backends.common import import_onnxruntime
from segship.runtime.backends.ort_session import CPU, session_options
from segship.runtime.errors import one_line
from segship.runtime.graph_layout import to_graph
from segship.runtime.prepare import whole_picture

if TYPE_CHECKING:
    from rich.table import Table

SLOWEST: Final = 8
"""Kinds of nodes that tables show of each row."""

_WARM_UPS: Final = 3
_COLUMNS: Final = ("model", "engine", "operator", "provider", "nodes", "ms", "share")
_NUMBERS: Final = frozenset({"nodes", "ms", "share"})


def no_profile_of(engine: EngineInfo) -> str:
    """Say why an engine's operators cannot be told; nothing where they can."""
    if engine.backend != "ort":
        return f"{engine.backend} is not profiled: operators are told of ort on the CPU alone"
    if engine.device != "cpu":
        return f"ort on {engine.device} is not profiled: its times would be those of starting work, not of doing it"
    return ""


def profile_operators(choice: Choice, encoded: bytes, runs: int) -> tuple[Operator, ...]:
    """Tell how long each kind of node takes, the slowest first.

    The same file runs in a session of its own, with the options of the ``ort`` backend and its profiler, which costs
    some time itself. Nodes are those that ONNX Runtime made of the graph: a convolution and what follows it are often
    one, and its own layouts come with nodes that bring tensors into them.

    Args:
        choice: model and engine.
        encoded: the file's bytes of the picture that is run; in one piece, should the model cut pictures into tiles.
        runs: that are counted, 1 or more; those that warm up are not.

    Returns:
        Kinds by provider; nothing where :func:`no_profile_of` says why.

    Raises:
        BenchError: if ONNX Runtime cannot profile it.
        SegshipError: whatever opening the model and reading the picture raise.
    """
    with open_choice(choice) as segmenter:
        card, info = segmenter.card, segmenter.info
        picture = whole_picture(card, segmenter.processing.read(encoded))
    if no_profile_of(info):
        return ()
    batch = to_graph(np.repeat(picture.batch, choice.batch, axis=0), card)
    try:
        events = _profiled(choice, {card.input_name: batch}, _WARM_UPS + runs)
    except Exception as error:  # ONNX Runtime's exceptions have no base class but this
        raise BenchError(f"{choice.model}: ONNX Runtime cannot profile it ({one_line(error)})") from error
    return operators_of(events, _WARM_UPS)


def operators_of(events: Iterable[dict[str, Any]], warm_ups: int) -> tuple[Operator, ...]:
    """Sum up a profile of ONNX Runtime, whose runs were one after the other.

    Args:
        events: in the form of Chrome's trace events: of category ``Node`` or ``Session``, from ``ts`` on for ``dur``
            microseconds.
        warm_ups: runs at the beginning that do not count.
    """
    in_order = sorted(events, key=lambda event: event["ts"])
    starts = [event["ts"] for event in in_order if event["name"] == "model_run"][warm_ups:]
    nodes: dict[tuple[str, str], set[str]] = defaultdict(set)
    times: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * len(starts))
    for event in in_order:
        run = bisect.bisect_right(starts, event["ts"]) - 1
        if run >= 0 and event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            kind = (event["args"]["op_name"], event["args"]["provider"])
            nodes[kind].add(event["name"])
            times[kind][run] += event["dur"] / 1000
    medians = {kind: statistics.median(each) for kind, each in times.items()}
    total = sum(medians.values())
    slowest_first = sorted(medians, key=lambda kind: -medians[kind])
    return tuple(
        Operator(*kind, len(nodes[kind]), medians[kind], medians[kind] / total if total else 0.0)
        for kind in slowest_first
    )


def operator_table(entries: Sequence[Entry]) -> "Table":
    """Return a table of the slowest operators of each entry that has any."""
    from rich.table import Table

    table = Table(title=f"Operators, the {SLOWEST} slowest of each")
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in _NUMBERS else "left")
    for cells in _rows(entries):
        table.add_row(*cells)
    return table


def _rows(entries: Sequence[Entry]) -> Iterator[list[str]]:
    names = distinct_names(entry.subject.model for entry in entries)
    for entry in entries:
        for operator in _slowest(entry.operators):
            yield [
                names[entry.subject.model],
                entry.subject.asked,
                operator.kind,
                operator.provider.removesuffix("ExecutionProvider"),
                str(operator.nodes),
                f"{operator.ms:.2f}",
                f"{operator.share:.1%}",
            ]


def _slowest(operators: Sequence[Operator]) -> Iterator[Operator]:
    """Yield the slowest ones, and all others as one."""
    yield from operators[:SLOWEST]
    if others := operators[SLOWEST:]:
        ms, share = (sum(getattr(one, name) for one in others) for name in ("ms", "share"))
        yield Operator(f"{len(others)} others", "", sum(one.nodes for one in others), ms, share)


def _profiled(choice: Choice, feed: dict[str, NDArray[Any]], runs: int) -> list[dict[str, Any]]:
    """Run a model on the CPU; return the events of its profile."""
    ort = import_onnxruntime("cpu")
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(ort, choice.options)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = ort.InferenceSession(str(choice.model), options, providers=[CPU])
        for _ in range(runs):
            session.run(None, feed)
        profile = Path(session.end_profiling())
        events: list[dict[str, Any]] = json.loads(profile.read_text(encoding="utf-8"))
    return events
