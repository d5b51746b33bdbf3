"""Augmentation on the training device: picture and mask change together, each sample as its own seed says.

A sample's numbers are drawn from its own seeds, such as (seed, epoch, index), and from nothing else. So a run that is
resumed, or that shares its batches among several processes, sees the same pictures as one that is not.

A batch goes through four steps, each of which is left out where the configuration does not ask for it:

1. mirroring, exact
2. scale, position, rotation and elastic deformation, all in one resampling, so that nothing is blurred twice;
   bilinear for pictures, nearest for masks
3. brightness, contrast, saturation, hue, gamma
4. blur and noise
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segship.runtime.card import ModelCard
from segship.runtime.errors import TrainingError, require
from segship.runtime.preprocess import FULL_SCALE, Depth

_CONTROL_POINTS = 5
_NUMBERS = 14


@dataclass(frozen=True)
class AugmentConfig:
    """How much pictures are changed. What is drawn is drawn for each picture anew, evenly over the range given.

    Attributes:
        flip: probability of mirroring left and right, 0…1.
        flip_vertical: probability of mirroring top and bottom, 0…1.
        scale: least and most, 0.1…10, that the content is enlarged by, evenly over its logarithm. Above 1, a part of
            the picture fills the frame; below 1, the picture fills a part of the frame. Where, is drawn too.
        rotation: largest angle either way, in degrees, 0…180.
        elastic: largest displacement in pixels along each axis, 0…1000, of the 5×5 points that carry a smooth
            deformation. Above an eighth of the picture's shorter side the picture may fold over.
        brightness: largest change of the factor on all values, 0…1; 0.2 draws factors of 0.8…1.2.
        contrast: the same for the distance of values from the picture's mean.
        saturation: the same for the distance of colours from their grey. Grey pictures have none.
        hue: largest turn of the colour circle either way, in degrees, 0…180. Nothing to grey pictures.
        gamma: the exponent on values as shares of full scale lies in 1/(1 + gamma)…1 + gamma; 0…4. Pictures that use
            a small part of their range, as 16-bit ones often do, become much brighter or darker by it.
        blur: probability of a Gaussian blur, 0…1.
        blur_sigma: least and most of its standard deviation in pixels, 0.1…20.
        noise: most that the standard deviation of normally distributed noise can be, as a share of the picture's mean
            value, 0…1.
    """

    flip: float = 0.5
    flip_vertical: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0
    elastic: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gamma: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.5, 1.5)
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            TrainingError: naming the knob, its value and what was expected.
        """
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not _lies_within(value, low, high):
                raise TrainingError(f"augmentation: {name} is {value!r}; expected a number in {low:g}…{high:g}")
        for name, (low, high) in _LIMITS_OF_RANGES.items():
            value = getattr(self, name)
            is_pair = isinstance(value, tuple) and len(value) == 2 and all(_lies_within(v, low, high) for v in value)
            if not is_pair or value[0] > value[1]:
                raise TrainingError(
                    f"augmentation: {name} is {value!r}; expected two numbers in {low:g}…{high:g}, the smaller first"
                )

    @property
    def resamples(self) -> bool:
        """Whether anything but mirroring moves pixels."""
        return self.scale != (1, 1) or self.rotation > 0 or self.elastic > 0


_LIMITS: Final[dict[str, tuple[float, float]]] = {
    "flip": (0, 1),
    "flip_vertical": (0, 1),
    "rotation": (0, 180),
    "elastic": (0, 1000),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "saturation": (0, 1),
    "hue": (0, 180),
    "gamma": (0, 4),
    "blur": (0, 1),
    "noise": (0, 1),
}
_LIMITS_OF_RANGES: Final[dict[str, tuple[float, float]]] = {"scale": (0.1, 10), "blur_sigma": (0.1, 20)}


def _lies_within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


PRESETS: Final[dict[str, AugmentConfig]] = {
    "none": AugmentConfig(flip=0.0),
    "light": AugmentConfig(scale=(0.9, 1.4), brightness=0.2, contrast=0.2, saturation=0.2),
    "strong": AugmentConfig(
        scale=(0.7, 2.0),
        rotation=10.0,
        elastic=4.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=15.0,
        blur=0.2,
        noise=0.1,
    ),
}
"""What people start from: ``none`` changes nothing, ``light`` suits most, ``strong`` is for few pictures."""


