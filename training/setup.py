"""What a run is made of before its first step: data, card, network."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from segship.runtime.card import ModelCard, Provenance
from segship.runtime.errors import DatasetError, TrainingError
from segship.runtime.preprocess import ColorOrder, Preprocess
from segship.training.class_weights import median_frequency_weights, resolve_class_weights
from segship.training.config import TrainConfig
from segship.training.crops import Cropper
from segship.training.data import IGNORE_INDEX, Dataset, Split, open_dataset
from segship.training.data.parallel import in_parallel
from segship.training.initialise import initialise
from segship.training.loader import channel_statistics, content_of
from segship.training.networks import build_network
from segship.training.optimisation import OptimizerConfig
from segship.training.progress import Progress
from segship.training.scores_report import package_versions

MOMENTS: Final = {"adamw": 2, "adam": 2, "sgd": 1}


@dataclass(frozen=True)
class Setup:
    """What a run is made of.

    Attributes:
        split: the dataset's two parts.
        card: of the network that is trained.
        class_weights: of the loss; None: all alike.
        rarity: of the classes, which crops are laid by; None: no crops are made.
    """

    split: Split
    card: ModelCard
    class_weights: tuple[float, ...] | None
    rarity: tuple[float, ...] | None

    def cropper(self, config: TrainConfig) -> Cropper | None:
        """Return what cuts crops, if the run trains on crops."""
        if config.crop is None or self.rarity is None:
            return None
        return Cropper(config.crop, config.rare_crops, self.rarity)


def set_up(config: TrainConfig, progress: Progress) -> Setup:
    """Open and read the data, and make the card.

    Raises:
        DatasetError: if the dataset is incomplete or wrong.
        TrainingError: if the configuration does not fit it.
    """
    split = open_dataset(config.data, config.data_options)
    card = make_card(config, split)
    progress.begin("reading the validation pictures", len(split.val))
    # A bad one, or one that does not fit, would end the run much later.
    for _ in in_parallel(lambda index: content_of(split.val[index], card.preprocess), range(len(split.val))):
        progress.advance()
    check_network(config, card, min(config.batch_size, len(split.train)))
    if config.crop is not None or config.loss.class_weights == "auto":
        progress.begin("counting classes", len(split.train))
    weights = resolve_class_weights(config.loss.class_weights, split.train, progress.advance)
    rarity = None
    if config.crop is not None:
        rarity = weights if config.loss.class_weights == "auto" else None
        rarity = rarity or median_frequency_weights(split.train, progress.advance)
    return Setup(split, card, weights, rarity)


def reopen(config: TrainConfig, card: ModelCard) -> Split:
    """Open the data of a run that goes on.

    Raises:
        DatasetError: if the dataset is not what it was.
    """
    split = open_dataset(config.data, config.data_options)
    check_kind(split.train, config.data, card, "the run")
    return split


def check_kind(dataset: Dataset, data: str, card: ModelCard, owner: str) -> None:
    """Refuse a dataset that is not of the kind that a card speaks of.

    Args:
        dataset: its training or its validation part.
        data: what it is called.
        card: of a trained network.
        owner: what the card is of.

    Raises:
        DatasetError: if classes, channels or depth differ.
    """
    if dataset.classes.names != card.class_names:
        raise DatasetError(
            f"{owner} knows the classes {', '.join(card.class_names)}, and {data} has "
            f"{', '.join(dataset.classes.names)}; expected the same"
        )
    form = card.preprocess
    if (dataset.channels, dataset.depth) != (form.channels, form.depth):
        raise DatasetError(
            f"{owner} takes pictures of {form.channels} channels and {form.depth}, and those of {data} have "
            f"{dataset.channels} and {dataset.depth}; expected the same"
        )


def make_card(config: TrainConfig, split: Split) -> ModelCard:
    """Make the card of a run; mean and standard deviation are those of the training pictures.

    Raises:
        TrainingError: if the loss is for two classes and the data has others.
    """
    train = split.train
    if config.binary and len(train.classes) != 2:
        raise TrainingError(
            f"the loss {config.loss.terms} is for two classes, and {config.data} has {len(train.classes)}; take ce"
        )
    order: ColorOrder = "RGB" if train.channels == 3 else "grey"
    height, width = train[0].image.shape[:2]
    neutral = Preprocess(
        config.crop or config.size or (height, width),
        train.channels,
        train.depth,
        resize=config.resize,
        fill=config.fill,
        interpolation=config.interpolation,
        color_order=order,
        mean=(0.0,) * train.channels,
        std=(1.0,) * train.channels,
    )
    mean, std = channel_statistics(train, None if config.crop else neutral)
    return ModelCard(
        class_names=train.classes.names,
        palette=train.classes.palette,
        preprocess=dataclasses.replace(neutral, mean=mean, std=std),
        task="binary" if config.binary else "multiclass",
        tile_overlap=config.tile_overlap if config.crop else None,
        ignore_index=IGNORE_INDEX,
        network=config.network,
        provenance=Provenance(dataset=config.data.partition(":")[0], versions=package_versions()),
    )


def make_network(config: TrainConfig, card: ModelCard, progress: Progress) -> nn.Module:
    """Build the network and give it the weights that it starts from.

    Raises:
        CheckpointError: if the file of ``config.init`` has no weights that fit.
    """
    torch.manual_seed(config.seed)
    network = build_network(config.network, num_classes=card.num_logits, in_channels=card.preprocess.channels)
    if config.init is not None:
        progress.note(str(initialise(network, config.init)))
    return network


def check_network(config: TrainConfig, card: ModelCard, batch_size: int) -> None:
    """Refuse what the network cannot be trained with; without values, so that it takes no time.

    Args:
        config: of the run.
        card: of the network.
        batch_size: pictures that batch normalisation sees together.

    Raises:
        TrainingError: if batch normalisation would see a single value, or the outputs have not the weights given.
    """
    form = card.preprocess
    with torch.device("meta"):
        network = build_network(config.network, num_classes=card.num_logits, in_channels=form.channels)
        try:
            outputs = network.train()(torch.empty(batch_size, form.channels, *form.size))
        except ValueError as error:
            raise TrainingError(
                f"a batch of {batch_size} of {form.size[0]}×{form.size[1]} pixels leaves a batch normalisation of "
                f"{config.network.arch} a single value; take a larger --batch-size, --size or --crop"
            ) from error
    weights = config.loss.output_weights
    if weights and len(weights) != len(outputs):
        raise TrainingError(
            f"loss.output_weights has {len(weights)} values, and {config.network.arch} has {len(outputs)} outputs in "
            "training; expected one for each"
        )


def check_disk(out: Path, network: nn.Module, optimizer: OptimizerConfig, keep: int) -> None:
    """Refuse a run whose checkpoints would not fit on the disk.

    Args:
        out: folder of the run, which need not be there yet.
        network: whose weights are kept.
        optimizer: says how much is kept beside them.
        keep: number of states.

    Raises:
        TrainingError: naming what is needed and what is free.
    """
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    state = weights * (1 + MOMENTS[optimizer.name] + (optimizer.ema > 0))
    needed = (keep + 1) * state + 2 * weights  # the next one is written before the oldest goes
    place = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise TrainingError(
            f"the run needs {needed / 1e6:.0f} MB for its checkpoints, and {place} has {free / 1e6:.0f} MB free; "
            "choose another --out, or keep fewer states (--keep)"
        )
