"""The command ``seg-infer``."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import click

import segship
from segship.runtime.console import SizeType, chosen, run
from segship.runtime.errors import EXIT_OK, EXIT_SKIPPED, ImageError, SegshipError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from segship.runtime.outputs import OutputKind
    from segship.runtime.segmenter import Result, Segmenter
    from segship.runtime.sources import SourceFile

_PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("model", type=_PATH)
@click.argument("sources", metavar="SOURCE...", type=_PATH, nargs=-1, required=True)
@click.option(
    "--backend", metavar="NAME", help="Engine: ort, opencv or openvino.  [default: ort where installed, else opencv]"
)
@click.option("--device", default="auto", help="auto, cpu or cuda[:N]. What is asked for runs, or it is an error.")
@click.option("--size", type=SizeType(), help="For a model of open size: what pictures are brought to.")
@click.option("--out", type=_PATH, default=Path("segmented"), help="Folder to write to.")
@click.option("--save", default="mask,overlay", metavar="KINDS", help="Any of mask,color,overlay; empty: nothing.")
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, help="Opacity of the colours in overlays.")
@click.option(
    "--convert",
    default="",
    metavar="WHAT",
    help="Lossy conversions to allow, any of depth (16 to 8 bit), grey, alpha (drop it).",
)
@click.option("--card", "card_path", type=_PATH, help="Card as a JSON file, for a model that carries none.")
@click.option("--overwrite", is_flag=True, help="Write over outputs that are there already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document in place of lines.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.version_option(segship.__version__)
def seg_infer(
    *,
    model: Path,
    sources: tuple[Path, ...],
    backend: str | None,
    device: str,
    size: tuple[int, int] | None,
    out: Path,
    save: str,
    alpha: float,
    convert: str,
    card_path: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Segment pictures: SOURCEs are files and folders.

    Masks are palette PNGs at the picture's own size: a viewer shows colours, a program reads class ids. A picture that
    cannot be read is reported and skipped, and the exit status is then 3.
    """
    import cv2

    from segship.runtime.card_values import read_card_file
    from segship.runtime.images import CONVERSIONS
    from segship.runtime.outputs import OUTPUT_KINDS, check_free, output_names, write_classes
    from segship.runtime.segmenter import Segmenter
    from segship.runtime.sources import find_images

    kinds = chosen(save, OUTPUT_KINDS, "--save")
    conversions = chosen(convert, CONVERSIONS, "--convert")
    card = None if card_path is None else read_card_file(card_path)
    with Segmenter(model, backend=backend, device=device, card=card, size=size, convert=conversions) as segmenter:
        if segmenter.info.backend != "opencv":
            cv2.setNumThreads(1)  # resizing in more threads would only take them from the engine
        files = find_images(sources, leave_out=[out / kind for kind in OUTPUT_KINDS])
        names = output_names(files)
        if not overwrite:
            check_free(out, kinds, names)
        if "mask" in kinds:
            write_classes(out / "mask", segmenter.card, overwrite=overwrite)

        def write(number: int, result: "Result") -> "dict[OutputKind, Path]":
            return result.save(out, kinds, name=names[number], alpha=alpha)

        with _Report(segmenter, files, quiet=quiet, as_json=as_json) as report:
            for result, written in segmenter.stream((file.path for file in files), then=write, on_error=report.skip):
                report.show(result, written)
        report.end(out if kinds else None)
    return EXIT_SKIPPED if report.skipped else EXIT_OK


class _Report:
    """What one run of the command says while it goes on, and at its end."""

    def __init__(self, segmenter: "Segmenter", files: "list[SourceFile]", *, quiet: bool, as_json: bool) -> None:
        self._segmenter, self._files = segmenter, files
        self._as_lines, self._as_json = not quiet and not as_json, as_json
        self._done: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self._start = time.perf_counter()
        self._bar: RichProgress | None = None
        if not quiet and len(files) > 1 and sys.stderr.isatty() and not (self._as_lines and sys.stdout.isatty()):
            self._bar = self._make_bar()  # where lines already scroll by on the screen, a bar would tell nothing more

    def __enter__(self) -> Self:
        if self._as_lines:
            card = self._segmenter.card
            name = card.network.arch if card.network else "network"
            height, width = card.preprocess.size
            tiles = "" if card.tile_overlap is None else f" tiles, {card.tile_overlap:.0%} overlap"
            click.echo(f"{name} {height}×{width}{tiles}, {card.num_classes} classes, by {self._segmenter.info}")
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def skip(self, number: int, error: SegshipError) -> None:
        if not isinstance(error, ImageError):  # of the model or the disk: the next picture would meet it too
            raise error
        self.skipped.append({"source": str(self._files[number].path), "error": str(error)})
        click.echo(f"skipped: {error}", err=True)
        self._advance()

    def show(self, result: "Result", written: "dict[OutputKind, Path]") -> None:
        height, width = result.labels.shape
        if self._as_lines:
            largest = sorted(result.areas.items(), key=lambda item: -item[1])
            shares = "  ".join(f"{name} {share:.1%}" for name, share in largest if share)
            click.echo(f"{result.source}  {width}×{height}  {shares}")
        if self._as_json:
            outputs = {kind: str(path) for kind, path in written.items()}
            self._done.append(
                {"source": result.source, "height": height, "width": width, "areas": result.areas}
                | {"outputs": outputs, "timings": result.timings}
            )
        self._advance()

    def end(self, out: Path | None) -> None:
        seconds = time.perf_counter() - self._start
        done = len(self._files) - len(self.skipped)
        if self._as_json:
            found = {"seconds": seconds, "images": self._done, "skipped": self.skipped}
            click.echo(json.dumps(self._segmenter.describe() | found, ensure_ascii=False))
        elif self._as_lines:
            skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
            written = f" → {out}/" if out and done else ""
            pictures = "1 picture" if done == 1 else f"{done} pictures"
            click.echo(f"{pictures}{skipped} in {seconds:.2f} s ({done / seconds:.1f} a second){written}")

    def _make_bar(self) -> "RichProgress":
        from rich.console import Console
        from rich.progress import Progress

        bar = Progress(console=Console(stderr=True), transient=True)
        bar.add_task("segmenting", total=len(self._files))
        return bar

    def _advance(self) -> None:
        if self._bar:
            self._bar.advance(self._bar.task_ids[0])


def main() -> NoReturn:
    """Run ``seg-infer``."""
    run(seg_infer)
