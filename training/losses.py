"""Losses on a network's tuple of logits."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(outputs: Sequence[Tensor], labels: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy, averaged over the pixels that are not void and summed over the outputs.

    The sum with equal weights is U²-Net's deep supervision (its equation 1, with all weights 1).

    Args:
        outputs: logits (N, C, H, W), the main output first.
        labels: class ids and the ignore index, (N, H, W), int64.
        ignore_index: label of void pixels.

    Returns:
        A scalar; 0, with a gradient of 0, where every pixel is void.
    """
    valid = (labels != ignore_index).sum().clamp(min=1)
    losses = [F.cross_entropy(out.float(), labels, ignore_index=ignore_index, reduction="sum") for out in outputs]
    return sum(losses[1:], start=losses[0]) / valid
