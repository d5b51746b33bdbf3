"""One run: its steps, its validations, and what it leaves on the disk.

A run can be killed at any moment. After every epoch, and every validation, its state is kept; resumed, it ends with the
very weights that it would have had without the interruption.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from segship.runtime.card import ModelCard
from segship.runtime.errors import CheckpointError, OutputError, TrainingError
from segship.training.augment import Augmentation
from segship.training.checkpoint import save_checkpoint
from segship.training.config import TrainConfig
from segship.training.distributed import World, share_batch_norm
from segship.training.gain_bias import GainBias
from segship.training.loader import Batch, Key, Loader, augmentation_seeds, epoch_order
from segship.training.losses import SegmentationLoss
from segship.training.metrics import ConfusionMatrix, Scores
from segship.training.optimisation import WeightAverage, build_optimizer, learning_rate, parameters_of
from segship.training.progress import Progress
from segship.training.report import EpochRecord, draw_curves, draw_samples, write_metrics
from segship.training.scores_report import Fact, write_report
from segship.training.setup import Setup
from segship.training.state import SavedState, save_state, state_path, states
from segship.training.tensorboard import EVENTS, EventLog
from segship.training.validate import measure

BEST_CHECKPOINT: Final = "best.safetensors"
MOST_WORKERS: Final = 16


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        best: the record with the highest validation mIoU.
        checkpoint: its weights.
        records: all of them.
    """

    best: EpochRecord
    checkpoint: Path
    records: list[EpochRecord]

    @property
    def scores(self) -> Scores:
        """Of the best record."""
        if self.best.scores is None:
            raise ValueError("the best record has no scores; only one that was validated can be the best")
        return self.best.scores


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        step: steps of the optimiser done.
        loss_sum: of the losses since the last record.
        steps_summed: how many these are.
        records: so far.
        best: index of the best one; None before the first validation.
        validations_since_best: how many did not get better.
        scaler: state of the gradient scaling for fp16.
    """

    step: int = 0
    loss_sum: float = 0.0
    steps_summed: int = 0
    records: list[EpochRecord] = field(default_factory=list)
    best: int | None = None
    validations_since_best: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**vars(self), "records": [record.to_dict() for record in self.records]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Position":
        """Return what ``to_dict`` was called on."""
        return cls(**{**values, "records": [EpochRecord.from_dict(record) for record in values["records"]]})


class Run:
    """A run while it goes on."""

    def __init__(
        self, config: TrainConfig, out: Path, setup: Setup, network: nn.Module, world: World, progress: Progress
    ) -> None:
        self.config, self.out, self.setup, self.card = config, out, setup, setup.card
        self.world, self.progress, self.position = world, progress, Position()
        network = network.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from the stubs
        self.average = WeightAverage(network, config.optimizer.ema) if config.optimizer.ema else None
        share_batch_norm(network, world)
        self.network = network
        self.forward = torch.compile(network) if config.compile else network
        self.optimizer = build_optimizer(config.optimizer, network)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.augment = Augmentation.for_card(config.augment, self.card)
        self.normalise = GainBias(self.card.preprocess).to(world.device)
        self.loss = SegmentationLoss(
            config.loss,
            num_classes=self.card.num_logits,
            ignore_index=self.card.ignore_index,
            class_weights=setup.class_weights,
            total=world.total,
            processes=world.size,
        )
        train_count = len(setup.split.train)
        if train_count == 0 or min(train_count, config.batch_size) < world.size:
            raise TrainingError(
                f"{world.size} processes share batches of {min(train_count, config.batch_size)} pictures; expected at "
                "least one picture for each"
            )
        batches = len(epoch_order(train_count, config.batch_size, config.seed, 1))
        self.accumulate = min(config.optimizer.accumulate, batches)
        self.steps_per_epoch = batches // self.accumulate
        self.total_steps = config.epochs * self.steps_per_epoch

    @property
    def deployed(self) -> nn.Module:
        """The network that is validated and kept: the average, where there is one."""
        return self.network if self.average is None else self.average.network

    def restore(self, saved: SavedState) -> None:
        """Go back to a state.

        Raises:
            CheckpointError: if it is of another run.
        """
        saved.restore(self.network, self.optimizer, self.average)
        try:
            self.position = Position.from_dict(saved.progress["position"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{saved.path} does not say how far the run had come ({error})") from error
        self.scaler.load_state_dict(self.position.scaler)

    def to_the_end(self) -> TrainResult:
        """Train until the last epoch is done, or nothing gets better any more."""
        setup, config = self.setup, self.config
        workers = config.workers or min(MOST_WORKERS, os.cpu_count() or 1)
        form, cropper = self.card.preprocess, setup.cropper(config)
        with (
            self._hint_where_interrupted(),
            Loader(setup.split.train, form, cropper, workers=workers, cache_mb=config.cache_mb) as loader,
            self._event_log() as events,
        ):
            while not self.is_over:
                self._epoch(loader, events)
        if self._is_stuck():
            self.progress.note(f"ended early: {config.patience} validations brought no better mIoU")
        return self.result()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.position.step >= self.total_steps or self._is_stuck()

    def result(self) -> TrainResult:
        """Return what the run came to so far.

        Raises:
            TrainingError: if nothing was validated yet.
        """
        if self.position.best is None:
            raise TrainingError("no validation was done")
        records = self.position.records
        return TrainResult(records[self.position.best], self.out / BEST_CHECKPOINT, records)

    def _is_stuck(self) -> bool:
        return 0 < self.config.patience <= self.position.validations_since_best

    @contextlib.contextmanager
    def _hint_where_interrupted(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self.progress.note(f"go on with: seg-train --resume {self.out}")
            raise

    def _event_log(self) -> contextlib.AbstractContextManager["EventLog | None"]:
        if self.config.tensorboard and self.world.is_first:
            return EventLog(self.out / EVENTS, resumed_step=self.position.step or None)
        return contextlib.nullcontext()

    def _epoch(self, loader: Loader, events: EventLog | None) -> None:
        """Take the steps of an epoch that are still to do."""
        done = self.position.step % self.steps_per_epoch
        epoch = 1 + self.position.step // self.steps_per_epoch
        self._begin(epoch, done)
        batches = loader.batches(self._keys(epoch)[done * self.accumulate :])
        start, waited = time.perf_counter(), 0.0
        with contextlib.closing(batches):
            for _ in range(done, self.steps_per_epoch):
                waiting = time.perf_counter()
                micro_batches = [next(batches) for _ in range(self.accumulate)]
                waited += time.perf_counter() - waiting
                rate = self._learning_rate()
                loss = self.step(micro_batches, rate)
                self.progress.advance(loss)
                if events is not None:
                    events.training_step(self.position.step, loss=loss, learning_rate=rate)
                if self._is_milestone():
                    seconds = time.perf_counter() - start
                    self._milestone(epoch, start, waited / seconds, events)
                    if self._is_stuck():
                        return
                    if done := self.position.step % self.steps_per_epoch:
                        self._begin(epoch, done)
                    start, waited = time.perf_counter(), 0.0

    def _begin(self, epoch: int, done: int) -> None:
        self.network.train()
        self.progress.begin(f"epoch {epoch}/{self.config.epochs} training", self.steps_per_epoch - done)

    def _keys(self, epoch: int) -> list[list[Key]]:
        """Return this process's part of each batch of an epoch."""
        config = self.config
        order = epoch_order(len(self.setup.split.train), config.batch_size, config.seed, epoch)
        return [[(config.seed, epoch, index) for index in self.world.shard(batch)] for batch in order]

    def _learning_rate(self) -> float:
        return learning_rate(self.config.optimizer, self.position.step, self.total_steps)

    def step(self, micro_batches: list[Batch], rate: float) -> float:
        """Take one step of the optimiser and return its loss.

        Args:
            micro_batches: whose gradients are averaged.
            rate: of learning.

        Raises:
            TrainingError: if the loss is no longer a number.
        """
        config, position = self.config, self.position
        torch.manual_seed(hash((config.seed, position.step, self.world.rank)))  # dropout is all that draws from it
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.world.device)
        for batch in micro_batches:
            loss = self._loss_share(batch) / len(micro_batches)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += loss.detach()
        self.world.add_gradients(parameters_of(self.optimizer))
        if config.optimizer.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(parameters_of(self.optimizer), config.optimizer.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        value = float(self.world.total(total))
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value} in step {position.step + 1}")
        position.step += 1
        position.loss_sum += value
        position.steps_summed += 1
        if self.average is not None:
            self.average.update(self.network, position.step)
        return value

    def _loss_share(self, batch: Batch) -> Tensor:
        device, config = self.world.device, self.config
        pixels, labels = batch.pixels.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
        varied, labels = self.augment(pixels, labels, augmentation_seeds(batch.keys))
        network_input = self.normalise(varied).contiguous(memory_format=torch.channels_last)
        dtype = torch.float16 if config.precision == "fp16" else torch.bfloat16
        with torch.autocast(device.type, dtype, enabled=config.precision != "fp32"):
            outputs = self.forward(network_input)
        return self.loss(outputs, labels)

    def _diverged(self, finding: str) -> TrainingError:
        best = self.out / BEST_CHECKPOINT
        left = "" if self.position.best is None else f"; {best} is whole, and --init starts a run from it"
        return TrainingError(f"{finding}; lower --lr (it is {self.config.optimizer.learning_rate:g}){left}")

    def _is_milestone(self) -> bool:
        return self.position.step % self.steps_per_epoch == 0 or self._is_validated()

    def _is_validated(self) -> bool:
        every = self.config.validate_every * (self.steps_per_epoch if self.config.validate_unit == "epochs" else 1)
        return self.position.step % every == 0 or self.position.step == self.total_steps

    def _milestone(self, epoch: int, start: float, data_wait: float, events: EventLog | None) -> None:
        """Validate if it is time to, write what there is to see, and keep the state."""
        position = self.position
        if not all(bool(parameter.isfinite().all()) for parameter in self.network.parameters()):
            raise self._diverged(f"the weights are no numbers any more after step {position.step}")
        matrix = self._measure(epoch) if self._is_validated() else None
        record = EpochRecord(
            epoch=epoch,
            step=position.step,
            learning_rate=learning_rate(self.config.optimizer, position.step - 1, self.total_steps),
            train_loss=position.loss_sum / position.steps_summed,
            data_wait=data_wait,
            scores=None if matrix is None else matrix.scores(),
            seconds=time.perf_counter() - start,
        )
        is_best = self._take_in(record)
        if self.world.is_first:
            self._write(record, matrix, events, is_best=is_best)
        self.progress.record(record, is_best=is_best)

    def _measure(self, epoch: int) -> ConfusionMatrix:
        indices = self.world.shard(range(len(self.setup.split.val)))
        self.progress.begin(f"epoch {epoch}/{self.config.epochs} validation", len(indices))
        matrix = measure(
            self.deployed, self.card, self.setup.split.val, self.world.device, self.progress.advance, indices
        )
        matrix.counts = self.world.total_counts(matrix.counts)
        return matrix

    def _take_in(self, record: EpochRecord) -> bool:
        """Add a record and return whether it is the best one so far."""
        position = self.position
        position.records.append(record)
        position.loss_sum, position.steps_summed = 0.0, 0
        if record.scores is None:
            return False
        best = None if position.best is None else position.records[position.best].scores
        if best is not None and record.scores.miou <= best.miou:
            position.validations_since_best += 1
            return False
        position.best, position.validations_since_best = len(position.records) - 1, 0
        return True

    def _write(
        self, record: EpochRecord, matrix: ConfusionMatrix | None, events: EventLog | None, *, is_best: bool
    ) -> None:
        card, out, names = self._card_after(record), self.out, self.card.class_names
        if is_best and matrix is not None:
            save_checkpoint(out / BEST_CHECKPOINT, self.deployed, card)
            facts: dict[str, Fact] = {"checkpoint": BEST_CHECKPOINT, "epoch": record.epoch, "data": self.config.data}
            write_report(out, matrix, card, facts | {"pictures": len(self.setup.split.val)})
        write_metrics(out / "metrics.csv", self.position.records, names)
        draw_curves(out / "curves.png", self.position.records, names)
        if matrix is not None:
            samples = out / f"samples/step_{record.step:09}.png"
            draw_samples(samples, self.deployed, card, self.setup.split.val, self.world.device)
            if events is not None:
                events.sheet(record.step, samples)
        if events is not None:
            events.epoch(record, names)
        self._keep_state(card)

    def _keep_state(self, card: ModelCard) -> None:
        """Write the state, then remove those that are older than are to be kept."""
        self.position.scaler = self.scaler.state_dict()
        progress = {
            "position": self.position.to_dict(),
            "pictures": [len(self.setup.split.train), len(self.setup.split.val)],
            "class_weights": self.setup.class_weights,
            "rarity": self.setup.rarity,
        }
        path = state_path(self.out, self.position.step)
        save_state(path, self.network, self.optimizer, self.average, card, progress)
        for old in states(self.out)[self.config.keep :]:
            old.unlink(missing_ok=True)

    def _card_after(self, record: EpochRecord) -> ModelCard:
        """Return the card with what is known of the weights now."""
        metrics = {} if record.scores is None else record.scores.summary()
        known = {name: value for name, value in metrics.items() if value == value}  # without NaN
        provenance = dataclasses.replace(self.card.provenance, epoch=record.epoch, metrics=known)
        return dataclasses.replace(self.card, provenance=provenance)


@contextlib.contextmanager
def clear_errors(config: TrainConfig, out: Path) -> Iterator[None]:
    """Turn the many ways in which memory ends into one clear error, and say of a full disk how a run goes on.

    Args:
        config: of the run.
        out: its folder.
    """
    kept = "the states in last/ are kept"
    try:
        yield
    except OutputError as error:
        if not states(out):
            raise
        raise OutputError(f"{error}; {kept}; mend it, and go on with seg-train --resume {out}") from error
    except (MemoryError, RuntimeError) as error:
        if not _tells_of_memory(error):
            raise
        side = config.crop or config.size
        raise TrainingError(
            f"memory is too small for batches of {config.batch_size} pictures"
            f"{f' of {side[0]}×{side[1]}' if side else ''}; lower --batch-size (optimizer.accumulate makes up for it), "
            f"--size or --crop{f'; {kept}' if states(out) else ''}"
        ) from error


def _tells_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return any(word in str(error) for word in words)
