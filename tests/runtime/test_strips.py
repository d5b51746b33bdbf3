import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, ImageError, LossyConversionError, ModelError, OutputError
from segship.runtime.images import Page, read_image
from segship.runtime.outputs import OutputKind
from segship.runtime.postprocess import PostProcess
from segship.runtime.preprocess import Preprocess
from segship.runtime.render import overlay_image
from segship.runtime.segmenter import Segmenter
from segship.runtime.strips import STRIP_KINDS, segment_by_strips

ConvModel = Callable[..., Path]


def big(path: Path, photo: NDArray[np.uint8], *, dtype: Any = np.uint8, channels: int = 3) -> Path:
    """Write a picture of 170×210 pixels, in tiles of 16×32, none of which is like another."""
    pixels = np.tile(photo, (2, 2, 1))[:170, :210, :channels].astype(np.float32)
    pixels *= np.linspace(0.3, 1, 170)[:, None, None]
    values = pixels.astype(np.uint8) if dtype == np.uint8 else (pixels * 200 + 5000).astype(np.uint16)
    form: dict[str, Any] = {"photometric": "rgb" if channels == 3 else "minisblack", "compression": "zlib"}
    tifffile.imwrite(path, values if channels == 3 else values[..., 0], tile=(16, 32), metadata=None, **form)
    return path


def paths_in(folder: Path, kinds: tuple[OutputKind, ...] = STRIP_KINDS) -> dict[OutputKind, Path]:
    return {kind: folder / kind / "big.png" for kind in kinds}


def assert_same_as_whole(segmenter: Segmenter, source: Path, folder: Path, alpha: float = 0.5) -> None:
    """Compare what strips give with what the segmenter says of the same picture when it is held."""
    paths = paths_in(folder)
    found = segment_by_strips(segmenter, source, paths, alpha=alpha)
    whole = segmenter(source)
    assert (found.height, found.width) == whole.labels.shape
    assert found.areas_px == whole.areas_px
    assert found.areas == whole.areas
    mask = np.asarray(PillowImage.open(paths["mask"]))
    assert len(np.unique(mask)) > 1
    np.testing.assert_array_equal(mask, whole.labels)
    np.testing.assert_array_equal(np.asarray(PillowImage.open(paths["color"])), whole.color())
    np.testing.assert_array_equal(np.asarray(PillowImage.open(paths["overlay"])), whole.overlay(alpha))


@pytest.mark.parametrize("backend", ["ort", "opencv"])
def test_strips_say_what_the_whole_picture_says(
    tiled_model: Path, photo: NDArray[np.uint8], backend: str, tmp_path: Path
) -> None:
    source = big(tmp_path / "big.tif", photo)
    with Segmenter(tiled_model, backend=backend, device="cpu") as segmenter:
        assert_same_as_whole(segmenter, source, tmp_path / "out", alpha=0.3)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("tile", [(48, 64), (40, 100), (170, 50), (500, 30), (500, 500)])
def test_networks_for_whole_pictures_take_tiles_of_any_size(
    tiny_model: Path, photo: NDArray[np.uint8], tile: tuple[int, int], overlap: float, tmp_path: Path
) -> None:
    source = big(tmp_path / "big.tif", photo)
    with Segmenter(tiny_model, backend="ort", device="cpu", tile=tile, overlap=overlap) as segmenter:
        assert_same_as_whole(segmenter, source, tmp_path / "out")


