import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.card import ModelCard
from segship.runtime.errors import DatasetError
from segship.runtime.outputs import write_classes
from segship.runtime.preprocess import Preprocess
from segship.training.data import DataOptions, Sample, Split, open_dataset
from segship.training.data.folder import BLACK_AND_WHITE

Mask = NDArray[np.uint8]

NAMES = [f"{letter}{number}" for letter in "ab" for number in range(5)]
SIZE = (12, 16)
ROAD = [
    {"id": 0, "name": "grass", "color": [10, 200, 30]},
    {"id": 1, "name": "road", "color": [128, 64, 128]},
    {"id": 2, "name": "sky", "color": [70, 130, 180]},
]
COLORS = np.array([entry["color"] for entry in ROAD], np.uint8)


def _ids(name: str, values: tuple[int, ...] = (0, 1, 2)) -> Mask:
    """Patches of these values, other ones in each mask, the first two and the last in every one."""
    patches = np.random.default_rng(NAMES.index(name)).choice(values, (SIZE[0] // 4, SIZE[1] // 4))
    patches[0, :3] = values[0], values[1], values[-1]
    return np.kron(patches, np.ones((4, 4))).astype(np.uint8)


def _picture(name: str, mode: str = "RGB") -> PillowImage.Image:
    rng = np.random.default_rng(100 + NAMES.index(name))
    if mode == "I;16":
        return PillowImage.fromarray(rng.integers(0, 65536, SIZE, np.uint16))
    return PillowImage.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).convert(mode)


def _write_part(root: Path, names: list[str], mask: Callable[[str], Mask], mode: str = "RGB") -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name in names:
        _picture(name, mode).save(root / f"images/{name}.png")
        PillowImage.fromarray(mask(name)).save(root / f"masks/{name}.png")
    return root


def _write(root: Path, mask: Callable[[str], Mask] = _ids, mode: str = "RGB") -> Path:
    return _write_part(root, NAMES, mask, mode)


def _write_json(tree: Path, entries: object) -> None:
    (tree / "classes.json").write_text(json.dumps(entries))


def _open(tree: Path, **options: Any) -> Split:
    return open_dataset(f"folder:{tree}", DataOptions(**options))


def _samples(split: Split) -> list[Sample]:
    return [part[index] for part in (split.train, split.val) for index in range(len(part))]


def _labels(split: Split) -> dict[str, Mask]:
    return {sample.name: sample.labels for sample in _samples(split)}


def _names(split: Split) -> tuple[list[str], list[str]]:
    train, val = ([part[index].name for index in range(len(part))] for part in (split.train, split.val))
    return train, val


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``images/`` and ``masks/`` of ten RGB pictures with grey masks of ids 0, 1 and 2."""
    return _write(tmp_path / "data")


def test_a_fifth_is_held_out_the_same_each_time(tree: Path) -> None:
    train, val = _names(_open(tree))
    assert (len(train), len(val)) == (8, 2)
    assert sorted(train + val) == NAMES
    assert _names(_open(tree)) == (train, val)


def test_what_is_held_out_depends_on_names_and_seed_not_on_the_order_of_files(tree: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    for folder in ("images", "masks"):
        (again / folder).mkdir(parents=True)
        for name in reversed(NAMES):
            shutil.copy(tree / folder / f"{name}.png", again / folder)
    assert _names(_open(again)) == _names(_open(tree))
    others = {tuple(_names(_open(tree, split_seed=seed))[1]) for seed in range(8)}
    assert len(others) > 2
    assert len(_names(_open(tree, val_fraction=0.5))[1]) == 5


def test_train_data_and_test_data_are_the_parts(tmp_path: Path) -> None:
    _write_part(tmp_path / "train_data", NAMES[:7], _ids)
    _write_part(tmp_path / "test_data", NAMES[7:], _ids)
    split = _open(tmp_path)
    assert _names(split) == (NAMES[:7], NAMES[7:])
    assert split.train.classes == split.val.classes
    with pytest.raises(DatasetError, match=r"--val-fraction has no use where .*test_data says what is held out"):
        _open(tmp_path, val_fraction=0.3)


def test_classes_are_those_of_both_parts(tmp_path: Path) -> None:
    _write_part(tmp_path / "train_data", NAMES[:7], lambda name: _ids(name, (0, 1)))
    _write_part(tmp_path / "test_data", NAMES[7:], lambda name: _ids(name, (0, 1, 4)))
    assert len(_open(tmp_path).train.classes) == 5


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_ids_are_kept_255_is_void_and_classes_go_up_to_the_largest_id(tmp_path: Path, mode: str) -> None:
    tree = _write(tmp_path / "data", lambda name: _ids(name, (0, 1, 6, 255)))
    for path in (tree / "masks").iterdir():
        mask = PillowImage.open(path)
        if mode == "P":
            mask.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
        (mask.convert("RGB") if mode == "RGB" else mask).save(path)
    split = _open(tree)
    assert split.train.classes.names == tuple(f"class {number}" for number in range(7))
    assert len(set(split.train.classes.palette)) == 7
    for name, labels in _labels(split).items():
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, _ids(name, (0, 1, 6, 255)))


def test_ignored_ids_are_void_and_the_rest_is_renumbered(tmp_path: Path) -> None:
    tree = _write(tmp_path / "data", lambda name: _ids(name, (0, 1, 2, 3)))
    split = _open(tree, ignore=(0, 2))
    assert split.train.classes.names == ("class 1", "class 3")
    for name, labels in _labels(split).items():
        np.testing.assert_array_equal(labels, np.array([255, 0, 255, 1], np.uint8)[_ids(name, (0, 1, 2, 3))])


def test_masks_of_0_and_1_are_ids_too(tmp_path: Path) -> None:
    split = _open(_write(tmp_path / "data", lambda name: _ids(name, (0, 1))))
    assert split.train.classes.names == ("class 0", "class 1")
    np.testing.assert_array_equal(_labels(split)["a3"], _ids("a3", (0, 1)))


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
@pytest.mark.parametrize("named", [False, True])
def test_masks_of_0_and_255_have_two_classes_and_no_void(tmp_path: Path, mode: str, named: bool) -> None:
    tree = _write(tmp_path / "data", lambda name: _ids(name, (0, 255)))
    for path in (tree / "masks").iterdir():
        PillowImage.open(path).convert(mode).save(path)
        with PillowImage.open(path) as stored:
            assert stored.mode == mode
    if named:
        _write_json(tree, ROAD[:2])
    split = _open(tree)
    assert split.train.classes.names == (("grass", "road") if named else BLACK_AND_WHITE.names)
    for name, labels in _labels(split).items():
        np.testing.assert_array_equal(labels, _ids(name, (0, 255)) // 255)


def test_masks_of_0_and_255_hold_void_where_more_classes_are_named_or_void_is(tmp_path: Path) -> None:
    tree = _write(tmp_path / "data", lambda name: _ids(name, (0, 255)))
    for entries in (ROAD, [*ROAD[:2], {"id": 255, "name": "void", "color": [0, 0, 0]}]):
        _write_json(tree, entries)
        assert set(np.unique(_labels(_open(tree))["a0"])) == {0, 255}


def test_one_mask_with_another_value_makes_255_void(tmp_path: Path) -> None:
    tree = _write(tmp_path / "data", lambda name: _ids(name, (0, 1, 255) if name == "b2" else (0, 255)))
    split = _open(tree)
    assert split.train.classes.names == ("class 0", "class 1")
    assert set(np.unique(_labels(split)["a0"])) == {0, 255}


def test_an_empty_mask_among_black_and_white_ones_is_all_background(tmp_path: Path) -> None:
    tree = _write(tmp_path / "data", lambda name: 0 * _ids(name) if name == "a1" else _ids(name, (0, 255)))
    assert not _labels(_open(tree))["a1"].any()


def test_classes_that_seg_infer_wrote_are_read(tree: Path) -> None:
    names, palette = ("grass", "Straße", "sky"), ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    write_classes(tree, ModelCard(names, palette, Preprocess((8, 8))), overwrite=False)
    split = _open(tree)
    assert (split.train.classes.names, split.train.classes.palette) == (names, palette)
    np.testing.assert_array_equal(_labels(split)["a3"], _ids("a3"))


def test_colour_masks_are_read_by_the_colours_of_classes_json_in_any_order(tmp_path: Path) -> None:
    tree = _write(tmp_path / "data", lambda name: COLORS[_ids(name)])
    _write_json(tree, ROAD[::-1])
    split = _open(tree)
    assert split.train.classes.names == ("grass", "road", "sky")
    for name, labels in _labels(split).items():
        np.testing.assert_array_equal(labels, _ids(name))


def test_a_class_named_void_is_void_in_ids_and_colours_alike(tmp_path: Path) -> None:
    entries = [ROAD[0], {"id": 1, "name": "Void", "color": [128, 64, 128]}, ROAD[2]]
    for form, mask in (("ids", _ids), ("colors", lambda name: COLORS[_ids(name)])):
        tree = _write(tmp_path / form, mask)
        _write_json(tree, entries)
        split = _open(tree)
        assert split.train.classes.names == ("grass", "sky")
        np.testing.assert_array_equal(_labels(split)["a3"], np.array([0, 255, 1])[_ids("a3")])


def test_an_entry_of_id_255_gives_void_its_colour(tmp_path: Path) -> None:
    tree = _write(tmp_path / "data", lambda name: COLORS[_ids(name)])
    _write_json(tree, [*ROAD[:2], {"id": 255, "name": "ignore", "color": [70, 130, 180]}])
    np.testing.assert_array_equal(_labels(_open(tree))["a3"], np.array([0, 1, 255])[_ids("a3")])


def test_ignored_ids_may_be_classes_of_classes_json(tmp_path: Path) -> None:
    tree = _write(tmp_path / "data", lambda name: COLORS[_ids(name)])
    _write_json(tree, ROAD)
    split = _open(tree, ignore=(0,))
    assert split.train.classes.names == ("road", "sky")
    np.testing.assert_array_equal(_labels(split)["a3"], np.array([255, 0, 1])[_ids("a3")])


@pytest.mark.parametrize(
    ("mode", "channels", "depth"), [("RGB", 3, "uint8"), ("L", 1, "uint8"), ("I;16", 1, "uint16"), ("P", 3, "uint8")]
)
def test_pictures_keep_their_form(tmp_path: Path, mode: str, channels: int, depth: str) -> None:
    split = _open(_write(tmp_path / "data", mode=mode))
    sample = split.train[0]
    assert (split.train.channels, split.train.depth) == (split.val.channels, split.val.depth) == (channels, depth)
    assert (sample.image.shape, sample.image.dtype) == ((*SIZE, channels), depth)
    if mode == "I;16":
        np.testing.assert_array_equal(sample.image[..., 0], np.asarray(_picture(sample.name, mode)))


def test_16_bit_colour_stays_16_bit(tree: Path) -> None:
    for path in (tree / "images").iterdir():
        cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 65536, (*SIZE, 3), np.uint16))
    assert (_open(tree).train.channels, _open(tree).train.depth) == (3, "uint16")
    assert _open(tree).train[0].image.dtype == np.uint16


def test_a_grey_picture_among_rgb_ones_becomes_rgb(tree: Path) -> None:
    _picture("b0", "L").save(tree / "images/b0.png")
    images = {sample.name: sample.image for sample in _samples(_open(tree))}
    np.testing.assert_array_equal(images["b0"], np.asarray(_picture("b0", "L").convert("RGB")))


@pytest.mark.parametrize(
    ("most", "odd", "words"),
    [
        ("L", "RGB", r"b0\.png: a colour picture for a grey network; save it as 8-bit grey .*, like .*images/a\d\.png"),
        ("RGB", "I;16", r"b0\.png: a 16-bit picture for an 8-bit network; save it as 8-bit RGB .*, like .*/a\d\.png"),
    ],
)
def test_pictures_of_two_forms_are_refused_naming_both(tmp_path: Path, most: str, odd: str, words: str) -> None:
    tree = _write(tmp_path / "data", mode=most)
    _picture("b0", odd).save(tree / "images/b0.png")
    with pytest.raises(DatasetError, match=words):
        _samples(_open(tree))


def test_a_damaged_picture_or_mask_is_told_when_it_is_read_not_when_the_folder_is_opened(tree: Path) -> None:
    for path in ("images/a0.png", "masks/a1.png"):
        (tree / path).write_bytes(b"no picture")
    split = _open(tree)
    assert (split.train.channels, len(split.train.classes)) == (3, 3)
    faults = []
    for part in (split.train, split.val):
        for index in range(len(part)):
            try:
                part[index]
            except DatasetError as fault:
                faults.append(str(fault))
    assert len(faults) == 2
    assert "images/a0.png: no picture" in faults[0] + faults[1]
    assert "masks/a1.png: the mask is no picture" in faults[0] + faults[1]


def test_parts_can_be_handed_to_other_processes(tree: Path) -> None:
    _write_json(tree, ROAD)
    part = pickle.loads(pickle.dumps(_open(tree).train))
    np.testing.assert_array_equal(part[0].labels, _open(tree).train[0].labels)


def _set_entry(**changes: object) -> Callable[[Path], object]:
    return lambda tree: _write_json(tree, [*ROAD[:2], ROAD[2] | changes])


def _all_masks(value: Callable[[str], Mask]) -> Callable[[Path], object]:
    return lambda tree: [PillowImage.fromarray(value(name)).save(tree / f"masks/{name}.png") for name in NAMES]


def _as_jpeg(tree: Path) -> None:
    PillowImage.open(tree / "masks/a4.png").save(tree / "masks/a4.jpg")
    (tree / "masks/a4.png").unlink()


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"--data folder:DIR: .*is no folder; expected one that holds images/ and masks/"),
    "an empty folder": (
        lambda tree: [shutil.rmtree(tree / name) for name in ("images", "masks")],
        r"data holds neither images/ and masks/ nor train_data/ and test_data/; expected either",
    ),
    "no masks folder": (lambda tree: shutil.rmtree(tree / "masks"), r"data/masks is missing; expected the masks"),
    "train_data alone": (
        lambda tree: _write_part(tree / "train_data", NAMES, _ids),
        r"test_data/images is missing; expected the pictures",
    ),
    "a missing mask": (lambda tree: (tree / "masks/a2.png").unlink(), r"a2\.png has no mask in .*masks"),
    "a JPEG mask": (_as_jpeg, r"a4\.jpg: JPEG changes ids and colours; save masks as PNG \(bag:DIR reads black and"),
    "colour masks without classes.json": (
        _all_masks(lambda name: COLORS[_ids(name)]),
        r"masks of colours need a .*classes\.json: \[\{\"id\": 0, \"name\"",
    ),
    "a colour mask among masks of ids": (
        lambda tree: PillowImage.fromarray(COLORS[_ids("a0")]).save(tree / "masks/a0.png"),
        r"masks/a0\.png: colour \(\d+, \d+, \d+\) stands for no class .*; name the classes and their colours in .*json",
    ),
    "a 1-bit mask among masks of ids": (
        lambda tree: PillowImage.new("1", SIZE[::-1]).save(tree / "masks/a0.png"),
        r"masks/a0\.png: the mask has mode 1; expected 8-bit grey, palette or RGB",
    ),
    "a colour that classes.json lacks": (
        lambda tree: [_all_masks(lambda name: COLORS[_ids(name)])(tree), _write_json(tree, ROAD[:2])],
        r"colour \(70, 130, 180\) stands for no class .*; add it to .*classes\.json",
    ),
    "an id that classes.json lacks": (
        lambda tree: _write_json(tree, ROAD[:2]),
        r"masks/\w+\.png: label id 2 is outside the classes 0…1",
    ),
    "masks of one class": (_all_masks(lambda name: 0 * _ids(name)), r"data has one class only, 'class 0'; expected at"),
    "no mask that can be read": (
        lambda tree: [path.write_bytes(b"?") for path in (tree / "masks").iterdir()],
        r"masks/\w+\.png: the mask is no picture that can be read",
    ),
    "a classes.json that is no JSON": (
        lambda tree: (tree / "classes.json").write_text("grass, road"),
        r"classes\.json: cannot be read as JSON \(.*\); expected \[\{\"id\": 0",
    ),
    "a classes.json that is no text": (
        lambda tree: (tree / "classes.json").write_bytes(b"\xff\xfe\x00"),
        r"classes\.json: cannot be read as JSON",
    ),
    "a classes.json nested without end": (
        lambda tree: (tree / "classes.json").write_text("[" * 100_000),
        r"classes\.json: cannot be read as JSON",
    ),
    "a classes.json that is no list": (lambda tree: _write_json(tree, {"0": "grass"}), r"expected a list of classes"),
    "an empty classes.json": (lambda tree: _write_json(tree, []), r"classes\.json: expected a list of classes"),
    "an entry without a colour": (
        lambda tree: _write_json(tree, [{"id": 0, "name": "grass"}]),
        r"classes\.json: \[0\] lacks color",
    ),
    "an entry that is a string": (lambda tree: _write_json(tree, ["grass"]), r"\[0\] is 'grass'; expected an object"),
    "an id that is text": (_set_entry(id="2"), r"classes\.json: \[2\]\.id is '2'; expected int"),
    "a colour of two values": (_set_entry(color=[1, 2]), r"\[2\]\.color has 2 values; expected 3"),
    "a colour above 255": (_set_entry(color=[1, 2, 256]), r"'sky' has the colour \(1, 2, 256\); expected values 0…255"),
    "a gap in the ids": (_set_entry(id=3), r"classes\.json has the ids 0, 1, 3; expected 0…2, each once"),
    "an id of endless digits": (_set_entry(id=10**1000), r"has the ids 0, 1, 10+…; expected 0…2, each once$"),
    "a name of no characters": (_set_entry(name="sky\udc80"), r"classes\.json: 'sky\\udc80' is no name of a class"),
    "an id twice": (_set_entry(id=1), r"classes\.json has the ids 0, 1, 1; expected 0…2, each once"),
    "a class of id 255": (_set_entry(id=255), r"'sky' has the id 255, which is void; expected ids 0, 1"),
    "a name twice": (_set_entry(name="road"), r"classes\.json: a name or a colour stands twice"),
    "a colour twice": (_set_entry(color=[128, 64, 128]), r"classes\.json: a name or a colour stands twice"),
    "one class besides void": (
        lambda tree: _write_json(tree, [ROAD[0], {"id": 1, "name": "void", "color": [0, 0, 0]}]),
        r"data has one class only, 'grass'; expected at least two",
    ),
}


@pytest.mark.parametrize("what", HARMS)
def test_what_is_wrong_ends_in_one_line_that_says_where_and_what(tree: Path, what: str) -> None:
    harm, words = HARMS[what]
    harm(tree)
    with pytest.raises(DatasetError, match=words) as caught:
        _samples(_open(tree))
    assert "\n" not in str(caught.value)


def test_an_ignored_id_that_is_no_class_is_refused(tree: Path) -> None:
    with pytest.raises(DatasetError, match=r"--ignore 3 is no class id of this dataset; its class ids are 0…2"):
        _open(tree, ignore=(3,))
