import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime import infer_big
from segship.runtime.infer_big import holds_big_pictures, is_for_strips
from segship.runtime.segmenter import Segmenter
from segship.runtime.source_item import SourceItem
from segship.runtime.sources import open_sources
from segship.runtime.video_writer import VideoWriter

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


FRAGILE_ENGINE = """
import os, signal
import numpy as np
from segship.runtime.backends import EngineInfo

class FragileEngine:  # dies of white
    def __init__(self, model, card, device, options):
        self.card, self.info = card, EngineInfo("fragile", "Fragile 1.0", "cpu", "fp32", 1, note="")

    def run(self, batch):
        if batch.min() > 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        return np.zeros(self.card.output_shape, np.float32)

    def close(self):
        pass
"""


@pytest.fixture
def _fragile_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install an engine called ``fragile`` as another package would bring it."""
    place = tmp_path / "installed"
    facts = place / "fragile-1.0.dist-info"
    facts.mkdir(parents=True)
    (place / "fragile.py").write_text(FRAGILE_ENGINE)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[segship.backends]\nfragile = fragile:FragileEngine\n")
    monkeypatch.syspath_prepend(place)


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


def test_a_large_picture_that_is_not_stored_by_rows_is_skipped_with_what_mends_it(
    infer: Run, tiny_model: Path, big: Path, small: Path, out: Path, tmp_path: Path
) -> None:
    turned = tmp_path / "turned.tif"
    tifffile.imwrite(turned, pixels(big), photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    status, text, err = infer(tiny_model, turned, small, "--out", out, *TILE, "--json")
    assert (status, err.count("\n")) == (3, 1)
    assert "is not read row by row; save it upright" in err
    assert [one["source"] for one in json.loads(text)["images"]] == [str(small)]


@pytest.mark.usefixtures("_fragile_engine")
@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
def test_a_large_picture_that_the_engine_dies_of_is_skipped_and_the_next_is_done(
    infer: Run, conv_model: Path, big: Path, out: Path, tmp_path: Path
) -> None:
    white = tmp_path / "a white.tif"
    tifffile.imwrite(white, np.full_like(pixels(big), 255), photometric="rgb")
    engine = ("--backend", "fragile", "--isolate", "--tile", "90x120")
    status, text, err = infer(conv_model, white, big, "--out", out, *engine, "--json")
    assert (status, err.count("\n")) == (3, 1)
    assert "the fragile engine crashed (SIGSEGV)" in err
    document = json.loads(text)
    assert [one["source"] for one in document["skipped"]] == [str(white)]
    assert [one["source"] for one in document["images"]] == [str(big)]


def test_what_cannot_be_done_of_a_large_picture_is_said_beforehand_where_a_video_is_with_it(
    infer: Run, tiny_model: Path, big: Path, photo: Photo, out: Path, tmp_path: Path
) -> None:
    with VideoWriter(tmp_path / "film.mp4", 10.0, (90, 120)) as writer:
        writer.write(photo)
    arguments = (tiny_model, big, tmp_path / "film.mp4", "--out", out, *TILE)
    for options, words in ((("--legend",), "no room for a legend"), (("--save", "contours"), "cannot be written")):
        status, text, err = infer(*arguments, *options)
        assert (status, text, err.count("\n")) == (1, "", 1)
        assert words in err
    assert not out.exists()
    status, text, _ = infer(*arguments, "--json")
    assert status == 0
    assert [one["tag"] for one in json.loads(text)["images"]] == ["film/frame-000001", "big.tif"]
    assert (out / "mask/big.png").exists()


def test_large_pictures_are_known_of_where_a_video_is_with_them(big: Path, photo: Photo) -> None:
    film = big.with_name("film.mp4")
    with VideoWriter(film, 10.0, (90, 120)) as writer:
        writer.write(photo)
    for sources, expected in (([big, film], True), ([big], True), ([film], False)):
        with open_sources(sources) as source:
            assert holds_big_pictures(source) == expected