class Augmentation:
    """Augments batches.

    Args:
        config: how much.
        depth: of the pictures.
        ignore_index: what masks hold where the picture does not reach.
        fill: what pictures hold there, for each channel in red, green, blue order, as a share of full scale.

    Raises:
        MissingExtraError: if kornia is not installed.
    """

    def __init__(self, config: AugmentConfig, *, depth: Depth, ignore_index: int, fill: tuple[float, ...]) -> None:
        require("kornia", extra="train", purpose="augmentation")
        self.config = config
        self.full_scale = FULL_SCALE[depth]
        self.ignore_index = ignore_index
        self.fill = fill

    @classmethod
    def for_card(cls, config: AugmentConfig, card: ModelCard) -> Self:
        """Return the augmentation for pictures of a card's depth; the fill is the card's mean."""
        mean = card.preprocess.mean
        fill = mean[::-1] if card.preprocess.color_order == "BGR" else mean
        return cls(config, depth=card.preprocess.depth, ignore_index=card.ignore_index, fill=fill)

    def __call__(self, pixels: Tensor, labels: Tensor, seeds: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        On one kind of device, a sample comes out the same whatever else is in its batch: its mask exactly, its pixels
        but for rounding, less than 1e-5 of full scale. Another kind of device draws other noise.

        Args:
            pixels: (N, C, H, W), C 1 or 3 (red, green, blue), uint8 or, of 16-bit pictures, int32.
            labels: (N, H, W), uint8.
            seeds: of each sample, integers of 0 or more.

        Returns:
            Pixels (N, C, H, W), float32, from 0 to the full scale of the depth, and labels (N, H, W), uint8.

        Raises:
            ValueError: if there is not one seed for each sample.
        """
        if len(seeds) != len(pixels):
            raise ValueError(f"{len(seeds)} seeds for {len(pixels)} samples; expected one for each")
        draws = draw(self.config, seeds)
        pixels, labels = _mirror(pixels, draws.flip, axis=-1), _mirror(labels, draws.flip, axis=-1)
        pixels, labels = _mirror(pixels, draws.flip_vertical, axis=-2), _mirror(labels, draws.flip_vertical, axis=-2)
        pixels = pixels.float()
        if self.config.resamples:
            pixels, labels = self._resample(pixels, labels, draws)
        pixels = self._recolor(pixels, draws)
        if draws.blur_sigma.any():
            pixels = self._blur(pixels, draws)
        if self.config.noise:
            pixels = self._add_noise(pixels, draws)
        return pixels, labels

    def _resample(self, pixels: Tensor, labels: Tensor, draws: "Draws") -> tuple[Tensor, Tensor]:
        from kornia.geometry.transform import remap

        height, width = labels.shape[1:]
        x, y = _source_positions(draws, height, width, pixels.device)
        inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
        # Repeated at the border, so that the fill does not shine through the outermost pixels.
        picture = remap(pixels, x, y, "bilinear", "border", align_corners=True)
        mask = remap(labels[:, None].float(), x, y, "nearest", "border", align_corners=True)[:, 0].to(torch.uint8)
        fill = self.full_scale * torch.tensor(self.fill, device=pixels.device).view(1, -1, 1, 1)
        return torch.where(inside[:, None], picture, fill), torch.where(inside, mask, self.ignore_index)

    def _recolor(self, pixels: Tensor, draws: "Draws") -> Tensor:
        from kornia import enhance

        config, is_color = self.config, pixels.shape[1] == 3
        steps: list[tuple[float, Callable[[Tensor, Tensor], Tensor], NDArray[np.float64]]] = [
            (config.brightness, enhance.adjust_brightness_accumulative, draws.brightness),
            (config.contrast, enhance.adjust_contrast_with_mean_subtraction, draws.contrast),
            (config.saturation if is_color else 0, enhance.adjust_saturation_with_gray_subtraction, draws.saturation),
            (config.hue if is_color else 0, enhance.adjust_hue, draws.hue),
            (config.gamma, enhance.adjust_gamma, draws.gamma),
        ]
        wanted = [(adjust, amount) for knob, adjust, amount in steps if knob]
        if not wanted:
            return pixels
        shares = pixels / self.full_scale
        for adjust, amount in wanted:
            shares = adjust(shares, torch.from_numpy(amount).float())
        return shares * self.full_scale

    def _blur(self, pixels: Tensor, draws: "Draws") -> Tensor:
        from kornia.filters import gaussian_blur2d

        chosen = np.flatnonzero(draws.blur_sigma)
        sigma = torch.from_numpy(draws.blur_sigma[chosen, None]).float().expand(-1, 2)
        rows = torch.from_numpy(chosen).to(pixels.device)
        kernel_size = 2 * math.ceil(3 * self.config.blur_sigma[1]) + 1  # not by what was drawn, which differs by batch
        return pixels.index_copy(0, rows, gaussian_blur2d(pixels[rows], kernel_size, sigma, "replicate"))

    def _add_noise(self, pixels: Tensor, draws: "Draws") -> Tensor:
        generators = [torch.Generator(pixels.device).manual_seed(seed) for seed in draws.noise_seeds]
        noise = [torch.randn(pixels.shape[1:], generator=g, device=pixels.device) for g in generators]
        strength = _per_sample(draws.noise, pixels.device)[..., None] * pixels.mean((1, 2, 3), keepdim=True)
        return (pixels + strength * torch.stack(noise)).clamp(0, self.full_scale)


@dataclass(frozen=True)
class Draws:
    """What was drawn for N samples, each (N,) where no shape is given.

    Attributes:
        flip: whether left and right are mirrored.
        flip_vertical: whether top and bottom are.
        scale: factor that the content is enlarged by.
        position: (N, 2), x and y of the part that is seen, -1…1 over the room there is to shift it in.
        rotation: in radians.
        elastic: (N, 2, 5, 5), x and y displacements in pixels of points evenly spread from corner to corner.
        brightness: factor.
        contrast: factor.
        saturation: factor.
        hue: in radians.
        gamma: exponent.
        blur_sigma: in pixels; 0 where nothing is blurred.
        noise: standard deviation as a share of the picture's mean value.
        noise_seeds: for the generator of the noise.
    """

    flip: NDArray[np.bool_]
    flip_vertical: NDArray[np.bool_]
    scale: NDArray[np.float64]
    position: NDArray[np.float64]
    rotation: NDArray[np.float64]
    elastic: NDArray[np.float64]
    brightness: NDArray[np.float64]
    contrast: NDArray[np.float64]
    saturation: NDArray[np.float64]
    hue: NDArray[np.float64]
    gamma: NDArray[np.float64]
    blur_sigma: NDArray[np.float64]
    noise: NDArray[np.float64]
    noise_seeds: list[int]


def draw(config: AugmentConfig, seeds: Sequence[tuple[int, ...]]) -> Draws:
    """Draw the numbers of a batch.

    Every sample draws as many numbers whatever the configuration, so that turning one knob leaves the others' draws.

    Args:
        config: the ranges.
        seeds: of each sample, integers of 0 or more.
    """
    generators = [np.random.default_rng(seed) for seed in seeds]
    numbers = np.stack([generator.random(_NUMBERS) for generator in generators], axis=1)
    flip, flip_vertical, scale, x, y, angle, brightness, contrast, saturation, hue, gamma, blur, sigma, noise = numbers
    grid = (2, _CONTROL_POINTS, _CONTROL_POINTS)
    smallest, largest = np.log(config.scale)
    return Draws(
        flip=flip < config.flip,
        flip_vertical=flip_vertical < config.flip_vertical,
        scale=np.exp(smallest + scale * (largest - smallest)),
        position=_either_way(np.stack((x, y), axis=1), 1),
        rotation=_either_way(angle, math.radians(config.rotation)),
        elastic=np.stack([generator.uniform(-config.elastic, config.elastic, grid) for generator in generators]),
        brightness=1 + _either_way(brightness, config.brightness),
        contrast=1 + _either_way(contrast, config.contrast),
        saturation=1 + _either_way(saturation, config.saturation),
        hue=_either_way(hue, math.radians(config.hue)),
        gamma=np.exp(_either_way(gamma, math.log1p(config.gamma))),
        blur_sigma=np.where(blur < config.blur, config.blur_sigma[0] + sigma * np.ptp(config.blur_sigma), 0),
        noise=noise * config.noise,
        noise_seeds=[int(generator.integers(2**63)) for generator in generators],
    )


def _either_way(numbers: NDArray[np.float64], most: float) -> NDArray[np.float64]:
    return (2 * numbers - 1) * most


def _mirror(batch: Tensor, chosen: NDArray[np.bool_], *, axis: int) -> Tensor:
    if not chosen.any():
        return batch
    mirrored = torch.from_numpy(chosen).to(batch.device).view(-1, *[1] * (batch.dim() - 1))
    return torch.where(mirrored, batch.flip(axis), batch)


def _source_positions(draws: Draws, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each pixel of the result comes from: x and y in pixels of the picture, (N, H, W) each.

    The elastic part is that of U-Net (Ronneberger, Fischer and Brox, "U-Net", 2015, section 3.1): random displacements
    of a coarse grid of points, and bicubic interpolation between them.
    """
    column = torch.arange(width, device=device) - (width - 1) / 2
    row = torch.arange(height, device=device).view(-1, 1) - (height - 1) / 2
    cosine = _per_sample(np.cos(draws.rotation) / draws.scale, device)
    sine = _per_sample(np.sin(draws.rotation) / draws.scale, device)
    room = (1 - 1 / draws.scale[:, None]) * (width / 2, height / 2)
    center = draws.position * room + ((width - 1) / 2, (height - 1) / 2)
    x = cosine * column + sine * row + _per_sample(center[:, 0], device)
    y = cosine * row - sine * column + _per_sample(center[:, 1], device)
    if draws.elastic.any():
        points = torch.from_numpy(draws.elastic).float().to(device)
        shift = F.interpolate(points, (height, width), mode="bicubic", align_corners=True)
        x, y = x + shift[:, 0], y + shift[:, 1]
    return x, y


def _per_sample(values: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values).float().to(device).view(-1, 1, 1)
