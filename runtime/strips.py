"""A picture that is larger than memory, segmented: read by rows, cut into tiles, and what is written, written by rows."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
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
from segship.runtime.outputs import OutputKind
from segship.runtime.png import PngWriter
from segship.runtime.postprocess import keep_only, no_class_id
from segship.runtime.prepare import logits_of_tiles
from segship.runtime.preprocess import Image
from segship.runtime.render import DEFAULT_ALPHA, color_image, displayable, overlay_image, palette_table
from segship.runtime.tiling import LogitBlock, num_tiles, tiled_logit_blocks

if TYPE_CHECKING:
    from segship.runtime.segmenter import Segmenter

STRIP_KINDS: Final[tuple[OutputKind, ...]] = ("mask", "color", "overlay")
"""What can be written before the whole picture is known."""


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
        progress: called with the numbers of tiles that are done and of all, after each row of tiles.

    Raises:
        ImageError: if the picture cannot be read, or not by rows.
        ModelError: if the segmenter does not cut pictures into tiles.
        OutputError: if an output cannot be written, or not by strips.
        BackendError: if the engine fails.
    """
    start = time.perf_counter()
    _check(segmenter, paths)
    card = segmenter.card
    areas = np.zeros(card.num_classes, np.int64)
    with BigPicture(source, max_pixels=segmenter.max_pixels) as picture, contextlib.ExitStack() as stack:
        rows = _Rows(picture, segmenter)
        total = _num_tiles(segmenter, picture.size)
        shades = _shades(rows) if "overlay" in paths else None
        writers = {
            kind: stack.enter_context(_png(path, kind, picture.size, segmenter)) for kind, path in paths.items()
        }
        for number, (top, labels) in enumerate(_label_strips(segmenter, rows, areas), 1):
            pixels = rows.take(top + len(labels))
            for kind, writer in writers.items():
                writer.write_rows(_drawn(kind, labels, pixels, card, alpha, shades))
            if progress is not None:
                progress(min(total, number * _tiles_across(segmenter, picture.size)), total)
    areas_px = dict(zip(card.class_names, areas.tolist(), strict=True))
    return StripResult(picture.name, *picture.size, areas_px, total, time.perf_counter() - start)
