"""How long a picture takes that is larger than memory, and how much memory it takes.

    python -m segship.benchmarks.big_picture model.onnx PICTURES --side 20000

A mosaic of the pictures is written as a tiled TIFF, one row of tiles after the other, so that it is never held as a
whole. A process of its own segments it by strips, and tells its peak of resident memory.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import numpy as np
from numpy.typing import NDArray

from segship.benchmarks.processes import run_own
from segship.runtime.console import run
from segship.runtime.images import read_image
from segship.runtime.source_files import find_images

_LIMIT_S: Final = 24 * 3600.0
_SEGMENT: Final = """
import json, sys
from pathlib import Path
from segship.benchmarks.processes import peak_bytes
from segship.runtime.backends.options import EngineOptions
from segship.runtime.segmenter import Segmenter
from segship.runtime.strips import segment_by_strips

a = json.loads(sys.argv[1])
options = EngineOptions(memory_arena=a["arena"])
with Segmenter(a["model"], backend=a["backend"], tile=a["tile"] and tuple(a["tile"]), overlap=a["overlap"],
               batch=a["batch"], max_pixels=1 << 40, options=options) as segmenter:
    loaded = peak_bytes()
    paths = {kind: Path(a["out"]) / f"{kind}.png" for kind in a["save"].split(",")}
    result = segment_by_strips(segmenter, a["picture"], paths)
print(json.dumps({"seconds": result.seconds, "tiles": result.tiles, "loaded": loaded, "peak": peak_bytes()}))
"""


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pictures", type=click.Path(path_type=Path))
@click.option("--side", type=click.IntRange(64), default=4000, show_default=True, help="Side of the square mosaic, px.")
@click.option("--tile", type=click.IntRange(1), help="Side of a tile, px.  [default: the card's]")
@click.option("--overlap", type=click.FloatRange(0, 0.9), help="Of tiles.  [default: the card's]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Tiles that a run takes.")
@click.option("--backend", default="ort", show_default=True, help="Engine.")
@click.option("--no-arena", is_flag=True, help="ONNX Runtime without its memory arena.")
@click.option("--save", default="mask", show_default=True, help="What is written: mask, color, overlay.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the mosaic and what is written."
)
def big_picture(
    model: Path,
    pictures: Path,
    side: int,
    tile: int | None,
    overlap: float | None,
    batch: int,
    backend: str,
    no_arena: bool,
    save: str,
    out: Path,
) -> None:
    """Segment a mosaic of PICTURES with MODEL by strips; print seconds, tiles and peak memory."""
    mosaic = out / f"mosaic-{side}.tif"
    if not mosaic.exists():
        write_mosaic(mosaic, [file.path for file in find_images([pictures])][:64], side)
    arguments = {
        "model": str(model),
        "backend": backend,
        "picture": str(mosaic),
        "tile": tile and [tile, tile],
        "overlap": overlap,
        "batch": batch,
        "arena": not no_arena,
        "save": save,
        "out": str(out),
    }
    told = run_own(["-c", _SEGMENT, json.dumps(arguments)], _LIMIT_S, name=f"{model} in a process of its own")
    found = json.loads(told.splitlines()[-1])
    click.echo(
        f"{side}×{side}, {backend}, writes {save}: {found['seconds']:.1f} s, {found['tiles']} tiles "
        f"({found['seconds'] / found['tiles'] * 1000:.0f} ms each), peak {found['peak'] / 1e9:.2f} GB resident "
        f"({found['loaded'] / 1e9:.2f} with the model loaded), file of {mosaic.stat().st_size / 1e6:.0f} MB"
    )


def write_mosaic(path: Path, pictures: list[Path], side: int, tile: int = 256) -> None:
    """Write pictures side by side and below each other, over and over, as a square BigTIFF of deflated tiles."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        _tiles(pictures, side, tile),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(tile, tile),
        photometric="rgb",
        compression="zlib",
        bigtiff=True,
    )


def _tiles(pictures: list[Path], side: int, tile: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the tiles of a mosaic in the order of the file; a row of pictures and one of tiles are held."""
    rows = _rows(pictures, -(-side // tile) * tile)
    for top in range(0, side, tile):
        strip = np.stack(list(itertools.islice(rows, tile)))
        strip[side - top :] = 0
        for left in range(0, side, tile):
            yield np.ascontiguousarray(strip[:, left : left + tile])


def _rows(pictures: list[Path], width: int) -> Iterator[NDArray[np.uint8]]:
    """Yield rows (width, 3) without end."""
    endless = itertools.cycle(pictures)
    while True:
        row = [read_image(next(endless), channels=3, depth="uint8")]
        height = row[0].shape[0]
        while sum(picture.shape[1] for picture in row) < width:
            row.append(_of_height(read_image(next(endless), channels=3, depth="uint8"), height))
        yield from np.hstack(row)[:, :width]


def _of_height(picture: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    return np.resize(picture, (height, *picture.shape[1:]))  # pictures of one size stay as they are


if __name__ == "__main__":
    run(big_picture)
