"""The built-in dataset: scenes that the program draws, the same for the same seed, so that nothing is downloaded.

A picture shows textured patches (brick, fabric, grid), shaded balls and thin wires on rough ground. They hide one
another and cast soft shadows; light falls off across the picture, and lens and sensor add blur and noise. Any class
can have any hue, and their ranges of brightness overlap: texture and shape tell the classes apart. A network that sees
no more than the colour of a pixel therefore scores badly, and so does a trainer that is broken.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from segship.runtime.errors import DatasetError
from segship.runtime.palettes import DEMO
from segship.runtime.preprocess import FULL_SCALE, Depth, Image
from segship.training.data import DataOptions, Sample, Split

HEIGHT_PX: Final = 128
WIDTH_PX: Final = 160
TRAIN_COUNT: Final = 400
VAL_COUNT: Final = 60

Part = Literal["train", "val"]
Field = NDArray[np.floating[Any]]
"""A value for each pixel, (H, W)."""
Color = NDArray[np.floating[Any]]
"""Red, green, blue, (3, 1, 1), or that of each pixel, (3, H, W); 1 is white in full light. Planes are quickest."""

_VARIANTS: Final[dict[str, tuple[int, Depth]]] = {"": (3, "uint8"), "grey8": (1, "uint8"), "grey16": (1, "uint16")}
_Y, _X = np.mgrid[:HEIGHT_PX, :WIDTH_PX].astype(np.float32)
_BERNSTEIN = np.array([[math.comb(3, k) * t**k * (1 - t) ** (3 - k) for k in range(4)] for t in np.linspace(0, 1, 49)])


class Demo:
    """One part of the drawn dataset. Picture i depends on seed, part, i and variant, and on nothing else.

    All variants show the same scenes with the same labels. The exposure of a 16-bit picture varies, and uses a small
    part of the range, as a scientific camera's does: thousands of levels, of which 8 bits would keep a few dozen.

    Args:
        part: ``train`` or ``val``.
        count: number of pictures.
        channels: 1 or 3.
        depth: integer type of the pictures.
        seed: 0 or more.
    """

    classes = DEMO

    def __init__(self, part: Part, count: int, *, channels: int, depth: Depth, seed: int) -> None:
        self.part = part
        self.channels = channels
        self.depth = depth
        self.seed = seed
        self._indices = range(count)
        self._drawn: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        index = self._indices[index]
        if index not in self._drawn:
            self._drawn[index] = self._draw(index)
        kept = self._drawn[index]
        return Sample(kept.name, kept.image.copy(), kept.labels.copy())  # whoever writes into it spoils only a copy

    def _draw(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, get_args(Part).index(self.part), index])
        scene = _draw_scene(rng)
        return Sample(f"{self.part}_{index:04}", _photograph(rng, scene, self.channels, self.depth), scene.labels)


def open_demo(place: str, _: DataOptions | None = None, *, seed: int = 0) -> Split:
    """Open the built-in dataset.

    Args:
        place: the variant: ``""``: 8-bit RGB; ``grey8``: 8-bit grey; ``grey16``: 16-bit grey.
        seed: of everything that is drawn.

    Raises:
        DatasetError: if there is no such variant, or the seed is negative.
    """
    if place not in _VARIANTS:
        raise DatasetError(f"--data demo:{place}: there is no such variant; expected demo, demo:grey8 or demo:grey16")
    if seed < 0:
        raise DatasetError(f"the seed is {seed}; the demo dataset needs 0 or more")
    channels, depth = _VARIANTS[place]
    return Split(
        Demo("train", TRAIN_COUNT, channels=channels, depth=depth, seed=seed),
        Demo("val", VAL_COUNT, channels=channels, depth=depth, seed=seed),
    )


@dataclass
class _Scene:
    """What is painted so far, and the light it stands in.

    Attributes:
        color: (3, H, W).
        labels: (H, W) uint8.
        light: direction to the lamp (x, y, z), length 1, z towards the camera.
    """

    color: Color
    labels: NDArray[np.uint8]
    light: tuple[float, float, float]

    def paint(self, name: str, mask: NDArray[np.bool_], color: Color, height_px: float) -> None:
        """Put a shape that stands ``height_px`` above the rest on top, and its shadow beneath it."""
        x, y, _ = self.light
        shift = np.array([[1, 0, -x * height_px], [0, 1, -y * height_px]])
        shadow = cv2.warpAffine(mask.astype(np.float32), shift, (WIDTH_PX, HEIGHT_PX))
        shadow = cv2.GaussianBlur(shadow, (0, 0), 0.5 + 0.25 * height_px)
        self.color *= 1 - 0.35 * shadow
        np.copyto(self.color, color, where=mask)
        self.labels[mask] = DEMO.names.index(name)


def _draw_scene(rng: Generator) -> _Scene:
    azimuth, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.8)
    light = (slope * math.cos(azimuth), slope * math.sin(azimuth), math.sqrt(1 - slope**2))
    ground = _color(rng, 0.25, 0.5, 0.4) * (0.95 + 0.1 * _clouds(rng, (2, 4, 8, 16, 32)))
    scene = _Scene(ground, np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8), light)
    patches = [_PATCHES[kind] for kind in rng.integers(len(_PATCHES), size=rng.integers(3, 6))]
    kinds = [*patches, *[_ball] * rng.integers(2, 5), *[_wire] * rng.integers(1, 5)]
    # Any order is possible, but patches tend to lie at the bottom, or they would hide most of the rest.
    depths = rng.random(len(kinds)) + [0.0 if kind in _PATCHES else 0.8 for kind in kinds]
    for place in np.argsort(depths):
        kinds[place](rng, scene)
    falloff = (_X / WIDTH_PX - 0.5) * light[0] + (_Y / HEIGHT_PX - 0.5) * light[1]
    scene.color *= 0.95 + 0.4 * falloff + 0.06 * _clouds(rng, (64,))
    return scene


def _brick(rng: Generator, scene: _Scene) -> None:
    """Running bond: every other course is shifted by half a brick."""
    u, v = _turned(rng)
    height = rng.uniform(5.5, 8.5)
    width, joint = height * rng.uniform(1.8, 2.4), rng.uniform(1.2, 1.7)
    course = np.floor(v / height)
    u = u + width / 2 * (course % 2)
    edge = np.minimum(_to_nearest(v, height), _to_nearest(u, width))
    tone = rng.uniform(0.8, 1.15, 64).astype(np.float32)
    brick = _color(rng, 0.35, 0.7, 0.7) * tone[(np.floor(u / width) * 7 + course * 11).astype(int) % 64]
    wall = _blend(brick, _color(rng, 0.7, 0.9, 0.2), _soft(joint / 2 - edge))
    scene.paint("brick", _patch(rng), wall, rng.uniform(2, 5))


def _fabric(rng: Generator, scene: _Scene) -> None:
    """Fine threads of two colours, crossed by finer ones, in folds."""
    u, v = _turned(rng)
    period = rng.uniform(3, 4.5)
    threads = 0.5 + 0.5 * np.sin(2 * np.pi / period * u)
    relief = 1 + 0.1 * np.sin(2 * np.pi / 2.5 * v) + 0.15 * np.sin(v / rng.uniform(5, 8) + 2 * _clouds(rng, (32,)))
    cloth = _blend(_color(rng, 0.6, 0.95, 0.7), _color(rng, 0.2, 0.4, 0.7), threads)
    scene.paint("fabric", _patch(rng), cloth * relief, rng.uniform(1, 3))


def _grid(rng: Generator, scene: _Scene) -> None:
    """A perforated plate: what lies beneath shows dimly through its holes, and yet these are grid."""
    u, v = _turned(rng)
    pitch = rng.uniform(6, 10)
    hole = _soft(pitch * rng.uniform(0.3, 0.36) - np.hypot(_to_nearest(u, pitch), _to_nearest(v, pitch)))
    scene.paint("grid", _patch(rng), _blend(_color(rng, 0.5, 0.9, 0.7), 0.25 * scene.color, hole), rng.uniform(3, 7))


def _ball(rng: Generator, scene: _Scene) -> None:
    """Lambert's shading and Blinn's soft highlight."""
    radius = rng.uniform(9, 18)
    x, y = (_X - rng.uniform(0, WIDTH_PX)) / radius, (_Y - rng.uniform(0, HEIGHT_PX)) / radius
    mask = x**2 + y**2 < 1
    normal = np.stack((x, y, np.sqrt(np.maximum(1 - x**2 - y**2, 0))))[:, mask]
    light = np.array(scene.light, np.float32)
    halfway = light + np.array((0, 0, 1), np.float32)
    halfway /= np.linalg.norm(halfway)
    diffuse = _color(rng, 0.65, 1, 0.85)[:, 0] * (0.35 + 0.75 * np.maximum(light @ normal, 0))
    specular = rng.uniform(0.4, 0.7) * np.maximum(halfway @ normal, 0) ** rng.uniform(20, 60)
    color = np.zeros_like(scene.color)
    color[:, mask] = diffuse + specular
    scene.paint("ball", mask, color, 0.5 * radius)


def _wire(rng: Generator, scene: _Scene) -> None:
    """A cubic Bézier curve from edge to edge, 3 to 4 pixels wide, lit like a cylinder."""
    along = np.array([-0.05, *rng.uniform(0, 1, 2), 1.05])
    across = rng.uniform(-0.1, 1.1, 4)
    points = _BERNSTEIN @ np.stack((along, across)[:: rng.choice((-1, 1))], axis=1) * (WIDTH_PX, HEIGHT_PX)
    # Distances are taken on half pixels: on whole ones, only odd widths could be drawn.
    course = np.full((2 * HEIGHT_PX, 2 * WIDTH_PX), 1, np.uint8)
    cv2.polylines(course, [np.round(2 * points).astype(np.int32)], isClosed=False, color=0)
    distance = cv2.distanceTransform(course, cv2.DIST_L2, cv2.DIST_MASK_5)[::2, ::2] / 2
    radius = rng.uniform(1.3, 1.75)
    roundness = np.sqrt(np.maximum(1 - (distance / (radius + 0.5)) ** 2, 0))
    scene.paint("wire", distance <= radius, _color(rng, 0.8, 1, 0.4) * (0.3 + 0.9 * roundness), rng.uniform(2, 5))


_PATCHES: Final[list[Callable[[Generator, _Scene], None]]] = [_brick, _fabric, _grid]


def _photograph(rng: Generator, scene: _Scene, channels: int, depth: Depth) -> Image:
    light = cv2.GaussianBlur(np.ascontiguousarray(scene.color.transpose(1, 2, 0)), (0, 0), rng.uniform(0.4, 0.7))
    if channels == 1:
        light = cv2.cvtColor(light, cv2.COLOR_RGB2GRAY)[..., None]
    light = light + rng.uniform(0.01, 0.02) * rng.standard_normal(light.shape, np.float32)
    black, white = (0, 255) if depth == "uint8" else (rng.uniform(500, 3000), rng.uniform(4000, 12000))
    return np.asarray(np.clip(black + light * (white - black) + 0.5, 0, FULL_SCALE[depth]).astype(depth))


def _color(rng: Generator, darkest: float, brightest: float, most_saturated: float) -> Color:
    """A colour of any hue; brightness and saturation as in HSV."""
    color = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.3, 1) * most_saturated, rng.uniform(darkest, brightest))
    return np.array(color, np.float32).reshape(3, 1, 1)


def _clouds(rng: Generator, sizes_px: tuple[int, ...]) -> Field:
    """Smooth noise of several scales, standard deviation about 1."""
    total = np.zeros((HEIGHT_PX, WIDTH_PX), np.float32)
    for size in sizes_px:
        coarse = rng.standard_normal((HEIGHT_PX // size + 1, WIDTH_PX // size + 1), np.float32)
        total += cv2.resize(coarse, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_CUBIC)
    return total / np.float32(np.sqrt(len(sizes_px)))


def _patch(rng: Generator) -> NDArray[np.bool_]:
    """A polygon of 4 to 8 corners about a point of the picture."""
    corners = rng.integers(4, 9)
    angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * (2 * np.pi / corners) + rng.uniform(0, 2 * np.pi)
    radii = rng.uniform(26, 46) * rng.uniform(0.75, 1.2, corners)
    points = rng.uniform((0, 0), (WIDTH_PX, HEIGHT_PX)) + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    mask = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    return cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1).astype(bool)


def _turned(rng: Generator) -> tuple[Field, Field]:
    """Coordinates of the pixels along two axes at right angles, turned and shifted at random."""
    angle = rng.uniform(0, np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    du, dv = rng.uniform(0, 100, 2).astype(np.float32)
    return cosine * _X + sine * _Y + du, cosine * _Y - sine * _X + dv


def _to_nearest(position: Field, period: float) -> Field:
    """Distance from each position to the nearest multiple of the period."""
    return np.asarray(np.abs(position - period * np.rint(position / period)))


def _soft(inside_px: Field) -> Field:
    """How much of a pixel is covered, 0…1, when its centre lies so far inside an edge."""
    return np.asarray(np.clip(inside_px + 0.5, 0, 1))


def _blend(first: Color, second: Color, share: Field) -> Color:
    return first + (second - first) * share
