"""One picture has the same labels however it comes in, and whichever engine runs the network."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.backends.options import EngineOptions
from segship.runtime.compare import STRICT, Expected, compare
from segship.runtime.processing import Stages
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter

Photo = NDArray[np.uint8]
Run = Callable[..., tuple[int, str, str]]
ENGINES = ("ort", "opencv", "openvino")
WAYS: dict[str, dict[str, Any]] = {"whole": {}, "tiled": {"tile": (64, 64), "overlap": 0.25}}
FLAGS = {"whole": [], "tiled": ["--tile", "64x64", "--overlap", "0.25"]}


@pytest.fixture
def png(photo: Photo, tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    PillowImage.fromarray(photo).save(path)
    return path


@pytest.fixture
def video(photo: Photo, tmp_path: Path) -> Path:
    """A video of one frame, whose codec loses nothing."""
    path = tmp_path / "photo.mkv"
    size = (photo.shape[1], photo.shape[0])
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"FFV1"), 10, size)
    writer.write(np.ascontiguousarray(photo[..., ::-1]))
    writer.release()
    return path


def reference(model: Path, engine: str, way: str, photo: Photo) -> Result:
    with Segmenter(model, backend=engine, device="cpu", **WAYS[way]) as segmenter:
        assert (segmenter.processing.tiling is None) == (way == "whole")
        return segmenter(photo)


def assert_same(expected: Result, candidate: Result) -> None:
    """Ask of two results of one picture what an export asks of an engine."""
    stages = Stages(expected.image, None, None)
    comparison = compare(Expected.of(expected, stages, candidate.card), candidate)
    assert comparison.passes(STRICT), comparison


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_form_of_a_picture_has_the_same_labels(
    engine: str,
    way: str,
    open_model: Path,
    photo: Photo,
    png: Path,
    video: Path,
    infer: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = reference(open_model, engine, way, photo).labels
    assert len(np.unique(expected)) > 2
    with Segmenter(open_model, backend=engine, device="cpu", **WAYS[way]) as segmenter:
        for source in (png, str(png), PillowImage.fromarray(photo), png.read_bytes(), photo[:, ::-1][:, ::-1]):
            np.testing.assert_array_equal(segmenter(source).labels, expected)
        np.testing.assert_array_equal(next(segmenter.stream([png])).labels, expected)
    for source, mask in ((png, "photo.png"), (video, "photo/frame-000001.png"), ("-", "stdin-000001.png")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(png.read_bytes())))
        options = ["--backend", engine, "--device", "cpu", "--save", "mask", "--overwrite", "--out", tmp_path / "out"]
        status, _, errors = infer(open_model, source, *options, *FLAGS[way])
        assert status == 0, errors
        with PillowImage.open(tmp_path / "out/mask" / mask) as image:
            np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_every_engine_gives_the_labels_of_every_other(engine: str, way: str, open_model: Path, photo: Photo) -> None:
    assert_same(reference(open_model, "opencv", way, photo), reference(open_model, engine, way, photo))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("engine", "streams"), [("opencv", 1), ("ort", 1), ("ort", 2), ("openvino", 1), ("openvino", 2)]
)
def test_streams_and_batches_change_no_label(
    engine: str, streams: int, batch: int, way: str, open_model: Path, photo: Photo
) -> None:
    pictures = [photo, photo[::-1], photo[:, ::-1], photo[::-1, ::-1], photo]
    options = EngineOptions(threads=2, streams=streams)
    with Segmenter(open_model, backend=engine, device="cpu", **WAYS[way]) as segmenter:
        expected = [segmenter(picture) for picture in pictures]
    with Segmenter(open_model, backend=engine, device="cpu", options=options, batch=batch, **WAYS[way]) as segmenter:
        results = list(segmenter.stream(pictures))
    for one, result in zip(expected, results, strict=True):
        assert_same(one, result)
