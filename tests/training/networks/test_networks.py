from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torch import Tensor, nn
from torch.nn import functional as F

from segship.export.exporter import export
from segship.runtime.card import Network
from segship.runtime.errors import CheckpointError
from segship.training.losses import cross_entropy
from segship.training.networks import ARCHITECTURES, build_network
from segship.training.networks.u2net import U2NetP
from segship.training.networks.unet import UNet

SMALL: dict[str, dict[str, int]] = {"unet": {"base_channels": 4}, "u2netp": {}}
SIZES = [(64, 96), (48, 33), (37, 53), (1, 1)]


def _small(arch: str, *, num_classes: int = 5, in_channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return build_network(Network(arch, SMALL.get(arch, {})), num_classes=num_classes, in_channels=in_channels)


@pytest.mark.parametrize("arch", list(ARCHITECTURES))
class TestEveryArchitecture:
    @pytest.mark.parametrize("batch_size", [1, 3])
    @pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
    def test_every_output_has_the_size_of_the_picture(self, arch: str, size: tuple[int, int], batch_size: int) -> None:
        with torch.inference_mode():
            outputs = _small(arch).eval()(torch.randn(batch_size, 3, *size))
        assert isinstance(outputs, tuple)
        for logits in outputs:
            assert logits.shape == (batch_size, 5, *size)
            assert torch.isfinite(logits).all()

    def test_grey_pictures_have_one_channel_going_in(self, arch: str) -> None:
        network = _small(arch, in_channels=1).eval()
        with torch.inference_mode():
            assert network(torch.randn(1, 1, 40, 40))[0].shape == (1, 5, 40, 40)
            with pytest.raises(RuntimeError, match="channels"):
                network(torch.randn(1, 3, 40, 40))

    def test_each_picture_of_a_batch_is_for_itself(self, arch: str) -> None:
        network = _small(arch).eval()
        pictures = torch.randn(3, 3, 33, 40)
        with torch.inference_mode():
            together = network(pictures)[0]
            alone = torch.cat([network(picture[None])[0] for picture in pictures])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)

    def test_every_parameter_gets_a_gradient(self, arch: str) -> None:
        network = _small(arch)
        outputs = network(torch.randn(2, 3, 40, 56))
        cross_entropy(outputs, torch.randint(0, 5, (2, 40, 56)), 255).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            if parameter.ndim > 1:  # biases before a batch normalisation have none but rounding
                assert parameter.grad.abs().max() > 0, name

    def test_the_loss_on_one_batch_falls(self, arch: str) -> None:
        network = _small(arch, num_classes=2)
        labels = torch.randint(0, 2, (2, 4, 4)).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
        pictures = labels.unsqueeze(1) + 0.3 * torch.randn(2, 3, 32, 32)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        losses = []
        for _ in range(15):
            loss = cross_entropy(network(pictures), labels, 255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]

    def test_the_exported_file_computes_the_same_at_an_odd_size(
        self, arch: str, make_checkpoint: Callable[..., Path], tmp_path: Path
    ) -> None:
        size = (75, 91)
        checkpoint = make_checkpoint(tmp_path / "odd.safetensors", arch=arch, size=size)
        picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
        PillowImage.fromarray(picture).save(tmp_path / "picture.png")
        result = export(checkpoint, tmp_path / "odd.onnx", images=[tmp_path / "picture.png"])
        assert result.simplifier_fault == ""
        assert result.card.preprocess.size == size
        assert {row.engine.backend for row in result.parity.rows} == {"ort", "opencv"}
        for row in result.parity.rows:
            assert row.comparison.passes
            assert row.comparison.pictures == 4

    def test_an_option_that_it_does_not_have_is_refused(self, arch: str) -> None:
        with pytest.raises(CheckpointError, match=rf"'{arch}' cannot be built with .*wings"):
            build_network(Network(arch, {"wings": 2}), num_classes=2, in_channels=3)


class TestUNet:
    def test_it_has_the_parameters_it_should(self) -> None:
        with torch.device("meta"):
            network = UNet(12)
        assert sum(parameter.numel() for parameter in network.parameters()) == 39_407_576

    def test_base_channels_scale_every_stage(self) -> None:
        with torch.device("meta"):
            widths = [network.bottleneck[0].out_channels for network in (UNet(2), UNet(2, base_channels=8))]
        assert widths == [1024, 128]

    @pytest.mark.parametrize(("size", "padded"), [((37, 53), (48, 64)), ((48, 64), (48, 64)), ((1, 17), (16, 32))])
    def test_a_picture_is_padded_with_zeros_right_and_below_to_the_next_multiple_of_16(
        self, size: tuple[int, int], padded: tuple[int, int]
    ) -> None:
        network = cast("UNet", _small("unet").eval())
        entered: list[Tensor] = []
        network.down1.register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0]))
        picture = torch.randn(1, 3, *size)
        with torch.inference_mode():
            logits = network(picture)[0]
            whole = network(F.pad(picture, (0, padded[1] - size[1], 0, padded[0] - size[0])))[0]
        assert entered[0].shape[2:] == padded
        assert torch.equal(entered[0][:, :, : size[0], : size[1]], picture)
        assert entered[0].count_nonzero() == picture.count_nonzero()
        assert torch.equal(logits, whole[:, :, : size[0], : size[1]])


