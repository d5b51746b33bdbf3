"""From datasets to batches of pixels and labels, read ahead by threads.

Threads suffice, since decoding releases the interpreter's lock, and an error in one arrives as it is. What is drawn at
random for a sample depends on the run's seed, the epoch and the sample alone: a run that is resumed, or spread over
several processes, draws the same.
"""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from types import TracebackType
from typing import Any, Final, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segship.runtime.errors import DatasetError, ImageError
from segship.runtime.preprocess import FULL_SCALE, Preprocess
from segship.training.crops import Cropper
from segship.training.data import IGNORE_INDEX, Dataset, Sample, spread_evenly
from segship.training.data.parallel import in_parallel

BATCHES_AHEAD: Final = 2
STATISTICS_SAMPLES: Final = 400

Key = tuple[int, int, int]
"""Seed of the run, epoch, and number of the sample: what its randomness is drawn from."""


@dataclass(frozen=True)
class Batch:
    """Samples at the network's size, not yet normalised.

    Attributes:
        pixels: (N, C, H, W), uint8 or int32 (16-bit pictures), red, green, blue.
        labels: (N, H, W), uint8.
        keys: of the samples.
    """

    pixels: Tensor
    labels: Tensor
    keys: list[Key]


def augmentation_seeds(keys: Sequence[Key]) -> list[tuple[int, ...]]:
    """Return what the augmentation of samples is drawn from; not what their crops are drawn from."""
    return [(*key, 1) for key in keys]


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches of an epoch, shuffled; a smaller last one is left out if there are others.

    Args:
        count: number of samples.
        batch_size: samples in a batch.
        seed: of the run.
        epoch: counted from 1.
    """
    order = [int(index) for index in np.random.default_rng([seed, epoch]).permutation(count)]
    batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < batch_size else batches


class Loader:
    """Reads samples ahead, and keeps as many decoded as fit into a given memory.

    Args:
        dataset: to read from.
        preprocess: whose geometry is applied.
        cropper: cuts parts out of pictures at their own resolution, in place of that; None: whole pictures.
        workers: threads that read.
        cache_mb: memory for decoded samples, in MiB.
    """

    def __init__(
        self, dataset: Dataset, preprocess: Preprocess, cropper: Cropper | None, *, workers: int, cache_mb: int
    ) -> None:
        self.dataset, self.preprocess, self.cropper = dataset, preprocess, cropper
        self._kept: dict[int, Sample] = {}
        self._free_bytes = cache_mb << 20
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(max(1, workers), "segship-read")

    def batches(self, keys: Sequence[list[Key]]) -> Generator[Batch, None, None]:
        """Yield the batches of these keys, in order.

        Raises:
            DatasetError: if a sample cannot be read, or does not fit into the size that it is to be padded to.
        """
        waiting: deque[list[Future[tuple[Tensor, Tensor]]]] = deque()
        try:
            for number in range(len(keys) + BATCHES_AHEAD):
                if number < len(keys):
                    waiting.append([self._pool.submit(self._read, key) for key in keys[number]])
                if number >= BATCHES_AHEAD:
                    samples = [future.result() for future in waiting.popleft()]
                    pixels, labels = (torch.stack(part) for part in zip(*samples, strict=True))
                    yield Batch(pixels, labels, keys[number - BATCHES_AHEAD])
        finally:
            for future in (future for batch in waiting for future in batch):
                future.cancel()

    def _read(self, key: Key) -> tuple[Tensor, Tensor]:
        sample = self._sample(key[2])
        if self.cropper:
            image, labels = self.cropper(sample, np.random.default_rng(key))
        else:
            image, labels = sample.image, sample.labels
        planes = image.transpose(2, 0, 1)
        planes = planes.astype(np.int32) if planes.dtype == np.uint16 else planes  # torch has few operations on uint16
        return _tensor(planes), _tensor(labels)

    def _sample(self, index: int) -> Sample:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        sample = self.dataset[index]
        if not self.cropper:
            content_of(sample, self.preprocess)
            image = self.preprocess.geometry(sample.image)
            labels = self.preprocess.geometry_of_labels(sample.labels, IGNORE_INDEX)
            sample = Sample(sample.name, image, labels)
        with self._lock:
            size = sample.image.nbytes + sample.labels.nbytes
            if size <= self._free_bytes and index not in self._kept:
                self._free_bytes -= size
                self._kept[index] = sample
        return sample

    def close(self) -> None:
        """End the threads; one that is just reading a sample is waited for."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def content_of(sample: Sample, preprocess: Preprocess) -> tuple[slice, slice]:
    """Return where in the network's size a sample lies: its rows and its columns.

    Raises:
        DatasetError: if it is larger than the size that it is to be padded to.
    """
    try:
        return preprocess.content(sample.image.shape)
    except ImageError as error:
        raise DatasetError(f"{sample.name}: {error}") from error


def channel_statistics(dataset: Dataset, preprocess: Preprocess | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over up to 400 pictures, as shares of full scale.

    Args:
        dataset: to read from.
        preprocess: whose geometry is applied; None: pictures at their own size.

    Raises:
        DatasetError: if a picture cannot be read, or does not fit into the size that it is to be padded to.
    """

    def moments(index: int) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        sample = dataset[index]
        image = sample.image
        if preprocess:  # without what is added around it
            content = content_of(sample, preprocess)
            image = preprocess.geometry(image)[content]
        mean, std = (part.ravel() / FULL_SCALE[dataset.depth] for part in cv2.meanStdDev(image))
        return image.shape[0] * image.shape[1], mean, std**2 + mean**2

    every = in_parallel(moments, spread_evenly(len(dataset), STATISTICS_SAMPLES))
    pixels, means, squares = (np.array(column) for column in zip(*every, strict=True))
    mean, square = np.average(means, axis=0, weights=pixels), np.average(squares, axis=0, weights=pixels)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return _rounded(mean), _rounded(np.maximum(std, 1e-3))  # a constant channel must not be blown up to noise


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.require(values, None, ("C", "W")))  # PyTorch warns of arrays that cannot be written to


def _rounded(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
