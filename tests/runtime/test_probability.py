import dataclasses
from pathlib import Path

import numpy as np
import pytest

from segship.runtime.card import ModelCard
from segship.runtime.errors import ModelError
from segship.runtime.labels import labels_by_nearest, labels_from_logits
from segship.runtime.palettes import distinct_colors
from segship.runtime.preprocess import Preprocess
from segship.runtime.probability import confidence, foreground_opacity, probability_image, write_probabilities
from segship.runtime.processing import Upscale
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter

RNG = np.random.default_rng(5)
CARD = ModelCard(("sky", "tree", "Straße"), distinct_colors(3), Preprocess((4, 4)))
BINARY = ModelCard(("rest", "object"), distinct_colors(2), Preprocess((4, 4)), task="binary", threshold=0.3)


def result_of(card: ModelCard, size: tuple[int, int] = (20, 30)) -> Result:
    logits = RNG.normal(size=(card.num_logits, 5, 6), scale=3).astype(np.float32)
    image = RNG.integers(0, 256, (*size, 3), np.uint8)
    return Result("a.jpg", image, labels_from_logits(logits, size, card), logits, card)


def test_confidence_is_the_softmax_of_the_class_that_won() -> None:
    result = result_of(CARD)
    np.testing.assert_allclose(confidence(result), result.probabilities.max(axis=0), atol=1e-6)


def test_confidence_is_that_of_the_labels_where_these_were_changed() -> None:
    result = result_of(CARD)
    result.labels[:10], result.labels[10:15] = 1, 255
    np.testing.assert_allclose(confidence(result)[:10], result.probabilities[1, :10], atol=1e-6)
    assert (confidence(result)[10:15] == 0).all()


def test_confidence_of_a_binary_network_is_that_of_either_class() -> None:
    result = result_of(BINARY)
    result.labels[0, 0] = 255
    named = np.take_along_axis(result.probabilities, np.minimum(result.labels, 1)[None].astype(np.int64), axis=0)[0]
    named[0, 0] = 0
    np.testing.assert_allclose(confidence(result), named, atol=1e-6)


def test_a_picture_of_probabilities_has_the_object_of_a_binary_network_and_else_the_class_that_won() -> None:
    binary, several = result_of(BINARY), result_of(CARD)
    np.testing.assert_allclose(probability_image(binary), binary.probabilities[1] * 65535, atol=0.6)
    np.testing.assert_allclose(probability_image(several), several.probabilities.max(axis=0) * 65535, atol=0.6)


def test_certainty_is_the_brightest_value() -> None:
    result = dataclasses.replace(result_of(BINARY), logits=np.array([[[-900.0, 900.0]]], np.float32))
    shown = probability_image(dataclasses.replace(result, labels=np.array([[0, 1]], np.uint8)))
    assert shown.dtype == np.uint16
    assert shown.tolist() == [[0, 65535]]


def test_probabilities_of_all_classes_are_written_with_their_names(tmp_path: Path) -> None:
    result = result_of(CARD)
    write_probabilities(tmp_path / "p.npz", result)
    with np.load(tmp_path / "p.npz") as stored:
        assert stored["class_names"].tolist() == ["sky", "tree", "Straße"]
        assert stored["probabilities"].dtype == np.float16
        np.testing.assert_allclose(stored["probabilities"], result.probabilities, atol=1e-3)


@pytest.mark.parametrize("card", [CARD, BINARY])
def test_labels_alone_tell_no_probabilities(card: ModelCard, tmp_path: Path) -> None:
    result = dataclasses.replace(result_of(card), logits=None)
    for call in (confidence, probability_image, lambda it: write_probabilities(tmp_path / "p.npz", it)):
        with pytest.raises(ModelError, match="export it with --head logits"):
            call(result)
    assert not list(tmp_path.iterdir())


def test_the_foreground_is_as_opaque_as_it_is_probable() -> None:
    several, binary = result_of(CARD), result_of(BINARY)
    np.testing.assert_allclose(
        foreground_opacity(several, {0, 2}), several.probabilities[[0, 2]].sum(axis=0) * 255, atol=0.6
    )
    np.testing.assert_allclose(foreground_opacity(binary, {1}), binary.probabilities[1] * 255, atol=0.6)
    np.testing.assert_allclose(foreground_opacity(binary, {0}), binary.probabilities[0] * 255, atol=0.6)
    assert (foreground_opacity(binary, {0, 1}) == 255).all()


def test_of_a_graph_that_returns_labels_the_foreground_has_hard_edges() -> None:
    result = dataclasses.replace(result_of(CARD), logits=None)
    np.testing.assert_array_equal(foreground_opacity(result, {1}), np.where(result.labels == 1, 255, 0))


@pytest.mark.parametrize("card", [CARD, BINARY])
def test_edges_are_soft_too_where_labels_are_brought_to_size(card: ModelCard) -> None:
    smooth = result_of(card, (40, 60))
    assert smooth.logits is not None
    coarse = dataclasses.replace(smooth, labels=labels_by_nearest(smooth.logits, (40, 60), card), upscale="labels")
    assert (coarse.labels != smooth.labels).any()
    np.testing.assert_array_equal(foreground_opacity(coarse, {1}), foreground_opacity(smooth, {1}))


@pytest.mark.parametrize("upscale", ["logits", "labels"])
def test_a_result_says_how_its_labels_were_made(tiny_model: Path, upscale: Upscale) -> None:
    picture = RNG.integers(0, 256, (100, 130, 3), np.uint8)
    with Segmenter(tiny_model, backend="opencv", device="cpu", upscale=upscale) as segmenter:
        result = segmenter(picture)
    assert result.upscale == upscale
    soft = (result.probabilities[1] * 255 + 0.5).astype(np.uint8)
    np.testing.assert_allclose(foreground_opacity(result, {1}).astype(int), soft.astype(int), atol=1)


def test_what_was_taken_out_of_the_labels_is_cut_away_with_its_soft_edge() -> None:
    logits = np.full((1, 20, 40), -2.0, np.float32)  # 0.12 everywhere, which is a wide soft edge
    logits[0, 8:12, 8:12] = logits[0, 8:12, 28:32] = 9
    labels = labels_from_logits(logits, (20, 40), BINARY)
    untouched = Result("a", np.zeros((20, 40, 3), np.uint8), labels.copy(), logits, BINARY)
    labels[:, 20:] = 0
    labels[0, 0] = 1
    cut = foreground_opacity(dataclasses.replace(untouched, labels=labels), {1})
    assert (cut[:, 21:] == 0).all()
    assert cut[0, 0] == 255
    np.testing.assert_array_equal(cut[1:, :19], foreground_opacity(untouched, {1})[1:, :19])
