import contextlib
import dataclasses
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import DEMO
from segship.runtime.preprocess import Depth, Preprocess, Resize
from segship.training.crops import Cropper
from segship.training.data import Sample
from segship.training.data.camvid import open_camvid
from segship.training.loader import (
    BATCHES_AHEAD,
    Batch,
    Key,
    Loader,
    augmentation_seeds,
    channel_statistics,
    epoch_order,
)

EVERYWHERE = Cropper((5, 6), 0.5, (1.0,) * len(DEMO))


class Pictures:
    """A dataset of the pictures it is given, whose labels are all void but for a corner. It counts what is read."""

    classes = DEMO

    def __init__(self, images: list[NDArray[np.integer]], depth: Depth = "uint8") -> None:
        self.images, self.depth, self.channels = images, depth, images[0].shape[2]
        self.reads: Counter[int] = Counter()
        self.damaged: dict[int, Exception] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        self.reads[index] += 1
        if index in self.damaged:
            raise self.damaged[index]
        labels = np.full(self.images[index].shape[:2], 255, np.uint8)
        labels[:4, :4] = 3
        return Sample(str(index), self.images[index], labels)


def _form(size: tuple[int, int], channels: int = 3, depth: Depth = "uint8") -> Preprocess:
    order = "RGB" if channels == 3 else "grey"
    return Preprocess(size, channels, depth, color_order=order, mean=(0.0,) * channels, std=(1.0,) * channels)


def _noise(count: int, size: tuple[int, int] = (8, 9)) -> Pictures:
    rng = np.random.default_rng(3)
    return Pictures([rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)])


def _keys(dataset: Pictures, *, batch_size: int = 2, epoch: int = 1) -> list[list[Key]]:
    return [[(7, epoch, index) for index in batch] for batch in epoch_order(len(dataset), batch_size, 7, epoch)]


def _epochs(
    dataset: Pictures, *, cropper: Cropper | None = None, workers: int = 2, cache_mb: int = 8, epochs: int = 2
) -> list[Batch]:
    with Loader(dataset, _form((6, 10)), cropper, workers=workers, cache_mb=cache_mb) as loader:
        keys = [_keys(dataset, epoch=epoch) for epoch in range(1, epochs + 1)]
        return list(itertools.chain.from_iterable(loader.batches(each) for each in keys))


def _reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("segship-read")]


@given(
    count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**63 - 1), epoch=st.integers(1, 99)
)
def test_an_epoch_goes_once_over_all_samples_but_for_those_of_a_smaller_last_batch(
    count: int, batch_size: int, seed: int, epoch: int
) -> None:
    order = epoch_order(count, batch_size, seed, epoch)
    indices = [index for batch in order for index in batch]
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(count))
    if count < batch_size:
        assert len(order) == 1
        assert len(indices) == count
    else:
        assert {len(batch) for batch in order} == {batch_size}
        assert len(indices) == count - count % batch_size
    assert order == epoch_order(count, batch_size, seed, epoch)


