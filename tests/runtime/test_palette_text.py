from pathlib import Path

import pytest

from segship.runtime.card import ModelCard
from segship.runtime.errors import CardError
from segship.runtime.outputs import write_classes
from segship.runtime.palette_text import PALETTE_NAMES, parse_palette
from segship.runtime.palettes import CAMVID, CITYSCAPES, VOC, distinct_colors, voc_colors
from segship.runtime.preprocess import Preprocess

CARD = ModelCard(("road", "car", "sky"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)), Preprocess((4, 4)))


def card_of(count: int) -> ModelCard:
    return ModelCard(
        tuple(f"class {i}" for i in range(count)), ((9, 9, 9),) * count, Preprocess((4, 4)), ignore_index=-1
    )


def test_a_palette_gives_its_colours_in_the_order_of_ids() -> None:
    assert parse_palette("voc", card_of(21)).palette == VOC.palette
    assert parse_palette("CamVid", card_of(11)).palette == CAMVID.palette
    assert parse_palette("distinct", card_of(700)).palette == distinct_colors(700)


def test_the_rule_of_voc_has_colours_for_256_classes() -> None:
    assert parse_palette("voc", card_of(256)).palette == voc_colors(256)


def test_classes_that_a_palette_knows_by_name_get_their_own_colours() -> None:
    colors = dict(zip(CITYSCAPES.names, CITYSCAPES.palette, strict=True))
    assert parse_palette("cityscapes", CARD).palette == tuple(colors[name] for name in CARD.class_names)


def test_nothing_but_the_colours_changes() -> None:
    changed = parse_palette("distinct", CARD)
    assert changed != CARD
    assert parse_palette("0=1,1,1;1=2,2,2;2=3,3,3", changed) == CARD


def test_single_classes_are_recoloured_by_id_or_name() -> None:
    assert parse_palette("1=0,0,255", CARD).palette == ((1, 1, 1), (0, 0, 255), (3, 3, 3))
    assert parse_palette(" Car=#fF8000 ; 0 = 7, 8, 9 ", CARD).palette == ((7, 8, 9), (255, 128, 0), (3, 3, 3))


def test_later_parts_overrule_earlier_ones() -> None:
    assert parse_palette("voc;car=#000001;1=0,0,2", CARD).palette == (*voc_colors(1), (0, 0, 2), *voc_colors(3)[2:])


@pytest.mark.parametrize(
    "text",
    [
        "[[10, 0, 0], [20, 0, 0], [30, 0, 0]]",
        '["#0a0000", "#140000", "#1e0000"]',
        '[{"color": [10, 0, 0]}, {"color": [20, 0, 0]}, {"color": [30, 0, 0]}]',
        '[{"name":"sky","color":[30,0,0]}, {"name": "Car", "color": "#140000"}, {"name": "road", "color": "#0a0000"}]',
        '[{"id": 2, "color": [30, 0, 0]}, {"id": 0, "color": [10, 0, 0]}, {"id": 1, "color": [20, 0, 0]}]',
        "\ufeff10 0 0\n20,0,0\n\n30\t0 0\n",
        "sky 30 0 0\r\ntraffic light 7 7 7\r\nroad 10 0 0\r\nCar 20 0 0\r\n",
        "a 1 10 0 0\nb 2 20 0 0\nc 3 30 0 0",
    ],
)
def test_a_file_gives_the_colours(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my; colours=.txt"
    path.write_text(text, encoding="utf-8")
    assert parse_palette(str(path), CARD).palette == ((10, 0, 0), (20, 0, 0), (30, 0, 0))


def test_the_classes_written_beside_masks_are_a_palette(tmp_path: Path) -> None:
    write_classes(tmp_path, CARD, overwrite=False)
    recoloured = parse_palette("distinct", CARD)
    assert parse_palette(str(tmp_path / "classes.json"), recoloured) == CARD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[1, 2, 3]]", "has 1 colours; this model has 3 classes"),
        ("[[1, 2]]", r"a colour is \[1, 2\]; expected \[red, green, blue\]"),
        ("[[1, 2, true]]", "a colour is"),
        ("[[1, 2, 256]]", "the colour 1,2,256 has a value outside 0…255"),
        ("[{}]", "a colour is None"),
        ("[1", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ('[{"name": 3, "color": [1, 2, 3]}]', "a name is no text"),
        ('[{"id": 3, "color": [1, 2, 3]}]', "the id 3; this model's are 0…2"),
        ("1 2 3\nred\n", "line 2: 'red'; expected r g b"),
        ("1 2 999", "line 1: the colour 1,2,999 has a value outside"),
        (" 1" * 100_000, "line 1: "),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_file_that_is_no_palette_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "colours"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CardError, match=message):
        parse_palette(str(path), CARD)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pastel", r"neither a palette \(voc, camvid, nyu40, cityscapes, ade20k, distinct\) nor a file nor a class"),
        ("", "neither a palette"),
        ("bus=1,2,3", "no class 'bus'; it has road, car, sky"),
        ("7=1,2,3", "no class '7'"),
        ("car=blue", "'blue' is no colour; expected such as 0,0,255"),
        ("car=1,2", "is no colour"),
        ("car=1,2,300", "outside 0…255"),
        ("1=0,0,255;2=", "'' is no colour"),
    ],
)
def test_what_is_no_palette_is_refused(text: str, message: str) -> None:
    with pytest.raises(CardError, match=message):
        parse_palette(text, CARD)


@pytest.mark.parametrize("name", [name for name in PALETTE_NAMES if name != "distinct"])
def test_a_palette_of_too_few_colours_is_refused(name: str) -> None:
    with pytest.raises(CardError, match=rf"the palette {name} has \d+ colours; this model has 257 classes"):
        parse_palette(name, card_of(257))
