import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from segship.runtime.errors import DatasetError
from segship.training.data.masks import ColorTable, check_ids, read_mask

PLACE = Path("somewhere/mask.png")
COLORS = st.tuples(*[st.integers(0, 255)] * 3)


@given(st.dictionaries(COLORS, st.integers(0, 255), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_colours_decode_exactly_as_by_a_loop_over_pixels(ids: dict[tuple[int, int, int], int], seed: int) -> None:
    colors = list(ids)
    picks = np.random.default_rng(seed).integers(0, len(colors), (5, 7))
    mask = np.array(colors, np.uint8)[picks]
    decoded = ColorTable(ids).decode(mask, PLACE)
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == [[ids[tuple(int(v) for v in pixel)] for pixel in row] for row in mask]


def test_red_green_and_blue_are_told_apart() -> None:
    table = ColorTable({(1, 2, 3): 0, (3, 2, 1): 1, (2, 3, 1): 2})
    mask = np.array([[[1, 2, 3], [3, 2, 1], [2, 3, 1]]], np.uint8)
    assert table.decode(mask, PLACE).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("near", [(127, 0, 0), (129, 0, 0), (128, 1, 0), (128, 0, 1), (0, 0, 0), (255, 255, 255)])
def test_a_colour_next_to_a_known_one_is_refused_never_rounded(near: tuple[int, int, int]) -> None:
    mask = np.full((4, 4, 3), (128, 0, 0), np.uint8)
    mask[1, 2:] = near
    with pytest.raises(DatasetError) as caught:
        ColorTable({(128, 0, 0): 0}, advice="add it to class_dict.csv").decode(mask, PLACE)
    for words in (str(PLACE), f"colour {near} stands for no class (2 pixels)", "add it to class_dict.csv"):
        assert words in str(caught.value)


def test_the_commonest_unknown_colour_is_the_one_that_is_named() -> None:
    mask = np.zeros((2, 3, 3), np.uint8)
    mask[0, 0] = 9
    mask[1] = 7
    with pytest.raises(DatasetError, match=r"\(7, 7, 7\) stands for no class \(3 pixels, and 1 more such colours\)"):
        ColorTable({(0, 0, 0): 0}).decode(mask, PLACE)


def test_grey_masks_give_their_values_as_ids(tmp_path: Path) -> None:
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    PillowImage.fromarray(ids).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), ids)


def test_palette_masks_give_their_indices_not_their_colours(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = PillowImage.fromarray(ids)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(tmp_path / "mask.png")
    with PillowImage.open(tmp_path / "mask.png") as stored:
        assert stored.mode == "P"
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), ids)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_masks_give_red_green_blue(tmp_path: Path, mode: str) -> None:
    PillowImage.new(mode, (2, 1), (10, 20, 30)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[[10, 20, 30], [10, 20, 30]]]


@pytest.mark.parametrize("mode", ["1", "LA", "I;16", "CMYK"])
def test_masks_of_other_modes_are_refused_naming_the_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "mask.tif"
    PillowImage.new(mode, (2, 2)).save(path)
    with pytest.raises(
        DatasetError, match=rf"mask\.tif: the mask has mode {mode}; expected 8-bit grey, palette or RGB"
    ):
        read_mask(path)


def test_a_mask_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(DatasetError, match="the mask cannot be read"):
            read_mask(path)


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_mask_cut_anywhere_is_refused_or_gives_all_its_pixels(tmp_path: Path, mode: str) -> None:
    image = PillowImage.fromarray(np.random.default_rng(1).integers(0, 256, (9, 11, 3), np.uint8))
    stored = io.BytesIO()
    (image if mode == "RGB" else image.convert("P") if mode == "P" else image.convert("L")).save(stored, "png")
    path = tmp_path / "mask.png"
    path.write_bytes(stored.getvalue())
    whole = read_mask(path)
    refused = 0
    size = len(stored.getvalue())
    lengths = [*range(0, size - 40, 7), *range(size - 40, size)]
    for length in lengths:
        path.write_bytes(stored.getvalue()[:length])
        try:
            np.testing.assert_array_equal(read_mask(path), whole)
        except DatasetError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017  # most are errors, the last few are not
    assert len(lengths) - refused < 32  # only checksums and the end mark may be missing


def test_a_mask_that_claims_a_monstrous_size_is_refused(tmp_path: Path) -> None:
    stored = io.BytesIO()
    PillowImage.new("L", (4, 4)).save(stored, "bmp")
    header = bytearray(stored.getvalue())
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    (tmp_path / "mask.bmp").write_bytes(header)
    with pytest.raises(DatasetError, match=r"mask\.bmp: the mask cannot be read \(.*3600000000 pixels"):
        read_mask(tmp_path / "mask.bmp")


def test_ids_within_the_classes_and_the_ignore_index_pass() -> None:
    check_ids(np.array([[0, 10], [255, 3]], np.uint8), 11, 255, PLACE)


def test_an_id_outside_the_classes_is_refused_naming_it_where_and_how_many() -> None:
    ids = np.zeros((6, 8), np.uint8)
    ids[2, 5] = 11
    ids[4, :3] = 40
    words = r"mask\.png: label id 11 is outside the classes 0…10 \(4 pixels .* first at row 2, column 5\)"
    with pytest.raises(DatasetError, match=words):
        check_ids(ids, 11, 255, PLACE)
