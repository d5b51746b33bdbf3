"""The command ``seg-export``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import click

import segship
from segship.export import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET
from segship.export.preflight import check_places, check_use, engine_names, given
from segship.runtime.console import SizeType, chosen, complete_backends, complete_conversions, completing, run
from segship.runtime.errors import ParityError, require

if TYPE_CHECKING:
    from segship.export.int8 import Target
    from segship.export.parity import Reference
    from segship.runtime.card import DynamicAxis, Head, InputForm, Precision

_PATH = click.Path(path_type=Path)
_OF_FOREIGN = ("weights", "class_names", "mean", "std", "card_path")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("source", metavar="CHECKPOINT")
@click.option("-o", "--output", type=_PATH, default=Path("model.onnx"), help="The file to write.")
@click.option(
    "--opset",
    type=click.IntRange(MIN_OPSET, MAX_OPSET),
    default=DEFAULT_OPSET,
    help="Operator set of the written file.",
)
@click.option(
    "--head",
    type=click.Choice(["logits", "probabilities", "labels"]),
    help="What the graph returns; labels: class ids, argmax inside.  [default: logits; with --frame labels]",
)
@click.option(
    "--input",
    "input_form",
    type=click.Choice(["float", "pixels"]),
    help="What it takes; pixels: decoded pictures, normalised inside.  [default: float; with --frame pixels]",
)
@click.option("--frame", type=SizeType(), help="Also resize inside: frames of this size in, labels of this size out.")
@click.option(
    "--dynamic",
    default="",
    show_default=False,
    metavar="AXES",
    shell_complete=completing(lambda: ("batch", "size"), several=True),
    help="Axes to leave open, any of batch,size.",
)
@click.option("--size", type=SizeType(), help="Size that pictures are brought to.  [default: the checkpoint's]")
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", help="What the file computes in."
)
@click.option(
    "--calibrate", metavar="DATA", help="For int8: a folder of pictures, or KIND:DIR as for seg-train --data."
)
@click.option(
    "--calibration-images", type=click.IntRange(1), default=64, help="For int8: calibrate on so many of them."
)
@click.option(
    "--int8-for", type=click.Choice(["cpu", "tensorrt"]), default="cpu", help="For int8: the engine it is meant for."
)
@click.option(
    "--budget",
    type=click.FloatRange(0, 100),
    default=0.5,
    help="For int8: points of mIoU that may be lost, or of labels that may change where DATA has no masks.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    shell_complete=complete_backends,
    metavar="NAME",
    help="Engine to compare on: ort, opencv or openvino; may be repeated.  [default: all that are installed]",
)
@click.option(
    "--images", type=_PATH, help="Pictures to compare on, a folder or a file.  [default: the built-in dataset's]"
)
@click.option("--limit", type=click.IntRange(8), default=20, help="Compare on so many of them, spread evenly.")
@click.option(
    "--convert",
    shell_complete=complete_conversions,
    default="",
    show_default=False,
    metavar="WHAT",
    help="Lossy conversions of them to allow, any of depth (16 to 8 bit), grey, alpha (drop it).",
)
@click.option("--report", type=_PATH, help="Also write the comparison's table to this Markdown file.")
@click.option("--compare-images", type=_PATH, help="Also draw the picture that differs most to this PNG.")
@click.option("--golden", type=_PATH, help="Also write inputs and outputs to this .npz, for seg-check model.")
@click.option(
    "--hand-over", "hand_over_to", type=_PATH, help="Also fill this new folder with what an integrator needs."
)
@click.option("--weights", type=_PATH, help="For MODULE:CALLABLE: its weights, .safetensors or .pt.")
@click.option(
    "--class-names", metavar="A,B,…|FILE.txt", help="For MODULE:CALLABLE: its classes; a text file has one a line."
)
@click.option("--mean", metavar="R,G,B", help="For MODULE:CALLABLE: subtracted from pixels in 0…1; or imagenet.")
@click.option("--std", metavar="R,G,B", help="For MODULE:CALLABLE: what they are divided by after that.")
@click.option("--card", "card_path", type=_PATH, help="For MODULE:CALLABLE: all of this and more, as a JSON file.")
@click.option("--overwrite", is_flag=True, help="Write over files that are there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and warnings.")
@click.version_option(segship.__version__)
def seg_export(
    *,
    source: str,
    output: Path,
    opset: int,
    head: str | None,
    input_form: str | None,
    frame: tuple[int, int] | None,
    dynamic: str,
    size: tuple[int, int] | None,
    precision: str,
    calibrate: str | None,
    calibration_images: int,
    int8_for: str,
    budget: float,
    backends: tuple[str, ...],
    images: Path | None,
    limit: int,
    convert: str,
    report: Path | None,
    compare_images: Path | None,
    golden: Path | None,
    hand_over_to: Path | None,
    weights: Path | None,
    class_names: str | None,
    mean: str | None,
    std: str | None,
    card_path: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Export a CHECKPOINT of seg-train to one ONNX file that describes itself and is proven.

    The file is compared with PyTorch on real pictures, by every engine that is installed; one that computes something
    else is not left. What was compared goes into the file as its certificate.

    In place of a CHECKPOINT, MODULE:CALLABLE or FILE.py:CALLABLE names what returns a torch.nn.Module of your own.
    """
    check_use(precision)
    outputs = {"--output": output, "--report": report, "--compare-images": compare_images, "--golden": golden}
    inputs = {"CHECKPOINT": Path(source), "--weights": weights, "--card": card_path}
    check_places(outputs, inputs, hand_over_to, overwrite=overwrite)
    for module in ("torch", "safetensors", "onnx", "onnxsim"):
        require(module, extra="export", purpose="seg-export")
    from segship.export.exporter import Quantisation, export
    from segship.export.outcome import to_json, to_text, write_beside
    from segship.runtime.files import write_text
    from segship.runtime.images import CONVERSIONS
    from segship.runtime.render import write_rgb
    from segship.runtime.source_files import find_images
    from segship.training.data import spread_evenly

    axes: tuple[DynamicAxis, ...] = chosen(dynamic, ("batch", "size"), "--dynamic")
    conversions = chosen(convert, CONVERSIONS, "--convert")
    engines = engine_names(backends)
    pictures = [] if images is None else [file.path for file in find_images([images])]
    quantisation = None
    if calibrate is not None:
        quantisation = Quantisation(calibrate, calibration_images, cast("Target", int8_for), budget)
    reference = _source(
        source,
        weights,
        class_names=class_names,
        size=size,
        mean=mean,
        std=std,
        card_path=card_path,
        has_open_size="size" in axes,
    )
    try:
        result = export(
            reference,
            output,
            opset=opset,
            head=cast("Head | None", head),
            input_form=cast("InputForm | None", input_form),
            frame=frame,
            dynamic=axes,
            size=size,
            precision=cast("Precision", precision),
            quantisation=quantisation,
            backends=engines,
            images=[pictures[index] for index in spread_evenly(len(pictures), limit)],
            convert=conversions,
            tell=lambda step: None if quiet else click.echo(f"{step} …", err=True),
        )
    except ParityError as error:
        if report is not None:
            write_text(report, error.table)
        if compare_images is not None and error.picture is not None:
            write_rgb(compare_images, error.picture)
        raise
    for warning in result.warnings:
        click.echo(f"warning: {warning}", err=True)
    write_beside(result, report, compare_images, golden, hand_over_to, overwrite=overwrite)
    if as_json:
        click.echo(to_json(result))
    elif not quiet:
        click.echo(to_text(result))


