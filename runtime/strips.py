"""Pictures larger than memory: read by rows, segmented in tiles, and what comes out written by rows."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.big_pictures import BigPicture
from segship.runtime.card import ModelCard
from segship.runtime.errors import ModelError, OutputError
from segship.runtime.files import replacing
from segship.runtime.images import Page, in_form
from segship.runtime.labels import Labels, labels_dtype, labels_from_logits
from segship.runtime.network import run_checked
from segship.runtime.outputs import OutputKind
from segship.runtime.png import PngWriter
from segship.runtime.prepare import Tiling, logits_of_tiles
from segship.runtime.preprocess import Image
from segship.runtime.processing import Processing
from segship.runtime.render import DEFAULT_ALPHA, color_image, displayable, overlay_image, palette_table
from segship.runtime.tiling import RunTiles, num_tiles, tiled_logit_blocks

if TYPE_CHECKING:
    from segship.runtime.segmenter import Segmenter

STRIP_KINDS: Final[tuple[OutputKind, ...]] = ("mask", "color", "overlay")
"""What can be written before the whole picture is known."""

_ROWS_AT_ONCE: Final = 64


@dataclass(frozen=True)
class StripResult:
    """What a network says about a picture that was never held as a whole.

    Attributes:
        source: the path, and the page where the file has several.
        height: in pixels.
        width: in pixels.
        areas_px: pixels that each class has, by name.
        tiles: how many were run.
        seconds: that it took.
    """

    source: str
    height: int
    width: int
    areas_px: dict[str, int]
    tiles: int
    seconds: float

    @property
    def areas(self) -> dict[str, float]:
        """Share of the picture that each class has, 0…1, by name."""
        return {name: pixels / (self.height * self.width) for name, pixels in self.areas_px.items()}


def segment_by_strips(
    segmenter: "Segmenter",
    source: str | Path | Page,
    paths: Mapping[OutputKind, Path],
    *,
    alpha: float = DEFAULT_ALPHA,
    progress: Callable[[int, int], None] | None = None,
) -> StripResult:
    """Segment a TIFF tile by tile and write what comes out strip by strip; labels are those of the whole picture.

    Memory is bounded by a row of tiles: its pixels, its labels, and the logits of the rows that the next row of tiles
    covers too (see :func:`segship.runtime.tiling.tiled_logit_blocks`).

    Args:
        segmenter: one that cuts pictures into tiles.
        source: of the TIFF.
        paths: where each kind of output goes; of :data:`STRIP_KINDS`. Each is written whole or not at all.
        alpha: opacity of the colours in the overlay, 0…1.
        progress: called with the numbers of tiles that are done and of all, after each tile.

    Raises:
        ImageError: if the picture cannot be read, or not by rows.
        ModelError: if the segmenter does not cut pictures into tiles.
        OutputError: if an output cannot be written, or not by strips.
        BackendError: if the engine fails.
    """
    start = time.perf_counter()
    tiling = check_strips(segmenter, list(paths))
    with BigPicture(source, max_pixels=segmenter.processing.max_pixels) as picture, contextlib.ExitStack() as stack:
        rows = _Rows(picture, segmenter.processing)
        shades = _shades(rows) if "overlay" in paths and segmenter.card.preprocess.depth == "uint16" else None
        files = {kind: stack.enter_context(_png(path, kind, rows)) for kind, path in paths.items()}
        counter = _Counter(segmenter.card, progress)
        for labels in _strips_of_labels(rows, tiling, counter):
            pixels = rows.take(len(labels))
            for part in _parts(len(labels)):
                shown = pixels[part] if shades is None else shades[pixels[part]]
                for kind, file in files.items():
                    file.write_rows(_drawn(kind, labels[part], shown, segmenter.card, alpha))
    areas_px = dict(zip(segmenter.card.class_names, counter.areas_px.tolist(), strict=True))
    return StripResult(picture.name, *picture.size, areas_px, counter.tiles, time.perf_counter() - start)


class _Rows:
    """A picture's rows in the card's form: read once, and held until they are taken."""

    def __init__(self, picture: BigPicture, processing: Processing) -> None:
        self.picture, self.processing, self.size = picture, processing, picture.size
        self._top = 0
        self._held = self.in_form(0, 0)

    def in_form(self, start: int, stop: int) -> Image:
        """Read rows, whatever is held."""
        form = self.processing.card.preprocess
        return in_form(
            self.picture.rows(start, stop),
            channels=form.channels,
            depth=form.depth,
            convert=self.processing.convert,
            name=self.picture.name,
        )

    def __call__(self, start: int, stop: int) -> Image:
        """Return rows from ``start`` up to ``stop``, none of which was taken."""
        end = self._top + len(self._held)
        if stop > end:
            self._held = np.concatenate([self._held, self.in_form(end, stop)])
        return self._held[start - self._top : stop - self._top]

    def take(self, count: int) -> Image:
        """Return the first rows that are held, and hold them no longer."""
        taken, self._held = self._held[:count], self._held[count:]
        self._top += count
        return taken


class _Counter:
    """How far it is, and what was found so far."""

    def __init__(self, card: ModelCard, progress: Callable[[int, int], None] | None) -> None:
        self.areas_px = np.zeros(card.num_classes, np.int64)
        self.tiles = 0
        self._progress = progress

    def add(self, labels: Labels, total: int) -> None:
        """Count a tile's part of the labels."""
        self.areas_px += np.bincount(labels.ravel(), minlength=len(self.areas_px))[: len(self.areas_px)]
        self.tiles += 1
        if self._progress is not None:
            self._progress(self.tiles, total)


