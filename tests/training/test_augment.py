import colorsys
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from segship.runtime.card import ModelCard, Network
from segship.runtime.errors import MissingExtraError, TrainingError
from segship.runtime.preprocess import FULL_SCALE, Depth, Preprocess
from segship.training.augment import PRESETS, Augmentation, AugmentConfig, draw
from segship.training.augment_preview import draw_preview
from segship.training.config import TrainConfig
from segship.training.data import Split
from segship.training.data.demo import Demo
from segship.training.setup import Setup

VOID = 255
STILL = PRESETS["none"]
FORMS: list[tuple[int, Depth]] = [(3, "uint8"), (1, "uint8"), (1, "uint16"), (3, "uint16")]


def _augmentation(config: AugmentConfig, channels: int = 3, depth: Depth = "uint8") -> Augmentation:
    return Augmentation(config, depth=depth, ignore_index=VOID, fill=(0.5, 0.25, 0.75)[:channels])


def _seeds(count: int, epoch: int = 1) -> list[tuple[int, ...]]:
    return [(7, epoch, index) for index in range(count)]


def _noisy_batch(count: int = 4, channels: int = 3, depth: Depth = "uint8") -> tuple[Tensor, Tensor]:
    """Pictures and masks of pure chance, both sides odd."""
    random = torch.Generator().manual_seed(3)
    kept_as = torch.uint8 if depth == "uint8" else torch.int32
    pixels = torch.randint(0, FULL_SCALE[depth] + 1, (count, channels, 37, 45), generator=random, dtype=kept_as)
    return pixels, torch.randint(0, 12, (count, 37, 45), generator=random, dtype=torch.uint8)


def _ramp(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """16-bit pictures that hold 100 times their column, and masks of class 0."""
    pixels = (100 * torch.arange(width, dtype=torch.int32)).expand(count, 1, height, width)
    return pixels, torch.zeros(count, height, width, dtype=torch.uint8)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(flip=0.5, flip_vertical=0.5),
        replace(STILL, scale=(0.5, 0.9)),
        replace(STILL, scale=(1.1, 2.5)),
        replace(STILL, rotation=180.0),
        replace(STILL, elastic=6.0),
        AugmentConfig(flip=0.5, flip_vertical=0.5, scale=(0.6, 2.0), rotation=45.0, elastic=3.0),
    ],
    ids=["flips", "smaller", "larger", "rotation", "elastic", "all"],
)
def test_picture_and_mask_move_together_to_half_a_pixel(config: AugmentConfig) -> None:
    row, column = torch.meshgrid(torch.arange(90), torch.arange(120), indexing="ij")
    pixels = (100 * torch.stack((column, row, column + row))).int().expand(8, 3, 90, 120)
    for channel, place in enumerate((column, row)):
        labels = place.to(torch.uint8).expand(8, 90, 120)
        moved, moved_labels = _augmentation(config, 3, "uint16")(pixels, labels, _seeds(8))
        assert not torch.equal(moved_labels, labels)
        reached = moved_labels != VOID
        assert reached.float().mean() > 0.2
        apart = moved[:, channel][reached] / 100 - moved_labels[reached].float()
        assert apart.abs().max() <= 0.501


def test_void_and_the_fill_are_where_the_picture_does_not_reach() -> None:
    pixels = torch.full((6, 3, 40, 60), 10, dtype=torch.uint8)
    labels = torch.full((6, 40, 60), 4, dtype=torch.uint8)
    pixels, labels = _augmentation(replace(STILL, scale=(0.5, 0.5), rotation=20.0))(pixels, labels, _seeds(6))
    void = labels == VOID
    assert (~void).sum(dim=(1, 2)).tolist() == pytest.approx([600] * 6, rel=0.05)
    assert (labels[~void] == 4).all()
    fill = torch.tensor([127.5, 63.75, 191.25])
    expected = torch.where(void[:, None], fill.view(1, 3, 1, 1), torch.tensor(10.0))
    torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=0)


def test_an_enlarged_picture_fills_the_frame_to_its_border() -> None:
    pixels = torch.full((20, 3, 12, 17), 10, dtype=torch.uint8)
    pixels, labels = _augmentation(replace(STILL, scale=(1.0, 3.0)))(pixels, pixels[:, 0], _seeds(20))
    assert (labels == 10).all()
    torch.testing.assert_close(pixels, torch.full_like(pixels, 10), atol=1e-4, rtol=0)


