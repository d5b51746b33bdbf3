import pytest

from segship.runtime.card import ModelCard
from segship.runtime.class_choice import class_id, class_ids, foreground_ids, object_ids
from segship.runtime.errors import CardError, OutputError
from segship.runtime.palettes import VOC, distinct_colors
from segship.runtime.preprocess import Preprocess


def card_of(*names: str, binary: bool = False) -> ModelCard:
    return ModelCard(names, distinct_colors(len(names)), Preprocess((4, 4)), task="binary" if binary else "multiclass")


STREET = card_of("road", "Car", "person", "traffic light, red", "0")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("car,person", {1, 2}),
        ("CAR, Person ,car", {1, 2}),
        ("2", {2}),
        ("3,1", {3, 1}),
        ("traffic light, red", {3}),
        ("0", {4}),  # a class has this name
        ("", set()),
        (["traffic light, red", "road"], {3, 0}),
    ],
)
def test_classes_are_named_or_numbered(text: str | list[str], ids: set[int]) -> None:
    assert class_ids(text, STREET) == ids


def test_of_names_that_differ_in_their_case_the_one_written_so_is_meant() -> None:
    card = card_of("Bank", "bank")
    assert (class_id("bank", card), class_id("Bank", card), class_id("BANK", card)) == (1, 0, 0)


@pytest.mark.parametrize("text", ["bus", "5", "-1", "1.0", "000000000000", "²"])
def test_a_class_that_is_not_there_is_answered_with_those_that_are(text: str) -> None:
    with pytest.raises(CardError, match=r"no class .*; it has road, Car, person, .* \(or ids 0…4\)"):
        class_ids(f"car,{text}", STREET)


def test_of_many_classes_only_the_first_are_listed() -> None:
    with pytest.raises(CardError, match=r"it has 0, 1, .*, 39, … \(or ids 0…99\)"):
        class_id("x", card_of(*map(str, range(100))))


def test_objects_are_what_is_no_background() -> None:
    assert object_ids(card_of("rest", "scratch", binary=True)) == {1}
    assert object_ids(ModelCard(VOC.names, VOC.palette, Preprocess((4, 4)))) == set(range(1, 21))
    assert object_ids(card_of("road", "Background", "void")) == {0}
    assert object_ids(STREET) == {0, 1, 2, 3, 4}


def test_a_cutout_keeps_what_is_asked_for_or_else_the_objects() -> None:
    assert foreground_ids(STREET, [1, 2]) == {1, 2}
    assert foreground_ids(card_of("rest", "scratch", binary=True)) == {1}


@pytest.mark.parametrize("card", [STREET, card_of("background")])
def test_a_cutout_of_a_model_that_tells_nothing_apart_asks_for_only(card: ModelCard) -> None:
    with pytest.raises(OutputError, match="name some with --only"):
        foreground_ids(card)
