"""One training run: from a configuration to checkpoints, metrics and pictures in a folder."""

import dataclasses
import importlib.metadata
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

import segship
from segship.runtime.card import ModelCard, Network, Provenance
from segship.runtime.errors import TrainingError
from segship.runtime.preprocess import ColorOrder, Preprocess
from segship.training.checkpoint import save_checkpoint
from segship.training.data import IGNORE_INDEX, Split, open_dataset
from segship.training.device import pick_device
from segship.training.gain_bias import GainBias
from segship.training.loader import batches, channel_statistics, training_loader
from segship.training.losses import cross_entropy
from segship.training.networks import build_network
from segship.training.report import EpochRecord, draw_curves, draw_samples, write_metrics
from segship.training.validate import validate

BEST_CHECKPOINT: Final = "best.safetensors"
LAST_CHECKPOINT: Final = "last/weights.safetensors"
WARM_UP_SHARE: Final = 0.05
DEEPEST_STRIDE: Final = 32

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run.

    Attributes:
        data: as ``--data`` takes it.
        out: folder that the run writes to.
        network: architecture and sizes.
        size: (height, width) of the network's input, in pixels; None: that of the first training picture.
        epochs: passes over the training part.
        batch_size: pictures a step.
        learning_rate: at its highest; it warms up over the first 5 % of the steps and falls to 0 as a cosine.
        weight_decay: of AdamW.
        precision: of the forward pass in training; validation is always float32.
        flip: mirror half of the pictures left to right.
        seed: of weights, order and augmentation.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        workers: processes that read pictures; None: none beside a CPU, up to 8 beside a GPU.
    """

    data: str
    out: Path
    network: Network
    size: tuple[int, int] | None = None
    epochs: int = 20
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    precision: Precision = "fp32"
    flip: bool = True
    seed: int = 0
    device: str = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            TrainingError: naming the value and what was expected.
        """
        if self.epochs < 1 or self.batch_size < 1:
            raise TrainingError(
                f"epochs is {self.epochs} and batch size {self.batch_size}; expected at least 1 of each"
            )
        if not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"the learning rate is {self.learning_rate}; expected a number above 0")


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        best: the epoch with the highest validation mIoU.
        checkpoint: its weights.
        records: of all epochs.
    """

    best: EpochRecord
    checkpoint: Path
    records: list[EpochRecord]


class Progress:
    """What a run tells of itself while it goes on; this base tells nothing."""

    def begin(self, what: str, steps: int) -> None:
        """Announce a stretch of work of so many steps."""

    def advance(self) -> None:
        """One step is done."""

    def epoch_done(self, record: EpochRecord, *, is_best: bool) -> None:
        """An epoch is done."""


def train(config: TrainConfig, progress: Progress) -> TrainResult:
    """Train a network.

    Writes to ``config.out``, after every epoch: ``best.safetensors`` and ``last/weights.safetensors`` (each with its
    card), ``metrics.csv``, ``curves.png`` and ``samples/epoch_NNN.png``. Those of an earlier run in that folder are
    removed when the first epoch is done.

    Raises:
        DatasetError: if the dataset is incomplete or wrong.
        DeviceError: if the device is not there.
        TrainingError: if the loss is no longer a number.
    """
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    split = open_dataset(config.data)
    progress.begin("reading the validation pictures", len(split.val))
    for index in range(len(split.val)):  # or a bad mask would end the run after its first epoch
        split.val[index]
        progress.advance()
    card = make_card(config, split)
    _check_batch_norm(card.preprocess.size, min(config.batch_size, len(split.train)))
    network = build_network(config.network, num_classes=card.num_classes, in_channels=card.preprocess.channels)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from the stubs
    run = _Run(config, split, card, network, device, progress)
    records: list[EpochRecord] = []
    best: EpochRecord | None = None
    for epoch in range(1, config.epochs + 1):
        record = run.epoch(epoch)
        records.append(record)
        is_best = best is None or not record.scores.miou <= best.scores.miou
        best = record if is_best or best is None else best
        if epoch == 1:  # not before there is something to put in their place
            for earlier in earlier_run(config.out):
                earlier.unlink()
        _write_epoch(run, records, is_best=is_best)
        progress.epoch_done(record, is_best=is_best)
    if best is None:
        raise TrainingError("no epoch was trained")
    return TrainResult(best, config.out / BEST_CHECKPOINT, records)


def earlier_run(out: Path) -> list[Path]:
    """List the files that a run left in ``out``."""
    names = (BEST_CHECKPOINT, LAST_CHECKPOINT, "metrics.csv", "curves.png", "samples/epoch_*.png")
    return [path for name in names for path in sorted(out.glob(name))]


def make_card(config: TrainConfig, split: Split) -> ModelCard:
    """Make the card of a run; mean and standard deviation are those of the training pictures."""
    order: ColorOrder = "RGB" if split.train.channels == 3 else "grey"
    height, width = split.train[0].image.shape[:2]
    neutral = Preprocess(
        config.size or (height, width),
        split.train.channels,
        split.train.depth,
        color_order=order,
        mean=(0.0,) * split.train.channels,
        std=(1.0,) * split.train.channels,
    )
    mean, std = channel_statistics(split.train, neutral)
    versions = {"segship": segship.__version__} | {
        package: importlib.metadata.version(package)
        for package in ("torch", "numpy", "opencv-python-headless", "pillow")
    }
    return ModelCard(
        class_names=split.train.classes.names,
        palette=split.train.classes.palette,
        preprocess=dataclasses.replace(neutral, mean=mean, std=std),
        ignore_index=IGNORE_INDEX,
        network=config.network,
        provenance=Provenance(dataset=config.data.partition(":")[0], versions=versions),
    )


def _check_batch_norm(size: tuple[int, int], batch_size: int) -> None:
    if batch_size * math.prod(math.ceil(side / DEEPEST_STRIDE) for side in size) < 2:
        raise TrainingError(
            f"one picture of {size[0]}×{size[1]} pixels leaves the deepest batch normalisation a single value; "
            "take a larger --size or --batch-size"
        )


class _Run:
    """The state of a run that lasts from epoch to epoch."""

    def __init__(
        self,
        config: TrainConfig,
        split: Split,
        card: ModelCard,
        network: nn.Module,
        device: torch.device,
        progress: Progress,
    ) -> None:
        workers = config.workers
        if workers is None:
            workers = 0 if device.type == "cpu" else min(8, torch.get_num_threads())
        self.config, self.split, self.card = config, split, card
        self.network, self.device, self.progress = network, device, progress
        self.normalise = GainBias(card.preprocess).to(device)
        self.loader = training_loader(
            split.train, card.preprocess, batch_size=config.batch_size, workers=workers, seed=config.seed
        )
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, learning_rate_factor(config.epochs * len(self.loader))
        )
        self.randomness = torch.Generator().manual_seed(config.seed)

    def epoch(self, epoch: int) -> EpochRecord:
        """Train for one epoch, then validate."""
        start = time.perf_counter()
        self.network.train()
        self.progress.begin(f"epoch {epoch}/{self.config.epochs} training", len(self.loader))
        total = 0.0
        for pixels, labels in batches(self.loader):
            loss = self.step(pixels.to(self.device), labels.to(self.device))
            if not math.isfinite(loss):
                kept = f"; the checkpoints of the epochs before are in {self.config.out}" if epoch > 1 else ""
                raise TrainingError(
                    f"the loss became {loss} in epoch {epoch}; lower --lr (it is {self.config.learning_rate:g}){kept}"
                )
            total += loss
            self.progress.advance()
        self.progress.begin(f"epoch {epoch}/{self.config.epochs} validation", len(self.split.val))
        scores = validate(self.network, self.card, self.split.val, self.device, self.progress.advance)
        learning_rate = float(self.schedule.get_last_lr()[0])
        return EpochRecord(epoch, learning_rate, total / len(self.loader), scores, time.perf_counter() - start)

    def step(self, pixels: Tensor, labels: Tensor) -> float:
        """Take one step of the optimiser and return its loss."""
        if self.config.flip:
            mirrored = torch.rand(len(pixels), generator=self.randomness) < 0.5
            mirrored = mirrored.to(self.device)
            pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
            labels = torch.where(mirrored.view(-1, 1, 1), labels.flip(2), labels)
        batch = self.normalise(pixels).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            outputs = self.network(batch)
        loss = cross_entropy(outputs, labels.long(), self.card.ignore_index)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())


def learning_rate_factor(total_steps: int) -> Callable[[int], float]:
    """Return the share of the highest learning rate at each step: a linear warm-up, then half a cosine down to 0."""
    warm_up = max(1, round(WARM_UP_SHARE * total_steps))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, total_steps - warm_up))))

    return factor


def _write_epoch(run: _Run, records: list[EpochRecord], *, is_best: bool) -> None:
    record, out = records[-1], run.config.out
    provenance = dataclasses.replace(
        run.card.provenance, epoch=record.epoch, metrics={k: v for k, v in record.scores.summary().items() if v == v}
    )
    card = dataclasses.replace(run.card, provenance=provenance)
    save_checkpoint(out / LAST_CHECKPOINT, run.network, card)
    if is_best:
        save_checkpoint(out / BEST_CHECKPOINT, run.network, card)
    write_metrics(out / "metrics.csv", records, card.class_names)
    draw_curves(out / "curves.png", records, card.class_names)
    draw_samples(out / f"samples/epoch_{record.epoch:03}.png", run.network, card, run.split.val, run.device)
