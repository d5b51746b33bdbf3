import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segship.export.torch_backend import TorchBackend
from segship.runtime.errors import TrainingError
from segship.runtime.palettes import DEMO
from segship.runtime.preprocess import Depth, Resize
from segship.runtime.segmenter import Segmenter
from segship.training.checkpoint import load_checkpoint
from segship.training.data import Sample
from segship.training.metrics import ConfusionMatrix
from segship.training.validate import measure, predict_labels, predict_logits, validate

CPU = torch.device("cpu")


class Pictures:
    """Pictures of several sizes with random labels, void among them."""

    classes = DEMO
    channels = 3
    depth: Depth = "uint8"

    def __init__(self, photo: NDArray[np.uint8]) -> None:
        rng = np.random.default_rng(0)
        images = [photo, photo[:48, :64], photo[:31, 5:60]]
        labels = [rng.integers(0, len(DEMO), image.shape[:2], np.uint8) for image in images]
        for one in labels:
            one[:3] = 255
        self.samples = [Sample(str(i), image, one) for i, (image, one) in enumerate(zip(images, labels, strict=True))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def test_labels_and_logits_are_those_that_a_deployment_computes(
    tiny_checkpoint: Path, photo: NDArray[np.uint8]
) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    with Segmenter(tiny_checkpoint, backend="torch", device="cpu") as segmenter:
        result = segmenter(photo)
    assert len(np.unique(result.labels)) > 1
    np.testing.assert_array_equal(predict_logits(network, card, photo, CPU), result.logits)
    np.testing.assert_array_equal(predict_labels(network, card, photo, CPU), result.labels)
    assert result.labels.shape == photo.shape[:2]


@pytest.mark.parametrize("resize", ["letterbox", "pad"])
def test_what_is_added_around_a_picture_is_cut_off_as_in_a_deployment(
    tiny_checkpoint: Path, photo: NDArray[np.uint8], resize: Resize
) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    form = dataclasses.replace(card.preprocess, size=(96, 160), resize=resize, fill=114)
    card = dataclasses.replace(card, preprocess=form)
    with Segmenter("the checkpoint", backend=TorchBackend.of_network(network), card=card) as segmenter:
        result = segmenter(photo)
    logits = predict_logits(network, card, photo, CPU)
    assert logits.shape[1:] == ((96, 128) if resize == "letterbox" else photo.shape[:2])
    np.testing.assert_array_equal(predict_labels(network, card, photo, CPU), result.labels)
    with torch.inference_mode():
        whole = network(torch.from_numpy(form(photo)))[0][0].numpy()
    np.testing.assert_array_equal(logits, whole[:, *form.content(photo.shape)])


def test_scores_are_those_of_one_confusion_matrix_at_the_pictures_own_sizes(
    tiny_checkpoint: Path, photo: NDArray[np.uint8]
) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    dataset = Pictures(photo)
    matrix = ConfusionMatrix(card.num_classes, 255)
    with Segmenter(tiny_checkpoint, backend="torch", device="cpu") as segmenter:
        for sample in dataset.samples:
            matrix.add(sample.labels, segmenter(sample.image).labels)
    advanced: list[None] = []
    scores = validate(network, card, dataset, CPU, lambda: advanced.append(None))
    assert scores.summary() == matrix.scores().summary()
    assert len(advanced) == 3


@pytest.mark.parametrize("form", [{"threshold": 0.45}, {"tile_overlap": 0.5}, {"threshold": 0.45, "tile_overlap": 0.3}])
def test_binary_networks_and_networks_for_tiles_are_validated_as_they_are_deployed(
    make_checkpoint: Callable[..., Path], tmp_path: Path, photo: NDArray[np.uint8], form: dict[str, float]
) -> None:
    path = make_checkpoint(tmp_path / "form.safetensors", **form)
    network, card = load_checkpoint(path)
    with Segmenter(path, backend="torch", device="cpu") as segmenter:
        for picture in (photo, photo[:48, :64], photo[:31, 5:60]):
            result = segmenter(picture)
            np.testing.assert_array_equal(predict_logits(network, card, picture, CPU), result.logits)
            np.testing.assert_array_equal(predict_labels(network, card, picture, CPU), result.labels)
            assert len(np.unique(result.labels)) > 1


def test_parts_of_a_dataset_add_up_to_the_whole(tiny_checkpoint: Path, photo: NDArray[np.uint8]) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    dataset = Pictures(photo)
    whole = measure(network, card, dataset, CPU, lambda: None)
    advanced: list[None] = []
    parts = [
        measure(network, card, dataset, CPU, lambda: advanced.append(None), indices)
        for indices in (range(0, 3, 2), [1])
    ]
    np.testing.assert_array_equal(parts[0].counts + parts[1].counts, whole.counts)
    assert parts[1].counts.sum() == 45 * 64
    assert len(advanced) == 3
    assert validate(network, card, dataset, CPU, lambda: None).summary() == whole.scores().summary()


def test_a_network_in_training_is_measured_in_evaluation_mode_and_unchanged(
    tiny_checkpoint: Path, photo: NDArray[np.uint8]
) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    expected = validate(network, card, Pictures(photo), CPU, lambda: None)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = validate(network.train(), card, Pictures(photo), CPU, lambda: None)
    assert found.summary() == expected.summary()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_grey_16_bit_pictures_are_validated_in_their_own_depth(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_checkpoint(tmp_path / "grey.safetensors", channels=1, depth="uint16")
    network, card = load_checkpoint(path)
    picture = np.random.default_rng(0).integers(30_000, 31_000, (50, 70, 1), np.uint16)
    with Segmenter(path, backend="torch", device="cpu") as segmenter:
        expected = segmenter(picture).logits
    np.testing.assert_array_equal(predict_logits(network, card, picture, CPU), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_returns_no_numbers_is_an_error_not_a_score(
    tiny_checkpoint: Path, photo: NDArray[np.uint8], value: float
) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    with torch.no_grad():
        network.get_submodule("down1.0").get_parameter("bias")[0] = value
    with pytest.raises(TrainingError, match=r"no numbers \(NaN or infinite\).*lower --lr"):
        validate(network, card, Pictures(photo), CPU, lambda: None)
