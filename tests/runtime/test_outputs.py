import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segship.runtime.card import ModelCard
from segship.runtime.errors import OutputError
from segship.runtime.outputs import check_free, output_names, output_paths, write_classes
from segship.runtime.preprocess import Preprocess
from segship.runtime.sources import SourceFile


def names(*places: str) -> list[str]:
    return [name.as_posix() for name in output_names([SourceFile(Path(place), Path(place)) for place in places])]


def test_a_picture_gives_its_name_without_suffix() -> None:
    assert names("a.jpg", "sub/a.png", "b.tar.png") == ["a", "sub/a", "b.tar"]


def test_pictures_that_differ_in_suffix_only_keep_it() -> None:
    assert names("a.jpg", "a.png", "b.png", "A.tif") == ["a.jpg", "a.png", "b", "A.tif"]


def test_a_name_that_keeps_its_suffix_is_no_other_pictures_name() -> None:
    assert names("a.jpg", "a.png", "a.jpg.png") == ["a.jpg", "a.png", "a.jpg.png"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.from_regex(r"(s/)?[ab](\.(jpg|png)){0,3}", fullmatch=True), unique=True, max_size=8))
def test_no_two_pictures_have_one_output(places: list[str]) -> None:
    found = names(*places)
    assert len(set(found)) == len(found) == len(places)


def test_each_kind_has_its_folder() -> None:
    paths = output_paths(Path("out"), ["mask", "overlay"], Path("sub/b.tar"))
    assert paths == {"mask": Path("out/mask/sub/b.tar.png"), "overlay": Path("out/overlay/sub/b.tar.png")}


def test_outputs_that_are_there_are_counted(tmp_path: Path) -> None:
    check_free(tmp_path, ["mask", "color"], [Path("a"), Path("b")])
    (tmp_path / "color").mkdir()
    (tmp_path / "color" / "b.png").touch()
    with pytest.raises(OutputError, match=r"b\.png is there already \(1 of 4 outputs are\); add --overwrite"):
        check_free(tmp_path, ["mask", "color"], [Path("a"), Path("b")])
    check_free(tmp_path, ["mask"], [Path("a"), Path("b")])


def test_classes_are_listed_with_name_and_colour(tmp_path: Path) -> None:
    card = ModelCard(("road", "Straße 道路"), ((1, 2, 3), (255, 0, 9)), Preprocess((4, 4)))
    write_classes(tmp_path / "mask", card, overwrite=False)
    assert json.loads((tmp_path / "mask" / "classes.json").read_text("utf-8")) == [
        {"id": 0, "name": "road", "color": [1, 2, 3]},
        {"id": 1, "name": "Straße 道路", "color": [255, 0, 9]},
    ]


def test_the_classes_of_another_model_are_not_written_over_unless_asked_for(tmp_path: Path) -> None:
    card = ModelCard(("road", "sky"), ((1, 2, 3), (255, 0, 9)), Preprocess((4, 4)))
    write_classes(tmp_path, card, overwrite=False)
    write_classes(tmp_path, card, overwrite=False)
    other = dataclasses.replace(card, class_names=tuple(f"{name} too" for name in card.class_names))
    with pytest.raises(OutputError, match="other classes"):
        write_classes(tmp_path, other, overwrite=False)
    write_classes(tmp_path, other, overwrite=True)
    assert "road too" in (tmp_path / "classes.json").read_text(encoding="utf-8")
