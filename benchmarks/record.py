"""What ``seg-bench`` found, as it is kept in JSON: what tables, plots and comparisons are made from.

Every raw sample is in it, so that whoever doubts a figure can compute it anew. Nothing that can be computed from the
samples is kept beside them but in what is shown.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from segship.benchmarks.update_facts import ModelUpdate
from segship.runtime.backends import EngineInfo
from segship.runtime.errors import SegshipError
from segship.runtime.files import write_text
from segship.runtime.strict import parse

FORMAT: Final = 1

STAGES: Final = ("decode", "preprocess", "transfer", "network", "postprocess", "encode")
"""Of one picture, from a file's bytes to a file's bytes, in their order. ``transfer``: to the GPU and back, of engines
on one alone, and only where it can be timed apart from ``network``."""

NETWORK: Final = "network"
"""Of :data:`STAGES` the bare run of the graph, of a whole batch."""

PICTURE: Final = "picture"
"""All stages of a picture together, timed as one."""

DOES_NOT_RUN: Final = "does not run"
FAILED_IN_TURNS: Final = "failed while it was timed"
NO_ROW: Final = (DOES_NOT_RUN, FAILED_IN_TURNS)
"""How the :class:`Failure` of a subject begins that there is no row of, after :func:`of_batch`."""

_DIGEST_LENGTH: Final = 16


@dataclass(frozen=True)
class Subject:
    """What is measured: a file in an engine.

    Attributes:
        model: path of the file, as it was given.
        sha256: of what it computes (:func:`segship.runtime.model_file.content_sha256`); of a checkpoint, of the file.
        arch: name of the network; None: unknown.
        asked: the engine as it was asked for: ``ort``, or ``openvino:precision=engine``.
        engine: what really runs.
        size: (height, width) that the network gets.
        batch: pictures in a run.
        certificate: what the model's certificate says of this engine, in words; None: it has no row for it.
        file_precision: of the file, whatever the engine makes of it; empty in records that do not tell.
    """

    model: str
    sha256: str
    arch: str | None
    asked: str
    engine: EngineInfo
    size: tuple[int, int]
    batch: int
    certificate: str | None = None
    file_precision: str = ""

    @property
    def arithmetic(self) -> str:
        """The precision that most of the work is in: the file's where it is int8, else the engine's."""
        return "int8" if self.file_precision == "int8" else self.engine.precision

    @property
    def precision(self) -> str:
        """As tables show it: ``fp32``, or ``int8 (bf16)`` where an engine does the rest in another one."""
        rest = "" if self.arithmetic == self.engine.precision else f" ({self.engine.precision})"
        return f"{self.arithmetic}{rest}"

    @property
    def name(self) -> str:
        """What the row is called: file, engine and precision, and the batch where it is not 1."""
        return self.called(Path(self.model).name)

    def called(self, model: str) -> str:
        """Return what the row is called where its file is called ``model``, so that it is told apart from others."""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{model}, {self.asked}, {self.precision}{batch}"


@dataclass(frozen=True)
class Latency:
    """How long single runs took, one after the other.

    Attributes:
        samples_ns: nanoseconds of each run, in the order of the runs, by stage: some of :data:`STAGES`, and
            :data:`PICTURE`. ``network`` is of a whole batch.
        warm_ups: runs before the first sample.
    """

    samples_ns: dict[str, tuple[int, ...]]
    warm_ups: int


@dataclass(frozen=True)
class Throughput:
    """Pictures by the wall clock.

    Attributes:
        concurrency: runs of the network at once.
        images: that were done, decoded pictures to labels.
        seconds: that they took together.
    """

    concurrency: int
    images: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        """Images a second."""
        return self.images / self.seconds


@dataclass(frozen=True)
class Memory:
    """What it takes.

    Attributes:
        model_bytes: of the file and the files that hold weights of it.
        empty_rss_bytes: resident memory of a Python process that has imported the runtime and loaded nothing.
        peak_rss_bytes: the most that a process used that loaded the model and ran it.
        device_bytes: memory of the GPU that it took; None: it runs on none, or nothing tells.
    """

    model_bytes: int
    empty_rss_bytes: int
    peak_rss_bytes: int
    device_bytes: int | None = None


@dataclass(frozen=True)
class Accuracy:
    """How right the file is, through the real runtime.

    Attributes:
        data: dataset and part, without folders: ``camvid, validation``.
        images: how many pictures.
        miou: mean intersection over union of the classes that the truth or the answers show, 0…1.
        pixel_accuracy: share of the pixels that are right, 0…1.
        iou: by class name, 0…1; None: neither the truth nor the answers show it.
        names_digest: of the pictures' names in their order, by :func:`digest`; empty in records that do not tell.
    """

    data: str
    images: int
    miou: float
    pixel_accuracy: float
    iou: dict[str, float | None]
    names_digest: str = ""


@dataclass(frozen=True)
class Roofline:
    """The limit, and how near the network comes to it (Williams, Waterman and Patterson, 2009).

    Attributes:
        gflop: of one run, two operations for each multiply-add.
        gbyte: least that must be moved in one run: weights once, tensors between nodes written and read once, as
            :func:`segship.benchmarks.graph_cost.graph_cost` tells.
        peak_gflop_s: of this machine in this precision, a large matrix product; None: nothing here measures it.
        peak_gbyte_s: of this machine, a large copy, bytes read and written; None: likewise.
        share: of what the roofline allows that the median run reaches, 0…1; None where there is no peak.
    """

    gflop: float
    gbyte: float
    peak_gflop_s: float | None
    peak_gbyte_s: float | None
    share: float | None


@dataclass(frozen=True)
class Operator:
    """A kind of node in a profile.

    Attributes:
        kind: its operator: ``Conv``.
        provider: of ONNX Runtime that runs it.
        nodes: how many there are.
        ms: median milliseconds of a run that all of them take together.
        share: of the time of all nodes, 0…1.
    """

    kind: str
    provider: str
    nodes: int
    ms: float
    share: float


@dataclass(frozen=True)
class Entry:
    """A row: all that was measured of a subject. What was not asked for is None or empty.

    ``lacks`` says what was left out and why, where that is no failure: what the engine does not have, for one.
    """

    subject: Subject
    latency: Latency
    throughput: tuple[Throughput, ...] = ()
    cold_start_s: tuple[float, ...] = ()
    memory: Memory | None = None
    accuracy: Accuracy | None = None
    roofline: Roofline | None = None
    operators: tuple[Operator, ...] = ()
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A subject that could not be measured, and why."""

    model: str
    asked: str
    error: str


