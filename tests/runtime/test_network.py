import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError
from segship.runtime.network import run_checked

BATCH = np.zeros((2, 3, 24, 32), np.float32)


class Returning:
    """An engine whose graph returns the same for every input, and that keeps what it was given."""

    info = EngineInfo("returning", "1", "cpu", "fp32", 1)

    def __init__(self, output: NDArray[Any]) -> None:
        self.output, self.given = output, np.empty(0)

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        self.given = batch
        return self.output

    def close(self) -> None:
        pass


def logits(*, batch: int = 2, classes: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(batch, classes, 24, 32)).astype(np.float32)


@pytest.fixture
def labels_card(conv_card: ModelCard) -> ModelCard:
    return dataclasses.replace(conv_card, head="labels", output_name="labels", dynamic=("batch",))


def test_logits_are_handed_on_as_they_are(conv_card: ModelCard) -> None:
    engine = Returning(logits())
    np.testing.assert_array_equal(run_checked(engine, conv_card, BATCH), engine.output)
    np.testing.assert_array_equal(engine.given, BATCH)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (logits(batch=1), r"the graph returned (1, 6, 24, 32) float32, "),
        (logits(classes=5), r"its card promises logits (2, 6, 24, 32) float32"),
        (logits(batch=0), "(0, 6, 24, 32) float32, empty"),
    ],
)
def test_another_shape_than_promised_is_an_error(conv_card: ModelCard, output: NDArray[Any], words: str) -> None:
    with pytest.raises(BackendError) as caught:
        run_checked(Returning(output), conv_card, BATCH)
    assert words in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.finfo(np.float32).max, np.finfo(np.float32).min])
def test_a_single_value_that_is_no_number_is_an_error(conv_card: ModelCard, bad: float) -> None:
    output = logits()
    output[1, 3, 5, 7] = bad
    with pytest.raises(BackendError, match="values that are no numbers"):
        run_checked(Returning(output), conv_card, BATCH)


def test_probabilities_become_logits_that_have_them(conv_card: ModelCard) -> None:
    card = dataclasses.replace(conv_card, head="probabilities", output_name="probabilities")
    powers = np.exp(logits())
    shares = powers / powers.sum(1, keepdims=True)
    returned = np.exp(run_checked(Returning(shares), card, BATCH))
    np.testing.assert_allclose(returned / returned.sum(1, keepdims=True), shares, rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_labels_come_in_one_type_whatever_the_engine_makes_of_them(labels_card: ModelCard, dtype: Any) -> None:
    labels = np.random.default_rng(0).integers(0, 6, (2, 24, 32))
    returned = run_checked(Returning(labels.astype(dtype)), labels_card, BATCH)
    assert returned.dtype == np.uint8
    np.testing.assert_array_equal(returned, labels)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda labels: labels + 0.5,
        lambda labels: labels - 3,
        lambda labels: labels * 2,
        lambda labels: labels + 256,
        lambda labels: labels[:1],
        lambda labels: labels[:, None],
    ],
)
def test_labels_that_are_no_classes_of_the_card_are_an_error(
    labels_card: ModelCard, spoil: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    labels = np.random.default_rng(0).integers(0, 6, (2, 24, 32)).astype(np.float32)
    with pytest.raises(BackendError, match="its card promises labels"):
        run_checked(Returning(spoil(labels)), labels_card, BATCH)
