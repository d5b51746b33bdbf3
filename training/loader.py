"""From datasets to batches of pixels and labels on the training device."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from segship.runtime.errors import SegshipError
from segship.runtime.preprocess import FULL_SCALE, Preprocess
from segship.training.data import Dataset, spread_evenly

Batch = tuple[Tensor, Tensor]
"""Pixels (N, C, H, W), uint8 or int32, in red, green, blue order, and labels (N, H, W), uint8."""

_STATISTICS_SAMPLES = 400


class PixelsAndLabels(TorchDataset[Batch | SegshipError]):
    """The samples of a dataset at the network's size, not yet normalised.

    Args:
        dataset: to read from.
        preprocess: whose geometry is applied.
    """

    def __init__(self, dataset: Dataset, preprocess: Preprocess) -> None:
        self.dataset = dataset
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch | SegshipError:
        try:
            sample = self.dataset[index]
        except SegshipError as error:
            return error  # raised in another process, it would arrive as a traceback in words
        image = self.preprocess.geometry(sample.image).transpose(2, 0, 1)
        if image.dtype == np.uint16:
            image = image.astype(np.int32)  # torch has few operations on uint16
        labels = self.preprocess.geometry_of_labels(sample.labels)
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.ascontiguousarray(labels))


def training_loader(
    dataset: Dataset, preprocess: Preprocess, *, batch_size: int, workers: int, seed: int
) -> "DataLoader[Batch | SegshipError]":
    """Return shuffled batches, the same order for the same seed; a smaller last one is left out if there are others."""
    return DataLoader(
        PixelsAndLabels(dataset, preprocess),
        batch_size=batch_size,
        shuffle=True,
        drop_last=len(dataset) >= batch_size,
        num_workers=workers,
        collate_fn=_collate,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )


def batches(loader: "DataLoader[Batch | SegshipError]") -> Iterator[Batch]:
    """Yield the batches of one epoch.

    Raises:
        SegshipError: what a dataset raised, here or in another process.
    """
    for batch in loader:
        if isinstance(batch, SegshipError):
            raise batch
        yield batch


def _collate(samples: list[Batch | SegshipError]) -> Batch | SegshipError:
    for sample in samples:
        if isinstance(sample, SegshipError):
            return sample
    batch: Batch = default_collate(samples)
    return batch


def channel_statistics(dataset: Dataset, preprocess: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over up to 400 pictures, as shares of full scale."""
    count, total, squares = 0, np.zeros(dataset.channels), np.zeros(dataset.channels)
    for image in _spread(dataset, preprocess):
        values = image.reshape(-1, dataset.channels) / FULL_SCALE[dataset.depth]
        count += len(values)
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return _rounded(mean), _rounded(np.maximum(std, 1e-3))  # a constant channel must not be blown up to noise


def _spread(dataset: Dataset, preprocess: Preprocess) -> Iterator[np.ndarray]:
    return (preprocess.geometry(dataset[i].image) for i in spread_evenly(len(dataset), _STATISTICS_SAMPLES))


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
