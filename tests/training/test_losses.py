import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segship.runtime.errors import TrainingError
from segship.training.losses import LossConfig, SegmentationLoss, hard_pixels, parse_terms

VOID = 255
CLASSES = 3
WEIGHTS = (0.5, 2.0, 1.5)
LOG_4 = math.log(4)

CONFIGS = {
    "ce": LossConfig("ce"),
    "ce, smoothed": LossConfig("ce", label_smoothing=0.1),
    "ce, hard pixels": LossConfig("ce", ohem=0.05, ohem_min_share=0.3),  # few are as hard: the share decides
    "dice": LossConfig("dice"),
    "focal": LossConfig("focal"),
    "ce+0.5*dice+2*focal, hard pixels": LossConfig("ce+0.5*dice+2*focal", ohem=0.3, ohem_min_share=0.2),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
weighted_or_not = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Logits (4, 3, 6, 5) that take gradients, and labels of which some are void, most in the first picture."""
    return _batch(3)


def _batch(seed: int, channels: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4, channels, 6, 5, generator=generator)
    labels = torch.randint(0, max(2, channels), (4, 6, 5), generator=generator)
    labels[0, :4] = VOID
    labels[1:][torch.rand(3, 6, 5, generator=generator) < 0.2] = VOID
    return logits.requires_grad_(), labels


def _loss(
    config: LossConfig | str, weights: tuple[float, ...] | None = None, num_classes: int = CLASSES
) -> SegmentationLoss:
    config = LossConfig(config) if isinstance(config, str) else config
    return SegmentationLoss(config, num_classes=num_classes, ignore_index=VOID, class_weights=weights)


def _value_and_gradient(loss: SegmentationLoss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    value = loss([logits], labels)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def _reference(config: LossConfig, weights: tuple[float, ...], logits: Tensor, labels: Tensor) -> float:
    """The loss as its papers write it, in float64, pixel by pixel."""
    z, y = logits.detach().double().numpy(), labels.numpy()
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    log_p = np.log(p)
    sums, normaliser = dict.fromkeys(("ce", "focal"), 0.0), 0.0
    for n in range(len(y)):
        pixels = [(h, w) for h, w in np.ndindex(*y[n].shape) if y[n, h, w] != VOID]
        chances = {(h, w): p[n, y[n, h, w], h, w] for h, w in pixels}
        if config.ohem:
            ranked = sorted(pixels, key=lambda pixel: chances[pixel])
            at_least = math.ceil(config.ohem_min_share * len(pixels))
            pixels = [pixel for i, pixel in enumerate(ranked) if i < at_least or chances[pixel] < config.ohem]
        for h, w in pixels:
            weight, one = weights[y[n, h, w]], chances[h, w]
            smooth = config.label_smoothing
            sums["ce"] -= weight * ((1 - smooth) * np.log(one) + smooth * log_p[n, :, h, w].mean())
            sums["focal"] -= weight * (1 - one) ** config.focal_gamma * np.log(one)
            normaliser += weight
    values = {term: value / normaliser for term, value in sums.items()} | {"dice": _dice(p, y)}
    return sum(weight * values[term] for term, weight in parse_terms(config.terms).items())


def _dice(p: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    losses = []
    for c in range(p.shape[1]):
        truth, predicted = (y == c).astype(float), np.where(y == VOID, 0, p[:, c])
        if truth.any():
            losses.append(1 - 2 * (truth * predicted).sum() / (truth.sum() + predicted.sum()))
    return float(np.mean(losses))


class TestTerms:
    @pytest.mark.parametrize(
        ("text", "terms"),
        [
            ("ce", {"ce": 1}),
            ("ce+dice", {"ce": 1, "dice": 1}),
            ("ce+0.5*dice", {"ce": 1, "dice": 0.5}),
            (" 2 * bce + 1e-1*focal ", {"bce": 2, "focal": 0.1}),
        ],
    )
    def test_a_sum_of_terms_gives_the_weight_of_each(self, text: str, terms: dict[str, float]) -> None:
        assert parse_terms(text) == terms

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("lovasz", "'lovasz' has no known term in 'lovasz'; known are ce, bce, focal, dice"),
            ("ce+", "'ce\\+' has no known term in ''"),
            ("", "'' has no known term"),
            ("dice*0.5", "no known term in 'dice\\*0.5'"),
            ("ce+ce", "has ce twice"),
            ("half*dice", "has the weight 'half'; expected a number above 0, as in 0.5\\*dice"),
            ("*dice", "has the weight ''"),
            ("0*dice", "has the weight '0'"),
            ("-1*dice", "has the weight '-1'"),
            ("nan*ce", "has the weight 'nan'"),
            ("inf*ce", "has the weight 'inf'"),
        ],
    )
    def test_what_is_no_sum_of_terms_is_refused(self, text: str, words: str) -> None:
        with pytest.raises(TrainingError, match=words):
            LossConfig(text)

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ({"ohem": 1.5}, "ohem is 1.5; expected a probability"),
            ({"ohem": math.nan}, "ohem is nan"),
            ({"ohem_min_share": 0.0}, "ohem_min_share is 0.0; expected a share above 0"),
            ({"focal_gamma": -1.0}, "focal_gamma is -1.0"),
            ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
            ({"output_weights": (1.0, -0.4)}, "output_weights is .1.0, -0.4.; expected numbers of 0 or more"),
            ({"output_weights": (0.0, 0.0)}, "not all 0"),
            ({"terms": "dice", "ohem": 0.7}, "ohem has no effect on the loss dice; it is for ce, bce, focal"),
            ({"terms": "dice", "class_weights": "auto"}, "class_weights has no effect on the loss dice"),
            ({"terms": "focal+dice", "label_smoothing": 0.1}, "label_smoothing has no effect on the loss focal.dice"),
        ],
    )
    def test_settings_out_of_range_or_without_effect_are_refused(self, setting: dict[str, object], words: str) -> None:
        with pytest.raises(TrainingError, match=words):
            replace(LossConfig(), **setting)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("terms", "num_classes", "weights", "words"),
        [
            ("ce", 1, None, "ce is for several channels, the network has one; take bce"),
            ("bce+dice", 2, None, "bce is for one channel, the network has 2; take ce"),
            ("ce", 3, (1.0, 2.0), "class weights are .1.0, 2.0.; expected one for each of 3 classes"),
            ("bce", 1, (1.0,), "expected one for each of 2 classes"),
        ],
    )
    def test_terms_and_weights_that_do_not_fit_the_network_are_refused(
        self, terms: str, num_classes: int, weights: tuple[float, ...] | None, words: str
    ) -> None:
        with pytest.raises(TrainingError, match=words):
            _loss(terms, weights, num_classes)


class TestValues:
    @pytest.mark.parametrize(
        ("terms", "value"),
        [
            ("ce", LOG_4),
            ("focal", (3 / 4) ** 2 * LOG_4),
            (
                "dice",
                (5 / 8 + 3 / 4) / 2,
            ),  # 1 − 2·1.5/(2 + 6) for the six pixels of 0, 1 − 2·0.5/(2 + 2) for the two of 1
            ("ce+0.5*dice", LOG_4 + (5 / 8 + 3 / 4) / 4),
        ],
    )
    def test_even_logits_of_four_classes_give_what_one_computes_by_hand(self, terms: str, value: float) -> None:
        labels = torch.tensor([[[0, 0, 0, 0, 0], [0, VOID, 1, 1, VOID]]])
        loss = _loss(terms, num_classes=4)([torch.full((1, 4, 2, 5), 7.0)], labels)
        assert loss.item() == pytest.approx(value, rel=1e-6)

    @pytest.mark.parametrize(
        ("terms", "value"),
        [
            ("bce", LOG_4 / 2),
            ("focal", LOG_4 / 8),
            ("dice", (2 / 5 + 2 / 3) / 2),  # 1 − 2·3/(4 + 6) for the six pixels of 0, 1 − 2·1/(4 + 2) for the two of 1
        ],
    )
    def test_a_single_logit_of_zero_gives_what_one_computes_by_hand(self, terms: str, value: float) -> None:
        labels = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 1]]])
        loss = _loss(terms, num_classes=1)([torch.zeros(1, 1, 1, 8)], labels)
        assert loss.item() == pytest.approx(value, rel=1e-6)

    @every_config
    @weighted_or_not
    @settings(max_examples=10, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_it_is_what_the_papers_write(
        self, config: LossConfig, weights: tuple[float, ...] | None, seed: int
    ) -> None:
        logits, labels = _batch(seed)
        value = _loss(config, weights)([logits], labels).item()
        assert value == pytest.approx(_reference(config, weights or (1, 1, 1), logits, labels), rel=1e-4)

    @weighted_or_not
    def test_ce_is_what_pytorch_computes(self, batch: tuple[Tensor, Tensor], weights: tuple[float, ...] | None) -> None:
        logits, labels = batch
        value, gradient = _value_and_gradient(_loss("ce", weights), logits, labels)
        expected = F.cross_entropy(logits, labels, torch.tensor(weights) if weights else None, ignore_index=VOID)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])

    @pytest.mark.parametrize("terms", ["bce", "bce+dice", "focal", "dice"])
    @pytest.mark.parametrize("weights", [None, (0.5, 3.0)])
    def test_a_network_of_one_channel_is_one_of_two_with_the_first_at_zero(
        self, terms: str, weights: tuple[float, ...] | None
    ) -> None:
        logits, labels = _batch(5, channels=1)
        value, gradient = _value_and_gradient(_loss(terms, weights, 1), logits, labels)
        expected = _loss(terms.replace("bce", "ce"), weights, 2)([F.pad(logits, (0, 0, 0, 0, 1, 0))], labels)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])

    def test_bce_is_what_pytorch_computes(self) -> None:
        logits, labels = _batch(5, channels=1)
        valid = labels != VOID
        expected = F.binary_cross_entropy_with_logits(logits[:, 0][valid], labels[valid].float())
        torch.testing.assert_close(_loss("bce", None, 1)([logits], labels), expected)

    def test_only_the_ratios_of_class_weights_matter(self, batch: tuple[Tensor, Tensor]) -> None:
        tiny = tuple(weight * 1e-6 for weight in WEIGHTS)
        torch.testing.assert_close(
            _value_and_gradient(_loss("ce+focal", tiny), *batch),
            _value_and_gradient(_loss("ce+focal", WEIGHTS), *batch),
        )

    def test_focal_with_gamma_0_is_ce(self, batch: tuple[Tensor, Tensor]) -> None:
        value, gradient = _value_and_gradient(_loss(LossConfig("focal", focal_gamma=0), WEIGHTS), *batch)
        expected, expected_gradient = _value_and_gradient(_loss("ce", WEIGHTS), *batch)
        torch.testing.assert_close((value, gradient), (expected, expected_gradient))

    def test_dice_leaves_out_the_classes_that_the_truth_lacks(self) -> None:
        logits = torch.tensor([10.0, -10.0, 0.0]).log_softmax(0).view(1, 3, 1, 1).expand(1, 3, 2, 2)
        labels = torch.tensor([[[0, 0], [0, VOID]]])
        probability = logits[0, 0, 0, 0].exp().item()
        expected = 1 - 2 * 3 * probability / (3 * probability + 3)
        assert _loss("dice")([logits], labels).item() == pytest.approx(expected, abs=1e-6)

    def test_outputs_are_summed_with_their_weights(self, batch: tuple[Tensor, Tensor]) -> None:
        logits, labels = batch
        outputs = [logits, logits * 0.5, -logits]
        for terms in ("ce+dice", "focal"):
            alone = [_loss(terms)([output], labels).item() for output in outputs]
            assert _loss(terms)(outputs, labels).item() == pytest.approx(sum(alone), rel=1e-6)
            weighted = _loss(LossConfig(terms, output_weights=(1.0, 0.4, 0.0)))(outputs, labels).item()
            assert weighted == pytest.approx(alone[0] + 0.4 * alone[1], rel=1e-6)

    def test_output_weights_of_another_number_than_the_outputs_are_refused(self, batch: tuple[Tensor, Tensor]) -> None:
        logits, labels = batch
        with pytest.raises(
            TrainingError,
            match=r"output_weights is \(1.0, 0.4\); expected one for each output of the network, in all 1",
        ):
            _loss(LossConfig(output_weights=(1.0, 0.4)))([logits], labels)


class TestVoid:
    @every_config
    @weighted_or_not
    def test_void_pixels_change_neither_value_nor_gradient(
        self, batch: tuple[Tensor, Tensor], config: LossConfig, weights: tuple[float, ...] | None
    ) -> None:
        logits, labels = batch
        void = (labels == VOID).unsqueeze(1).expand_as(logits)
        value, gradient = _value_and_gradient(_loss(config, weights), logits, labels)
        assert (gradient[void] == 0).all()
        assert (gradient[~void] != 0).any()
        noise = 50 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(8))
        elsewhere = torch.where(void, noise, logits.detach()).requires_grad_()
        other_value, other_gradient = _value_and_gradient(_loss(config, weights), elsewhere, labels)
        assert torch.equal(other_value, value)
        assert torch.equal(other_gradient, gradient)

    @every_config
    def test_nothing_but_void_gives_zero_with_zero_gradient(
        self, batch: tuple[Tensor, Tensor], config: LossConfig
    ) -> None:
        logits, labels = batch
        value, gradient = _value_and_gradient(_loss(config, WEIGHTS), logits, torch.full_like(labels, VOID))
        assert value == 0
        assert torch.equal(gradient, torch.zeros_like(logits))

    @every_config
    def test_pixels_of_a_class_with_weight_0_are_void(self, batch: tuple[Tensor, Tensor], config: LossConfig) -> None:
        logits, labels = batch
        without = labels.masked_fill(labels == 1, VOID)
        expected = _value_and_gradient(_loss(config, (0.5, 9.0, 1.5)), logits, without)
        torch.testing.assert_close(_value_and_gradient(_loss(config, (0.5, 0.0, 1.5)), logits, labels), expected)

    @pytest.mark.parametrize(("ignore_index", "dtype"), [(255, torch.uint8), (-100, torch.int64), (1000, torch.int32)])
    def test_any_ignore_index_and_integer_type_will_do(
        self, batch: tuple[Tensor, Tensor], ignore_index: int, dtype: torch.dtype
    ) -> None:
        logits, labels = batch
        expected = _loss("ce+dice", WEIGHTS)([logits], labels)
        loss = SegmentationLoss(
            LossConfig("ce+dice"), num_classes=CLASSES, ignore_index=ignore_index, class_weights=WEIGHTS
        )
        assert torch.equal(loss([logits], labels.masked_fill(labels == VOID, ignore_index).to(dtype)), expected)


class TestNumbers:
    @every_config
    def test_bf16_logits_are_computed_with_in_float32_also_under_autocast(
        self, batch: tuple[Tensor, Tensor], config: LossConfig
    ) -> None:
        logits, labels = batch
        rounded = logits.detach().bfloat16()
        loss = _loss(config, WEIGHTS)
        expected = loss([rounded.float()], labels)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss([rounded], labels)
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
    def test_logits_far_out_give_finite_losses_and_gradients(self, channels: int, gamma: float) -> None:
        logits, labels = _batch(4, channels)
        logits = (1e4 * logits.detach().sign()).requires_grad_()
        cross_entropy = "bce" if channels == 1 else "ce"
        for terms in (cross_entropy, "dice", "focal"):
            loss = _loss(LossConfig(terms, focal_gamma=gamma), num_classes=channels)
            value, gradient = _value_and_gradient(loss, logits, labels)
            assert value.isfinite()
            assert gradient.isfinite().all()

    @every_config
    def test_a_step_against_the_gradient_lowers_it_as_far_as_the_gradient_says(
        self, batch: tuple[Tensor, Tensor], config: LossConfig
    ) -> None:
        logits, labels = batch
        loss = _loss(replace(config, ohem=min(config.ohem, 1e-6)), WEIGHTS)  # or the choice of pixels may change
        value, gradient = _value_and_gradient(loss, logits, labels)
        step = 1e-2 / float(gradient.norm())
        lowered = loss([logits.detach() - step * gradient], labels)
        assert (value - lowered).item() == pytest.approx(step * float(gradient.square().sum()), rel=0.02)


class TestHardPixels:
    def test_those_below_the_probability_are_chosen_where_they_are_enough(self) -> None:
        probability = torch.tensor([[[0.1, 0.69, 0.71, 0.9]]])
        chosen = hard_pixels(-probability.log(), torch.ones(1, 1, 4, dtype=torch.bool), 0.7, 0.25)
        assert chosen.tolist() == [[[True, True, False, False]]]

    def test_the_hardest_of_each_picture_are_chosen_where_they_are_too_few(self) -> None:
        probability = torch.tensor([[[0.99, 0.8, 0.9, 0.95]], [[0.5, 0.4, 0.3, 0.2]]])
        chosen = hard_pixels(-probability.log(), torch.ones(2, 1, 4, dtype=torch.bool), 0.25, 0.5)
        assert chosen.tolist() == [[[False, True, True, False]], [[False, False, True, True]]]

    def test_the_share_is_of_the_valid_pixels_and_rounded_up(self) -> None:
        nll = torch.arange(10.0).view(1, 2, 5) / 100
        valid = nll < 0.07  # the hardest three are void
        chosen = hard_pixels(nll, valid, 0.1, 1 / 3)
        assert chosen.flatten().nonzero().flatten().tolist() == [4, 5, 6]

    def test_no_pixel_is_chosen_where_all_are_void(self) -> None:
        assert not hard_pixels(torch.ones(1, 3, 3), torch.zeros(1, 3, 3, dtype=torch.bool), 0.9, 0.5).any()

    def test_ties_are_all_chosen(self) -> None:
        assert hard_pixels(torch.full((1, 3, 3), 0.01), torch.ones(1, 3, 3, dtype=torch.bool), 0.7, 0.1).all()

    def test_a_probability_of_1_chooses_all(self) -> None:
        nll = torch.tensor([[[0.0, 1e-9, 3.0]]])
        assert hard_pixels(nll, torch.ones(1, 1, 3, dtype=torch.bool), 1.0, 0.1).all()

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), probability=st.floats(0.05, 1), share=st.floats(0.01, 1))
    def test_they_are_the_hardest_and_at_least_the_share(self, seed: int, probability: float, share: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        nll = torch.rand(3, 5, 7, generator=generator) * 3
        valid = torch.rand(3, 5, 7, generator=generator) < 0.7
        chosen = hard_pixels(nll, valid, probability, share)
        assert not (chosen & ~valid).any()
        assert chosen[valid & (nll > -math.log(probability) + 1e-6)].all()
        for n in range(3):
            count, at_least = int(chosen[n].sum()), math.ceil(share * int(valid[n].sum()))
            assert count >= at_least
            if (left := nll[n][valid[n] & ~chosen[n]]).numel() and count:
                assert left.max() < nll[n][chosen[n]].min()
            assert count == max(at_least, int((nll[n][valid[n]] >= -math.log(probability)).sum()))


class TestProcesses:
    """Threads stand for processes; what they meet with is a sum that gradients flow through to each of them."""

    @every_config
    @weighted_or_not
    @pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (1, 1, 2)], ids=str)
    def test_shares_and_their_gradients_sum_to_those_of_the_whole_batch(
        self,
        batch: tuple[Tensor, Tensor],
        config: LossConfig,
        weights: tuple[float, ...] | None,
        sizes: tuple[int, ...],
    ) -> None:
        logits, labels = batch
        outputs = [logits, 0.5 * logits.flip(3)]
        config = replace(config, output_weights=(1.0, 0.4))
        whole = _loss(config, weights)(outputs, labels)
        parts = zip(zip(*(output.split(sizes) for output in outputs), strict=True), labels.split(sizes), strict=True)
        shares = _together(config, weights, list(parts))
        assert all(share > 0 for share in shares)
        torch.testing.assert_close(torch.stack(shares).sum(), whole)
        gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (sum(shares), whole)]
        torch.testing.assert_close(*gradients)

    @every_config
    def test_a_share_of_nothing_but_void_leaves_the_others_what_they_are(
        self, batch: tuple[Tensor, Tensor], config: LossConfig
    ) -> None:
        logits, labels = batch
        void = ([logits.detach()], torch.full_like(labels, VOID))
        shares = _together(config, WEIGHTS, [([logits], labels), void])
        torch.testing.assert_close(torch.stack(shares).sum(), _loss(config, WEIGHTS)([logits], labels))


def _together(
    config: LossConfig, weights: tuple[float, ...] | None, parts: list[tuple[tuple[Tensor, ...] | list[Tensor], Tensor]]
) -> list[Tensor]:
    shares: dict[int, Tensor] = {}
    meeting = threading.Barrier(len(parts), timeout=20)

    def total_of(rank: int) -> Callable[[Tensor], Tensor]:
        def total(share: Tensor) -> Tensor:
            shares[rank] = share
            meeting.wait()
            whole = torch.stack([shares[other] for other in range(len(parts))]).sum(dim=0)
            meeting.wait()
            return whole

        return total

    def share(rank: int) -> Tensor:
        loss = SegmentationLoss(
            config,
            num_classes=CLASSES,
            ignore_index=VOID,
            class_weights=weights,
            total=total_of(rank),
            processes=len(parts),
        )
        return loss(*parts[rank])

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(share, range(len(parts))))
