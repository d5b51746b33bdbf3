"""Heights and widths, as Python integers: a traced network then holds them as constants, which every engine takes.

A graph that is to run at any size cannot hold them. Within :func:`symbolic_sizes` they are what the tracer hands out,
and the picture's sides are taken to be multiples of the network's stride. Then every side in the network is a fixed
share of the picture's: nothing is padded or cropped, and what is enlarged is so by a factor, which is a constant again.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

_symbolic: Final = ContextVar("symbolic", default=False)


@contextlib.contextmanager
def symbolic_sizes() -> Iterator[None]:
    """Let a network be traced with open sizes; the example's sides must be multiples of the network's stride."""
    token = _symbolic.set(True)
    try:
        yield
    finally:
        _symbolic.reset(token)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring ``x`` (N, C, h, w) to height and width ``size``, bilinearly.

    A side of a single pixel is repeated, which gives the same: OpenCV 5.0 reads past the end of one that it resizes.
    With open sizes no side is known to be single.
    """
    height, width = _numbers(x.shape[2:])
    if _is_symbolic():
        factors = [to / side for to, side in zip(_numbers(size), (height, width), strict=True)]
        if all(factor > 1 and factor.is_integer() for factor in factors):
            return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)
    elif 1 in (height, width):
        x = x.expand(-1, -1, size[0] if height == 1 else height, size[1] if width == 1 else width)
    return x if _has_size(x, size) else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def resize_like(x: Tensor, reference: Tensor) -> Tensor:
    """Bring ``x`` to the height and width of ``reference``, bilinearly."""
    return resize(x, size_of(reference))


def size_of(x: Tensor) -> tuple[int, int]:
    """Return height and width of ``x`` (N, C, H, W); within :func:`symbolic_sizes` they count as integers, too."""
    height, width = x.shape[2:]
    return (height, width) if _is_symbolic() else (int(height), int(width))


def pad_to_multiple(x: Tensor, stride: int) -> Tensor:
    """Pad ``x`` with zeros, at its right and bottom, until ``stride`` divides its height and width."""
    height, width = _numbers(x.shape[2:])
    padding = (0, -width % stride, 0, -height % stride)
    return F.pad(x, padding) if any(padding) else x


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut ``x`` (N, C, H, W) to height and width ``size``, at its right and bottom."""
    return x if _has_size(x, size) else x[:, :, : size[0], : size[1]]


def _has_size(x: Tensor, size: tuple[int, int]) -> bool:
    return _numbers(x.shape[2:]) == _numbers(size)


def _numbers(size: Sequence[int]) -> list[int]:
    """Return sides as they are at hand, where all sizes have the same share in the picture's."""
    return [int(side) for side in size]


def _is_symbolic() -> bool:
    """Tell whether sizes are open; a compiler knows them, and a context variable would cut its graph in pieces."""
    return not torch.compiler.is_compiling() and _symbolic.get()
