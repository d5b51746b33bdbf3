import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from segship.runtime.card import Network
from segship.runtime.errors import CheckpointError, DatasetError, TrainingError
from segship.training.checkpoint import save_checkpoint
from segship.training.class_weights import median_frequency_weights
from segship.training.config import TrainConfig
from segship.training.data import DataOptions, open_dataset
from segship.training.loader import channel_statistics
from segship.training.losses import LossConfig
from segship.training.optimisation import OptimizerConfig, OptimizerName
from segship.training.progress import Progress
from segship.training.report import EpochRecord
from segship.training.setup import check_disk, check_kind, check_network, make_card, make_network, reopen, set_up

UNET = Network("unet", {"base_channels": 4})
QUIET = Progress()


class Listener(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stretches: list[tuple[str, int]] = []
        self.advanced: list[int] = []
        self.notes: list[str] = []

    def begin(self, what: str, steps: int) -> None:
        self.stretches.append((what, steps))
        self.advanced.append(0)

    def advance(self, loss: float | None = None) -> None:
        assert loss is None
        self.advanced[-1] += 1

    def record(self, record: EpochRecord, *, is_best: bool) -> None:
        raise AssertionError(f"no epoch is done: {record}, {is_best}")

    def note(self, text: str) -> None:
        self.notes.append(text)


def _config(tree: Path, **settings: Any) -> TrainConfig:
    return TrainConfig(**{"data": f"camvid:{tree}", "network": UNET, "batch_size": 2, **settings})


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """A folder of five pictures with black and white masks."""
    rng = np.random.default_rng(2)
    for name in ("images", "masks"):
        (tmp_path / "two" / name).mkdir(parents=True)
    for number in range(5):
        mask = np.kron(rng.integers(0, 2, (3, 4), np.uint8), np.full((8, 8), 255, np.uint8))
        picture = np.clip(mask[..., None] // 2 + rng.integers(0, 90, (24, 32, 3)), 0, 255).astype(np.uint8)
        PillowImage.fromarray(picture).save(tmp_path / f"two/images/{number}.png")
        PillowImage.fromarray(mask).save(tmp_path / f"two/masks/{number}.png")
    return tmp_path / "two"


def test_the_card_says_what_the_network_is_trained_on(index_tree: Path) -> None:
    config = _config(index_tree)
    setup = set_up(config, QUIET)
    card, train = setup.card, setup.split.train
    assert (card.class_names, card.palette) == (train.classes.names, train.classes.palette)
    form = card.preprocess
    assert (form.size, form.channels, form.depth, form.color_order) == ((32, 40), 3, "uint8", "RGB")
    assert (form.mean, form.std) == channel_statistics(train, None)
    assert (card.task, card.num_logits, card.ignore_index, card.head) == (
        "multiclass",
        len(train.classes),
        255,
        "logits",
    )
    assert card.tile_overlap is None
    assert card.network == UNET
    assert card.provenance.dataset == "camvid"
    assert card.provenance.versions["torch"] == torch.__version__
    assert (card.provenance.epoch, card.provenance.metrics) == (0, {})
    assert (setup.class_weights, setup.rarity, setup.cropper(config)) == (None, None, None)


def test_a_size_is_what_whole_pictures_are_brought_to_and_measured_at(index_tree: Path) -> None:
    setup = set_up(_config(index_tree, size=(16, 24)), QUIET)
    form = setup.card.preprocess
    assert form.size == (16, 24)
    assert (form.mean, form.std) == channel_statistics(setup.split.train, form)
    assert form.std != channel_statistics(setup.split.train, None)[1]
    assert setup.card.tile_overlap is None


def test_the_card_says_how_pictures_are_brought_to_size(index_tree: Path) -> None:
    config = _config(index_tree, size=(16, 48), resize="letterbox", fill=114)
    form = set_up(config, QUIET).card.preprocess
    assert (form.size, form.resize, form.fill) == ((16, 48), "letterbox", 114)


def test_a_validation_picture_that_cannot_be_padded_is_found_before_anything_is_trained(index_tree: Path) -> None:
    split = open_dataset(f"camvid:{index_tree}")
    name = Path(split.val[1].name).with_suffix(".png").name
    height, width = split.train[0].image.shape[:2]
    for folder in ("val", "valannot"):
        path = index_tree / folder / name
        PillowImage.open(path).resize((width, height + 1), PillowImage.Resampling.NEAREST).save(path)
    with pytest.raises(DatasetError, match=rf"{height + 1}×{width} pixels .* does not fit into the {height}×{width}"):
        set_up(_config(index_tree, resize="pad"), QUIET)


def test_a_run_on_crops_is_deployed_in_tiles_and_knows_what_is_rare(index_tree: Path) -> None:
    config = _config(index_tree, crop=(16, 24), rare_crops=0.25, tile_overlap=0.4)
    setup = set_up(config, QUIET)
    form = setup.card.preprocess
    assert (form.size, setup.card.tile_overlap) == ((16, 24), 0.4)
    assert (form.mean, form.std) == channel_statistics(setup.split.train, None)
    assert setup.class_weights is None
    assert setup.rarity == median_frequency_weights(setup.split.train)
    cropper = setup.cropper(config)
    assert cropper is not None
    assert (cropper.size, cropper.rare_share, tuple(cropper.rarity)) == ((16, 24), 0.25, setup.rarity)


@pytest.mark.parametrize("crop", [None, (16, 24)])
def test_class_weights_are_those_of_the_loss_not_those_that_crops_are_laid_by(
    index_tree: Path, crop: tuple[int, int] | None
) -> None:
    by_frequency = median_frequency_weights(open_dataset(f"camvid:{index_tree}").train)
    numbers = tuple(float(number) for number in range(1, len(by_frequency) + 1))
    for setting, weights in (
        ("none", None),
        ("auto", by_frequency),
        (",".join(map(str, numbers)), numbers),
    ):
        setup = set_up(_config(index_tree, crop=crop, loss=LossConfig(class_weights=setting)), QUIET)
        assert setup.class_weights == weights
        assert setup.rarity == (by_frequency if crop else None)


def test_a_loss_on_one_logit_makes_a_binary_network_of_two_classes(two_classes: Path) -> None:
    config = TrainConfig(f"folder:{two_classes}", UNET, batch_size=2, loss=LossConfig("bce+dice"))
    card = set_up(config, QUIET).card
    assert (card.task, card.num_logits, card.num_classes) == ("binary", 1, 2)
    network = make_network(config, card, QUIET).eval()
    assert network(torch.zeros(1, 3, 24, 32))[0].shape == (1, 1, 24, 32)
    several = dataclasses.replace(config, loss=LossConfig("ce"))
    assert set_up(several, QUIET).card.task == "multiclass"


def test_a_loss_on_one_logit_is_refused_for_more_classes(index_tree: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss bce is for two classes, and camvid:.* has 11; take ce"):
        set_up(_config(index_tree, loss=LossConfig("bce")), QUIET)


def test_grey_16_bit_pictures_stay_so() -> None:
    config = TrainConfig("demo:grey16", UNET)
    split = open_dataset("demo:grey16")
    short = dataclasses.replace(split, train=_First(split.train, 3))
    form = make_card(config, short).preprocess
    assert (form.channels, form.depth, form.color_order, len(form.mean)) == (1, "uint16", "grey", 1)
    assert 0 < form.mean[0] < 1


class _First:
    """The first few samples of a dataset."""

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset, self.count = dataset, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def test_a_bad_validation_picture_is_found_before_anything_is_trained(index_tree: Path) -> None:
    mask = sorted((index_tree / "valannot").iterdir())[2]
    PillowImage.new("L", (40, 32), 99).save(mask)
    with pytest.raises(DatasetError, match=f"{mask.stem}.*label id 99 is outside the classes"):
        set_up(_config(index_tree), QUIET)


@pytest.mark.parametrize(("crop", "weights"), [(None, "none"), (None, "auto"), ((16, 24), "none"), ((16, 24), "auto")])
def test_every_stretch_of_work_is_announced_with_its_length(
    index_tree: Path, crop: tuple[int, int] | None, weights: str
) -> None:
    listener = Listener()
    set_up(_config(index_tree, crop=crop, loss=LossConfig(class_weights=weights)), listener)
    assert listener.advanced == [steps for _, steps in listener.stretches]
    assert listener.stretches[0] == ("reading the validation pictures", 3)
    counts = crop is not None or weights == "auto"
    assert listener.stretches[1:] == ([("counting classes", 6)] if counts else [])


@pytest.mark.parametrize(("arch", "side"), [("unet", 16), ("u2netp", 32), ("fastscnn", 64), ("bisenetv2", 64)])
def test_a_batch_that_leaves_a_batch_normalisation_one_value_is_refused(index_tree: Path, arch: str, side: int) -> None:
    card = set_up(_config(index_tree, size=(side, side)), QUIET).card
    config = _config(index_tree, network=Network(arch))
    words = f"a batch of 1 of {side}×{side} pixels leaves a batch normalisation of {arch} a single value; take a larger"
    with pytest.raises(TrainingError, match=words):
        check_network(config, card, 1)
    check_network(config, card, 2)


def test_set_up_counts_no_more_pictures_into_a_batch_than_there_are(
    write_camvid: Callable[..., Path], tmp_path: Path
) -> None:
    tree = write_camvid(tmp_path / "one", train=1, size=(16, 16))
    with pytest.raises(TrainingError, match="a batch of 1 of 16×16 pixels leaves"):
        set_up(_config(tree, batch_size=8), QUIET)


def test_output_weights_are_one_for_each_output_in_training(index_tree: Path) -> None:
    card = set_up(_config(index_tree), QUIET).card
    config = _config(index_tree, network=Network("fastscnn"), loss=LossConfig(output_weights=(1, 0.4)))
    with pytest.raises(
        TrainingError, match=r"loss\.output_weights has 2 values, and fastscnn has 3 outputs in training"
    ):
        check_network(config, card, 2)
    check_network(dataclasses.replace(config, loss=LossConfig(output_weights=(1, 0.4, 0.4))), card, 2)


def test_an_architecture_or_option_that_is_not_there_is_an_error(index_tree: Path) -> None:
    with pytest.raises(CheckpointError, match="no architecture is called 'vnet'"):
        set_up(_config(index_tree, network=Network("vnet")), QUIET)
    with pytest.raises(CheckpointError, match="cannot be built with"):
        set_up(_config(index_tree, network=Network("unet", {"depth": 9})), QUIET)


def test_the_seed_decides_the_weights(index_tree: Path) -> None:
    config = _config(index_tree)
    card = set_up(config, QUIET).card
    first, again, other = (
        make_network(dataclasses.replace(config, seed=seed), card, QUIET).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert any(not torch.equal(other[name], tensor) for name, tensor in first.items())


def test_the_largest_seed_that_a_configuration_can_name_is_one(index_tree: Path) -> None:
    config = _config(index_tree, seed=2**63 - 1)
    make_network(config, set_up(config, QUIET).card, QUIET)


def test_weights_to_start_from_are_loaded_and_reported(index_tree: Path, tmp_path: Path) -> None:
    config = _config(index_tree)
    card = set_up(config, QUIET).card
    start = make_network(dataclasses.replace(config, seed=9), card, QUIET)
    path = tmp_path / "start.safetensors"
    save_checkpoint(path, start, card)
    listener = Listener()
    network = make_network(dataclasses.replace(config, init=path), card, listener)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in start.state_dict().items())
    tensors = len(start.state_dict())
    assert listener.notes == [f"loaded {tensors} of {tensors} tensors"]


def test_a_run_goes_on_with_data_of_the_same_kind_only(index_tree: Path) -> None:
    config = _config(index_tree)
    card = set_up(config, QUIET).card
    assert len(reopen(config, card).train) == 6
    other = dataclasses.replace(card, class_names=("Sun", *card.class_names[1:]))
    with pytest.raises(
        DatasetError, match=r"the run knows the classes Sun, .*, and camvid:.* has Sky, .*expected the same"
    ):
        reopen(config, other)
    deeper = dataclasses.replace(card, preprocess=dataclasses.replace(card.preprocess, depth="uint16"))
    with pytest.raises(
        DatasetError, match=r"the run takes pictures of 3 channels and uint16, and those of camvid:.* have 3 and uint8"
    ):
        reopen(config, deeper)


def test_grey_data_is_not_taken_for_a_colour_network(index_tree: Path) -> None:
    card = set_up(_config(index_tree), QUIET).card
    grey = open_dataset("demo:grey8").val
    with pytest.raises(DatasetError, match="and those of demo:grey8 have 1 and uint8"):
        check_kind(
            grey,
            "demo:grey8",
            dataclasses.replace(card, class_names=grey.classes.names, palette=grey.classes.palette),
            "it",
        )


@pytest.mark.parametrize(
    ("name", "ema", "copies"), [("adamw", 0.0, 3), ("adam", 0.9, 4), ("sgd", 0.0, 2), ("sgd", 0.9, 3)]
)
def test_a_run_whose_states_do_not_fit_on_the_disk_is_refused(
    tmp_path: Path, name: OptimizerName, ema: float, copies: int
) -> None:
    network = torch.nn.Linear(10**4, 25)  # 1.0001 MB
    optimizer = OptimizerConfig(name=name, ema=ema)
    check_disk(tmp_path / "not/there/yet", network, optimizer, keep=2)
    needed = (10**12 + 1) * copies + 2
    with pytest.raises(
        TrainingError, match=r"the run needs (\d+) MB for its checkpoints, and .* has \d+ MB free"
    ) as caught:
        check_disk(tmp_path / "not/there/yet", network, optimizer, keep=10**12)
    assert int(str(caught.value).split()[3]) == pytest.approx(needed, rel=1e-3)
    assert f"and {tmp_path} has" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_options_of_the_data_reach_it(two_classes: Path) -> None:
    config = TrainConfig(f"folder:{two_classes}", UNET, DataOptions(val_fraction=0.6), batch_size=2)
    split = set_up(config, QUIET).split
    assert (len(split.train), len(split.val)) == (2, 3)
    assert len(reopen(config, set_up(config, QUIET).card).val) == 3
