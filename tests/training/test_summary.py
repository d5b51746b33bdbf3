import json

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segship.runtime.card import Network
from segship.training.networks import ARCHITECTURES, build_network
from segship.training.summary import Layer, summarise


class _Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 2, 4, stride=2, padding=1)
        self.booster = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.depthwise(self.norm(self.convolve(x)))
        return (self.up(x), self.booster(x)) if self.training else (self.up(x),)


def test_each_layer_has_its_output_shape_parameters_and_arithmetic_in_the_order_of_calls() -> None:
    assert summarise(_Toy(), 3, (6, 8)).layers == (
        Layer("convolve", "Conv2d", (1, 4, 3, 4), 112, 2 * 4 * 3 * 4 * 27 / 1e9),
        Layer("norm", "BatchNorm2d", (1, 4, 3, 4), 8, 0.0),
        Layer("depthwise", "Conv2d", (1, 8, 3, 4), 72, 2 * 8 * 3 * 4 * 9 / 1e9),
        Layer("up", "ConvTranspose2d", (1, 2, 6, 8), 258, 2 * 8 * 3 * 4 * 2 * 16 / 1e9),
    )


def test_a_linear_layer_counts_too() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(24, 10))
    assert summarise(network, 2, (3, 4)).gflop == 2 * 24 * 10 / 1e9


def test_the_totals_tell_the_whole_network_from_what_is_trained_and_what_is_evaluated() -> None:
    network = _Toy()
    network.convolve.requires_grad_(False)
    summary = summarise(network, 3, (6, 8))
    assert summary.parameters == 112 + 8 + 72 + 258 + 45
    assert summary.trainable == summary.parameters - 112
    assert summary.evaluated == summary.parameters - 45


def test_a_layer_that_is_called_twice_has_two_rows_and_is_counted_once() -> None:
    layer = nn.Conv2d(3, 3, 1)
    summary = summarise(nn.Sequential(layer, nn.ReLU(), layer), 3, (2, 2))
    assert [row.kind for row in summary.layers] == ["Conv2d", "ReLU", "Conv2d"]
    assert summary.evaluated == summary.parameters == 12
    assert summary.gflop == 2 * (2 * 12 * 3) / 1e9


def test_the_network_is_left_as_it_was() -> None:
    network = _Toy().train()
    network.norm.eval()  # a layer that someone froze
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    summarise(network, 3, (6, 8))
    assert network.training
    assert not network.norm.training
    assert not any(module._forward_hooks for module in network.modules())
    for name, tensor in network.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name])


def test_a_network_that_fails_is_left_as_it_was_too() -> None:
    network = _Toy()
    with pytest.raises(RuntimeError, match="channel"):
        summarise(network, 1, (6, 8))
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_torchs_own_counter_counts_the_same_for_every_architecture(arch: str) -> None:
    with torch.device("meta"):
        network = build_network(Network(arch), num_classes=12, in_channels=3)
        with FlopCounterMode(display=False) as counter:
            network.eval()(torch.empty(1, 3, 75, 91))
    summary = summarise(network, 3, (75, 91))
    assert summary.gflop == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-9)
    assert summary.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_the_table_has_a_line_a_layer_and_the_totals_last() -> None:
    lines = summarise(_Toy(), 3, (600, 800)).to_text().splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "GFLOP"]
    assert lines[2].split() == ["convolve", "Conv2d", "1×4×300×400", "112", "0.026"]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[-1] == (
        "input 1×3×600×800: 495 parameters, 495 of them trainable, 450 used in evaluation, 0.10 GFLOP a picture"
    )
    assert len(lines) == 4 + 4


def test_as_a_dictionary_it_is_json() -> None:
    summary = summarise(_Toy(), 3, (6, 8))
    read = json.loads(json.dumps(summary.to_dict()))
    assert read == summary.to_dict()
    assert read["input_shape"] == [1, 3, 6, 8]
    assert read["layers"][0] == {
        "name": "convolve", "kind": "Conv2d", "shape": [1, 4, 3, 4], "parameters": 112, "gflop": 2592 / 1e9
    }  # fmt: skip
    assert (read["parameters"], read["trainable"], read["evaluated"]) == (495, 495, 450)