def check_strips(segmenter: "Segmenter", kinds: Sequence[OutputKind]) -> Tiling:
    """Return how pictures are cut into tiles, if these kinds of output can be written by strips.

    Raises:
        ModelError: if the segmenter does not cut pictures into tiles.
        OutputError: if a kind cannot be written so, or labels are to be tidied up.
    """
    processing = segmenter.processing
    if processing.tiling is None:
        raise ModelError(
            f"{segmenter.model} sees whole pictures, and one this large is segmented tile by tile only; "
            "say how large tiles are (--tile 512x512)"
        )
    if wrong := [kind for kind in kinds if kind not in STRIP_KINDS]:
        raise OutputError(
            f"{', '.join(wrong)} of a picture this large cannot be written, since it is never held as a whole; "
            f"choose from {', '.join(STRIP_KINDS)}"
        )
    if processing.post:
        raise OutputError(
            "labels of a picture this large cannot be tidied up, since it is never held as a whole; "
            "leave that out, or cut the picture up"
        )
    return processing.tiling


def _fitting(tiling: Tiling, rows: _Rows) -> tuple[Tiling, RunTiles]:
    """Return how a picture is cut, and what runs the tiles.

    A picture that a tile would cover is one tile of its own size, and goes through a network that sees whole pictures
    as a whole one does.
    """
    processing = rows.processing
    is_covered = all(side <= length for side, length in zip(rows.size, tiling.size, strict=True))
    if not is_covered or processing.card.tile_overlap is not None:
        return tiling, processing.infer_tiles
    card, backend = processing.card, processing.backend
    whole = dataclasses.replace(tiling, size=rows.size)
    return whole, lambda tiles: logits_of_tiles(card, tiles, lambda batch: run_checked(backend, card, batch))


def _strips_of_labels(rows: _Rows, asked: Tiling, counter: _Counter) -> Iterator[Labels]:
    """Yield labels (h, W) from top to bottom."""
    processing, width = rows.processing, rows.size[1]
    tiling, run = _fitting(asked, rows)
    total = num_tiles(rows.size, tiling.size, tiling.overlap)
    strip: Labels = _empty_labels(processing, (0, width))
    for block in tiled_logit_blocks(
        rows,
        rows.size,
        run,
        num_logits=processing.card.num_logits,
        tile=tiling.size,
        overlap=tiling.overlap,
        batch=tiling.batch,
    ):
        height, right = block.logits.shape[1], block.left + block.logits.shape[2]
        if block.left == 0:
            strip = _empty_labels(processing, (height, width))
        labels = labels_from_logits(block.logits, (height, right - block.left), processing.card)
        strip[:, block.left : right] = processing.told_of(labels)
        counter.add(strip[:, block.left : right], total)
        if right == width:
            yield strip


def _empty_labels(processing: Processing, size: tuple[int, int]) -> Labels:
    """Return labels of the type that a result's have."""
    one = np.zeros((1, 1), labels_dtype(processing.card.num_classes))
    return np.empty(size, processing.told_of(one).dtype)


def _shades(rows: _Rows) -> NDArray[np.uint8]:
    """Return how 16-bit values of a picture are shown, (65536,): for that it is read once from top to bottom."""
    low, high = 65535, 0
    for part in _parts(rows.size[0]):
        pixels = rows.in_form(part.start, part.stop)
        low, high = min(low, int(pixels.min())), max(high, int(pixels.max()))
    shades = np.zeros(65536, np.uint8)
    shades[low : high + 1] = displayable(np.arange(low, high + 1, dtype=np.uint16)[:, None, None])[:, 0, 0]
    return shades


def _parts(num_rows: int) -> list[slice]:
    """Return slices of a few rows, so that what is made of them for a moment is small."""
    return [slice(start, min(start + _ROWS_AT_ONCE, num_rows)) for start in range(0, num_rows, _ROWS_AT_ONCE)]


@contextlib.contextmanager
def _png(path: Path, kind: OutputKind, rows: _Rows) -> Iterator[PngWriter]:
    height, width = rows.size
    with replacing(path) as temporary, temporary.open("wb") as file:
        if kind == "mask":
            dtype = _empty_labels(rows.processing, (0, 0)).dtype
            palette = palette_table(rows.processing.card) if dtype == np.uint8 else None
            png = PngWriter(file, width, height, depth=8 * dtype.itemsize, palette=palette)
        else:
            png = PngWriter(file, width, height, channels=3)
        with png:
            yield png


def _drawn(kind: OutputKind, labels: Labels, pixels: Image, card: ModelCard, alpha: float) -> NDArray[Any]:
    match kind:
        case "mask":
            return labels
        case "color":
            return color_image(labels, card)
    return overlay_image(pixels, labels, card, alpha)