def test_a_tile_that_covers_the_picture_gives_what_the_whole_gives_of_a_model_of_open_size(
    open_model: Path, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    source = big(tmp_path / "big.tif", photo)
    for tile in ((176, 224), (64, 80)):
        with Segmenter(open_model, backend="ort", device="cpu", tile=tile) as segmenter:
            assert_same_as_whole(segmenter, source, tmp_path / "out")


def test_tiles_go_through_the_network_in_batches(
    write_conv_model: ConvModel, conv_card: ModelCard, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    model = write_conv_model(tmp_path / "open.onnx", dataclasses.replace(conv_card, dynamic=("batch",)))
    source = big(tmp_path / "big.tif", photo)
    with Segmenter(model, backend="ort", device="cpu", tile=(24, 32), batch=5) as segmenter:
        assert_same_as_whole(segmenter, source, tmp_path / "out")


def test_binary_networks_and_grey_pictures_are_segmented_by_strips(
    binary_model: Path, grey_models: dict[str, Path], photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    with Segmenter(binary_model, backend="ort", device="cpu", tile=(48, 64)) as segmenter:
        assert_same_as_whole(segmenter, big(tmp_path / "color.tif", photo), tmp_path / "binary")
    with Segmenter(grey_models["uint8"], backend="ort", device="cpu", tile=(48, 64)) as segmenter:
        assert_same_as_whole(segmenter, big(tmp_path / "grey.tif", photo, channels=1), tmp_path / "grey")


def test_a_16_bit_picture_is_shown_over_the_range_of_the_whole_picture(
    grey_models: dict[str, Path], photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    source = big(tmp_path / "deep.tif", photo, dtype=np.uint16, channels=1)
    with Segmenter(grey_models["uint16"], backend="ort", device="cpu", tile=(48, 64)) as segmenter:
        assert_same_as_whole(segmenter, source, tmp_path / "out")
        top = read_image(source, channels=1, depth="uint16")[:30]
        whole = segmenter(source)
    assert (overlay_image(top, whole.labels[:30], whole.card) != whole.overlay()[:30]).any()


def test_classes_that_are_not_told_of_are_of_no_class(
    tiled_model: Path, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    source = big(tmp_path / "big.tif", photo)
    with Segmenter(tiled_model, backend="ort", device="cpu") as plain:
        areas = plain(source).areas
    largest = max(areas, key=lambda name: areas[name])
    with Segmenter(tiled_model, backend="ort", device="cpu", only=[largest]) as segmenter:
        assert_same_as_whole(segmenter, source, tmp_path / "out")


def test_above_256_classes_the_mask_has_16_bits(
    write_conv_model: ConvModel, conv_card: ModelCard, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    names = tuple(f"class {i}" for i in range(300))
    card = dataclasses.replace(
        conv_card, class_names=names, palette=tuple((i % 256, i // 256, 99) for i in range(300)), ignore_index=65535
    )
    model = write_conv_model(tmp_path / "many.onnx", card)
    source = big(tmp_path / "big.tif", photo)
    with Segmenter(model, backend="ort", device="cpu", tile=(24, 32)) as segmenter:
        assert_same_as_whole(segmenter, source, tmp_path / "out")
        mask = np.asarray(PillowImage.open(tmp_path / "out/mask/big.png"))
    assert mask.dtype == np.uint16
    assert mask.max() > 255


def test_each_tile_is_normalised_by_its_own_maximum_where_the_card_says_so(
    write_conv_model: ConvModel, conv_card: ModelCard, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    form = dataclasses.replace(conv_card.preprocess, scale="image_max")
    model = write_conv_model(tmp_path / "max.onnx", dataclasses.replace(conv_card, preprocess=form, tile_overlap=0.3))
    with Segmenter(model, backend="ort", device="cpu") as segmenter:
        assert_same_as_whole(segmenter, big(tmp_path / "big.tif", photo), tmp_path / "out")


@pytest.mark.parametrize("resize", ["letterbox", "pad"])
def test_tiles_are_brought_to_the_networks_size_as_the_card_says(
    write_conv_model: ConvModel, conv_card: ModelCard, photo: NDArray[np.uint8], resize: Any, tmp_path: Path
) -> None:
    form: Preprocess = dataclasses.replace(conv_card.preprocess, resize=resize)
    model = write_conv_model(tmp_path / "form.onnx", dataclasses.replace(conv_card, preprocess=form))
    with Segmenter(model, backend="ort", device="cpu", tile=(20, 20)) as segmenter:
        assert_same_as_whole(segmenter, big(tmp_path / "big.tif", photo), tmp_path / "out")


def test_a_picture_smaller_than_a_tile_is_padded_where_the_network_sees_tiles(
    tiled_model: Path, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    source = big(tmp_path / "big.tif", photo)
    small = tmp_path / "small.tif"
    tifffile.imwrite(small, read_image(source, channels=3, depth="uint8")[:30, :50], photometric="rgb", metadata=None)
    with Segmenter(tiled_model, backend="ort", device="cpu") as segmenter:
        assert_same_as_whole(segmenter, small, tmp_path / "out")


def test_a_page_is_segmented_and_named(tiled_model: Path, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as writer:
        for page in (photo[:60], photo):
            writer.write(page, photometric="rgb", tile=(16, 16), metadata=None)
    with Segmenter(tiled_model, backend="ort", device="cpu") as segmenter:
        found = segment_by_strips(segmenter, Page(path, 1), paths_in(tmp_path / "out", ("mask",)))
        assert found.source == f"{path}[page 2]"
        whole = segmenter(photo)
    np.testing.assert_array_equal(np.asarray(PillowImage.open(tmp_path / "out/mask/big.png")), whole.labels)


def test_progress_counts_tiles(tiled_model: Path, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Segmenter(tiled_model, backend="ort", device="cpu") as segmenter:
        found = segment_by_strips(
            segmenter, big(tmp_path / "big.tif", photo), {}, progress=lambda done, total: seen.append((done, total))
        )
    assert seen == [(done, 42) for done in range(1, 43)]  # 7 rows of 6, each a half of 48×64 further
    assert found.tiles == 42
    assert found.seconds > 0


def test_rows_are_read_once_and_no_more_are_held_than_tiles_need(
    tiled_model: Path, photo: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segship.runtime.big_pictures import BigPicture

    read: list[tuple[int, int]] = []
    plain = BigPicture.rows

    def counted(self: BigPicture, start: int, stop: int) -> NDArray[Any]:
        if stop > start:
            read.append((start, stop))
        return plain(self, start, stop)

    monkeypatch.setattr(BigPicture, "rows", counted)
    with Segmenter(tiled_model, backend="ort", device="cpu") as segmenter:
        segment_by_strips(segmenter, big(tmp_path / "big.tif", photo), paths_in(tmp_path / "out"))
    assert read == [(0, 48), (48, 72), (72, 96), (96, 120), (120, 144), (144, 168), (168, 170)]


def test_what_needs_the_whole_picture_is_refused_before_anything_is_read(
    tiled_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.tif"
    with (
        Segmenter(tiled_model, backend="ort", device="cpu") as segmenter,
        pytest.raises(OutputError, match=r"contours of a picture this large cannot be written.*mask, color, overlay"),
    ):
        segment_by_strips(segmenter, missing, {"contours": tmp_path / "a.json", "mask": tmp_path / "a.png"})
    with (
        Segmenter(tiled_model, backend="ort", device="cpu", post=PostProcess(min_area_px=9)) as segmenter,
        pytest.raises(OutputError, match="cannot be tidied up"),
    ):
        segment_by_strips(segmenter, missing, {})
    with (
        Segmenter(tiny_model, backend="ort", device="cpu") as segmenter,
        pytest.raises(ModelError, match=r"segmented tile by tile only; say how large tiles are \(--tile 512x512\)"),
    ):
        segment_by_strips(segmenter, missing, {})


def test_a_conversion_that_loses_something_is_refused_unless_it_is_allowed(
    grey_models: dict[str, Path], photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    source = big(tmp_path / "color.tif", photo)
    with (
        Segmenter(grey_models["uint8"], backend="ort", device="cpu", tile=(48, 64)) as segmenter,
        pytest.raises(LossyConversionError, match="--convert grey"),
    ):
        segment_by_strips(segmenter, source, {})
    with Segmenter(grey_models["uint8"], backend="ort", device="cpu", tile=(48, 64), convert=["grey"]) as segmenter:
        assert_same_as_whole(segmenter, source, tmp_path / "out")


def test_the_segmenters_limit_of_pixels_holds(tiled_model: Path, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    with (
        Segmenter(tiled_model, backend="ort", device="cpu", max_pixels=35_699) as segmenter,
        pytest.raises(ImageError, match="--max-pixels 35699"),
    ):
        segment_by_strips(segmenter, big(tmp_path / "big.tif", photo), {})


def test_a_picture_that_ends_in_the_middle_leaves_no_file(
    tiled_model: Path, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    source = big(tmp_path / "big.tif", photo)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    with (
        Segmenter(tiled_model, backend="ort", device="cpu") as segmenter,
        pytest.raises(ImageError, match="damaged picture in the rows"),
    ):
        segment_by_strips(segmenter, source, paths_in(tmp_path / "out"))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_network_that_fails_leaves_what_was_there(nan_model: Path, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    paths = paths_in(tmp_path, ("mask",))
    paths["mask"].parent.mkdir()
    paths["mask"].write_bytes(b"before")
    with (
        Segmenter(nan_model, backend="ort", device="cpu", tile=(48, 64)) as segmenter,
        pytest.raises(BackendError, match="NaN"),
    ):
        segment_by_strips(segmenter, big(tmp_path / "big.tif", photo), paths)
    assert paths["mask"].read_bytes() == b"before"
    assert list(paths["mask"].parent.iterdir()) == [paths["mask"]]
