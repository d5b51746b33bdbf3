"""Optimisers, learning rates and the average of the weights."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from segship.runtime.errors import TrainingError

HIGHEST_LEARNING_RATE: Final = 3e38  # float32 holds little more, and the optimiser would say so in its own words

OptimizerName = Literal["adamw", "adam", "sgd"]
Schedule = Literal["cosine", "poly", "step", "one-cycle"]


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights follow gradients.

    Attributes:
        name: ``adamw``, ``adam`` or ``sgd`` (with Nesterov's momentum where ``momentum`` is above 0).
        learning_rate: at its highest.
        weight_decay: ``adamw`` takes it off the weights, the others add it to the gradient. Biases and batch
            normalisation are spared, as is usual ("Bag of Tricks", He et al., 2019).
        momentum: of ``sgd``.
        schedule: of the learning rate after the warm-up: ``cosine``: half a cosine down to 0; ``poly``: (1 − t)^power;
            ``step``: times ``gamma`` at each of ``drops``; ``one-cycle``: up and down as cosines with its peak at 30 %
            (Smith & Topin, 2018), from 1/25 to 1/10⁴ of the highest rate.
        warm_up: share of the steps in which the rate rises linearly; ``one-cycle`` has its own.
        power: of ``poly``.
        drops: shares of the run after which ``step`` lowers the rate.
        gamma: factor of each drop.
        clip: largest Euclidean norm of the gradient; 0: unlimited.
        accumulate: batches whose gradients are averaged into one step.
        ema: decay of the exponential average of the weights that is validated and kept, 0.999, say; 0: none.
    """

    name: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    warm_up: float = 0.05
    power: float = 0.9
    drops: tuple[float, ...] = (0.6, 0.85)
    gamma: float = 0.1
    clip: float = 0.0
    accumulate: int = 1
    ema: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with.

        Raises:
            TrainingError: naming the value and what was expected.
        """
        if not 0 < self.learning_rate <= HIGHEST_LEARNING_RATE:
            raise TrainingError(
                f"the learning rate is {self.learning_rate}; expected a number above 0, up to {HIGHEST_LEARNING_RATE}"
            )
        if self.accumulate < 1:
            raise TrainingError(f"optimizer.accumulate is {self.accumulate}; expected at least 1")
        shares = {"momentum": self.momentum, "warm_up": self.warm_up, "ema": self.ema, "gamma": self.gamma}
        shares |= {f"drops[{i}]": drop for i, drop in enumerate(self.drops)}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise TrainingError(f"optimizer.{name} is {value}; expected 0 or more, and less than 1")
        for name in ("weight_decay", "power", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TrainingError(f"optimizer.{name} is {getattr(self, name)}; expected 0 or more")


def build_optimizer(config: OptimizerConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser of a network; its learning rate is set before each step."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    spared = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    rate = config.learning_rate
    match config.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate)
        case "adam":
            return torch.optim.Adam(groups, lr=rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.momentum > 0)


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    if config.schedule == "one-cycle":
        return config.learning_rate * _one_cycle(min(1.0, step / max(1, total_steps - 1)))
    warm_up = round(config.warm_up * total_steps)
    if step < warm_up:
        return config.learning_rate * (step + 1) / warm_up
    done = min(1.0, (step - warm_up) / max(1, total_steps - warm_up))
    match config.schedule:
        case "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * done))
        case "poly":
            factor = (1 - done) ** config.power
        case "step":
            factor = config.gamma ** sum(step >= drop * total_steps for drop in config.drops)
    return config.learning_rate * factor


def _one_cycle(done: float) -> float:
    peak, first, last = 0.3, 1 / 25, 1e-4
    if done < peak:
        return first + (1 - first) * 0.5 * (1 - math.cos(math.pi * done / peak))
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (done - peak) / (1 - peak)))


class WeightAverage:
    """The exponential average of a network's weights and statistics, as a network of its own.

    It starts with a shorter memory, min(decay, (1 + t) / (10 + t)) after t steps, so that the fresh weights are soon
    forgotten.

    Args:
        network: whose tensors are averaged; the average starts equal to them.
        decay: of the average, in 0…1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(requires_grad=False).eval()
        self._tensors = self.network.state_dict()

    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                averages.append(self._tensors[name])
                values.append(value)
            else:
                self._tensors[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    """Return the parameters that an optimiser moves."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
