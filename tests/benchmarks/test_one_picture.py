import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segship.benchmarks.engine_choice import Choice, open_choice
from segship.benchmarks.one_picture import Road
from segship.benchmarks.record import PICTURE, BenchError
from segship.runtime.backends import Backend
from segship.runtime.card import ModelCard
from segship.runtime.errors import ImageError
from segship.runtime.network import run_checked
from segship.runtime.segmenter import Segmenter

STAGES = ["decode", "preprocess", "network", "postprocess", "encode"]


@pytest.fixture
def encoded(photo: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("model", ["tiny_model", "tiny_labels_model", "binary_model", "tiled_model"])
def test_the_road_ends_at_the_segmenters_labels(
    model: str, encoded: bytes, photo: NDArray[np.uint8], request: pytest.FixtureRequest
) -> None:
    with open_choice(Choice(request.getfixturevalue(model), "ort", "cpu")) as segmenter:
        road = Road(segmenter, encoded)
        taken = road()
        expected = segmenter(photo)
    assert list(taken) == [*STAGES, PICTURE]
    assert taken[PICTURE] == sum(taken[stage] for stage in STAGES)
    assert all(nanoseconds > 0 for nanoseconds in taken.values())
    (labels,), (mask,) = road.labels, road.masks
    np.testing.assert_array_equal(labels, expected.labels)
    with Image.open(io.BytesIO(mask)) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), expected.labels)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), expected.color())


@pytest.mark.parametrize("model", [("open_model", "ort"), ("tiny_checkpoint", "torch")])
def test_every_stage_does_all_of_a_batch_and_the_network_at_once(
    model: tuple[str, str],
    encoded: bytes,
    photo: NDArray[np.uint8],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[int] = []

    def run(backend: Backend, card: ModelCard, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        batches.append(len(batch))
        return run_checked(backend, card, batch)

    file = request.getfixturevalue(model[0])
    monkeypatch.setattr("segship.runtime.processing.run_checked", run)
    with open_choice(Choice(file, model[1], "cpu", batch=3)) as segmenter:
        road = Road(segmenter, encoded, 3)
        road()
        assert batches == [3]
        expected = segmenter(photo).labels
    assert len(road.labels) == len(road.masks) == 3
    for labels in road.labels:
        np.testing.assert_array_equal(labels, expected)


def test_tiles_are_run_a_picture_at_a_time(tiled_model: Path, encoded: bytes) -> None:
    with open_choice(Choice(tiled_model, "ort", "cpu")) as segmenter, pytest.raises(BenchError, match="tiles"):
        Road(segmenter, encoded, 2)


def test_copies_to_the_gpu_are_taken_out_of_the_networks_time(
    tiny_model: Path, encoded: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([1000, 1003])
    monkeypatch.setattr(Segmenter, "transfer_ns", property(lambda _: next(told)))
    with open_choice(Choice(tiny_model, "ort", "cpu")) as segmenter:
        taken = Road(segmenter, encoded)()
    assert list(taken) == ["decode", "preprocess", "transfer", *STAGES[2:], PICTURE]
    assert taken["transfer"] == 3
    assert taken[PICTURE] == sum(taken[stage] for stage in (*STAGES, "transfer"))


def test_a_file_that_is_no_picture_is_the_segmenters_error(tiny_model: Path) -> None:
    with open_choice(Choice(tiny_model, "ort", "cpu")) as segmenter, pytest.raises(ImageError):
        Road(segmenter, b"nothing")()