class TestU2NetP:
    OFFICIAL = (  # of u2netp.pth as published, with one class
        ("stage1.rebnconvin.conv_s1.weight", (64, 3, 3, 3)),
        ("stage1.rebnconvin.bn_s1.running_mean", (64,)),
        ("stage1.rebnconv1.conv_s1.weight", (16, 64, 3, 3)),
        ("stage1.rebnconv7.conv_s1.weight", (16, 16, 3, 3)),
        ("stage1.rebnconv6d.conv_s1.weight", (16, 32, 3, 3)),
        ("stage1.rebnconv1d.conv_s1.weight", (64, 32, 3, 3)),
        ("stage2.rebnconv6.bn_s1.weight", (16,)),
        ("stage3.rebnconv5.conv_s1.bias", (16,)),
        ("stage4.rebnconv4.conv_s1.weight", (16, 16, 3, 3)),
        ("stage5.rebnconv4.conv_s1.weight", (16, 16, 3, 3)),
        ("stage6.rebnconv3d.conv_s1.weight", (16, 32, 3, 3)),
        ("stage5d.rebnconvin.conv_s1.weight", (64, 128, 3, 3)),
        ("stage5d.rebnconv1d.conv_s1.weight", (64, 32, 3, 3)),
        ("stage4d.rebnconv4.bn_s1.num_batches_tracked", ()),
        ("stage1d.rebnconvin.conv_s1.weight", (64, 128, 3, 3)),
        ("side1.weight", (1, 64, 3, 3)),
        ("side6.weight", (1, 64, 3, 3)),
        ("side6.bias", (1,)),
        ("outconv.weight", (1, 6, 1, 1)),
        ("outconv.bias", (1,)),
    )

    @pytest.fixture
    def network(self) -> U2NetP:
        with torch.device("meta"):
            return U2NetP(1)

    def test_it_has_the_parameters_it_should(self, network: U2NetP) -> None:
        assert sum(parameter.numel() for parameter in network.parameters()) == 1_131_181

    def test_its_weights_have_the_names_and_shapes_of_the_published_ones(self, network: U2NetP) -> None:
        weights = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        assert dict(self.OFFICIAL).items() <= weights.items()
        heights = {"1": 7, "2": 6, "3": 5, "4": 4, "5": 4, "6": 4, "5d": 4, "4d": 4, "3d": 5, "2d": 6, "1d": 7}
        blocks = {
            f"stage{stage}.rebnconv{level}"
            for stage, height in heights.items()
            for level in ["in", *range(1, height + 1), *(f"{n}d" for n in range(1, height))]
        }
        leaves = {"conv_s1.weight", "conv_s1.bias"} | {
            f"bn_s1.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        }
        heads = [*(f"side{scale}" for scale in range(1, 7)), "outconv"]
        expected = {f"{block}.{leaf}" for block in blocks for leaf in leaves}
        assert set(weights) == expected | {f"{head}.{leaf}" for head in heads for leaf in ("weight", "bias")}

    def test_the_fusing_convolution_takes_six_times_the_classes(self) -> None:
        with torch.device("meta"):
            assert U2NetP(7).outconv.weight.shape == (7, 42, 1, 1)

    def test_dilated_blocks_dilate_by_powers_of_two_and_the_others_only_at_their_bottom(self, network: U2NetP) -> None:
        def dilations(stage: str, levels: range) -> list[int]:
            convolutions = [network.get_submodule(f"{stage}.rebnconv{level}.conv_s1") for level in levels]
            return [cast("nn.Conv2d", convolution).dilation[0] for convolution in convolutions]

        assert dilations("stage5", range(1, 5)) == dilations("stage6", range(1, 5)) == [1, 2, 4, 8]
        assert dilations("stage1", range(1, 8)) == [1, 1, 1, 1, 1, 1, 2]

    def test_training_gets_seven_outputs_of_which_the_first_fuses_the_others(self) -> None:
        network = cast("U2NetP", _small("u2netp").eval())
        with torch.inference_mode():
            fused, *sides = network(torch.randn(1, 3, 40, 56))
            assert len(sides) == 6
            expected: Tensor = network.outconv(torch.cat(sides, dim=1))
        torch.testing.assert_close(fused, expected)


def test_an_architecture_that_is_not_known_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"'deeplab'; known are unet, u2netp"):
        build_network(Network("deeplab"), num_classes=2, in_channels=3)
