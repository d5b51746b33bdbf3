import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from segship.runtime.card import Network
from segship.runtime.errors import TrainingError
from segship.training.networks import build_network
from segship.training.optimisation import (
    OptimizerConfig,
    OptimizerName,
    Schedule,
    WeightAverage,
    build_optimizer,
    learning_rate,
    parameters_of,
)

SCHEDULES: tuple[Schedule, ...] = ("cosine", "poly", "step", "one-cycle")
NAMES: tuple[OptimizerName, ...] = ("adamw", "adam", "sgd")


def _rates(steps: int, schedule: Schedule, **knobs: float | tuple[float, ...]) -> list[float]:
    config = OptimizerConfig(learning_rate=1.0, schedule=schedule, **{"warm_up": 0.0, **knobs})  # type: ignore[arg-type]
    return [learning_rate(config, step, steps) for step in range(steps)]


def _small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2))


def test_cosine_goes_from_the_whole_rate_down_half_a_cosine() -> None:
    rates = _rates(200, "cosine")
    assert rates[0] == 1
    assert rates[50] == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert rates[100] == pytest.approx(0.5)
    assert rates[199] == pytest.approx((math.pi / 400) ** 2, rel=1e-3)


def test_poly_goes_down_as_its_power_says() -> None:
    rates = _rates(200, "poly", power=0.9)
    assert rates[0] == 1
    assert rates[100] == pytest.approx(0.5**0.9)
    assert rates[199] == pytest.approx(0.005**0.9)
    assert _rates(4, "poly", power=1.0) == pytest.approx([1, 0.75, 0.5, 0.25])


def test_step_drops_after_the_shares_of_the_run_that_it_is_given() -> None:
    rates = _rates(100, "step", drops=(0.85, 0.6), gamma=0.1)
    assert rates == pytest.approx([1.0] * 60 + [0.1] * 25 + [0.01] * 15)
    assert _rates(3, "step", drops=()) == [1, 1, 1]


def test_one_cycle_rises_to_its_peak_at_30_per_cent_and_ends_low() -> None:
    rates = _rates(101, "one-cycle")
    assert (rates[0], rates[30], rates[100]) == pytest.approx((1 / 25, 1, 1e-4))
    assert rates[15] == pytest.approx((1 + 1 / 25) / 2)
    assert rates[65] == pytest.approx((1 + 1e-4) / 2)
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates == _rates(101, "one-cycle", warm_up=0.5), "it has a warm-up of its own"


@pytest.mark.parametrize("schedule", ["cosine", "poly", "step"])
def test_the_warm_up_rises_linearly_to_the_whole_rate_and_hands_over_there(schedule: Schedule) -> None:
    rates = _rates(100, schedule, warm_up=0.1)
    assert rates[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1])
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "poly", "one-cycle"])
def test_no_rate_jumps(schedule: Schedule) -> None:
    for rates in (_rates(1000, schedule), _rates(1000, schedule, warm_up=0.25)):
        assert max(abs(after - before) for before, after in itertools.pairwise(rates)) < 0.006


@given(
    schedule=st.sampled_from(SCHEDULES), steps=st.integers(1, 60), warm_up=st.floats(0, 0.999), power=st.floats(0, 3)
)
def test_every_step_of_every_run_has_a_rate_above_0_up_to_the_highest(
    schedule: Schedule, steps: int, warm_up: float, power: float
) -> None:
    rates = _rates(steps, schedule, warm_up=warm_up, power=power)
    assert all(0 < rate <= 1 for rate in rates)
    config = OptimizerConfig(schedule=schedule, warm_up=warm_up, power=power)
    assert learning_rate(config, steps, steps) <= learning_rate(config, steps - 1, steps) or steps == 1


