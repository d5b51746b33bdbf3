"""The second half of the preprocessing as a torch module: for the training device, and for graphs that take pixels."""

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
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess
        gain, bias = preprocess.gain_and_bias(FULL_SCALE[preprocess.depth])
        self.register_buffer("gain", torch.from_numpy(gain).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("bias", torch.from_numpy(bias).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, C, H, W), red, green, blue, of any type, to the network's input (N, C, H, W), float32."""
        values = pixels.float()
        if self.preprocess.color_order == "BGR":
            values = values.flip(1)
        return values * self._gain_for(values) + self.bias

    def _gain_for(self, values: Tensor) -> Tensor:
        if self.preprocess.scale == "full_scale":
            return self.gain
        largest = values.amax(dim=(1, 2, 3), keepdim=True)  # of each picture for itself
        divisor = torch.where(largest == 0, torch.ones_like(largest), largest)  # a black picture stays black
        return 1 / (divisor * self.std)
