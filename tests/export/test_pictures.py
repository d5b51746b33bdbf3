import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.export.pictures import parity_pictures
from segship.runtime.card import ModelCard
from segship.runtime.errors import LossyConversionError
from segship.runtime.model_file import read_card
from segship.runtime.preprocess import Depth


@pytest.fixture(scope="module")
def card(tiny_checkpoint: Path) -> ModelCard:
    """The card of the tiny checkpoint, 48×64."""
    return read_card(tiny_checkpoint)


def of(card: ModelCard, channels: int, depth: Depth) -> ModelCard:
    """Return a card for pictures of another kind."""
    form = dataclasses.replace(
        card.preprocess,
        channels=channels,
        depth=depth,
        color_order="RGB" if channels == 3 else "grey",
        mean=card.preprocess.mean[:channels],
        std=card.preprocess.std[:channels],
    )
    return dataclasses.replace(card, preprocess=form)


def array(source: object) -> NDArray[np.generic]:
    assert isinstance(source, np.ndarray)
    return source


@pytest.mark.parametrize(("depth", "full"), [("uint8", 255), ("uint16", 65535)])
def test_noise_comes_first_over_the_whole_range_and_always_the_same(card: ModelCard, depth: Depth, full: int) -> None:
    first, again = (
        [array(picture.source) for picture in parity_pictures([], of(card, 3, depth))[:3]] for _ in range(2)
    )
    for one, other in zip(first, again, strict=True):
        assert (one.shape, str(one.dtype)) == ((48, 64, 3), depth)
        assert one.min() < full * 0.001
        assert one.max() > full * 0.999
        np.testing.assert_array_equal(one, other)
    assert (first[0] != first[1]).any()


def test_the_built_in_pictures_fill_up_to_eight(card: ModelCard, picture: Path) -> None:
    names = [found.name for found in parity_pictures([picture], card)]
    assert names[:4] == ["noise 0", "noise 1", "noise 2", "photo.png"]
    assert len(names) == 3 + 8
    assert all(name.startswith("built-in picture val_") for name in names[4:])
    assert len(set(names)) == len(names)


def test_eight_pictures_of_the_users_need_none_of_ours(card: ModelCard, picture: Path) -> None:
    assert [found.source for found in parity_pictures([picture] * 9, card)[3:]] == [picture] * 9


@pytest.mark.parametrize(("channels", "depth"), [(1, "uint8"), (1, "uint16"), (3, "uint8"), (3, "uint16")], ids=str)
def test_the_built_in_pictures_come_in_the_cards_form(card: ModelCard, channels: int, depth: Depth) -> None:
    pictures = [array(picture.source) for picture in parity_pictures([], of(card, channels, depth))]
    assert {(str(image.dtype), image.shape[2]) for image in pictures} == {(depth, channels)}
    assert max(image.max() for image in pictures[3:]) > np.iinfo(depth).max // 5


@pytest.mark.parametrize("channels", [1, 3])
def test_for_frames_every_picture_has_the_frames_size(card: ModelCard, picture: Path, channels: int) -> None:
    framed = dataclasses.replace(of(card, channels, "uint8"), input_form="pixels", frame=(60, 80))
    grey = picture.with_name("grey.png")
    PillowImage.open(picture).convert("L").save(grey)
    found = parity_pictures([picture if channels == 3 else grey], framed)
    assert {array(one.source).shape for one in found} == {(60, 80, channels)}
    assert found[3].name.endswith(".png, resized to the frame")


def test_a_file_that_has_the_frames_size_stays_a_file(card: ModelCard, picture: Path) -> None:
    framed = dataclasses.replace(card, input_form="pixels", frame=(90, 120))
    assert parity_pictures([picture], framed)[3].source == picture


def test_a_picture_loses_nothing_on_its_way_to_the_frame_unless_that_is_allowed(
    card: ModelCard, tmp_path: Path
) -> None:
    framed = dataclasses.replace(card, input_form="pixels", frame=(60, 80))
    deep = tmp_path / "deep.png"
    PillowImage.fromarray(np.full((50, 60), 700, np.uint16)).save(deep)
    with pytest.raises(LossyConversionError, match=r"deep\.png.*--convert depth"):
        parity_pictures([deep], framed)
    assert array(parity_pictures([deep], framed, ["depth"])[3].source).dtype == np.uint8


def test_built_in_pictures_fit_into_the_size_that_others_are_padded_to(card: ModelCard, picture: Path) -> None:
    padded = dataclasses.replace(card, preprocess=dataclasses.replace(card.preprocess, resize="pad"))
    found = parity_pictures([picture], padded)
    assert found[3].source == picture
    assert all(array(one.source).shape[:2] == (48, 64) for one in found[4:])
