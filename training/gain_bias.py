"""The second half of the preprocessing as a torch module, for the training device."""

import torch
from torch import Tensor, nn

from segship.runtime.preprocess import FULL_SCALE, Preprocess


class GainBias(nn.Module):
    """Scale, mean and standard deviation of a :class:`Preprocess`, the same numbers as its numpy half gives.

    Args:
        preprocess: the card's.
    """

    gain: Tensor
    bias: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess
        gain, bias = preprocess.gain_and_bias(FULL_SCALE[preprocess.depth])
        self.register_buffer("gain", torch.from_numpy(gain).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("bias", torch.from_numpy(bias).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, C, H, W), red, green, blue, any integer type, to the network's input (N, C, H, W), float32."""
        if self.preprocess.color_order == "BGR":
            pixels = pixels.flip(1)
        if self.preprocess.scale == "image_max":
            gains = [self.preprocess.gain_and_bias(float(image.max()))[0] for image in pixels]
            gain = torch.stack([torch.from_numpy(one) for one in gains]).view(len(gains), -1, 1, 1).to(pixels.device)
        else:
            gain = self.gain
        return pixels.float() * gain + self.bias
