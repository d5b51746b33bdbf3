"""Heights and widths, as Python integers: a traced network then holds them as constants, which every engine takes."""

from torch import Tensor
from torch.nn import functional as F


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring ``x`` (N, C, h, w) to height and width ``size``, bilinearly.

    A side of a single pixel is repeated, which gives the same: OpenCV 5.0 reads past the end of one that it resizes.
    """
    height, width = size_of(x)
    if 1 in (height, width):
        x = x.expand(-1, -1, size[0] if height == 1 else height, size[1] if width == 1 else width)
    return x if size_of(x) == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def resize_like(x: Tensor, reference: Tensor) -> Tensor:
    """Bring ``x`` to the height and width of ``reference``, bilinearly."""
    return resize(x, size_of(reference))


def size_of(x: Tensor) -> tuple[int, int]:
    """Return height and width of ``x`` (N, C, H, W)."""
    return int(x.shape[2]), int(x.shape[3])


def pad_to_multiple(x: Tensor, stride: int) -> Tensor:
    """Pad ``x`` with zeros, at its right and bottom, until ``stride`` divides its height and width."""
    height, width = size_of(x)
    return F.pad(x, (0, -width % stride, 0, -height % stride))