@dataclass(frozen=True)
class Bench:
    """One run of ``seg-bench``.

    Attributes:
        made: date and time, UTC, ISO 8601.
        command: as it was typed.
        quick: whether less was measured than the rules ask for.
        picture: what the single runs were of: a file's name, the first picture of the data, or ``noise``.
        machine: CPU, usable threads, GPU, clocks and the like, by name.
        versions: of packages.
        overhead_ns: what measuring itself adds to each sample, median.
        entries: rows, in the order asked for.
        failures: what there is no row of.
        format: of this document.
        picture_digest: of the bytes of ``picture``, by :func:`digest`; empty of noise, and in records that do not tell.
        update: of two models with data, what changes with the second one; None: it was not looked for.
    """

    made: str
    command: str
    quick: bool
    picture: str
    machine: dict[str, str]
    versions: dict[str, str]
    overhead_ns: int
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...] = field(default=())
    format: int = FORMAT
    picture_digest: str = ""
    update: ModelUpdate | None = None


def of_batch(batch: int) -> str:
    """Return what stands before that which failed: ``batch 4``, or nothing of single pictures."""
    return f"batch {batch} " if batch > 1 else ""


def digest(content: bytes) -> str:
    """Return what tells contents apart: the beginning of their sha-256."""
    return hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]


def runs_of(latencies: Sequence[Latency]) -> str:
    """Say how many samples there are: ``100 runs of each``, or where they differ ``100 to 812 runs of each``."""
    counts = [len(latency.samples_ns[PICTURE]) for latency in latencies]
    return " to ".join(str(count) for count in sorted({min(counts), max(counts)})) + " runs of each"


class BenchError(SegshipError):
    """A measurement that cannot be made, or a record of one that cannot be read."""


def bench_json(bench: Bench) -> str:
    """Return a record as a JSON document."""
    return json.dumps(dataclasses.asdict(bench), ensure_ascii=False)


def write_bench(bench: Bench, path: Path) -> None:
    """Write a record as JSON, whole or not at all."""
    write_text(path, bench_json(bench))


def read_bench(path: Path) -> Bench:
    """Read what :func:`write_bench` wrote.

    Raises:
        BenchError: if it is missing, no such record, or of a newer format.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path} is no JSON document; expected what seg-bench --json wrote") from error
    found = values.get("format") if isinstance(values, dict) else None
    if type(found) is int and found > FORMAT:
        raise BenchError(f"{path} is of format {found}, and this segship reads up to {FORMAT}; update segship")
    return parse(Bench, values, str(path), BenchError)
