"""Areas as COCO writes them: polygons, run lengths as numbers, run lengths as text.

COCO numbers the pixels of a picture down its columns. The runs of an area are lengths in this order: outside, inside,
outside, and so on; together they cover the picture. Polygons become runs in pycocotools. Runs are not decoded there,
since some of its versions write past the end of the picture where they do not fit.
"""

from collections.abc import Iterator
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from segship.runtime.errors import DatasetError, require

MAX_RUN_BITS: Final = 60

Runs = NDArray[np.int64]


def require_pycocotools() -> Any:
    """Import what turns polygons into runs.

    Raises:
        MissingExtraError: if pycocotools is not installed.
    """
    return require("pycocotools.mask", extra="train", purpose="--data coco")


def area_runs(segmentation: object, size: tuple[int, int], where: str) -> Iterator[Runs]:
    """Yield the runs of the parts of an area, one part at a time.

    Args:
        segmentation: as parsed from the JSON: a list of polygons [x, y, x, y, …] in pixels from the upper left corner,
            each a part; or an object of ``size``, [height, width], and ``counts``, a list or a text.
        size: (height, width) of the picture.
        where: what the area belongs to, for messages.

    Raises:
        DatasetError: if it is neither, or does not fit the picture.
    """
    if isinstance(segmentation, list) and segmentation:
        mask = require_pycocotools()
        for polygon in segmentation:
            outline = _check_polygon(polygon, size, where)
            yield np.array(
                _decode_runs(cast("bytes", mask.frPyObjects([outline], *size)[0]["counts"]), where), np.int64
            )
    elif isinstance(segmentation, dict):
        yield _check_runs(segmentation, size, where)
    else:
        raise DatasetError(f"{where} has no area, perhaps a box alone; expected polygons or run lengths")


def paint_runs(labels: NDArray[np.uint8], runs: Runs, class_id: int) -> None:
    """Set the pixels inside to a class id; ``labels`` (W·H,) are those of a picture, column after column."""
    inside = np.repeat(np.arange(1, len(runs)) % 2 == 1, runs[1:])
    labels[runs[0] :][inside] = class_id


def _check_runs(segmentation: dict[str, Any], size: tuple[int, int], where: str) -> Runs:
    """Return run lengths that cover the picture, no more and no less."""
    pixels = size[0] * size[1]
    if segmentation.get("size") != list(size):
        raise DatasetError(f"{where}: its runs are of size {str(segmentation.get('size'))[:60]}; expected {list(size)}")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = _decode_runs(counts.encode(errors="surrogatepass"), where)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise DatasetError(f"{where}: its runs are damaged; expected lengths from 0, or COCO's text of them")
    if sum(counts) != pixels:
        raise DatasetError(f"{where}: its runs cover {sum(counts)} pixels; expected {pixels}, those of the picture")
    return np.array(counts, np.int64)


def _check_polygon(polygon: object, size: tuple[int, int], where: str) -> NDArray[np.float64]:
    """Return a polygon that is safe to draw: finite, of this picture, and with an outline of sane length."""
    height, width = size
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty((0, 0))
    if points.ndim != 1 or not np.isfinite(points).all():
        raise DatasetError(f"{where}: a polygon is {str(polygon)[:60]!r}; expected a list of numbers x, y, x, y, …")
    if len(points) % 2 or len(points) < 6:
        raise DatasetError(f"{where}: a polygon has {len(points)} numbers; expected x and y of 3 points or more")
    x, y = points[::2], points[1::2]
    left, top, right, bottom = x.min() / width, y.min() / height, x.max() / width, y.max() / height
    outside = right < 0 or bottom < 0 or left > 1 or top > 1
    if outside or min(left, top) < -1 or max(right, bottom) > 2:  # over the edge is harmless, unless far over it
        raise DatasetError(
            f"{where}: a polygon with x {x.min():g}…{x.max():g} and y {y.min():g}…{y.max():g} does not belong to a "
            f"picture of {width}×{height} pixels"
        )
    steps = np.maximum(np.abs(np.diff(x, append=x[0])), np.abs(np.diff(y, append=y[0])))
    if steps.sum() > height * width + 8 * (height + width):
        raise DatasetError(f"{where}: a polygon's outline is {steps.sum():.0f} pixels long, too long for its picture")
    return points


def _decode_runs(text: bytes, where: str) -> list[int]:
    """Decode COCO's text of run lengths.

    Each character holds 6 bits above 48: five of a number, the lowest first, and one that says that more follow; the
    highest of the five in the last is the sign. From the fourth on, a number is the difference to the run before the
    previous one.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > MAX_RUN_BITS:
            raise DatasetError(f"{where}: its runs are damaged; {bytes([character])!r} does not belong in their text")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    if shift:
        raise DatasetError(f"{where}: its runs are damaged; their text ends within a number")
    return runs
