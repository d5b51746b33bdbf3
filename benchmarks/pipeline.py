"""Files in, files out, at the speed of the network? The whole road against its limit, and against how others do it.

    python -m segship.benchmarks.pipeline MODEL PICTURES --rounds 5

All of it runs in one warm process, from the first open to the last write, on the same pictures, in turns: every ratio
is of neighbours in time. The limit is the larger of two figures that nothing which decodes these files, runs this
network and writes these files can beat on this machine:

- the forward passes alone, on input that is ready, in the fastest of the ways tried (one run with all cores, or one run
  on each core at once);
- the CPU seconds of all stages, each measured alone in one thread, spread evenly over all cores.

``--rembg PYTHON`` adds rembg, for a binary U²-Net: the path of a Python that has it; it gets this model in the place
where it looks for its own, runs in its own process, warm, and writes masks.
"""

import concurrent.futures
import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import cv2
from numpy.typing import NDArray

from segship.benchmarks.ordinary_inference import ordinary_script
from segship.benchmarks.rival_contenders import REMBG, ordinary_settings, rembg_home
from segship.benchmarks.rival_process import Worker
from segship.runtime.backends import load_backend
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.backends.options import EngineOptions
from segship.runtime.card import ModelCard
from segship.runtime.console import chosen, run
from segship.runtime.outputs import OutputKind
from segship.runtime.prepare import whole_picture
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter
from segship.runtime.source_files import find_images
from segship.runtime.stage_report import StageReport

KINDS: Final[tuple[OutputKind, ...]] = ("mask", "color", "overlay")
"""What the ordinary script writes, too."""


@dataclass(frozen=True)
class Limit:
    """What the machine allows, in seconds for all pictures.

    Attributes:
        forward_s: forward passes alone, the fastest way.
        way: which that was.
        cpu_s: CPU seconds of each stage alone, in one thread.
    """

    forward_s: float
    way: str
    cpu_s: dict[str, float]

    @property
    def spread_s(self) -> float:
        """CPU seconds of all stages, spread over all cores."""
        return sum(self.cpu_s.values()) / available_cpus()

    @property
    def seconds(self) -> float:
        """The limit."""
        return max(self.forward_s, self.spread_s)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pictures", type=click.Path(path_type=Path))
@click.option("--backend", default="ort", show_default=True, help="Engine.")
@click.option("--limit", "count", type=click.IntRange(1), default=200, show_default=True, help="Number of pictures.")
@click.option("--save", default="mask,overlay", show_default=True, help="What is written.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each.")
@click.option("--rembg", type=click.Path(path_type=Path), help="Python with rembg, for binary U²-Nets.")
def pipeline(model: Path, pictures: Path, backend: str, count: int, save: str, rounds: int, rembg: Path | None) -> None:
    """Measure MODEL on PICTURES: the whole road, its limit, and the ordinary script."""
    cv2.setNumThreads(1)
    paths = [file.path for file in find_images([pictures])][:count]
    kinds = chosen(save, KINDS, "--save")
    cores = available_cpus()
    walls: dict[str, list[float]] = {}
    limits: list[Limit] = []
    with contextlib.ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options = EngineOptions(streams=cores)
        segmenter = stack.enter_context(Segmenter(model, backend=backend, device="cpu", options=options))
        script = ordinary_script(ordinary_settings(model, segmenter.card, paths, out / "ordinary", kinds))
        others: dict[str, Callable[[], float]] = {"ordinary script": lambda: script(paths)}
        if rembg is not None:
            others["rembg"] = _rembg(stack, rembg, model, paths, out)
        for other in (lambda: script(paths[:5]), lambda: _ours(segmenter, paths[:10], kinds, out)):
            other()  # warm
        for turn in range(rounds):
            limits.append(measure_limit(model, segmenter, backend, paths, kinds, out))
            seconds, report = _ours(segmenter, paths, kinds, out)
            walls.setdefault("segship", []).append(seconds)
            limit = limits[-1]
            click.echo(
                f"turn {turn + 1}: segship {seconds:.2f} s, limit {limit.seconds:.2f} s (forward passes "
                f"{limit.forward_s:.2f} s, {limit.way}; all CPU seconds over {cores} cores {limit.spread_s:.2f} s): "
                f"{seconds / limit.seconds:.3f} × the limit\n{report}"
            )
            for name, other_turn in others.items():
                taken = other_turn()
                walls.setdefault(name, []).append(taken)
                click.echo(f"        {name} {taken:.2f} s: {taken / seconds:.2f} × as long as segship")
    _summary(walls, limits, len(paths))


