from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torch import nn

from segship.export.exporter import export
from segship.runtime.card import Network
from segship.runtime.errors import CheckpointError, ExportError
from segship.training.losses import LossConfig, SegmentationLoss
from segship.training.networks import ARCHITECTURES, build_network, dynamic_stride, network_options

BuildSmall = Callable[..., nn.Module]

SIZES = [(64, 96), (48, 33), (37, 53), (1, 1)]

PARAMETERS = {  # with 12 classes and default options: all, and those that training alone uses
    "unet": (39_407_576, 0),
    "u2net": (44_162_868, 0),
    "u2netp": (1_170_132, 0),
    "u2net5p": (963_576, 0),
    "fcn32s": (18_644_076, 0),
    "fcn16s": (18_644_076, 0),
    "fcn8s": (18_644_076, 0),
    "fcns": (18_644_076, 0),
    "fastscnn": (1_193_108, 56_216),
    "bisenetv2": (3_635_276, 283_696),
}

EXPORTS = [
    *((arch, (75, 91)) for arch in ARCHITECTURES if arch != "u2net"),  # u2netp has the same graph, and fewer channels
    ("fastscnn", (64, 96)),  # whose pyramid's bins divide these sides
]


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
class TestEveryArchitecture:
    def test_it_has_the_parameters_it_should(self, arch: str) -> None:
        with torch.device("meta"):
            network = build_network(Network(arch), num_classes=12, in_channels=3)
            network.eval()(torch.zeros(1, 3, 32, 32))[0].sum().backward()
        parameters = list(network.parameters())
        idle = [parameter for parameter in parameters if parameter.grad is None]
        assert (_count(parameters), _count(idle)) == PARAMETERS[arch]

    @pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
    @pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
    def test_the_main_output_has_the_size_of_the_picture_and_no_other_is_larger(
        self, arch: str, size: tuple[int, int], build_small: BuildSmall, *, training: bool
    ) -> None:
        network = build_small(arch).train(training)
        batch = 2 if training else 1
        with torch.inference_mode():
            main, *others = network(torch.randn(batch, 3, *size))
        assert main.shape == (batch, 5, *size)
        for logits in (main, *others):
            assert logits.shape[:2] == (batch, 5)
            assert all(0 < side <= whole for side, whole in zip(logits.shape[2:], size, strict=True))
            assert torch.isfinite(logits).all()

    def test_grey_pictures_have_one_channel_going_in(self, arch: str, build_small: BuildSmall) -> None:
        network = build_small(arch, in_channels=1).eval()
        with torch.inference_mode():
            assert network(torch.randn(1, 1, 40, 40))[0].shape == (1, 5, 40, 40)
            with pytest.raises(RuntimeError, match="channels"):
                network(torch.randn(1, 3, 40, 40))

    def test_each_picture_of_a_batch_is_for_itself_and_always_gets_the_same(
        self, arch: str, build_small: BuildSmall
    ) -> None:
        network = build_small(arch).eval()
        pictures = torch.randn(3, 3, 33, 40)
        with torch.inference_mode():
            together = network(pictures)[0]
            alone = torch.cat([network(picture[None])[0] for picture in pictures])
            assert torch.equal(network(pictures)[0], together)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)

    def test_every_parameter_gets_a_gradient(self, arch: str, build_small: BuildSmall) -> None:
        network = build_small(arch)
        loss = SegmentationLoss(LossConfig(), num_classes=5, ignore_index=255)
        loss(network(torch.randn(2, 3, 40, 56)), torch.randint(0, 5, (2, 40, 56))).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            if parameter.ndim > 1:  # biases before a batch normalisation have none but rounding
                assert parameter.grad.abs().max() > 0, name

    def test_the_loss_on_one_batch_falls(self, arch: str, build_small: BuildSmall) -> None:
        network = build_small(arch, num_classes=2)
        segmentation_loss = SegmentationLoss(LossConfig(), num_classes=2, ignore_index=255)
        labels = torch.randint(0, 2, (2, 4, 4)).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
        pictures = labels.unsqueeze(1) + 0.3 * torch.randn(2, 3, 32, 32)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        losses = []
        for _ in range(12):
            loss = segmentation_loss(network(pictures), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]

    def test_an_option_that_it_does_not_have_is_refused(self, arch: str) -> None:
        with pytest.raises(CheckpointError, match=rf"'{arch}' cannot be built with .*wings"):
            build_network(Network(arch, {"wings": 2}), num_classes=2, in_channels=3)


@pytest.mark.parametrize(("arch", "size"), EXPORTS, ids=lambda part: part if isinstance(part, str) else str(part[0]))
def test_the_exported_file_computes_the_same(
    arch: str, size: tuple[int, int], write_checkpoint: Callable[[str, tuple[int, int]], Path], tmp_path: Path
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    PillowImage.fromarray(picture).save(tmp_path / "picture.png")
    result = export(write_checkpoint(arch, size), tmp_path / "model.onnx", images=[tmp_path / "picture.png"])
    assert result.warnings == ()
    assert result.card.preprocess.size == size
    gated = [row for row in result.parity.rows if row.gate is not None]
    assert {row.engine.backend for row in gated} == {"ort", "opencv", "openvino"}
    for row in gated:
        assert row.verdict == "same", row.fault
        assert row.comparison is not None
        assert row.comparison.max_abs is not None
        assert row.comparison.max_abs < 1e-4


def test_an_architecture_that_is_not_known_is_refused_naming_the_known_ones() -> None:
    known = r"'deeplab'; known are unet, u2net, .*, bisenetv2"
    with pytest.raises(CheckpointError, match=known):
        build_network(Network("deeplab"), num_classes=2, in_channels=3)
    with pytest.raises(CheckpointError, match=known):
        network_options("deeplab")


@pytest.mark.parametrize(
    ("arch", "options"),
    [("unet", {"base_channels": 64}), ("fcns", {"backbone": "vgg16"}), ("u2netp", {}), ("bisenetv2", {})],
)
def test_the_options_of_an_architecture_are_named_with_their_defaults(arch: str, options: dict[str, int | str]) -> None:
    assert network_options(arch) == options


def test_every_architecture_has_a_stride_or_says_why_its_size_cannot_be_left_open() -> None:
    strides = {arch: dynamic_stride(Network(arch)) for arch in ARCHITECTURES if arch != "fastscnn"}
    assert strides == {arch: 16 if arch == "unet" else 32 for arch in strides}
    with pytest.raises(ExportError, match="the size of fastscnn cannot be left open: its pyramid"):
        dynamic_stride(Network("fastscnn"))
    with pytest.raises(CheckpointError, match="'deeplab'"):
        dynamic_stride(Network("deeplab"))


def _count(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