def test_a_picture_enlarged_by_two_shows_half_of_it_anywhere_in_it() -> None:
    pixels, _ = _augmentation(replace(STILL, scale=(2.0, 2.0)), 1, "uint16")(*_ramp(200, 4, 100), _seeds(200))
    columns = pixels[:, 0, 0] / 100
    torch.testing.assert_close(columns[:, 1:-1].diff(), torch.full((200, 97), 0.5), atol=1e-3, rtol=0)
    left = columns[:, 1]
    assert (left.min(), left.max()) == (pytest.approx(0.25, abs=1.5), pytest.approx(50.25, abs=1.5))
    assert left.mean() == pytest.approx(25.25, abs=4)


def test_elastic_deformation_moves_the_points_as_drawn() -> None:
    config = replace(STILL, elastic=5.0)
    pixels, _ = _augmentation(config, 1, "uint16")(*_ramp(3, 65, 129), _seeds(3))
    drawn = draw(config, _seeds(3)).elastic[:, 0, 1:-1, 1:-1]
    shift = pixels[:, 0, 16:49:16, 32:97:32] / 100 - torch.tensor([32, 64, 96])
    torch.testing.assert_close(shift, torch.from_numpy(drawn).float(), atol=0.01, rtol=0)
    assert 3 < np.abs(drawn).max() <= 5


def test_the_same_seeds_give_the_same_batch_and_others_another() -> None:
    augmentation = _augmentation(PRESETS["strong"])
    batch = _noisy_batch()
    pixels, labels = augmentation(*batch, _seeds(4))
    again, labels_again = _augmentation(PRESETS["strong"])(*batch, _seeds(4))
    assert torch.equal(pixels, again)
    assert torch.equal(labels, labels_again)
    other, other_labels = augmentation(*batch, _seeds(4, epoch=2))
    for index in range(4):
        assert not torch.equal(pixels[index], other[index])
        assert not torch.equal(labels[index], other_labels[index])


def test_the_global_generators_play_no_part() -> None:
    batch = _noisy_batch()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002  # the state is what is tested
    _augmentation(PRESETS["strong"])(*batch, _seeds(4))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("channels", "depth"), FORMS)
def test_a_sample_comes_out_the_same_alone_and_in_a_batch(preset: str, channels: int, depth: Depth) -> None:
    pixels, labels = _noisy_batch(4, channels, depth)
    augmentation = _augmentation(replace(PRESETS[preset], gamma=0.5 * (preset != "none"), blur=0.5), channels, depth)
    together, labels_together = augmentation(pixels, labels, _seeds(4))
    for index, seed in enumerate(_seeds(4)):
        alone, labels_alone = augmentation(pixels[index : index + 1], labels[index : index + 1], [seed])
        assert torch.equal(labels_alone[0], labels_together[index])
        torch.testing.assert_close(alone[0], together[index], atol=1e-5 * FULL_SCALE[depth], rtol=0)


@pytest.mark.parametrize(("config", "axis"), [(AugmentConfig(flip=1.0), 2), (replace(STILL, flip_vertical=1.0), 1)])
@pytest.mark.parametrize(("channels", "depth"), FORMS)
def test_mirroring_is_exact(config: AugmentConfig, axis: int, channels: int, depth: Depth) -> None:
    pixels, labels = _noisy_batch(2, channels, depth)
    mirrored, mirrored_labels = _augmentation(config, channels, depth)(pixels, labels, _seeds(2))
    assert torch.equal(mirrored, pixels.flip(axis + 1).float())
    assert torch.equal(mirrored_labels, labels.flip(axis))


