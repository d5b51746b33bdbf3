"""How fast training is: the loop that people write against the steps of ``seg-train``.

    python -m segship.benchmarks.training camvid:DIR --net unet:224x224 --net u2netp:320x320 --json training.json

Three loops train the same network from the same weights, in batches of the same size, on the CPU:

* ordinary: float32 in PyTorch's usual layout; a ``DataLoader`` that for each sample decodes with Pillow, augments with
  Pillow as the preset ``light`` does, and normalises; cross-entropy, AdamW, ``loss.item()`` after each step
* segship: the steps of ``seg-train --precision bf16`` from the second epoch on, when decoded pictures are at hand
* bare: forward, cross-entropy and backward on one made-up batch, in segship's precision and layout: no data, no
  augmentation, no optimiser. It is what segship could reach at best.

They take turns, so that whatever else the machine does falls on all of them alike, and ratios are taken round by round.
Each turn opens its own stream of batches and closes it, so that no loop reads ahead while it is another's turn.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, Generic, TypeVar

import click
import PIL
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from segship.benchmarks.ordinary import OrdinaryPictures, Tensors, ordinary_batches, ordinary_files, ordinary_step
from segship.runtime.card import Network
from segship.runtime.console import SizeType, run
from segship.runtime.files import write_text
from segship.training.config import Precision, TrainConfig
from segship.training.distributed import World
from segship.training.loader import Batch, Loader, epoch_order
from segship.training.networks import ARCHITECTURES
from segship.training.progress import Progress
from segship.training.run import MOST_WORKERS, Run
from segship.training.setup import Setup, make_network, set_up

WARM_UPS: Final = 2
TRIALS: Final = 2
LOOPS: Final = ("ordinary", "segship", "bare")

AnyBatch = TypeVar("AnyBatch")


@dataclass(frozen=True)
class Turn:
    """What a loop did in a stretch of time.

    Attributes:
        images_per_second: that it trained on.
        data_wait: share of the time in which it waited for its next batch.
    """

    images_per_second: float
    data_wait: float


@dataclass(frozen=True)
class Round:
    """One turn of each loop."""

    ordinary: Turn
    segship: Turn
    bare: Turn

    @property
    def ratio(self) -> float:
        """How many times as fast as the ordinary loop segship is."""
        return self.segship.images_per_second / self.ordinary.images_per_second

    @property
    def of_bare(self) -> float:
        """Share of the bare loop's speed that segship reaches."""
        return self.segship.images_per_second / self.bare.images_per_second

    def __str__(self) -> str:
        return (
            f"ordinary {self.ordinary.images_per_second:.2f} images/s (waits {self.ordinary.data_wait:.1%}), "
            f"segship {self.segship.images_per_second:.2f} (waits {self.segship.data_wait:.1%}), "
            f"bare {self.bare.images_per_second:.2f}: ratio {self.ratio:.3f}, {self.of_bare:.1%} of bare"
        )


@dataclass(frozen=True)
class Loop(Generic[AnyBatch]):
    """A training loop.

    Attributes:
        batches: opens an endless stream of batches; closed, the stream ends whatever reads for it.
        step: trains on a batch, and returns when that is done.
    """

    batches: Callable[[], Generator[AnyBatch, None, None]]
    step: Callable[[AnyBatch], object]

    def turn(self, seconds: float, batch_size: int) -> Turn:
        """Train for so long, to the end of a step, after a warm-up in which what reads ahead gets ahead."""
        with contextlib.closing(self.batches()) as batches:
            for _ in range(WARM_UPS):
                self.step(next(batches))
            steps, waited = 0, 0.0
            start = now = time.perf_counter()
            while now - start < seconds:
                batch = next(batches)
                waited += time.perf_counter() - now
                self.step(batch)
                steps, now = steps + 1, time.perf_counter()
        return Turn(steps * batch_size / (now - start), waited / (now - start))


class NetType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """``ARCH:HxW``, as a network and (height, width)."""

    name = "ARCH:HxW"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Network, tuple[int, int]]:
        """Parse the text that was given."""
        arch, _, size = str(value).partition(":")
        if arch not in ARCHITECTURES:
            self.fail(f"no architecture is called {arch!r}; known are {', '.join(ARCHITECTURES)}", param, ctx)
        return Network(arch), SizeType().convert(size, param, ctx)


