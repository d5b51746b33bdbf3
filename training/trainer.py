"""Training a network: from a configuration to checkpoints, metrics and pictures in a folder."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from segship.runtime.errors import CheckpointError, DatasetError, OutputError
from segship.training.config import TrainConfig, build_config, write_config
from segship.training.distributed import World, join_world
from segship.training.progress import Progress
from segship.training.run import BEST_CHECKPOINT, Run, TrainResult, clear_errors
from segship.training.scores_report import CONFUSION, REPORT
from segship.training.settings import read_config
from segship.training.setup import Setup, check_disk, make_network, reopen, set_up
from segship.training.state import STATES, SavedState, states
from segship.training.tensorboard import EVENTS

CONFIG: Final = "config.toml"

_FILES: Final = (CONFIG, BEST_CHECKPOINT, "metrics.csv", "curves.png", REPORT, CONFUSION)
_HALF_WRITTEN: Final = (
    *(f".{Path(name).stem}.*" for name in _FILES),
    *(f"{STATES}/.step_*", "samples/.step_*"),
    *(".tmp??????", f"{STATES}/.tmp??????"),  # what safetensors calls them
)
_LEFT_BY_A_RUN: Final = (*_FILES, f"{STATES}/step_*", "samples/*.png", f"{EVENTS}/*", *_HALF_WRITTEN)


def train(config: TrainConfig, out: Path, progress: Progress) -> TrainResult:
    """Train a network.

    Writes to ``out``: ``config.toml``; after every validation ``metrics.csv``, ``curves.png``, ``samples/`` and, of the
    best so far, ``best.safetensors``, ``report.json`` and ``confusion.png``; the last states in ``last/``. What an
    earlier run left there is removed when the data was read and the network is built.

    Started by ``torchrun`` or ``accelerate launch``, each process takes its part of every batch, and the first writes.

    Raises:
        DatasetError: if the dataset is incomplete or wrong.
        DeviceError: if the device is not there.
        TrainingError: if the configuration does not fit, memory ends, or the loss is no longer a number.
        OutputError: if the disk is full.
    """
    with join_world(config.device) as world, clear_errors(config, out):
        run = _new_run(config, out, world, progress if world.is_first else Progress())
        if world.is_first:
            _remove(earlier_run(out))
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
    with join_world(config.device) as world, clear_errors(config, out):
        progress = progress if world.is_first else Progress()
        saved = newest_state(out, progress)
        if saved is None:
            progress.note(f"{out} holds no state yet; the run begins anew")
            run = _new_run(config, out, world, progress)
            if world.is_first:
                _remove(path for path in earlier_run(out) if path.name != CONFIG)
            return run.to_the_end()
        setup = _setup_of(config, saved)
        network = make_network(dataclasses.replace(config, init=None), setup.card, progress)
        run = Run(config, out, setup, network, world, progress)
        run.restore(saved)
        if world.is_first:
            damaged = [path for path in states(out) if path > saved.path]
            _remove([*damaged, *(path for pattern in _HALF_WRITTEN for path in out.glob(pattern))])
        if run.is_over:
            progress.note(f"the run in {out} is over; nothing is left to do")
            return run.result()
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


def _new_run(config: TrainConfig, out: Path, world: World, progress: Progress) -> Run:
    setup = set_up(config, progress)
    network = make_network(config, setup.card, progress)
    if world.is_first:
        check_disk(out, network, config.optimizer, config.keep)
    return Run(config, out, setup, network, world, progress)


def _setup_of(config: TrainConfig, saved: SavedState) -> Setup:
    """Open the data again; what was found out by reading all of it is in the state."""
    split = reopen(config, saved.card)
    try:
        pictures, weights, rarity = (saved.progress[key] for key in ("pictures", "class_weights", "rarity"))
    except KeyError as error:
        raise CheckpointError(f"{saved.path} does not say what the run was made of: it lacks {error}") from error
    if pictures != [len(split.train), len(split.val)]:
        raise DatasetError(
            f"the run began with {pictures[0]} pictures to train on and {pictures[1]} held out, and {config.data} has "
            f"{len(split.train)} and {len(split.val)}; expected the same ones"
        )
    return Setup(split, saved.card, weights and tuple(weights), rarity and tuple(rarity))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {path}, which an earlier run left: {error.strerror}") from error


def _config_of(out: Path) -> TrainConfig:
    path = out / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{out} holds no run that can be resumed: {path.name} cannot be read ({error})"
        ) from error
    return build_config(read_config(text, str(path)))