def test_some_of_a_batch_are_mirrored_and_the_rest_left_as_they_are() -> None:
    pixels, labels = _noisy_batch(40)
    changed, changed_labels = _augmentation(AugmentConfig(flip=0.3))(pixels, labels, _seeds(40))
    mirrored = [torch.equal(after, before.flip(2).float()) for after, before in zip(changed, pixels, strict=True)]
    kept = [torch.equal(after, before.float()) for after, before in zip(changed, pixels, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 4 <= sum(mirrored) <= 20
    for index, is_mirrored in enumerate(mirrored):
        assert torch.equal(changed_labels[index], labels[index].flip(1) if is_mirrored else labels[index])


@pytest.mark.parametrize(("channels", "depth"), FORMS)
def test_the_preset_none_changes_nothing(channels: int, depth: Depth) -> None:
    pixels, labels = _noisy_batch(3, channels, depth)
    same, same_labels = _augmentation(STILL, channels, depth)(pixels, labels, _seeds(3))
    assert same.dtype == torch.float32
    assert torch.equal(same, pixels.float())
    assert torch.equal(same_labels, labels)


@pytest.mark.parametrize("preset", ["light", "strong"])
@pytest.mark.parametrize(("channels", "depth"), FORMS)
def test_presets_keep_form_and_range_and_leave_their_input_alone(preset: str, channels: int, depth: Depth) -> None:
    pixels, labels = _noisy_batch(4, channels, depth)
    before, labels_before = pixels.clone(), labels.clone()
    changed, changed_labels = _augmentation(PRESETS[preset], channels, depth)(pixels, labels, _seeds(4))
    assert (changed.dtype, changed.shape) == (torch.float32, pixels.shape)
    assert (changed_labels.dtype, changed_labels.shape) == (torch.uint8, labels.shape)
    assert 0 <= changed.min() < changed.max() <= FULL_SCALE[depth]
    assert changed.max() > 0.7 * FULL_SCALE[depth]
    assert set(changed_labels.unique().tolist()) <= {*range(12), VOID}
    assert torch.equal(pixels, before)
    assert torch.equal(labels, labels_before)


@pytest.mark.parametrize("depth", ["uint8", "uint16"])
def test_values_end_at_0_and_full_scale(depth: Depth) -> None:
    config = replace(STILL, brightness=1.0, contrast=1.0, noise=1.0)
    changed, _ = _augmentation(config, 3, depth)(*_noisy_batch(8, 3, depth), _seeds(8))
    assert (changed.min(), changed.max()) == (0, FULL_SCALE[depth])


@pytest.mark.parametrize("depth", ["uint8", "uint16"])
def test_brightness_multiplies_by_the_factor_drawn(depth: Depth) -> None:
    config = replace(STILL, brightness=0.3)
    pixels, labels = _noisy_batch(4, 3, depth)
    pixels = pixels // 2
    changed, _ = _augmentation(config, 3, depth)(pixels, labels, _seeds(4))
    factors = torch.from_numpy(draw(config, _seeds(4)).brightness).float()
    torch.testing.assert_close(changed, pixels * factors.view(-1, 1, 1, 1), atol=1e-6 * FULL_SCALE[depth], rtol=0)
    assert 0.05 < (factors - 1).abs().max() <= 0.3


def test_contrast_keeps_the_mean_and_multiplies_the_spread() -> None:
    config = replace(STILL, contrast=0.5)
    pixels, labels = _noisy_batch(4, 1)
    pixels = 100 + pixels // 8  # far from both ends
    changed, _ = _augmentation(config, 1)(pixels, labels, _seeds(4))
    before = pixels.float()
    torch.testing.assert_close(changed.mean((1, 2, 3)), before.mean((1, 2, 3)), atol=0.01, rtol=0)
    factors = torch.from_numpy(draw(config, _seeds(4)).contrast).float()
    torch.testing.assert_close(changed.std((1, 2, 3)), before.std((1, 2, 3)) * factors, atol=0.01, rtol=0)


def test_saturation_and_hue_change_colours_but_no_grey() -> None:
    config = replace(STILL, saturation=1.0, hue=180.0)
    pixels, labels = _noisy_batch()
    assert not torch.allclose(_augmentation(config)(pixels, labels, _seeds(4))[0], pixels.float(), atol=20)
    grey = pixels[:, :1]
    assert torch.equal(_augmentation(config, 1)(grey, labels, _seeds(4))[0], grey.float())
    grey_in_rgb = grey.expand(-1, 3, -1, -1)
    changed, _ = _augmentation(config)(grey_in_rgb, labels, _seeds(4))
    torch.testing.assert_close(changed, grey_in_rgb.float(), atol=0.1, rtol=0)


def test_hue_turns_the_colour_circle_by_the_angle_drawn() -> None:
    config = replace(STILL, hue=180.0)
    red = torch.tensor([200, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    changed, _ = _augmentation(config)(red, torch.zeros(1, 4, 4, dtype=torch.uint8), [(0, 1, 2)])
    turned = colorsys.hsv_to_rgb(draw(config, [(0, 1, 2)]).hue[0] / (2 * math.pi) % 1, 1, 200)
    assert changed[0, :, 0, 0].tolist() == pytest.approx(turned, abs=0.01)


def test_gamma_is_an_exponent_on_shares_of_full_scale() -> None:
    config = replace(STILL, gamma=1.0)
    pixels, labels = _noisy_batch(4)
    changed, _ = _augmentation(config)(pixels, labels, _seeds(4))
    exponents = torch.from_numpy(draw(config, _seeds(4)).gamma).float()
    assert 0.5 <= exponents.min() < 0.9 < 1.1 < exponents.max() <= 2
    torch.testing.assert_close(changed, 255 * (pixels / 255) ** exponents.view(-1, 1, 1, 1), atol=0.01, rtol=0)


def test_only_the_samples_that_drew_a_blur_are_blurred_and_each_by_its_own() -> None:
    config = replace(STILL, blur=0.5, blur_sigma=(0.8, 2.0))
    pixels = torch.zeros(12, 1, 31, 31, dtype=torch.uint8)
    peaks = torch.arange(120, 240, 10)
    pixels[:, 0, 15, 15] = peaks.to(torch.uint8)
    changed, labels = _augmentation(config, 1)(pixels, pixels[:, 0], _seeds(12))
    assert torch.equal(labels, pixels[:, 0])
    sigmas = draw(config, _seeds(12)).blur_sigma
    assert 2 < np.count_nonzero(sigmas) < 10
    squares = (torch.arange(31) - 15.0) ** 2
    variances = (changed[:, 0].sum(1) * squares).sum(1) / peaks
    torch.testing.assert_close(changed.sum((1, 2, 3)), peaks.float(), atol=0.01, rtol=0)
    assert variances.tolist() == pytest.approx(sigmas**2, rel=0.03)
    assert torch.equal(changed[sigmas == 0], pixels[sigmas == 0].float())
    assert sigmas[sigmas > 0].min() >= 0.8
    assert sigmas.max() <= 2


@pytest.mark.parametrize(("channels", "depth"), FORMS)
def test_noise_is_a_share_of_the_pictures_mean(channels: int, depth: Depth) -> None:
    config = replace(STILL, noise=0.2)
    levels = torch.tensor([0.1, 0.2, 0.4]) * FULL_SCALE[depth]
    pixels = levels.int().view(3, 1, 1, 1).expand(3, channels, 60, 60)
    labels = torch.zeros(3, 60, 60, dtype=torch.uint8)
    changed, labels = _augmentation(config, channels, depth)(pixels, labels, _seeds(3))
    noise = changed - pixels
    shares = torch.from_numpy(draw(config, _seeds(3)).noise).float()
    assert 0.02 < shares.max() <= 0.2
    torch.testing.assert_close(noise.std((1, 2, 3)), shares * pixels[:, 0, 0, 0], rtol=0.05, atol=0)
    assert (noise.mean((1, 2, 3)).abs() < 0.1 * noise.std((1, 2, 3))).all()
    assert (torch.corrcoef(noise.flatten(1)) - torch.eye(3)).abs().max() < 0.1
    assert not labels.any()


def test_draws_lie_in_their_ranges_evenly() -> None:
    config = AugmentConfig(flip=0.25, scale=(0.5, 2.0), rotation=30.0, hue=90.0, brightness=0.4)
    draws = draw(config, _seeds(2000))
    assert draws.flip.mean() == pytest.approx(0.25, abs=0.03)
    assert (draws.scale.min(), draws.scale.max()) == (pytest.approx(0.5, abs=0.01), pytest.approx(2.0, abs=0.01))
    assert np.median(draws.scale) == pytest.approx(1, abs=0.05)  # evenly over the logarithm
    assert np.abs(draws.rotation).max() == pytest.approx(math.pi / 6, abs=0.01)
    assert np.abs(draws.hue).max() == pytest.approx(math.pi / 2, abs=0.01)
    assert draws.rotation.mean() == pytest.approx(0, abs=0.02)
    assert (draws.brightness.min(), draws.brightness.max()) == pytest.approx((0.6, 1.4), abs=0.01)
    assert abs(np.corrcoef(draws.scale, draws.rotation)[0, 1]) < 0.1


def test_turning_one_knob_leaves_what_the_others_draw() -> None:
    before, after = draw(PRESETS["strong"], _seeds(8)), draw(replace(PRESETS["strong"], scale=(1.0, 1.0)), _seeds(8))
    assert not np.array_equal(before.scale, after.scale)
    for name in ("flip", "rotation", "elastic", "hue", "blur_sigma", "noise_seeds"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"flip": 1.5}, r"flip is 1\.5; expected a number in 0…1"),
        ({"flip": True}, r"flip is True; expected a number"),
        ({"rotation": -5.0}, r"rotation is -5\.0; expected a number in 0…180"),
        ({"noise": float("nan")}, r"noise is nan; expected"),
        ({"hue": "10"}, r"hue is '10'; expected"),
        ({"scale": (0.0, 1.0)}, r"scale is \(0\.0, 1\.0\); expected two numbers in 0\.1…10, the smaller first"),
        ({"scale": (2.0, 1.0)}, r"scale is \(2\.0, 1\.0\); .* the smaller first"),
        ({"scale": 1.5}, r"scale is 1\.5; expected two numbers"),
        ({"blur_sigma": (1.0,)}, r"blur_sigma is \(1\.0,\); expected two numbers"),
    ],
)
def test_a_knob_out_of_range_is_refused_by_name(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match="augmentation: " + message):
        AugmentConfig(**knobs)  # type: ignore[arg-type]  # what is tested


def test_a_batch_needs_a_seed_for_each_sample() -> None:
    with pytest.raises(ValueError, match="1 seeds for 4 samples"):
        _augmentation(STILL)(*_noisy_batch(4), _seeds(1))


def test_without_kornia_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(MissingExtraError, match=r"augmentation needs kornia.*pip install \"segship\[train\]\""):
        _augmentation(STILL)


def _card(channels: int, depth: Depth, *, order: str = "RGB") -> ModelCard:
    preprocess = Preprocess(
        (128, 160),
        channels,
        depth,
        color_order="grey" if channels == 1 else order,  # type: ignore[arg-type]
        mean=(0.1, 0.2, 0.3)[:channels],
        std=(1.0,) * channels,
    )
    return ModelCard(Demo.classes.names, Demo.classes.palette, preprocess, ignore_index=VOID)


def test_the_fill_of_a_card_is_its_mean_in_red_green_blue_order() -> None:
    assert Augmentation.for_card(STILL, _card(3, "uint8")).fill == (0.1, 0.2, 0.3)
    assert Augmentation.for_card(STILL, _card(3, "uint8", order="BGR")).fill == (0.3, 0.2, 0.1)
    assert Augmentation.for_card(STILL, _card(1, "uint16")).full_scale == 65535


def _sheet(path: Path, card: ModelCard, **knobs: Any) -> NDArray[np.uint8]:
    dataset = Demo("train", 9, channels=card.preprocess.channels, depth=card.preprocess.depth, seed=0)
    rarity = (1.0,) * card.num_classes
    config = TrainConfig(data="demo", network=Network("unet"), **knobs)
    draw_preview(path, config, Setup(Split(dataset, dataset), card, None, rarity))
    return np.asarray(PillowImage.open(path))


@pytest.mark.parametrize(("channels", "depth"), [(3, "uint8"), (1, "uint16")])
def test_the_preview_shows_photo_truth_and_three_epochs(channels: int, depth: Depth, tmp_path: Path) -> None:
    sheets: dict[str, list[NDArray[np.uint8]]] = {}
    for preset in ("none", "strong"):
        sheet = _sheet(tmp_path / "sheet.png", _card(channels, depth), augment=PRESETS[preset])
        assert sheet.shape == (24 + 4 * 184, 8 * (225 + 4), 3)
        sheets[preset] = np.split(sheet[24:], 8, axis=1)
    photo, _, *epochs = sheets["none"]
    for epoch in epochs[::2]:
        np.testing.assert_array_equal(epoch, photo)
    photo, _, *epochs = sheets["strong"]
    for index, epoch in enumerate(epochs):
        assert not np.array_equal(epoch, photo)
        assert not np.array_equal(epoch, epochs[index - 2])


def test_the_preview_of_a_run_on_crops_shows_crops(tmp_path: Path) -> None:
    sheet = _sheet(tmp_path / "sheet.png", _card(3, "uint8"), augment=PRESETS["none"], crop=(60, 40))
    assert sheet.shape == (24 + 4 * 184, 2 * (225 + 4) + 6 * (120 + 4), 3)
