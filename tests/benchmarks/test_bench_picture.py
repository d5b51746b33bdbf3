import dataclasses
from pathlib import Path

import numpy as np
import pytest

from segship.benchmarks.accuracy import held_out
from segship.benchmarks.bench_picture import Picture, chosen_picture, noise
from segship.benchmarks.record import BenchError
from segship.runtime.images import read_image
from segship.runtime.model_file import read_card
from segship.runtime.preprocess import Depth, Preprocess


def test_a_file_comes_first_then_the_data_then_nothing(tmp_path: Path) -> None:
    file, data = tmp_path / "a.jpg", held_out("demo", 2)
    file.write_bytes(b"bytes")
    assert chosen_picture(file, data) == Picture("a.jpg", b"bytes")
    assert Picture("a.jpg", b"bytes").digest == Picture("b.jpg", b"bytes").digest != Picture("a.jpg", b"other").digest
    assert chosen_picture(None, None) is None
    found = chosen_picture(None, data)
    assert found is not None
    assert found.name == f"{data[0][0].name}, the first of demo, validation"
    image = data[0][0].image
    shown = read_image(found.encoded, channels=3, depth="uint8")
    assert shown.shape == image.shape
    assert np.abs(shown.astype(int) - image).mean() < 5  # a JPEG of it, its colours in their order
    with pytest.raises(BenchError, match=r"cannot read .*nosuch.jpg: No such file"):
        chosen_picture(tmp_path / "nosuch.jpg", data)


@pytest.mark.parametrize(("depth", "start"), [("uint8", b"\xff\xd8"), ("uint16", b"\x89PNG")])
def test_noise_has_the_form_of_the_models_pictures(tiny_model: Path, depth: Depth, start: bytes) -> None:
    card = read_card(tiny_model)
    form = Preprocess(card.preprocess.size, 1, depth, color_order="grey", mean=(0.4,), std=(0.2,))
    encoded = noise(dataclasses.replace(card, preprocess=form))
    assert encoded.startswith(start)
    image = read_image(encoded, channels=1, depth=depth)
    assert image.shape == (*form.size, 1)
    assert image.dtype == depth
    assert image.std() > 0.1 * image.max()