@click.command()
@click.argument("data", metavar="KIND:DIR")
@click.option("--net", "nets", type=NetType(), multiple=True, required=True, help="To train; may be repeated.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Pictures a batch.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each loop.")
@click.option("--seconds-per-round", type=click.FloatRange(0.01), default=20.0, show_default=True, help="Of each loop.")
@click.option(
    "--num-workers",
    type=click.IntRange(0),
    multiple=True,
    default=[0, 2],
    show_default=True,
    help="Of the ordinary loop's DataLoader. Of several, the fastest is taken.",
)
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True, help="Of segship.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File to write all figures to.")
def training(
    data: str,
    nets: Sequence[tuple[Network, tuple[int, int]]],
    batch_size: int,
    rounds: int,
    seconds_per_round: float,
    num_workers: Sequence[int],
    precision: Precision,
    json_file: Path | None,
) -> None:
    """Measure how many images per second are trained on, from DATA, on the CPU."""
    machine = _machine()
    click.echo(", ".join(f"{name} {value}" for name, value in machine.items()))
    threads = min(MOST_WORKERS, os.cpu_count() or 1)  # that read, as many as seg-train has by itself
    configs = [
        TrainConfig(data, network, size=size, batch_size=batch_size, precision=precision, device="cpu", workers=threads)
        for network, size in nets
    ]
    setups = [
        set_up(config, Progress()) for config in configs
    ]  # what does not fit is to be found before the first turn
    results = [
        _measure(config, setup, num_workers, rounds, seconds_per_round)
        for config, setup in zip(configs, setups, strict=True)
    ]
    if json_file is not None:
        write_text(json_file, json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


def _measure(
    config: TrainConfig, setup: Setup, num_workers: Sequence[int], rounds: int, seconds: float
) -> dict[str, Any]:
    """Let the loops train one network in turns, tell what they did, and return it."""
    form, train, turn = setup.card.preprocess, setup.split.train, (seconds, config.batch_size)
    name = f"{config.network.arch} {form.size[0]}×{form.size[1]}"
    with (
        tempfile.TemporaryDirectory() as folder,
        Loader(train, form, None, workers=config.workers or 1, cache_mb=config.cache_mb) as loader,
    ):
        pictures = OrdinaryPictures(ordinary_files(config, setup, Path(folder)), form)
        step = ordinary_step(config, setup)
        choices = {n: Loop(partial(ordinary_batches, pictures, config.batch_size, n), step) for n in num_workers}
        tried = [(loop.turn(*turn).images_per_second, n) for _ in range(TRIALS) for n, loop in choices.items()]
        fastest = max(tried)[1]
        click.echo(f"{name}, ordinary: " + ", ".join(f"{speed:.2f} images/s by {n} workers" for speed, n in tried))
        first_s = _read_all(loader, len(train))
        click.echo(f"{name}, segship: the first epoch also decodes {len(train)} pictures, in {first_s:.1f} s")
        loops = choices[fastest], segship_loop(config, setup, loader), bare_loop(config, setup)
        done: list[Round] = []
        for number in range(1, rounds + 1):
            done.append(Round(*(loop.turn(*turn) for loop in loops)))
            click.echo(f"{name}, round {number}: {done[-1]}")
    _tell(f"{name}, batches of {config.batch_size}, {config.precision}, ordinary with {fastest} workers", done)
    return {
        "network": config.network.arch,
        "size": form.size,
        "batch_size": config.batch_size,
        "precision": config.precision,
        "num_workers": fastest,
        "tried": [{"num_workers": n, "images_per_second": speed} for speed, n in tried],
        "first_reading_s": first_s,
        "rounds": [dataclasses.asdict(one) | {"ratio": one.ratio, "of_bare": one.of_bare} for one in done],
        "median_ratio": median(one.ratio for one in done),
        "median_of_bare": median(one.of_bare for one in done),
    }


def _tell(title: str, rounds: Sequence[Round]) -> None:
    """Print the medians over the rounds, and how far they range."""
    table = Table(title=title)
    for column in ("loop", "images/s", "smallest", "largest", "of it waiting for data"):
        table.add_column(column, justify="left" if column == "loop" else "right")
    for loop in LOOPS:
        turns: list[Turn] = [getattr(one, loop) for one in rounds]
        speeds = [turn.images_per_second for turn in turns]
        figures = (f"{speed:.2f}" for speed in (median(speeds), min(speeds), max(speeds)))
        table.add_row(loop, *figures, f"{median(turn.data_wait for turn in turns):.1%}")
    Console(width=100).print(table)
    ratios, shares = [one.ratio for one in rounds], [one.of_bare for one in rounds]
    rest = median(1 - one.of_bare - one.segship.data_wait for one in rounds)
    click.echo(
        f"segship is {median(ratios):.3f} times as fast as the ordinary loop ({min(ratios):.3f} to {max(ratios):.3f}), "
        f"and reaches {median(shares):.1%} of the bare one ({min(shares):.1%} to {max(shares):.1%}); augmentation, "
        f"optimiser and what else is no waiting take {rest:.1%} of its time"
    )


def _read_all(loader: Loader, count: int) -> float:
    """Read every picture once, so that those that fit are kept; return the seconds."""
    start = time.perf_counter()
    for _ in loader.batches([[(0, 0, index)] for index in range(count)]):
        pass
    return time.perf_counter() - start


def segship_loop(config: TrainConfig, setup: Setup, loader: Loader) -> Loop[Batch]:
    """Return the loop of a real run, which reads by ``loader``; each turn begins a new epoch."""
    network = make_network(config, setup.card, Progress())
    # Its folder is none: a run writes when an epoch is done, and the steps alone end none.
    training_run = Run(config, Path(), setup, network, World(0, 1, torch.device("cpu")), Progress())
    epochs = itertools.count(1)

    def batches() -> Generator[Batch, None, None]:
        for epoch in epochs:
            order = epoch_order(len(setup.split.train), config.batch_size, config.seed, epoch)
            yield from loader.batches([[(config.seed, epoch, index) for index in batch] for batch in order])

    return Loop(batches, lambda batch: training_run.step([batch], config.optimizer.learning_rate))


def bare_loop(config: TrainConfig, setup: Setup) -> Loop[Tensors]:
    """Return the loop that only passes one batch forward and backward."""
    network = make_network(config, setup.card, Progress())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from the stubs
    form, num_classes = setup.card.preprocess, setup.card.num_logits
    pixels = torch.randn(config.batch_size, form.channels, *form.size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(num_classes, (config.batch_size, *form.size))

    def batches() -> Generator[Tensors, None, None]:
        yield from itertools.repeat((pixels, labels))

    def step(_: Tensors) -> None:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            outputs = network(pixels)
        losses = [F.cross_entropy(o.float(), labels[:, : o.shape[2], : o.shape[3]]) for o in outputs]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    return Loop(batches, step)


def _machine() -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux
        text = ""
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in flags[1].split() if "bf16" in flag or "amx" in flag] if flags else [],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pillow": PIL.__version__,
    }


if __name__ == "__main__":
    run(training)
