import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segship.benchmarks.engine_choice import Choice
from segship.benchmarks.throughput import measure_throughput
from segship.runtime.errors import StreamsError
from segship.runtime.processing import Processing


@pytest.fixture
def encoded(photo: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "png")
    return file.getvalue()


def test_pictures_are_counted_for_each_number_of_runs_at_once(
    tiny_model: Path, encoded: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[int] = []
    labels = Processing.labels

    def noted(self: Processing, output: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
        streams.append(self.backend.info.streams)
        return np.asarray(labels(self, output, size), np.uint8)

    monkeypatch.setattr(Processing, "labels", noted)
    one, two = measure_throughput(Choice(tiny_model, "ort", "cpu", threads=2), encoded, [1, 2], 0.01)
    assert (one.concurrency, two.concurrency) == (1, 2)
    for measured in (one, two):
        assert measured.seconds >= 0.01
        assert measured.images >= 20 * measured.concurrency
        assert streams.count(measured.concurrency) >= measured.images + 10 * measured.concurrency


def test_runs_of_several_pictures_are_counted_by_picture(open_model: Path, encoded: bytes) -> None:
    (measured,) = measure_throughput(Choice(open_model, "ort", "cpu", batch=8), encoded, [1], 0.0)
    assert measured.images >= 20
    assert measured.images % 8 == 0  # whole batches, whose pictures come all at once


def test_an_engine_that_runs_one_at_a_time_says_so(tiny_model: Path, tiny_checkpoint: Path, encoded: bytes) -> None:
    for choice in (
        Choice(tiny_model, "opencv", "cpu"),
        *(Choice(tiny_checkpoint, "torch", "cpu", many) for many in (1, 2)),
    ):
        with pytest.raises(StreamsError, match="one at a time"):
            measure_throughput(choice, encoded, [2], 0.01)