def measure_limit(
    model: Path, segmenter: Segmenter, backend: str, paths: Sequence[Path], kinds: Sequence[OutputKind], out: Path
) -> Limit:
    """Measure forward passes alone, and each stage alone."""
    stages = ("decode", "prepare", "network", "labels")
    cpu_s = dict.fromkeys((*stages, "outputs"), 0.0)
    with Segmenter(model, backend=backend, device="cpu", options=EngineOptions(threads=1)) as single:
        single(paths[0])
        for number, path in enumerate(paths):
            start = time.process_time()
            result = single(path)
            segmented = time.process_time()
            result.save(out / "limit", kinds, name=str(number))
            cpu_s["outputs"] += time.process_time() - segmented
            # The process' CPU seconds are what counts; the times of the stages say how they divide.
            scale = (segmented - start) / sum(result.timings[f"{stage}_ms"] for stage in stages)
            for stage in stages:
                cpu_s[stage] += scale * result.timings[f"{stage}_ms"]
    batches = [whole_picture(segmenter.card, segmenter.processing.read(path)).batch for path in paths[:20]]
    ways = {"one run with all cores": EngineOptions(), "a run on each core": segmenter.options}
    forward = {
        way: _forward_s(model, backend, segmenter.card, options, batches, len(paths)) for way, options in ways.items()
    }
    way = min(forward, key=forward.__getitem__)
    return Limit(forward[way], way, cpu_s)


def _forward_s(
    model: Path, backend: str, card: ModelCard, options: EngineOptions, batches: Sequence[NDArray[Any]], count: int
) -> float:
    """Seconds of ``count`` forward passes on ready input, ``options.streams`` at once."""
    engine = load_backend(backend, model, card, "cpu", options)
    work = [batches[number % len(batches)] for number in range(count)]
    with concurrent.futures.ThreadPoolExecutor(options.streams) as pool:
        list(pool.map(engine.run, work[: 2 * options.streams]))
        start = time.perf_counter()
        for _ in pool.map(engine.run, work):
            pass
        seconds = time.perf_counter() - start
    engine.close()
    return seconds


def _ours(
    segmenter: Segmenter, paths: Sequence[Path], kinds: Sequence[OutputKind], out: Path
) -> tuple[float, StageReport]:
    """Seconds of the whole road, and what it says of itself."""
    folder = out / "segship"
    shutil.rmtree(folder, ignore_errors=True)
    report = StageReport(segmenter.crew)
    start = time.perf_counter()

    def save(result: Result) -> dict[str, float]:
        result.save(folder, kinds)
        return result.timings

    for timings in segmenter.stream(paths, then=save):
        report.add(timings)
    return time.perf_counter() - start, report


def _summary(walls: dict[str, list[float]], limits: Sequence[Limit], count: int) -> None:
    ours = walls.pop("segship")
    ratios = [wall / limit.seconds for wall, limit in zip(ours, limits, strict=True)]
    click.echo(f"\n{count} pictures, {len(ours)} turns, medians (smallest, largest):")
    click.echo(f"segship {1000 * statistics.median(ours) / count:.1f} ms a picture; {_spread(ratios)} × its limit")
    cpu_s = {stage: statistics.median(limit.cpu_s[stage] for limit in limits) for stage in limits[0].cpu_s}
    click.echo("CPU ms a picture, alone: " + "  ".join(f"{stage} {1000 * s / count:.1f}" for stage, s in cpu_s.items()))
    for name, seconds in walls.items():
        times = [other / wall for other, wall in zip(seconds, ours, strict=True)]
        click.echo(f"{name} {1000 * statistics.median(seconds) / count:.1f} ms a picture: {_spread(times)} × as long")


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def _rembg(
    stack: contextlib.ExitStack, python: Path, model: Path, paths: Sequence[Path], out: Path
) -> Callable[[], float]:
    """Start rembg with the weights of ``model``; return what lets it do all pictures once and tells the seconds."""
    settings = {"pictures": [str(path) for path in paths], "out": str(out / "rembg")}
    worker = stack.enter_context(Worker(python, REMBG, settings, rembg_home(model, out / "rembg-home")))
    worker.run("files", 1)
    return lambda: worker.run("files", len(paths)).seconds


def main() -> None:
    """Run the command."""
    run(pipeline)


if __name__ == "__main__":
    main()
