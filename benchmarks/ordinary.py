"""The training loop that people write: a ``DataLoader``, Pillow and float32.

``segship.benchmarks.training`` measures against it, so it has to be a good one of its kind: part and scale of a picture
come about in one resampling, colours change at the small size, pixels are normalised in place, and the processes that
read ahead stay from epoch to epoch.
"""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image as PillowImage
from PIL import ImageEnhance, ImageOps
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from segship.runtime.errors import DatasetError
from segship.runtime.preprocess import Preprocess
from segship.training.augment import PRESETS
from segship.training.config import TrainConfig
from segship.training.data import IGNORE_INDEX
from segship.training.data.pairs import Pair, Pairs
from segship.training.progress import Progress
from segship.training.setup import Setup, make_network

LIGHT: Final = PRESETS["light"]

Tensors = tuple[Tensor, Tensor]
"""Normalised pixels (N, 3, H, W), float32, and labels (N, H, W), uint8; of one sample without N."""
Picture = PillowImage.Image


def ordinary_files(config: TrainConfig, setup: Setup, folder: Path) -> list[Pair]:
    """List the pictures to train on with masks that are written to ``folder``, as grey PNGs of class ids.

    So the ordinary loop has nothing to do for a mask but to decode it, whatever form the dataset has.

    Raises:
        DatasetError: if the dataset is not made of files of RGB pictures, or has less than a batch.
    """
    train = setup.split.train
    if not isinstance(train, Pairs) or (train.channels, train.depth) != (3, "uint8"):
        raise DatasetError(
            f"{config.data} is not made of 8-bit RGB files; expected such as camvid:DIR, voc:DIR, bag:DIR"
        )
    if len(train) < config.batch_size:
        raise DatasetError(f"{config.data} has {len(train)} pictures to train on; take a --batch-size of at most that")
    pairs = [(picture, folder / f"{index}.png") for index, (picture, _) in enumerate(train.pairs)]
    for index, (_, mask) in enumerate(pairs):
        PillowImage.fromarray(train[index].labels).save(mask)
    return pairs


class OrdinaryPictures(torch.utils.data.Dataset[Tensors]):
    """The dataset of the ordinary loop.

    Args:
        pairs: (picture, mask) files.
        form: size, mean and standard deviation.
    """

    def __init__(self, pairs: Sequence[Pair], form: Preprocess) -> None:
        self.pairs = pairs
        self.size = form.size[::-1]  # Pillow has (width, height)
        self.fill = tuple(round(255 * mean) for mean in form.mean)
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (form.mean, form.std))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Tensors:
        scale, x, y, flip, *factors = torch.rand(7).tolist()  # the DataLoader seeds it in each of its processes
        with PillowImage.open(self.pairs[index][0]) as file, PillowImage.open(self.pairs[index][1]) as mask_file:
            picture, mask = self._scale_and_crop(file.convert("RGB"), mask_file, scale, x, y)
        if flip < LIGHT.flip:
            picture, mask = ImageOps.mirror(picture), ImageOps.mirror(mask)
        knobs = (LIGHT.brightness, LIGHT.contrast, LIGHT.saturation)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhancer, knob, factor in zip(enhancers, knobs, factors, strict=True):
            picture = enhancer(picture).enhance(1 + knob * (2 * factor - 1))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div_(255)
        return pixels.sub_(self.mean).div_(self.std), torch.from_numpy(np.array(mask))

    def _scale_and_crop(
        self, picture: Picture, mask: Picture, scale: float, x: float, y: float
    ) -> tuple[Picture, Picture]:
        """Enlarge by a factor drawn as ``light`` draws it, at a place drawn from 0…1; in one resampling each."""
        smallest, largest = np.log(LIGHT.scale)
        factor = float(np.exp(smallest + scale * (largest - smallest)))
        width, height = self.size
        if factor >= 1:  # a part of the picture fills the frame
            part = picture.width / factor, picture.height / factor
            left, top = x * (picture.width - part[0]), y * (picture.height - part[1])
            box = (left, top, left + part[0], top + part[1])
            return picture.resize(self.size, Resampling.BILINEAR, box), mask.resize(self.size, Resampling.NEAREST, box)
        small = round(width * factor), round(height * factor)  # the picture fills a part of the frame
        corner = round(x * (width - small[0])), round(y * (height - small[1]))
        frame, labels = PillowImage.new("RGB", self.size, self.fill), PillowImage.new("L", self.size, IGNORE_INDEX)
        frame.paste(picture.resize(small, Resampling.BILINEAR), corner)
        labels.paste(mask.resize(small, Resampling.NEAREST), corner)
        return frame, labels


def ordinary_batches(pictures: OrdinaryPictures, batch_size: int, num_workers: int) -> Generator[Tensors, None, None]:
    """Yield batches, epoch after epoch."""
    loader = DataLoader(
        pictures, batch_size, shuffle=True, drop_last=True, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    while True:
        yield from loader


def ordinary_step(config: TrainConfig, setup: Setup) -> Callable[[Tensors], float]:
    """Return the step of the ordinary loop, with a network and an optimiser of its own."""
    network = make_network(config, setup.card, Progress())
    optimizer = torch.optim.AdamW(
        network.parameters(), config.optimizer.learning_rate, weight_decay=config.optimizer.weight_decay
    )

    def step(batch: Tensors) -> float:
        pixels, labels = batch[0], batch[1].long()
        loss = torch.zeros(())
        for logits in network(pixels):
            if logits.shape[2:] != labels.shape[1:]:
                logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")
            loss = loss + F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        return loss.item()

    return step