def test_other_seeds_and_other_epochs_have_another_order_and_leave_out_others() -> None:
    orders = [epoch_order(11, 3, seed, epoch) for seed in (0, 1) for epoch in (1, 2)]
    assert len({str(order) for order in orders}) == 4
    assert orders[0] != [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    left_out = [set(range(11)) - {i for batch in epoch_order(11, 3, 0, e) for i in batch} for e in range(1, 40)]
    assert set.union(*left_out) == set(range(11))


def test_pixels_are_those_of_the_runtimes_geometry(write_camvid: Callable[..., Path], tmp_path: Path) -> None:
    dataset = open_camvid(str(write_camvid(tmp_path / "camvid", size=(45, 61)))).train
    with Loader(dataset, _form((24, 32)), None, workers=1, cache_mb=0) as loader:
        (batch,) = loader.batches([[(0, 1, 1), (0, 1, 4)]])
    assert (batch.pixels.dtype, batch.pixels.shape) == (torch.uint8, (2, 3, 24, 32))
    assert (batch.labels.dtype, batch.labels.shape) == (torch.uint8, (2, 24, 32))
    assert batch.keys == [(0, 1, 1), (0, 1, 4)]
    for place, index in enumerate((1, 4)):
        sample = dataset[index]
        expected = cv2.resize(sample.image, (32, 24), interpolation=cv2.INTER_LINEAR_EXACT)
        np.testing.assert_array_equal(batch.pixels[place].numpy().transpose(1, 2, 0), expected)
        nearest = cv2.resize(sample.labels, (32, 24), interpolation=cv2.INTER_NEAREST_EXACT)
        np.testing.assert_array_equal(batch.labels[place].numpy(), nearest)


def test_what_letterboxing_adds_is_filled_and_of_no_class() -> None:
    form = dataclasses.replace(_form((16, 9)), resize="letterbox", fill=114)
    dataset = _noise(2)
    with Loader(dataset, form, None, workers=1, cache_mb=0) as loader:
        (batch,) = loader.batches(_keys(dataset))
    assert (batch.pixels[:, :, :4] == 114).all()
    assert (batch.pixels[:, :, 12:] == 114).all()
    assert (batch.labels[:, :4] == 255).all()
    assert (batch.labels[:, 12:] == 255).all()
    assert (batch.labels[:, 4:8, :4] == 3).all()


def test_a_picture_that_cannot_be_padded_is_named() -> None:
    dataset = _noise(2)
    form = dataclasses.replace(_form((8, 8)), resize="pad")
    with Loader(dataset, form, None, workers=1, cache_mb=0) as loader, pytest.raises(DatasetError) as caught:
        list(loader.batches([[(0, 1, 1)]]))
    assert str(caught.value).startswith("1: a picture of 8×9 pixels (height × width) does not fit into the 8×8")
    with pytest.raises(DatasetError, match="does not fit"):
        channel_statistics(dataset, form)


def test_a_16_bit_picture_keeps_all_its_values() -> None:
    image = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    with Loader(Pictures([image], "uint16"), _form((256, 256), 1, "uint16"), None, workers=1, cache_mb=0) as loader:
        (batch,) = loader.batches([[(0, 1, 0)]])
    assert batch.pixels.dtype == torch.int32
    np.testing.assert_array_equal(batch.pixels[0, 0].numpy(), image[..., 0])


def test_crops_are_those_that_seed_epoch_and_sample_draw_at_native_resolution() -> None:
    dataset = _noise(5, (20, 30))
    batches = _epochs(dataset, cropper=EVERYWHERE)
    assert len(batches) == 4
    for batch in batches:
        for pixels, labels, key in zip(batch.pixels, batch.labels, batch.keys, strict=True):
            image, mask = EVERYWHERE(dataset[key[2]], np.random.default_rng(key))
            np.testing.assert_array_equal(pixels.numpy().transpose(1, 2, 0), image)
            np.testing.assert_array_equal(labels.numpy(), mask)


@pytest.mark.parametrize("cropper", [None, EVERYWHERE], ids=["whole pictures", "crops"])
def test_batches_are_the_same_for_any_number_of_threads_and_any_cache(cropper: Cropper | None) -> None:
    expected = _epochs(_noise(7, (20, 30)), cropper=cropper, workers=1, cache_mb=0)
    assert [batch.keys for batch in expected] == _keys(_noise(7)) + _keys(_noise(7), epoch=2)
    for workers, cache_mb in ((1, 8), (3, 0), (8, 8)):
        found = _epochs(_noise(7, (20, 30)), cropper=cropper, workers=workers, cache_mb=cache_mb)
        for batch, wanted in zip(found, expected, strict=True):
            assert batch.keys == wanted.keys
            assert torch.equal(batch.pixels, wanted.pixels)
            assert torch.equal(batch.labels, wanted.labels)


@pytest.mark.parametrize("cropper", [None, EVERYWHERE], ids=["whole pictures", "crops"])
def test_the_cache_keeps_what_fits_into_its_memory_and_no_more(cropper: Cropper | None) -> None:
    dataset = _noise(8, (256, 256))  # with their labels, a quarter of a MiB each
    form = _form((256, 256))
    reads = []
    with Loader(dataset, form, cropper, workers=2, cache_mb=1) as loader:
        for epoch in range(1, 4):
            assert len(list(loader.batches(_keys(dataset, epoch=epoch)))) == 4
            reads.append(dataset.reads.total())
    assert reads == [8, 12, 16]
    assert sorted(dataset.reads.values()) == [1, 1, 1, 1, 3, 3, 3, 3]


def test_whole_pictures_are_kept_at_the_networks_size() -> None:
    dataset = _noise(20, (512, 512))
    with Loader(dataset, _form((64, 64)), None, workers=2, cache_mb=1) as loader:
        for epoch in (1, 2):
            list(loader.batches(_keys(dataset, epoch=epoch)))
    assert dataset.reads.total() == 20


def test_without_a_cache_every_sample_is_read_each_time() -> None:
    dataset = _noise(6)
    _epochs(dataset, cache_mb=0, epochs=3)
    assert set(dataset.reads.values()) == {3}


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_done_to_a_batch_does_not_reach_the_cache(channels: int) -> None:
    dataset = Pictures([np.full((8, 8, channels), 5, np.uint8)])
    with Loader(dataset, _form((8, 8), channels), None, workers=1, cache_mb=1) as loader:
        for _ in range(2):
            (batch,) = loader.batches([[(0, 1, 0)]])
            assert int(batch.pixels.min()) == 5
            assert int(batch.labels.max()) == 255
            batch.pixels.zero_()
            batch.labels.zero_()
    assert dataset.reads.total() == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_that_cannot_be_written_to_are_read_without_a_warning(channels: int) -> None:
    image = np.full((8, 8, channels), 5, np.uint8)
    image.setflags(write=False)
    with Loader(Pictures([image]), _form((8, 8), channels), None, workers=1, cache_mb=0) as loader:
        (batch,) = loader.batches([[(0, 1, 0)]])
    assert int(batch.pixels.min()) == 5


def test_an_error_in_a_sample_arrives_as_itself_in_its_turn() -> None:
    dataset = _noise(12)
    keys = _keys(dataset)
    bad = keys[3][1][2]
    dataset.damaged = {bad: DatasetError("its mask is damaged")}
    with Loader(dataset, _form((6, 10)), None, workers=3, cache_mb=1) as loader:
        batches = loader.batches(keys)
        assert [next(batches).keys for _ in range(3)] == keys[:3]
        with pytest.raises(DatasetError) as caught:
            next(batches)
        assert caught.value is dataset.damaged[bad]
    assert _reading_threads() == []


def test_a_bad_mask_is_the_datasets_own_error(write_camvid: Callable[..., Path], tmp_path: Path) -> None:
    tree = write_camvid(tmp_path / "camvid")
    mask = min((tree / "trainannot").iterdir())
    PillowImage.new("L", (40, 32), 99).save(mask)
    dataset = open_camvid(str(tree)).train
    with (
        Loader(dataset, _form((8, 8)), None, workers=2, cache_mb=1) as loader,
        pytest.raises(DatasetError, match=r"label id 99 is outside the classes 0…11 \(1280 pixels"),
    ):
        list(loader.batches([[(0, 1, 1), (0, 1, 0)]]))


def test_no_more_than_two_batches_are_read_ahead_and_none_after_the_end() -> None:
    dataset = _noise(40)
    with Loader(dataset, _form((6, 10)), None, workers=2, cache_mb=0) as loader:
        batches = loader.batches(_keys(dataset))
        next(batches)
        batches.close()
    assert 2 <= dataset.reads.total() <= 2 * (1 + BATCHES_AHEAD)
    assert _reading_threads() == []


def test_a_loader_that_ends_by_an_error_elsewhere_leaves_no_threads() -> None:
    dataset = _noise(40)
    with (
        contextlib.suppress(KeyboardInterrupt),
        Loader(dataset, _form((6, 10)), None, workers=4, cache_mb=0) as loader,
    ):
        for _ in loader.batches(_keys(dataset)):
            raise KeyboardInterrupt
    assert 2 <= dataset.reads.total() <= 2 * (1 + BATCHES_AHEAD)
    assert _reading_threads() == []


def test_threads_read_side_by_side() -> None:
    both = threading.Barrier(2, timeout=20)  # broken, and so an error, if one waits in vain for the other

    class Meeting(Pictures):
        def __getitem__(self, index: int) -> Sample:
            both.wait()
            return super().__getitem__(index)

    assert len(_epochs(Meeting([np.zeros((8, 8, 3), np.uint8)] * 4), workers=2, epochs=1)) == 2


def test_every_sample_of_every_epoch_and_seed_has_numbers_of_its_own_for_crops_and_for_augmentation() -> None:
    keys: list[Key] = list(itertools.product((0, 1, 2**40), (1, 2, 3), (0, 1, 2, 3)))
    every = [np.random.default_rng(seed).random() for seed in [*keys, *augmentation_seeds(keys)]]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(("channels", "depth", "full"), [(3, "uint8", 255), (1, "uint8", 255), (1, "uint16", 65535)])
@pytest.mark.parametrize("resized", [True, False])
def test_statistics_are_those_of_all_pixels_as_shares_of_full_scale(
    channels: int, depth: Depth, full: int, resized: bool
) -> None:
    rng = np.random.default_rng(5)
    images = [rng.integers(0, full // (k + 1), (12 + 2 * k, 10, channels), depth) for k in range(5)]
    form = _form((12, 10), channels, depth)
    mean, std = channel_statistics(Pictures(images, depth), form if resized else None)
    whole = [form.geometry(image) for image in images] if resized else images
    every = np.concatenate([image.reshape(-1, channels) for image in whole]).astype(np.float64) / full
    np.testing.assert_allclose(mean, every.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(std, every.std(axis=0), atol=1e-6)


def test_statistics_are_taken_at_the_networks_size() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[::2] = 255  # stripes that halving the size melts to grey
    form = _form((16, 16))
    assert channel_statistics(Pictures([image]), form)[1] == pytest.approx((0.5,) * 3, abs=1e-3)
    halved = channel_statistics(Pictures([image]), dataclasses.replace(form, size=(8, 16)))[1]
    assert halved == (0.001,) * 3


def test_statistics_look_at_400_pictures_that_are_spread_evenly() -> None:
    dataset = Pictures([np.full((2, 2, 3), index // 4, np.uint8) for index in range(1000)])
    mean, _ = channel_statistics(dataset, None)
    assert len(dataset.reads) == 400
    assert mean == pytest.approx((np.mean([index // 4 for index in sorted(dataset.reads)]) / 255,) * 3, abs=1e-6)
    assert mean == pytest.approx((124.5 / 255,) * 3, abs=0.01)


def test_a_constant_channel_is_not_blown_up() -> None:
    image = np.full((4, 4, 3), 77, np.uint8)
    mean, std = channel_statistics(Pictures([image, image]), _form((4, 4)))
    assert mean == pytest.approx((77 / 255,) * 3, abs=1e-6)
    assert std == (0.001,) * 3


@pytest.mark.parametrize("resize", ["letterbox", "pad"])
def test_statistics_leave_out_what_is_added_around_a_picture(resize: Resize) -> None:
    dataset = _noise(3, (8, 8))
    form = dataclasses.replace(_form((8, 16)), resize=resize, fill=200)
    assert channel_statistics(dataset, form) == channel_statistics(dataset, None)
