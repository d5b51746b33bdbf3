"""The command ``seg-infer``."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

import segship
from segship.runtime.console import run
from segship.runtime.errors import EXIT_OK, EXIT_SKIPPED, CardError, SegshipError

if TYPE_CHECKING:
    from segship.runtime.card import ModelCard
    from segship.runtime.images import Conversion
    from segship.runtime.segmenter import OutputKind, Result, Segmenter
    from segship.runtime.sources import SourceFile

_PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("model", type=_PATH)
@click.argument("sources", metavar="SOURCE...", type=_PATH, nargs=-1, required=True)
@click.option("--backend", metavar="NAME", help="Engine: ort or opencv.  [default: ort where installed, else opencv]")
@click.option("--device", default="auto", help="auto, cpu or cuda[:N]. What is asked for runs, or it is an error.")
@click.option("--out", type=_PATH, default=Path("segmented"), help="Folder to write to.")
@click.option("--save", default="mask,overlay", metavar="KINDS", help="Any of mask,color,overlay; empty: nothing.")
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, help="Opacity of the colours in overlays.")
@click.option("--convert", default="", metavar="WHAT",
              help="Lossy conversions to allow, any of depth (16 to 8 bit), grey, alpha (drop it).")  # fmt: skip
@click.option("--card", "card_path", type=_PATH, help="Card as a JSON file, for a model that carries none.")
@click.option("--overwrite", is_flag=True, help="Write over outputs that are there already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document in place of lines.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.version_option(segship.__version__)
@click.pass_context
def seg_infer(
    context: click.Context, *, model: Path, sources: tuple[Path, ...], backend: str | None, device: str, out: Path,
    save: str, alpha: float, convert: str, card_path: Path | None, overwrite: bool, as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Segment pictures: SOURCEs are files and folders.

    Masks are palette PNGs at the picture's own size: a viewer shows colours, a program reads class ids. A picture that
    cannot be read is reported and skipped, and the exit status is then 3.
    """
    from segship.runtime.outputs import plan_outputs, write_classes
    from segship.runtime.segmenter import Segmenter, output_kinds
    from segship.runtime.sources import find_images

    try:
        kinds = output_kinds([name.strip() for name in save.split(",") if name.strip()])
        conversions = _conversions(convert)
    except ValueError as error:
        raise click.UsageError(str(error), context) from None
    card = None if card_path is None else _read_card_file(card_path)
    with Segmenter(model, backend=backend, device=device, card=card, convert=conversions) as segmenter:
        files = find_images(sources, leave_out=out)
        plan = plan_outputs(files, out, kinds, overwrite=overwrite)
        report = _Report(segmenter, files, plan, alpha=alpha, quiet=quiet, as_json=as_json)
        report.begin()
        if "mask" in kinds:
            write_classes(out / "mask", segmenter.card)
        for result in segmenter.stream((file.path for file in files), then=report.save, on_error=report.skip):
            report.show(result)
        report.end(out if kinds else None)
    return EXIT_SKIPPED if report.skipped else EXIT_OK


class _Report:
    """What one run of the command says while it goes on, and at its end."""

    def __init__(
        self, segmenter: "Segmenter", files: "list[SourceFile]", plan: "list[dict[OutputKind, Path]]", *,
        alpha: float, quiet: bool, as_json: bool,
    ) -> None:  # fmt: skip
        self._segmenter, self._files, self._plan, self._alpha = segmenter, files, plan, alpha
        self._as_lines, self._as_json = not quiet and not as_json, as_json
        self._start = time.perf_counter()
        self._done: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self._shows_progress = not quiet and len(files) > 1 and sys.stderr.isatty() and not sys.stdout.isatty()

    def begin(self) -> None:
        if self._as_lines:
            card = self._segmenter.card
            name = card.network.arch if card.network else "network"
            height, width = card.preprocess.size
            click.echo(f"{name} {height}×{width}, {card.num_classes} classes, by {self._segmenter.info}")

    def save(self, number: int, result: "Result") -> None:
        result.save(self._plan[number], alpha=self._alpha)

    def skip(self, number: int, error: SegshipError) -> None:
        self.skipped.append({"source": str(self._files[number].path), "error": str(error)})
        click.echo(f"skipped: {error}", err=True)

    def show(self, result: "Result") -> None:
        height, width = result.labels.shape
        number = len(self._done) + len(self.skipped)
        outputs = {kind: str(path) for kind, path in self._plan[number].items()}
        if self._as_lines:
            largest = sorted(result.areas.items(), key=lambda item: -item[1])
            shares = "  ".join(f"{name} {share:.1%}" for name, share in largest if share)
            click.echo(f"{result.source}  {width}×{height}  {shares}")
        elif self._shows_progress:
            click.echo(f"\r{number + 1}/{len(self._files)}", nl=False, err=True)
        self._done.append(
            {"source": result.source, "height": height, "width": width, "areas": result.areas, "outputs": outputs,
             "timings": result.timings}
        )  # fmt: skip

    def end(self, out: Path | None) -> None:
        seconds = time.perf_counter() - self._start
        if self._as_json:
            document = self._segmenter.describe() | {
                "seconds": seconds, "images": self._done, "skipped": self.skipped
            }  # fmt: skip
            click.echo(json.dumps(document, ensure_ascii=False))
        elif self._as_lines:
            skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
            written = f" → {out}/" if out and self._done else ""
            click.echo(
                f"{len(self._done)} pictures{skipped} in {seconds:.2f} s "
                f"({len(self._done) / seconds:.1f} a second){written}"
            )


def _conversions(text: str) -> "tuple[Conversion, ...]":
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ("depth", "grey", "alpha"):
            raise ValueError(f"{name!r} is no conversion; known are depth, grey, alpha")
    return tuple(cast("Conversion", name) for name in names)


def _read_card_file(path: Path) -> "ModelCard":
    from segship.runtime.card import ModelCard

    try:
        return ModelCard.from_json(path.read_text(encoding="utf-8"), origin=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: the card cannot be read ({error})") from error


def main() -> NoReturn:
    """Run ``seg-infer``."""
    run(seg_infer)
