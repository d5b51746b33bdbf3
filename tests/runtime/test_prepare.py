import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.labels import upscale
from segship.runtime.prepare import TiledPicture, Tiling, logits_of_picture, prepare, whole_picture
from segship.runtime.preprocess import Preprocess

TILE = (12, 16)
CARD = ModelCard(("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (99, 0, 0)), Preprocess(TILE), tile_overlap=0.5)

Logits = NDArray[np.float32]


def picture(size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)


def test_without_an_overlap_the_whole_picture_is_brought_to_the_networks_size() -> None:
    card = dataclasses.replace(CARD, tile_overlap=None)
    image = picture((30, 50))
    batches: list[Logits] = []

    def run(batch: Logits) -> Logits:
        batches.append(batch)
        return batch

    logits = logits_of_picture(card, image, run)
    assert len(batches) == 1
    np.testing.assert_array_equal(batches[0], card.preprocess(image))
    np.testing.assert_array_equal(logits, batches[0][0])


def test_with_an_overlap_its_parts_are_at_its_own_resolution_each_normalised_on_its_own() -> None:
    form = Preprocess(TILE, scale="image_max", color_order="BGR", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    card = dataclasses.replace(CARD, preprocess=form)
    image = picture((24, 32)) // 2
    image[:8, :8] = 255  # brightens one tile of nine
    batches: list[Logits] = []

    def run(batch: Logits) -> Logits:
        batches.append(batch)
        return batch

    logits = logits_of_picture(card, image, run)
    tiles = [image[top : top + 12, left : left + 16] for top in (0, 6, 12) for left in (0, 8, 16)]
    np.testing.assert_array_equal(batches, [form.normalise(tile) for tile in tiles])
    assert logits.shape == (3, 24, 32)


def test_a_prepared_picture_meets_the_network_only_when_it_is_called() -> None:
    calls: list[tuple[int, ...]] = []

    def run(batch: Logits) -> Logits:
        calls.append(batch.shape)
        return batch

    for overlap, expected in ((None, 1), (0.5, 9)):
        calls.clear()
        prepared = prepare(dataclasses.replace(CARD, tile_overlap=overlap), picture((24, 32)))
        assert calls == []
        prepared(run)
        assert calls == [(1, 3, *TILE)] * expected


@pytest.mark.parametrize("resize", ["letterbox", "pad"])
def test_of_a_letterboxed_or_padded_picture_only_its_own_logits_are_left(resize: str) -> None:
    form = dataclasses.replace(CARD.preprocess, resize=resize, fill=7)
    card = dataclasses.replace(CARD, preprocess=form, tile_overlap=None)
    image = picture((10, 12))
    through = whole_picture(card, image)
    rows, columns = form.content(image.shape)
    assert through.batch.shape == (1, 3, *TILE)
    np.testing.assert_array_equal(through(lambda batch: batch), through.batch[0][:, rows, columns])
    assert (rows.stop - rows.start, columns.stop - columns.start) != TILE


def test_tiles_of_another_size_than_the_networks_are_brought_to_it_and_their_logits_back() -> None:
    card = dataclasses.replace(CARD, tile_overlap=None)
    image = picture((24, 32))
    sizes: list[Any] = []

    def run(batch: Logits) -> Logits:
        sizes.append(batch.shape)
        return batch

    logits = TiledPicture(image, card, Tiling((24, 32), 0.25, batch=2))(run)
    expected = [upscale(plane, (24, 32)) for plane in card.preprocess(image)[0]]
    assert sizes == [(1, 3, *TILE)]
    np.testing.assert_allclose(logits, expected, rtol=1e-6)


def test_tiles_go_to_the_network_in_batches() -> None:
    sizes: list[int] = []

    def run(batch: Logits) -> Logits:
        sizes.append(len(batch))
        return batch

    one = TiledPicture(picture((24, 32)), CARD, Tiling(TILE, 0.5))(run)
    assert sizes == [1] * 9
    sizes.clear()
    four = TiledPicture(picture((24, 32)), CARD, Tiling(TILE, 0.5, batch=4))(run)
    assert sizes == [4, 4, 1]
    np.testing.assert_array_equal(one, four)
