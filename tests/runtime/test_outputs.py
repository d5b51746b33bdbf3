import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.card import ModelCard
from segship.runtime.errors import ModelError, OutputError
from segship.runtime.outputs import (
    OUTPUT_KINDS,
    OutputKind,
    OutputOptions,
    check_free,
    check_outputs,
    output_names,
    output_paths,
    write_classes,
    write_outputs,
)
from segship.runtime.palettes import VOC
from segship.runtime.preprocess import Preprocess
from segship.runtime.result import Result


def names(*places: str) -> list[str]:
    return [name.as_posix() for name in output_names([Path(place) for place in places])]


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


def test_each_kind_has_the_suffix_of_its_format() -> None:
    plain = output_paths(Path("out"), ["probability", "contours"], "b")
    assert plain == {"probability": Path("out/probability/b.png"), "contours": Path("out/contours/b.geojson")}
    other = output_paths(
        Path("out"), ["probability", "contours", "color"], "b", OutputOptions(probabilities="npz", contours="coco")
    )
    assert [path.name for path in other.values()] == ["b.npz", "b.json", "b.png"]


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


@pytest.fixture
def result(photo: NDArray[np.uint8]) -> Result:
    """A result of a photograph, on the classes of VOC, part of which is of no class."""
    card = ModelCard(VOC.names, VOC.palette, Preprocess((4, 4)))
    logits = np.random.default_rng(2).normal(size=(21, 6, 8), scale=4).astype(np.float32)
    labels = np.kron(logits.argmax(axis=0), np.ones((15, 15))).astype(np.uint8)
    labels[:10, :20] = 255
    return Result("a/photo.jpg", photo, labels, logits, card)


def pixels(path: Path) -> NDArray[np.uint8]:
    with PillowImage.open(path) as picture:
        return np.asarray(picture)


def written(result: Result, out: Path, kind: OutputKind, **options: Any) -> Path:
    chosen = OutputOptions(**options)
    paths = output_paths(out, [kind], "sub/name", chosen)
    write_outputs(result, paths, chosen)
    assert [path for path in out.rglob("*") if path.is_file()] == [paths[kind]]
    return paths[kind]


def test_all_kinds_are_written_at_once(result: Result, tmp_path: Path) -> None:
    paths = output_paths(tmp_path, OUTPUT_KINDS, "name")
    write_outputs(result, paths)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(paths.values())


def test_a_mask_holds_the_ids(result: Result, tmp_path: Path) -> None:
    np.testing.assert_array_equal(pixels(written(result, tmp_path, "mask")), result.labels)


def test_colours_are_those_of_the_card(result: Result, tmp_path: Path) -> None:
    np.testing.assert_array_equal(pixels(written(result, tmp_path, "color")), result.color())


def test_an_overlay_has_the_opacity_asked_for(result: Result, tmp_path: Path) -> None:
    np.testing.assert_array_equal(pixels(written(result, tmp_path, "overlay", alpha=0.2)), result.overlay(0.2))


def test_side_by_side_the_picture_is_on_the_left(result: Result, tmp_path: Path) -> None:
    drawn = pixels(written(result, tmp_path, "side-by-side"))
    np.testing.assert_array_equal(drawn[:, :120], result.image)
    np.testing.assert_array_equal(drawn[:, 120:], result.color())


def test_a_cutout_is_transparent_but_for_the_foreground(result: Result, tmp_path: Path) -> None:
    without_logits = dataclasses.replace(result, logits=None)
    drawn = pixels(written(without_logits, tmp_path, "cutout"))
    is_object = (result.labels > 0) & (result.labels < 255)
    assert drawn.shape == (90, 120, 4)
    np.testing.assert_array_equal(drawn[is_object][:, :3], result.image[is_object])
    assert (drawn[is_object][:, 3] == 255).all()
    assert (drawn[~is_object] == 0).all()


def test_a_cutout_keeps_the_classes_asked_for(result: Result, tmp_path: Path) -> None:
    kept = int(result.labels[45, 60])
    drawn = pixels(written(dataclasses.replace(result, logits=None), tmp_path, "cutout", foreground=frozenset({kept})))
    np.testing.assert_array_equal(drawn[..., 3] == 255, result.labels == kept)


def test_a_legend_is_drawn_below_on_request(result: Result, tmp_path: Path) -> None:
    for kind in ("color", "overlay", "side-by-side"):
        plain = pixels(written(result, tmp_path / kind / "plain", kind))
        drawn = pixels(written(result, tmp_path / kind / "legend", kind, legend=True))
        assert len(drawn) > len(plain)
        np.testing.assert_array_equal(drawn[: len(plain), : plain.shape[1]], plain)


def test_a_legend_of_given_classes_has_one_size_for_all_pictures(result: Result, tmp_path: Path) -> None:
    other = dataclasses.replace(result, labels=np.zeros_like(result.labels))
    sizes = [
        pixels(written(each, tmp_path / str(number), "overlay", legend=True, legend_ids=(0, 3, 15))).shape
        for number, each in enumerate((result, other))
    ]
    assert sizes[0] == sizes[1]


def test_probabilities_are_a_16_bit_picture_or_arrays(result: Result, tmp_path: Path) -> None:
    shown = pixels(written(result, tmp_path / "png", "probability"))
    assert shown.dtype == np.uint16
    assert shown.max() > 40_000
    assert (shown[:10, :20] == 0).all()
    with np.load(written(result, tmp_path / "npz", "probability", probabilities="npz")) as stored:
        assert stored["probabilities"].shape == (21, 90, 120)


def test_contours_are_geojson_or_coco(result: Result, tmp_path: Path) -> None:
    geojson = json.loads(written(result, tmp_path / "geojson", "contours").read_text(encoding="utf-8"))
    coco = json.loads(written(result, tmp_path / "coco", "contours", contours="coco").read_text(encoding="utf-8"))
    assert len(geojson["features"]) == len(coco["annotations"]) > 5


def test_a_model_that_returns_labels_has_no_probabilities(result: Result, tmp_path: Path) -> None:
    labels_only = dataclasses.replace(result, logits=None)
    for options in (OutputOptions(), OutputOptions(probabilities="npz")):
        with pytest.raises(ModelError, match="export it with --head logits"):
            write_outputs(labels_only, output_paths(tmp_path, ["probability"], "a", options), options)
    with pytest.raises(OutputError, match="no probabilities to save; export it with --head logits"):
        check_outputs(["probability"], dataclasses.replace(result.card, head="labels"))
    check_outputs(OUTPUT_KINDS, result.card)


def test_a_cutout_of_a_model_without_background_is_refused_beforehand(result: Result) -> None:
    card = dataclasses.replace(result.card, class_names=tuple(f"class {i}" for i in range(21)))
    with pytest.raises(OutputError, match="--only"):
        check_outputs(["mask", "cutout"], card)
    check_outputs(["mask", "cutout"], card, OutputOptions(foreground=frozenset({3})))
    check_outputs(["mask"], card)


def test_an_output_that_cannot_be_written_is_one_line(result: Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for kind in OUTPUT_KINDS:
        with pytest.raises(OutputError, match="cannot write"):
            write_outputs(result, output_paths(tmp_path / "file", [kind], "a"))
