import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segship.export.wrapper import deployable
from segship.runtime.card import ModelCard
from segship.runtime.labels import labels_from_logits, probabilities_from_logits
from segship.runtime.preprocess import FULL_SCALE, ColorOrder, Depth, Preprocess, Scale

SIZE = (12, 16)


class Spread(nn.Module):
    """As many logits as wanted, each another mixture of the picture's channels; then an output for training."""

    def __init__(self, num_logits: int, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(channels, num_logits, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.drop(self.mix(x)), x


def card_of(num_classes: int = 5, **changes: Any) -> ModelCard:
    form = {name: changes.pop(name) for name in list(changes) if name in Preprocess.__dataclass_fields__}
    if form.get("color_order") == "grey":
        form |= {"channels": 1, "mean": (0.4,), "std": (0.2,)}
    preprocess = dataclasses.replace(Preprocess(SIZE, mean=(0.4, 0.45, 0.5), std=(0.2, 0.21, 0.22)), **form)
    names = tuple(f"class {number}" for number in range(num_classes))
    head = changes.get("head", "logits")
    return ModelCard(names, ((0, 0, 0),) * num_classes, preprocess, ignore_index=65535, output_name=head, **changes)


def pictures(card: ModelCard, count: int = 2) -> list[NDArray[Any]]:
    """Noise of another brightness each."""
    form = card.preprocess
    height, width = card.frame or form.size
    tops = [FULL_SCALE[form.depth] // (2 * number + 1) for number in range(count)]
    noise = np.random.default_rng(3)
    return [noise.integers(0, top, (height, width, form.channels), form.depth, endpoint=True) for top in tops]


def logits_of(network: nn.Module, card: ModelCard, image: NDArray[Any]) -> NDArray[np.float32]:
    """The road of the runtime: geometry and normalisation in numpy, then the network alone."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = network.eval()(torch.from_numpy(card.preprocess(image)))[0].numpy()
    return logits[0]


def run(network: nn.Module, card: ModelCard, images: list[NDArray[Any]]) -> NDArray[Any]:
    with torch.inference_mode():
        result: NDArray[Any] = deployable(network, card)(torch.from_numpy(np.stack(images))).numpy()
    return result


@pytest.mark.parametrize(
    ("depth", "order", "scale"),
    list(itertools.product(["uint8", "uint16"], ["RGB", "BGR", "grey"], ["full_scale", "image_max"])),
)
def test_pixels_are_normalised_as_the_runtime_does_each_picture_for_itself(
    depth: Depth, order: ColorOrder, scale: Scale
) -> None:
    card = card_of(input_form="pixels", dynamic=("batch",), depth=depth, color_order=order, scale=scale)
    network = Spread(5, card.preprocess.channels)
    images = [*pictures(card), np.zeros_like(pictures(card)[0])]
    expected = np.stack([logits_of(network, card, image) for image in images])
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(run(network, card, images), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", ["full_scale", "image_max"])
@pytest.mark.parametrize("frame", [(20, 30), (9, 10), SIZE, (20, 16)])
def test_frames_are_resized_in_float_before_they_are_normalised_and_logits_come_back_to_their_size(
    frame: tuple[int, int], scale: Scale
) -> None:
    card = card_of(input_form="pixels", frame=frame, interpolation="linear_float", scale=scale)
    network = Spread(5)
    for image in pictures(card):
        logits = logits_of(network, card, image)
        probabilities = probabilities_from_logits(logits, frame, card)
        likely = run(network, dataclasses.replace(card, head="probabilities"), [image])
        np.testing.assert_allclose(likely[0], probabilities, rtol=1e-3, atol=1e-4)
        labels = run(network, dataclasses.replace(card, head="labels"), [image])
        assert labels.dtype == np.uint8
        assert (labels[0] == labels_from_logits(logits, frame, card)).mean() > 0.99


def test_an_almost_black_frame_is_scaled_by_the_maximum_that_is_left_after_resizing() -> None:
    card = card_of(input_form="pixels", frame=(24, 32), interpolation="linear_float", scale="image_max")
    network = Spread(5)
    image = np.zeros((24, 32, 3), np.uint8)
    image[7, 9] = 1
    assert 0 < card.preprocess.geometry(image).max() < 1
    labels = run(network, dataclasses.replace(card, head="labels"), [image])[0]
    np.testing.assert_array_equal(labels, labels_from_logits(logits_of(network, card, image), (24, 32), card))


def test_only_the_main_logits_come_out_and_nothing_drops_out() -> None:
    card, network = card_of(), Spread(5).train()
    image = torch.randn(1, 3, *SIZE)
    module = deployable(network, card)
    with torch.inference_mode():
        assert torch.equal(module(image), network.mix(image))
        assert torch.equal(deployable(network.mix, card)(image), network.mix(image))  # one that returns logits alone


@pytest.mark.parametrize("num_classes", [1, 2, 41, 256, 257])
def test_labels_are_the_class_that_wins(num_classes: int) -> None:
    card, network = card_of(num_classes, head="labels"), Spread(num_classes)
    image = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        labels = deployable(network, card)(image)
        expected = labels_from_logits(network.mix(image)[0].numpy(), SIZE, card)
    np.testing.assert_array_equal(labels[0].numpy(), expected)
    assert labels.dtype == (torch.uint8 if num_classes <= 256 else torch.int32)


def test_of_equal_logits_the_lowest_class_wins() -> None:
    card = card_of(3, head="labels")
    labels = deployable(nn.Identity(), card)(torch.zeros(1, 3, *SIZE))
    assert not labels.any()


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_a_binary_network_has_one_probability_and_labels_by_its_threshold(threshold: float) -> None:
    card = card_of(2, task="binary", threshold=threshold)
    network = Spread(1)
    image = 9 * torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        logits = network.mix(image)
        likely = deployable(network, dataclasses.replace(card, head="probabilities"))(image)
        labels = deployable(network, dataclasses.replace(card, head="labels"))(image)
    assert likely.shape == (1, 1, *SIZE)
    torch.testing.assert_close(likely, logits.sigmoid())
    assert labels.dtype == torch.uint8
    np.testing.assert_array_equal(labels[0].numpy(), labels_from_logits(logits[0].numpy(), SIZE, card))
    assert 0 < labels.float().mean() < 1


def test_only_the_stages_that_the_card_asks_for_are_there() -> None:
    def stages(**changes: Any) -> list[str]:
        return [name for name, _ in deployable(Spread(5), card_of(**changes)).named_children()]

    pixels = {"input_form": "pixels"}
    assert stages() == ["network"]
    assert stages(head="labels") == ["network", "head"]
    assert stages(**pixels) == ["planes", "normalise", "network"]
    assert stages(**pixels, frame=(9, 9), head="labels") == [
        "planes",
        "resize",
        "normalise",
        "network",
        "upscale",
        "head",
    ]
    assert stages(**pixels, frame=SIZE) == ["planes", "normalise", "network"]
