"""Training a network: from a configuration to checkpoints, metrics and pictures in a folder."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Final

from segship.runtime.errors import CheckpointError
from segship.training.config import TrainConfig, build_config, read_config, write_config
from segship.training.distributed import join_world
from segship.training.progress import Progress
from segship.training.run import BEST_CHECKPOINT, Run, TrainResult
from segship.training.scores_report import CONFUSION, REPORT
from segship.training.setup import Setup, check_disk, make_network, reopen, set_up
from segship.training.state import STATES, SavedState, states
from segship.training.tensorboard import EVENTS

CONFIG: Final = "config.toml"

_LEFT_BY_A_RUN: Final = (
    *(BEST_CHECKPOINT, CONFIG, "metrics.csv", "curves.png", REPORT, CONFUSION),
    *(f"{STATES}/*.safetensors", "samples/*.png", f"{EVENTS}/*"),
)


def train(config: TrainConfig, out: Path, progress: Progress) -> TrainResult:
    """Train a network.

    Writes to ``out``: ``config.toml``; after every validation ``metrics.csv``, ``curves.png``, ``samples/`` and, of the
    best so far, ``best.safetensors``, ``report.json`` and ``confusion.png``; the last states in ``last/``. What an
    earlier run left there is removed when the first step is done.

    Started by ``torchrun`` or ``accelerate launch``, each process takes its part of every batch, and the first writes.

    Raises:
        DatasetError: if the dataset is incomplete or wrong.
        DeviceError: if the device is not there.
        TrainingError: if the configuration does not fit, memory ends, or the loss is no longer a number.
        OutputError: if the disk is full.
    """
    world = join_world(config.device)
    with contextlib.closing(world):
        progress = progress if world.is_first else Progress()
        setup = set_up(config, progress)
        network = make_network(config, setup.card, progress)
        if world.is_first:
            check_disk(out, network, config.optimizer, config.keep)
        earlier = earlier_run(out) if world.is_first else []
        run = Run(config, out, setup, network, world, progress)
        for path in earlier:
            path.unlink(missing_ok=True)
        if world.is_first:
            write_config(out / CONFIG, config)
        return run.to_the_end()


def resume(out: Path, progress: Progress, *, device: str | None = None, workers: int | None = None) -> TrainResult:
    """Go on with a run that was interrupted.

    Args:
        out: its folder.
        progress: told what goes on.
        device: another one than the run began on; its weights then differ in the last digits.
        workers: another number of reading threads.

    Raises:
        CheckpointError: if the folder holds no run.
        DatasetError: if the dataset is not what it was.
    """
    config = _config_of(out)
    config = dataclasses.replace(config, device=device or config.device, workers=workers or config.workers)
    world = join_world(config.device)
    with contextlib.closing(world):
        progress = progress if world.is_first else Progress()
        saved = newest_state(out, progress)
        if saved is None:
            progress.note(f"{out} holds no state yet; the run begins anew")
            setup = set_up(config, progress)
            network = make_network(config, setup.card, progress)
            return Run(config, out, setup, network, world, progress).to_the_end()
        plain = saved.progress
        setup = Setup(
            reopen(config, saved.card),
            saved.card,
            None if plain["class_weights"] is None else tuple(plain["class_weights"]),
            None if plain["rarity"] is None else tuple(plain["rarity"]),
        )
        network = make_network(dataclasses.replace(config, init=None), setup.card, progress)
        run = Run(config, out, setup, network, world, progress)
        run.restore(saved)
        progress.note(f"going on after step {run.position.step} of {run.total_steps}")
        return run.to_the_end()


def earlier_run(out: Path) -> list[Path]:
    """List the files that a run left in ``out``."""
    return [path for pattern in _LEFT_BY_A_RUN for path in sorted(out.glob(pattern))]


def newest_state(out: Path, progress: Progress) -> SavedState | None:
    """Read the newest state of a run that is whole; None if there is none."""
    for path in states(out):
        try:
            return SavedState(path)
        except CheckpointError as error:
            progress.note(f"warning: {error}; taking the state before it")
    return None


def _config_of(out: Path) -> TrainConfig:
    path = out / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{out} holds no run that can be resumed: {path.name} cannot be read ({error})"
        ) from error
    return build_config(read_config(text, str(path)))
