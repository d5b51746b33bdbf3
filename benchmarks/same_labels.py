"""Has one picture the same labels however it comes in, and whichever engine runs the network?

    python -m segship.benchmarks.same_labels model.onnx picture.jpg --tile 256x256

As a path, an array, a Pillow image and encoded bytes it goes to ``Segmenter``; as a path, on stdin and as a lossless
video of one frame to ``seg-infer``. Within an engine every label is asked to be the same; between engines what an
export asks of them (``segship.runtime.compare``).
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.benchmarks.processes import SEG_INFER, run_own
from segship.runtime.compare import Expected, compare, gate_of
from segship.runtime.console import SizeType, run
from segship.runtime.errors import ImageError
from segship.runtime.images import read_image
from segship.runtime.processing import Stages
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter

_LIMIT_S: Final = 3600.0


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
@click.option(
    "--backend", "backends", multiple=True, default=["ort", "opencv", "openvino"], show_default=True, help="Engines."
)
@click.option("--tile", type=SizeType(), help="Also cut the picture into tiles of this size.")
def same_labels(model: Path, picture: Path, backends: tuple[str, ...], tile: tuple[int, int] | None) -> None:
    """Compare the labels of PICTURE by MODEL; the exit status is 1 if one differs where none may."""
    is_same = True
    for cut in (None, tile) if tile else (None,):
        click.echo("whole:" if cut is None else f"tiles of {cut[0]}×{cut[1]}:")
        first: Result | None = None
        for backend in backends:
            with Segmenter(model, backend=backend, device="cpu", tile=cut) as segmenter:
                result = segmenter(picture)
                others = {form: np.array_equal(labels, result.labels) for form, labels in _forms(segmenter, picture)}
            differing = [form for form, same in others.items() if not same]
            click.echo(
                f"  {backend}: "
                + (f"DIFFERENT as {', '.join(differing)}" if differing else f"same as {', '.join(others)}")
            )
            is_same &= not differing and (first is None or _agree(first, result, backends[0]))
            first = first or result
    sys.exit(0 if is_same else 1)


def _agree(first: Result, result: Result, backend: str) -> bool:
    """Tell, and return, whether an engine says of a picture what the first one says."""
    if first.logits is None:
        click.echo("    not compared with other engines: this model returns labels, which do not tell near ties")
        return True
    comparison = compare(Expected.of(first, Stages(first.image, None, None), result.card), result)
    passes = comparison.passes(gate_of(result.card.precision))
    verdict = "same" if passes else "DIFFERENT"
    click.echo(f"    {verdict} as by {backend}: {comparison.label_agreement:.4%} of the labels")
    return passes


def _forms(segmenter: Segmenter, picture: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield every form of a picture with the labels that it has."""
    form = segmenter.card.preprocess
    pixels = read_image(picture, channels=form.channels, depth=form.depth)
    yield "array", segmenter(pixels).labels
    yield "bytes", segmenter(picture.read_bytes()).labels
    with PillowImage.open(picture) as opened:
        yield "Pillow image", segmenter(opened).labels
    yield "stream", next(segmenter.stream([picture])).labels
    with tempfile.TemporaryDirectory() as folder:
        video = _one_frame(pixels, Path(folder) / "one.mkv")
        for name, source in (("command", str(picture)), ("stdin", "-"), ("video", str(video))):
            out = Path(folder) / name
            options = [*f"--backend {segmenter.info.backend} --device cpu --save mask -q --out".split(), str(out)]
            if (tiling := segmenter.processing.tiling) is not None:
                options += ["--tile", "{}x{}".format(*tiling.size)]
            with picture.open("rb") as file:
                arguments = ["-c", SEG_INFER, str(segmenter.model), source, *options]
                run_own(arguments, _LIMIT_S, name=f"seg-infer on {name}", stdin=file)
            with PillowImage.open(next(out.rglob("*.png"))) as mask:
                yield name, np.asarray(mask)


def _one_frame(pixels: NDArray[Any], path: Path) -> Path:
    """Write a picture (H, W, 1 or 3) as a video whose codec, FFV1, loses nothing.

    Raises:
        ImageError: if this OpenCV does not write FFV1.
    """
    size = (pixels.shape[1], pixels.shape[0])
    options = [cv2.VIDEOWRITER_PROP_IS_COLOR, int(pixels.shape[2] == 3)]
    options += [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U] if pixels.dtype == np.uint16 else []
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"FFV1"), 10, size, options)
    if not writer.isOpened():
        raise ImageError("this OpenCV cannot write FFV1; install another build of it")
    writer.write(np.ascontiguousarray(pixels[..., ::-1]))
    writer.release()
    return path


if __name__ == "__main__":
    run(same_labels)
