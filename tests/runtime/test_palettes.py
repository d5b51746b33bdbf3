import itertools

import pytest

from segship.runtime.palettes import (
    ADE20K,
    CITYSCAPES,
    MAX_DISTINCT_COLORS,
    NYU40,
    PALETTES,
    VOC,
    VOC_VOID_COLOR,
    distinct_colors,
    voc_colors,
)


def test_voc_has_its_published_colours() -> None:
    colors = dict(zip(VOC.names, VOC.palette, strict=True))
    assert len(VOC) == 21
    assert colors["background"] == (0, 0, 0)
    assert colors["aeroplane"] == (128, 0, 0)
    assert colors["chair"] == (192, 0, 0)
    assert colors["person"] == (192, 128, 128)
    assert colors["tvmonitor"] == (0, 64, 128)
    assert voc_colors(256)[255] == VOC_VOID_COLOR


def test_every_id_of_voc_has_a_colour_of_its_own() -> None:
    assert len(set(voc_colors(256))) == 256


def test_nyu_has_40_classes_after_unlabelled() -> None:
    assert len(NYU40) == len(set(NYU40.names)) == 41
    assert [NYU40.names[class_id] for class_id in (0, 1, 22, 40)] == ["unlabelled", "wall", "ceiling", "other prop"]


@pytest.mark.parametrize(("count", "apart"), [(10, 140), (20, 100), (80, 50), (254, 36)])
def test_distinct_colours_are_far_from_each_other_and_from_black(count: int, apart: int) -> None:
    colors = [(0, 0, 0), *distinct_colors(count)]
    assert len(colors) == count + 1
    nearest = min(sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in itertools.combinations(colors, 2))
    assert nearest >= apart**2


@pytest.mark.parametrize("count", [30, 510, 511, 512, 3000])
def test_one_more_colour_leaves_the_others_as_they_are(count: int) -> None:
    assert distinct_colors(count + 1)[:count] == distinct_colors(count)


def test_the_first_distinct_colours_stay_what_they_were() -> None:
    assert distinct_colors(5) == ((255, 255, 255), (0, 109, 255), (109, 255, 0), (255, 0, 109), (146, 146, 146))
    assert distinct_colors(511)[510] == (255, 255, 219)


def test_the_largest_number_of_classes_has_as_many_colours_none_of_them_black() -> None:
    colors = distinct_colors(MAX_DISTINCT_COLORS)
    assert len(set(colors)) == len(colors) == MAX_DISTINCT_COLORS
    assert (0, 0, 0) not in colors
    assert {type(value) for value in colors[-1]} == {int}


def test_no_colours_are_none() -> None:
    assert distinct_colors(0) == ()


@pytest.mark.parametrize("count", [-1, MAX_DISTINCT_COLORS + 1])
def test_numbers_of_colours_that_there_are_not_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"{count} distinct colours were asked for; expected 0…65535"):
        distinct_colors(count)


def test_cityscapes_has_its_published_colours() -> None:
    colors = dict(zip(CITYSCAPES.names, CITYSCAPES.palette, strict=True))
    assert len(CITYSCAPES) == len(set(CITYSCAPES.palette)) == 19
    assert (colors["road"], colors["car"], colors["person"]) == ((128, 64, 128), (0, 0, 142), (220, 20, 60))
    assert CITYSCAPES.names[18] == "bicycle"


def test_ade20k_has_150_classes_with_their_published_colours() -> None:
    colors = dict(zip(ADE20K.names, ADE20K.palette, strict=True))
    assert len(ADE20K) == len(colors) == 150
    assert (colors["wall"], colors["sky"], colors["flag"]) == ((120, 120, 120), (6, 230, 230), (92, 0, 255))
    assert [ADE20K.names[class_id] for class_id in (12, 20, 56)] == ["person", "car", "pool table"]


def test_every_named_palette_has_a_colour_for_each_of_its_classes() -> None:
    assert set(PALETTES) == {"voc", "camvid", "nyu40", "cityscapes", "ade20k"}
    for table in PALETTES.values():
        assert len(table.names) == len(table.palette) == len(set(table.names))
        assert all(0 <= value <= 255 for color in table.palette for value in color)
