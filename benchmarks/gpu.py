"""All that a GPU can be asked: providers, precisions, bound memory, recorded graphs, batches; PyTorch beside them.

    python -m segship.benchmarks.gpu fp32.onnx batch.onnx --checkpoint best.safetensors --picture one.jpg --out runs/gpu

For batches above 1 the models must be exported with ``--dynamic batch``, and for CUDA graphs without: give both. What
does not run is told with its reason. ``--device cpu`` goes through the same steps on a CPU, to rehearse them. What is
measured is written after each batch.
"""

import contextlib
import dataclasses
import datetime
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from segship.benchmarks.bench_picture import read_picture
from segship.benchmarks.bench_table import as_markdown
from segship.benchmarks.device_roads import RESIDENT, ResidentRoad, TorchPrecision, TorchRoad
from segship.benchmarks.distribution import Distribution
from segship.benchmarks.engine_choice import Choice, check_checkpoint, file_sha256, open_choice, subject_of
from segship.benchmarks.machine_facts import gpu_states, machine_facts, package_versions
from segship.benchmarks.one_picture import Road
from segship.benchmarks.record import (
    PICTURE,
    Bench,
    BenchError,
    Entry,
    Failure,
    Latency,
    Subject,
    Throughput,
    write_bench,
)
from segship.benchmarks.sampling import FULL, QUICK, Rules, measure_overhead_ns, sample_in_turns
from segship.benchmarks.throughput import measure_throughput
from segship.runtime.backends.gpus import nvidia_gpus
from segship.runtime.card import ModelCard
from segship.runtime.console import run
from segship.runtime.errors import EXIT_ERROR, EXIT_OK, SegshipError
from segship.runtime.files import write_text
from segship.runtime.images import read_image
from segship.runtime.prepare import graph_input
from segship.runtime.segmenter_plan import card_of

ON_GPU: Final = (
    *("ort", "ort:io_binding=false", "ort:cuda_graph=true", "ort:tf32=true", "ort:tf32=true,cuda_graph=true"),
    *("tensorrt", "tensorrt:precision=engine", "opencv"),
)
"""What is asked of engines on a GPU. TensorFloat-32 is for float32 files, and left out of others."""

ON_CPU: Final = ("ort", "ort:io_binding=true", "openvino")
_TORCH_ON_GPU: Final[tuple[TorchPrecision, ...]] = ("fp32", "tf32", "fp16")
_TORCH_ON_CPU: Final[tuple[TorchPrecision, ...]] = ("fp32", "bf16")
_THROUGHPUT_S: Final = 3.0
Tell = Callable[[str], None]


