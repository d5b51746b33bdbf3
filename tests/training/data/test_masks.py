import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import DEMO
from segship.training.data.masks import ColorTable, MaskReader, check_ids, read_mask, renumber

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


@pytest.mark.parametrize("alpha", [0, 254])
def test_a_colour_mask_that_is_partly_transparent_is_refused(tmp_path: Path, alpha: int) -> None:
    image = PillowImage.new("RGBA", (3, 2), (10, 20, 30, 255))
    image.putpixel((1, 1), (10, 20, 30, alpha))
    image.save(tmp_path / "mask.png")
    with pytest.raises(DatasetError, match=r"mask\.png: the mask is transparent in 1 pixels; save it as RGB without"):
        read_mask(tmp_path / "mask.png")


def test_a_colour_that_stands_for_transparency_counts_as_transparent(tmp_path: Path) -> None:
    image = PillowImage.new("RGB", (3, 2), (10, 20, 30))
    image.save(tmp_path / "unused.png", transparency=(1, 2, 3))
    image.save(tmp_path / "used.png", transparency=(10, 20, 30))
    assert read_mask(tmp_path / "unused.png")[0, 0].tolist() == [10, 20, 30]
    with pytest.raises(DatasetError, match=r"used\.png: the mask is transparent in 6 pixels"):
        read_mask(tmp_path / "used.png")


def test_palette_masks_give_their_colours_where_these_are_asked_for(tmp_path: Path) -> None:
    image = PillowImage.fromarray(np.array([[0, 1, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "mask.png")
    colors = read_mask(tmp_path / "mask.png", palette_by_color=True)
    assert colors.tolist() == [[[10, 20, 30], [40, 50, 60], [40, 50, 60]]]
    image.save(tmp_path / "transparent.png", transparency=bytes([255, 0]))
    assert read_mask(tmp_path / "transparent.png").tolist() == [[0, 1, 1]]  # ids lose nothing by it
    with pytest.raises(DatasetError, match="transparent in 2 pixels"):
        read_mask(tmp_path / "transparent.png", palette_by_color=True)


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


def test_a_reader_takes_ids_and_colours_by_the_form_of_the_file(tmp_path: Path) -> None:
    read = MaskReader(ids=(1, 255, 0), colors=ColorTable({(9, 8, 7): 2, (0, 0, 0): 255}))
    PillowImage.fromarray(np.array([[0, 1, 2, 255]], np.uint8)).save(tmp_path / "grey.png")
    PillowImage.fromarray(np.array([[(9, 8, 7), (0, 0, 0)]], np.uint8)).save(tmp_path / "color.png")
    for name, expected in (("grey", [[1, 255, 0, 255]]), ("color", [[2, 255]])):
        labels = read(tmp_path / f"{name}.png")
        assert labels.dtype == np.uint8
        assert labels.tolist() == expected


def test_a_reader_refuses_the_form_that_it_has_no_table_for(tmp_path: Path) -> None:
    PillowImage.new("L", (2, 2)).save(tmp_path / "grey.png")
    PillowImage.new("RGB", (2, 2)).save(tmp_path / "color.png")
    with pytest.raises(DatasetError, match=r"color\.png: a colour mask among index masks; expected grey values 0…2"):
        MaskReader(ids=(0, 1, 2))(tmp_path / "color.png")
    with pytest.raises(DatasetError, match=r"grey\.png: a grey or palette mask among colour masks; expected RGB"):
        MaskReader(colors=ColorTable({}))(tmp_path / "grey.png")


@given(st.sets(st.integers(0, 5), max_size=5))
def test_renumbering_keeps_order_names_and_colours_and_leaves_no_gap(ignore: set[int]) -> None:
    classes, ids = renumber(DEMO, ignore)
    assert [new for new in ids if new != 255] == list(range(len(classes)))
    for old, new in enumerate(ids):
        assert (new == 255) == (old in ignore)
        if new != 255:
            assert (classes.names[new], classes.palette[new]) == (DEMO.names[old], DEMO.palette[old])


def test_ignoring_what_is_no_class_or_every_class_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"--ignore 6 is no class id of this dataset; its class ids are 0…5"):
        renumber(DEMO, (2, 6, 7))
    with pytest.raises(DatasetError, match=r"--ignore -1 is no class id"):
        renumber(DEMO, (-1,))
    with pytest.raises(DatasetError, match=r"0 of 6 classes are left besides void; expected 1…255"):
        renumber(DEMO, range(6))