def _source(
    source: str,
    weights: Path | None,
    *,
    class_names: str | None,
    size: tuple[int, int] | None,
    mean: str | None,
    std: str | None,
    card_path: Path | None,
    has_open_size: bool,
) -> "Path | Reference":
    """Return a checkpoint's path, or the network that MODULE:CALLABLE makes."""
    from segship.export.foreign_code import is_target

    if os.path.isfile(source) or not is_target(source):  # noqa: PTH113  # of a Path, it fails on very long targets
        if options := given(*_OF_FOREIGN):
            raise click.UsageError(
                f"{', '.join(options)}: for MODULE:CALLABLE or FILE.py:CALLABLE only, and {source} is none; "
                "a checkpoint of seg-train brings its own weights and card"
            )
        if source.endswith(".py"):
            raise click.UsageError(f"{source} is a file of code; add what to call in it, such as {source}:make")
        return Path(source)
    if has_open_size and card_path is None:
        raise click.UsageError(
            f"--dynamic size: only you know what the sides that {source} takes must be a multiple of; "
            "give it as stride in a whole card: --card FILE.json (seg-check card MODEL --json prints one)"
        )
    from segship.export.foreign import foreign_card, load_foreign
    from segship.export.parity import Reference

    card = foreign_card(class_names=class_names, size=size, mean=mean, std=std, card_path=card_path)
    if weights is None:
        click.echo(f"warning: without --weights, the network has those that {source} gives it", err=True)
    return Reference(*load_foreign(source, weights, card))


def main() -> NoReturn:
    """Run ``seg-export``."""
    run(seg_export)