@click.command()
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Of the first model: adds PyTorch.")
@click.option("--picture", type=click.Path(path_type=Path), required=True, help="That all runs are of.")
@click.option("--device", default="cuda", show_default=True, help="cuda[:N]; cpu to rehearse.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, help="Sizes.  [default: 1 2 4 … 64]")
@click.option("--seconds", type=click.FloatRange(0), help="Of samples of each.  [default: 10, with --quick 1]")
@click.option("--compile/--no-compile", "compiles", default=True, help="Compiled PyTorch, too.")
@click.option("--quick", is_flag=True, help="Fewer runs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for gpu.json and gpu.md.")
def gpu(
    models: tuple[Path, ...],
    checkpoint: Path | None,
    picture: Path,
    device: str,
    batches: tuple[int, ...],
    seconds: float | None,
    compiles: bool,
    quick: bool,
    out: Path,
) -> int:
    """Measure MODELS on a GPU in every way that there is to run them; the exit status is 1 if none runs."""
    if device != "cpu" and not nvidia_gpus():
        raise BenchError("this machine has no NVIDIA GPU that nvidia-smi lists; rehearse with --device cpu")
    if checkpoint is not None:
        check_checkpoint(models[0], checkpoint)
    rules = QUICK if quick else FULL
    rules = rules if seconds is None else dataclasses.replace(rules, seconds=seconds)
    encoded = read_picture(picture)
    tell = Console(stderr=True).print
    before = {f"GPU {number} before": state for number, state in enumerate(gpu_states())}
    failures: list[Failure] = []
    bench = Bench(
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=" ".join(["python -m segship.benchmarks.gpu", *sys.argv[1:]]),
        quick=quick,
        picture=picture.name,
        machine=machine_facts() | before,
        versions=package_versions(),
        overhead_ns=measure_overhead_ns(),
        entries=(),
    )
    for batch in batches or tuple(1 << power for power in range(7)):
        rows = _rows(models, checkpoint, device, batch, encoded, failures, compiles=compiles)
        entries = bench.entries + tuple(_measured(rows, encoded, rules, failures, tell))
        after = {f"GPU {number} after": state for number, state in enumerate(gpu_states())}
        bench = dataclasses.replace(bench, machine=bench.machine | after, entries=entries, failures=tuple(failures))
        write_bench(bench, out / "gpu.json")  # what is measured is kept, whatever comes
        write_text(out / "gpu.md", gpu_markdown(bench))
    Console(width=150).print(gpu_table(bench))
    for failure in dict.fromkeys(failures):
        click.echo(f"not measured: {Path(failure.model).name}, {failure.asked}: {failure.error}", err=True)
    return EXIT_OK if bench.entries else EXIT_ERROR


@dataclasses.dataclass(frozen=True)
class _Row:
    """What runs: its name, how often its roads are called, and what lets go of it."""

    subject: Subject
    roads: tuple[Callable[[], dict[str, int]], ...]
    choice: Choice | None
    close: Callable[[], None]


def variants(model: Path, card: ModelCard, device: str, batch: int) -> Iterator[Choice]:
    """Yield the ways to run a model."""
    for asked in ON_CPU if device == "cpu" else ON_GPU:
        if "tf32" not in asked or card.precision == "fp32":
            yield Choice(model, asked, device, batch)


def _rows(
    models: Sequence[Path],
    checkpoint: Path | None,
    device: str,
    batch: int,
    encoded: bytes,
    failures: list[Failure],
    *,
    compiles: bool,
) -> Iterator[_Row]:
    """Load everything that can be run with a batch, one after the other; what cannot goes to ``failures``."""
    for model in models:
        try:
            choices = tuple(variants(model, card_of(model), device, batch))
        except SegshipError as error:
            failures.append(Failure(str(model), "anything", str(error)))
            continue
        for choice in choices:
            try:
                yield _engine_row(choice, encoded)
            except SegshipError as error:
                failures.append(Failure(str(model), choice.asked, f"batch {batch}: {error}"))
    if checkpoint is None:
        return
    precisions = _TORCH_ON_CPU if device == "cpu" else _TORCH_ON_GPU
    for precision, compiled in itertools.product(precisions, (False, True) if compiles else (False,)):
        asked = f"torch {precision}, {'compiled' if compiled else 'eager'}"
        try:
            card = card_of(models[0])
            yield _torch_row(checkpoint, card, asked, encoded, device, batch, precision, compiled=compiled)
        except SegshipError as error:
            failures.append(Failure(str(checkpoint), asked, f"batch {batch}: {error}"))


def _engine_row(choice: Choice, encoded: bytes) -> _Row:
    with contextlib.ExitStack() as opened:
        segmenter = opened.enter_context(open_choice(choice))
        road = Road(segmenter, encoded, choice.batch)
        road()
        roads: list[Callable[[], dict[str, int]]] = [road]
        if choice.backend == "ort" and not choice.options.cuda_graph and choice.options.io_binding is None:
            batch = np.repeat(_graph_input(segmenter.card, encoded), choice.batch, axis=0)
            resident = ResidentRoad(choice, segmenter.card, batch)
            opened.callback(resident.close)
            roads.append(resident)
        return _Row(subject_of(choice, segmenter), tuple(roads), choice, opened.pop_all().close)


def _torch_row(
    checkpoint: Path,
    card: ModelCard,
    asked: str,
    encoded: bytes,
    device: str,
    batch: int,
    precision: TorchPrecision,
    *,
    compiled: bool,
) -> _Row:
    form = card.preprocess
    image = form.geometry(read_image(encoded, channels=form.channels, depth=form.depth))
    road = TorchRoad(checkpoint, np.repeat(form.normalise(image), batch, axis=0), device, precision, compiled=compiled)
    with contextlib.ExitStack() as opened:
        opened.callback(road.close)
        road()
        network = card.network.arch if card.network else None
        subject = Subject(str(checkpoint), file_sha256(checkpoint), network, asked, road.info, form.size, batch)
        return _Row(subject, (road,), None, opened.pop_all().close)


def _graph_input(card: ModelCard, encoded: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    form = card.preprocess
    return graph_input(card, form.geometry(read_image(encoded, channels=form.channels, depth=form.depth)))


def _measured(
    rows: Iterator[_Row], encoded: bytes, rules: Rules, failures: list[Failure], tell: Tell
) -> Iterator[Entry]:
    """Measure rows one after the other: on a GPU, what is loaded beside them would take its memory."""
    for row in rows:
        subject, samples = row.subject, dict[str, tuple[int, ...]]()
        tell(f"{subject.name}: {subject.engine.device}")
        try:
            found = sample_in_turns(row.roads, rules)
        finally:
            row.close()
        for taken in found:
            if isinstance(taken, SegshipError):
                failures.append(Failure(subject.model, subject.asked, f"batch {subject.batch}: {taken}"))
            else:
                samples |= taken.samples_ns
        if "network" in samples:
            streams = () if row.choice is None else tuple(_throughput(row.choice, encoded, rules, failures))
            yield Entry(subject, Latency(samples, rules.warm_ups), streams)


def _throughput(choice: Choice, encoded: bytes, rules: Rules, failures: list[Failure]) -> Iterator[Throughput]:
    """Measure one and, where the engine takes that, two runs at once: of ONNX Runtime without a recorded graph."""
    for runs in (1, 2) if choice.backend == "ort" and not choice.options.cuda_graph else (1,):
        try:
            yield from measure_throughput(choice, encoded, (runs,), min(_THROUGHPUT_S, rules.seconds))
        except SegshipError as error:
            said = f"batch {choice.batch}, images/s with {runs} runs at once: {error}"
            failures.append(Failure(str(choice.model), choice.asked, said))


def gpu_table(bench: Bench) -> Table:
    """Return what was found as a table; medians in milliseconds a batch."""
    table = Table(title=f"{bench.picture}, {'quick' if bench.quick else 'full'} runs, p50 in ms of a whole batch")
    for number, name in enumerate(_COLUMNS):
        table.add_column(name, justify="left" if number < _TEXTS else "right")
    for entry in bench.entries:
        table.add_row(*_cells(entry))
    return table


def gpu_markdown(bench: Bench) -> str:
    """Return the table, the machine, the versions and what could not be measured, as Markdown."""
    lines = [as_markdown(gpu_table(bench)), "", *(f"- {name}: {value}" for name, value in bench.machine.items())]
    lines += [f"- {name} {version}" for name, version in bench.versions.items()]
    lines += [f"- not measured: {one.model}, {one.asked}: {one.error}" for one in dict.fromkeys(bench.failures)]
    return "\n".join([*lines, "", f"`{bench.command}`", ""])


_COLUMNS: Final = (
    *("model", "engine", "device", "precision", "batch"),
    *("network, transfers inside", "p99", "transfers outside", "images/s of the network"),
    *("file to file", "p99 ", "images/s of the runtime"),
)
_TEXTS: Final = 4


def _cells(entry: Entry) -> Iterator[str]:
    subject, samples = entry.subject, entry.latency.samples_ns
    transfers = samples.get("transfer", (0,) * len(samples["network"]))
    inside = Distribution.of([sum(pair) / 1e6 for pair in zip(samples["network"], transfers, strict=True)])
    yield from (Path(subject.model).name, subject.asked, subject.engine.device, subject.engine.precision)
    yield from (str(subject.batch), f"{inside.p50:.2f}", f"{inside.p99:.2f}")
    yield f"{Distribution.of(samples[RESIDENT]).p50 / 1e6:.2f}" if RESIDENT in samples else "–"
    yield f"{subject.batch / inside.p50 * 1000:.1f}"
    if PICTURE in samples:
        whole = Distribution.of([sample / 1e6 for sample in samples[PICTURE]])
        yield from (f"{whole.p50:.2f}", f"{whole.p99:.2f}")
    else:
        yield from ("–", "–")
    yield f"{max(one.images_per_s for one in entry.throughput):.1f}" if entry.throughput else "–"


if __name__ == "__main__":
    run(gpu)
