import itertools

import pytest

from segship.runtime.palettes import (
    MAX_DISTINCT_COLORS,
    NYU40,
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


def test_one_more_colour_leaves_the_others_as_they_are() -> None:
    assert distinct_colors(31)[:30] == distinct_colors(30)
    assert distinct_colors(0) == ()


@pytest.mark.parametrize("count", [-1, MAX_DISTINCT_COLORS + 1])
def test_numbers_of_colours_that_there_are_not_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"{count} distinct colours were asked for; expected 0…511"):
        distinct_colors(count)
