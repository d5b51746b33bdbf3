import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.candidate import Candidate
from segship.runtime.card import ModelCard
from segship.runtime.compare import STRICT, Expected, Gate
from segship.runtime.errors import BackendError
from segship.runtime.segmenter import Segmenter

Photo = NDArray[np.uint8]
Load = Callable[..., Segmenter]


@pytest.fixture
def load(write_conv_model: Callable[..., Path], conv_card: ModelCard, tmp_path: Path) -> Iterator[Load]:
    """Load a network of one convolution into ONNX Runtime: of a seed, and of the form that the card's fields say."""
    with contextlib.ExitStack() as stack:

        def make(seed: int = 3, **fields: Any) -> Segmenter:
            card = dataclasses.replace(conv_card, **fields)
            path = write_conv_model(tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx", card, seed=seed)
            return stack.enter_context(Segmenter(path, backend="ort", device="cpu"))

        yield make


def said(reference: Segmenter, picture: Photo) -> Expected:
    """Return what a reference says of a picture."""
    return Expected.of(reference(picture), reference.processing.stages(picture), reference.card)


def test_an_engine_that_says_the_same_is_the_same(load: Load, photo: Photo) -> None:
    reference, candidate = load(), Candidate(load(), STRICT)
    for name, picture in (("whole", photo), ("part", photo[:50])):
        candidate.take(name, picture, said(reference, picture))
    row = candidate.row()
    assert (row.verdict, row.fault, row.is_bad, row.gate) == ("same", "", False, STRICT)
    assert row.comparison is not None
    assert (row.comparison.pictures, row.comparison.pixels) == (2, (90 + 50) * 120)
    assert row.engine.backend == "ort"


def test_one_of_which_nothing_is_asked_is_recorded_whatever_it_says(load: Load, photo: Photo) -> None:
    candidate = Candidate(load(seed=4), None)
    candidate.take("photo", photo, said(load(), photo))
    row = candidate.row()
    assert (row.verdict, row.fault, row.is_bad) == ("recorded", "", False)
    assert row.comparison is not None
    assert row.comparison.differing_pixels > 0


def test_one_that_differs_says_where_and_shows_the_worst_picture(load: Load, photo: Photo) -> None:
    reference, asked = load(), []

    def locate(engine: Segmenter, batch: NDArray[Any]) -> str:
        asked.append((engine.card.preprocess.size, batch.shape, str(batch.dtype)))
        return "normalise: Mul /normalise/Mul is wrong"

    candidate = Candidate(load(seed=4), STRICT, locate)
    for name, picture in (("small", photo[:9, :9]), ("large", photo), ("narrow", photo[:, :9])):
        candidate.take(name, picture, said(reference, picture))
    row = candidate.row()
    assert (row.verdict, row.is_bad) == ("DIFFERS", True)
    assert row.fault == "first differs at the stage normalise: Mul /normalise/Mul is wrong, most of all on large"
    assert asked == [((24, 32), (1, 3, 24, 32), "float32")]
    assert row.worst is not None
    assert (row.worst.name, row.worst.result.image.shape) == ("large", (90, 120, 3))


def test_another_mean_is_a_fault_of_the_normalisation(load: Load, conv_card: ModelCard, photo: Photo) -> None:
    other = dataclasses.replace(conv_card.preprocess, mean=(0.5, 0.5, 0.5))
    candidate = Candidate(load(preprocess=other), STRICT, lambda *_: "nowhere")
    candidate.take("photo", photo, said(load(), photo))
    assert candidate.row().fault == "first differs at the stage normalise, most of all on photo"


def test_a_picture_that_cannot_be_read_or_comes_out_otherwise_is_a_fault_of_decoding(
    load: Load, photo: Photo, tmp_path: Path
) -> None:
    expected = said(load(), photo)
    missing = Candidate(load(), STRICT)
    missing.take("a.png", tmp_path / "a.png", expected)
    missing.take("photo", photo, expected)
    row = missing.row()
    assert (row.verdict, row.comparison) == ("FAILS", None)
    assert row.fault.startswith("fails on a.png at the stage decode: ")
    turned = Candidate(load(), STRICT)
    turned.take("photo", photo.transpose(1, 0, 2), expected)
    assert turned.row().fault == ("first differs at the stage decode: photo is (120, 90, 3) here, and was (90, 120, 3)")


def test_an_engine_that_fails_says_on_what(load: Load, photo: Photo) -> None:
    expected = said(load(), photo)
    closed = load(dynamic=("batch",))
    closed.close()
    candidate = Candidate(closed, STRICT, lambda *_: "network: a node")
    candidate.take("photo", photo, expected)
    assert candidate.row().fault == "fails on photo: this backend is closed; first at the stage network: a node"
    with pytest.raises(BackendError):
        closed(photo)
    candidate = Candidate(closed, STRICT)
    candidate.take_batch(["photo", "photo"], [photo, photo], [expected, expected])
    assert candidate.row().fault.startswith("fails on a batch of 2 at the stage network: ")


def test_an_engine_that_saw_nothing_has_shown_nothing(load: Load) -> None:
    row = Candidate(load(), STRICT).row()
    assert (row.verdict, row.fault, row.comparison) == ("FAILS", "no picture was compared", None)


@pytest.mark.parametrize(("lost", "verdict"), [(0.25, "same"), (0.75, "DIFFERS")])
def test_a_budget_is_held_against_what_is_lost_and_not_against_labels(
    load: Load, photo: Photo, lost: float, verdict: str
) -> None:
    gate = Gate(within_tolerance=False, min_agreement=0, budget=0.5, unit="points of mIoU")
    candidate = Candidate(load(seed=4), gate, measure=lambda _: lost)
    candidate.take("photo", photo, said(load(), photo))
    row = candidate.row()
    assert row.verdict == verdict
    assert row.fault == ("" if verdict == "same" else "loses 0.750 points of mIoU")
    assert row.comparison is not None
    assert row.comparison.lost == lost


def test_open_axes_are_compared_at_other_sizes_and_in_batches(load: Load, photo: Photo) -> None:
    reference, engine = load(dynamic=("batch", "size")), load(dynamic=("batch", "size"))
    candidate = Candidate(engine, STRICT)
    candidate.take("photo", photo, said(reference.at_size((40, 16)), photo), size=(40, 16))
    pictures = [photo, photo[:50]]
    candidate.take_batch(["a", "b"], pictures, [said(reference, picture) for picture in pictures])
    row = candidate.row()
    assert row.verdict == "same", row.fault
    assert row.comparison is not None
    assert row.comparison.pictures == 3


def test_where_it_differs_is_looked_for_at_the_size_at_which_it_does(load: Load, photo: Photo) -> None:
    sizes = []

    def locate(engine: Segmenter, batch: NDArray[Any]) -> str:
        sizes.append((engine.card.preprocess.size, batch.shape))
        return ""

    candidate = Candidate(load(seed=4, dynamic=("size",)), STRICT, locate)
    reference = load(dynamic=("size",)).at_size((40, 16))
    candidate.take("photo", photo, said(reference, photo), size=(40, 16))
    assert candidate.row().fault == "first differs at the stage network, most of all on photo"
    assert sizes == [((40, 16), (1, 3, 40, 16))]


def test_a_tile_is_what_is_looked_into_where_pictures_are_cut(load: Load, photo: Photo) -> None:
    shapes = []

    def locate(_: Segmenter, batch: NDArray[Any]) -> str:
        shapes.append(batch.shape)
        return "network: a node"

    candidate = Candidate(load(seed=4, tile_overlap=0.5), STRICT, locate)
    candidate.take("photo", photo, said(load(tile_overlap=0.5), photo))
    assert "at the stage network: a node" in candidate.row().fault
    assert shapes == [(1, 3, 24, 32)]
