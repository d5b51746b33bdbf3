import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import DEMO
from segship.training.data.masks import MaskReader
from segship.training.data.pairs import (
    Pairs,
    count_held_out,
    hold_out,
    keep_own_split,
    pair_by_name,
    pair_listed,
    pictures_by_name,
    read_names,
)


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_pictures_are_found_in_folders_below_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    _touch(tmp_path, "b.JPG", "a/b.png", "a/c.v2.tif", "notes.txt", ".hidden.png", "._b.jpg")
    assert list(pictures_by_name(tmp_path)) == ["b", "a/b", "a/c.v2"]
    assert pictures_by_name(tmp_path)["a/c.v2"] == tmp_path / "a/c.v2.tif"


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "a.png")
    with pytest.raises(DatasetError, match=r"a\.png and a\.jpg have one name; keep one of them, or rename it"):
        pictures_by_name(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions bind neither root nor Windows")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DatasetError, match="closed: the folder cannot be read"):
        pictures_by_name(tmp_path)


def test_pairs_go_by_name_and_by_folder(tmp_path: Path) -> None:
    images, masks = _touch(tmp_path / "i", "x.jpg", "cam/x.jpg"), _touch(tmp_path / "m", "cam/x.png", "x_mask.png")
    assert pair_by_name(images, masks, endings=("", "_mask")) == [
        (images / "x.jpg", masks / "x_mask.png"),
        (images / "cam/x.jpg", masks / "cam/x.png"),
    ]


def test_of_two_endings_the_first_counts_and_the_other_mask_has_no_picture(tmp_path: Path) -> None:
    images, masks = _touch(tmp_path / "i", "x.jpg"), _touch(tmp_path / "m", "x.png", "x_L.png")
    with pytest.raises(DatasetError, match=r"x_L\.png has no picture of its name in .*; 1 of 2 masks have none"):
        pair_by_name(images, masks, endings=("", "_L"))


def test_a_list_gives_its_order_and_what_lacks_a_file_is_named_and_counted(tmp_path: Path) -> None:
    images = _touch(tmp_path / "i", *(f"{name}.jpg" for name in "abcd"))
    masks = _touch(tmp_path / "m", "a.png", "b.png")
    origin = tmp_path / "train.txt"
    assert pair_listed(["b", "a"], images, masks, origin) == [
        (images / "b.jpg", masks / "b.png"),
        (images / "a.jpg", masks / "a.png"),
    ]
    with pytest.raises(DatasetError, match=r"train\.txt: 'c' has no mask in .*m; 2 of 3 entries have none; add"):
        pair_listed(["a", "c", "d"], images, masks, origin)
    with pytest.raises(DatasetError, match=r"train\.txt: 'e' has no picture in .*i; 1 of 2 entries have none"):
        pair_listed(["a", "e"], images, masks, origin)
    with pytest.raises(DatasetError, match=r"gone is missing; expected the masks that .*train\.txt lists"):
        pair_listed(["a"], images, tmp_path / "gone", origin)


def test_a_list_may_have_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("\ufeffa b\r\n\r\n c \r\n".encode())
    assert read_names(tmp_path / "list.txt") == ["a b", "c"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\n \n", "lists nothing"), (b"\x89PNG\xff", "cannot be read as a list of names"), (None, "cannot be read as")],
    ids=["empty", "no text", "missing"],
)
def test_a_list_of_nothing_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        read_names(tmp_path / "list.txt")


@given(st.sets(st.text(max_size=5), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_what_is_held_out_depends_on_names_alone(names: set[str], fraction: float, seed: int) -> None:
    items = [(name, name) for name in names]
    train, val = hold_out(items, fraction, seed)
    random.Random(seed).shuffle(items)
    assert (train, val) == hold_out(items, fraction, seed)
    assert sorted(train + val) == sorted(names)
    assert train
    assert len(val) == count_held_out(len(names), fraction) > 0


def test_a_fifth_is_held_out_by_default_and_another_seed_holds_out_others() -> None:
    items = [(f"{number:03}", number) for number in range(100)]
    train, val = hold_out(items, None, 0)
    assert (len(train), len(val)) == (80, 20)
    assert val[:5] == [3, 12, 14, 16, 17]  # the same on every machine, for ever
    assert hold_out(items, None, 1)[1] != val


def test_few_pictures_change_sides_when_some_are_added() -> None:
    items = [(f"{number:03}", number) for number in range(110)]
    before, after = (set(hold_out(items[:count], 0.2, 0)[1]) for count in (100, 110))
    assert len(before - after) <= 5


def test_names_of_files_may_be_no_utf_8() -> None:
    train, val = hold_out([(os.fsdecode(b"caf\xe9"), 1), ("b", 2)], 0.5, 0)
    assert sorted(train + val) == [1, 2]


def test_one_picture_cannot_be_split() -> None:
    with pytest.raises(DatasetError, match="1 pictures cannot be split into training and validation"):
        hold_out([("a", 1)], 0.5, 0)


def test_a_share_is_refused_where_the_dataset_says_what_is_held_out() -> None:
    keep_own_split(None, "val.txt")
    with pytest.raises(DatasetError, match=r"--val-fraction has no use where val\.txt says what is held out"):
        keep_own_split(0.2, "val.txt")


def test_pairs_survive_the_way_to_another_process(tmp_path: Path) -> None:
    PillowImage.new("RGB", (4, 3), (1, 2, 3)).save(tmp_path / "a.png")
    PillowImage.new("L", (4, 3), 1).save(tmp_path / "m.png")
    part = Pairs([(tmp_path / "a.png", tmp_path / "m.png")], DEMO, MaskReader(ids=(0, 5)))
    sample = pickle.loads(pickle.dumps(part))[0]
    assert sample.name == "a"
    assert sample.image[0, 0].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(sample.labels, np.full((3, 4), 5, np.uint8))


def test_a_picture_that_does_not_fit_says_which_form_is_wanted(tmp_path: Path) -> None:
    PillowImage.new("RGB", (4, 3), (1, 2, 3)).save(tmp_path / "a.png")
    part = Pairs([(tmp_path / "a.png", tmp_path / "a.png")], DEMO, MaskReader(ids=(0,)), channels=1, depth="uint16")
    with pytest.raises(DatasetError, match=r"a\.png: a colour picture.*; save it as 16-bit grey without transparency$"):
        part[0]
