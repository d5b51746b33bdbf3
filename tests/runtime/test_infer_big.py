import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime import infer_big
from segship.runtime.infer_big import is_for_strips
from segship.runtime.segmenter import Segmenter
from segship.runtime.source_item import SourceItem

Run = Callable[..., tuple[int, str, str]]
Photo = NDArray[np.uint8]
TILE = ("--tile", "48x64", "--overlap", "0.25")

tifffile = pytest.importorskip("tifffile")


@pytest.fixture(autouse=True)
def _low_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer_big, "BIG_PX", 20_000)


@pytest.fixture
def big(photo: Photo, tmp_path: Path) -> Path:
    """A TIFF of 180×240 pixels, which is above the threshold."""
    path = tmp_path / "big.tif"
    pixels = np.concatenate([np.concatenate([photo, photo[:, ::-1]], 1), np.concatenate([photo[::-1], photo], 1)])
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=16)
    return path


@pytest.fixture
def small(photo: Photo, tmp_path: Path) -> Path:
    path = tmp_path / "small.tif"
    tifffile.imwrite(path, photo, photometric="rgb")
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def pixels(path: Path | str) -> NDArray[Any]:
    with PillowImage.open(path) as picture:
        return np.asarray(picture)


def item(path: Path) -> SourceItem:
    return SourceItem(path, str(path), Path(path.name))


def test_a_large_tiff_that_is_cut_into_tiles_goes_by_strips(
    tiny_model: Path, big: Path, small: Path, photo: Photo, tmp_path: Path
) -> None:
    png = tmp_path / "big.png"
    PillowImage.fromarray(pixels(big)).save(png)
    with Segmenter(tiny_model, tile=(48, 64)) as tiled, Segmenter(tiny_model) as whole:
        assert [is_for_strips(item(path), tiled) for path in (big, small, png, tmp_path / "none.tif")] == [
            True,
            False,
            False,
            False,
        ]
        assert not is_for_strips(item(big), whole)


def test_by_strips_comes_out_what_the_whole_gives_and_last(
    infer: Run, tiny_model: Path, big: Path, small: Path, out: Path
) -> None:
    kinds = ("mask", "color", "overlay")
    arguments = (tiny_model, big, small, "--out", out, *TILE, "--save", ",".join(kinds), "--alpha", "0.7")
    status, text, err = infer(*arguments, "--json")
    assert (status, err) == (0, "")
    first, second = json.loads(text)["images"]
    assert [(one["source"], one["index"], one["tag"]) for one in (first, second)] == [
        (str(small), 0, "small.tif"),
        (str(big), 1, "big.tif"),
    ]
    assert first.keys() == second.keys()
    with Segmenter(tiny_model, backend="ort", tile=(48, 64), overlap=0.25) as segmenter:
        result = segmenter(big)
    for kind, expected in zip(kinds, (result.labels, result.color(), result.overlay(0.7)), strict=True):
        assert second["outputs"][kind] == str(out / kind / "big.png")
        assert (pixels(second["outputs"][kind]) == expected).mean() > 0.999  # sums of tiles in another order
    assert (second["height"], second["width"]) == (180, 240)
    mask = pixels(out / "mask/big.png")
    assert [area["pixels"] for area in second["areas"].values()] == np.bincount(mask.ravel(), minlength=6).tolist()
    assert list(second["timings_ms"]) == ["all"]


def test_it_is_told_of_the_classes_asked_for_only(infer: Run, tiny_model: Path, big: Path, out: Path) -> None:
    _, text, _ = infer(tiny_model, big, "--out", out, *TILE, "--save", "mask", "--only", "1,2", "--json")
    (entry,) = json.loads(text)["images"]
    with Segmenter(tiny_model, backend="ort", only="1,2") as segmenter:
        names, void = segmenter.card.class_names[1:3], segmenter.card.ignore_index
    assert tuple(entry["areas"]) == names
    assert set(np.unique(pixels(out / "mask/big.png"))) <= {1, 2, void}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--save", "mask,cutout", "--only", "1"), "cutout of a picture this large cannot be written"),
        (("--min-area", "9"), "cannot be tidied up"),
        (("--legend",), "have no room for a legend; leave it out"),
    ],
)
def test_what_strips_cannot_do_is_an_error_and_not_left_out(
    infer: Run, tiny_model: Path, big: Path, out: Path, options: tuple[str, ...], words: str
) -> None:
    status, _, err = infer(tiny_model, big, "--out", out, *TILE, *options)
    assert status == 1
    assert words in err
    assert err.count("\n") == 1
    assert not list(out.rglob("*.png"))


def test_a_damaged_large_picture_is_skipped_and_leaves_nothing(
    infer: Run, tiny_model: Path, big: Path, small: Path, out: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "a damaged.tif"
    damaged.write_bytes(big.read_bytes()[:-20_000])
    status, text, err = infer(tiny_model, damaged, big, small, "--out", out, *TILE, "--json")
    document = json.loads(text)
    assert status == 3
    assert err.startswith("skipped: ")
    assert [one["source"] for one in document["skipped"]] == [str(damaged)]
    assert [(one["source"], one["index"]) for one in document["images"]] == [(str(small), 0), (str(big), 1)]
    assert sorted(path.name for path in out.rglob("*.png")) == ["big.png", "big.png", "small.png", "small.png"]
    assert not list(out.rglob(".*"))


def test_pictures_of_more_pixels_than_allowed_are_skipped(infer: Run, tiny_model: Path, big: Path, out: Path) -> None:
    status, _, err = infer(tiny_model, big, "--out", out, *TILE, "--max-pixels", "30000")
    assert status == 3
    assert "--max-pixels 30000" in err


def test_large_pictures_that_are_done_are_left_out(infer: Run, tiny_model: Path, big: Path, out: Path) -> None:
    arguments = (tiny_model, big, "--out", out, *TILE)
    assert infer(*arguments)[0] == 0
    status, text, _ = infer(*arguments, "--skip-existing")
    assert (status, text.splitlines()[-1][:30]) == (0, "0 pictures, 1 there already in")
    assert "add --overwrite" in infer(*arguments)[2]