def test_the_rate_is_a_multiple_of_the_one_configured() -> None:
    for schedule in SCHEDULES:
        config = OptimizerConfig(learning_rate=0.02, schedule=schedule, warm_up=0)
        assert [learning_rate(config, step, 10) for step in range(10)] == pytest.approx(
            [0.02 * rate for rate in _rates(10, schedule)]
        )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(("learning_rate", rate, "expected a number above 0") for rate in (0.0, -1.0, math.inf, math.nan)),
        ("accumulate", 0, r"optimizer\.accumulate is 0; expected at least 1"),
        *((name, 1.0, "expected 0 or more, and less than 1") for name in ("momentum", "warm_up", "ema", "gamma")),
        *((name, math.nan, "expected 0 or more, and less than 1") for name in ("momentum", "warm_up", "ema", "gamma")),
        ("drops", (0.5, 1.0), r"optimizer\.drops\[1\] is 1.0; expected 0 or more, and less than 1"),
        *((name, -0.1, "expected 0 or more") for name in ("weight_decay", "power", "clip")),
        *((name, math.inf, "expected 0 or more") for name in ("weight_decay", "power", "clip")),
    ],
)
def test_what_cannot_be_trained_with_is_refused(name: str, value: object, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        OptimizerConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_biases_and_batch_normalisation_are_spared_from_weight_decay_and_nothing_is_left_out(
    name: OptimizerName,
) -> None:
    network = build_network(Network("bisenetv2"), num_classes=3, in_channels=3)
    optimizer = build_optimizer(OptimizerConfig(name=name, weight_decay=0.03), network)
    decay = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decay) == len(list(parameters_of(optimizer))) == len(list(network.parameters()))
    for path, module in network.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            decayed = kind == "weight" and not isinstance(module, nn.BatchNorm2d)
            assert decay[parameter] == (0.03 if decayed else 0), f"{path}.{kind}"


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_shrinks_weights_and_leaves_what_is_spared(name: OptimizerName) -> None:
    network = _small_network()
    optimizer = build_optimizer(OptimizerConfig(name=name, weight_decay=0.5, learning_rate=0.1), network)
    before = {path: parameter.detach().clone() for path, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for path, parameter in network.named_parameters():
        if path in ("0.weight", "2.weight"):
            assert parameter.norm() < before[path].norm(), path
            if name == "adamw":
                torch.testing.assert_close(parameter.detach(), before[path] * 0.95)
        else:
            assert torch.equal(parameter, before[path]), path


def test_each_name_is_that_optimiser() -> None:
    network = _small_network()
    kinds = {name: type(build_optimizer(OptimizerConfig(name=name), network)) for name in NAMES}
    assert kinds == {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    sgd = build_optimizer(OptimizerConfig(name="sgd", momentum=0.8, learning_rate=0.3), network).param_groups[0]
    assert (sgd["momentum"], sgd["nesterov"], sgd["lr"]) == (0.8, True, 0.3)
    plain = build_optimizer(OptimizerConfig(name="sgd", momentum=0.0), network).param_groups[0]
    assert (plain["momentum"], plain["nesterov"]) == (0, False)


def test_the_average_is_exponential_with_a_short_memory_at_first() -> None:
    network = _small_network()
    average = WeightAverage(network, 0.5)
    expected = {name: tensor.double() for name, tensor in network.state_dict().items()}
    for step in range(1, 20):
        for tensor in network.state_dict().values():
            tensor.copy_(torch.randint(0, 9, tensor.shape))
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        assert (decay < 0.5) == (step < 8)
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
            else:
                expected[name] = tensor.double()
    for name, tensor in average.network.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert average.network.state_dict()["1.num_batches_tracked"] == network.state_dict()["1.num_batches_tracked"]


def test_the_average_and_the_network_are_independent() -> None:
    network = _small_network()
    average = WeightAverage(network, 0.9)
    start = copy.deepcopy(network.state_dict())
    for tensor in network.state_dict().values():
        tensor.add_(1)
    for name, tensor in average.network.state_dict().items():
        assert torch.equal(tensor, start[name]), name
    average.update(network, 1)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, start[name] + 1), name
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in average.network.modules())
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_an_average_that_was_loaded_goes_on_from_there() -> None:
    network = _small_network()
    average, again = WeightAverage(network, 0.9), WeightAverage(_small_network(), 0.9)
    for tensor in network.state_dict().values():
        tensor.add_(1)
    average.update(network, 1)
    again.network.load_state_dict(average.network.state_dict())
    for each in (average, again):
        each.update(network, 2)
    for name, tensor in average.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor), name
