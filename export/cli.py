"""The command ``seg-export``."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import click

import segship
from segship.export import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET
from segship.runtime.console import SizeType, chosen, run
from segship.runtime.errors import OutputError, ParityError, require

if TYPE_CHECKING:
    from segship.export.exporter import ExportResult
    from segship.export.int8 import Target
    from segship.export.parity import Reference
    from segship.runtime.card import Head, InputForm, Precision, Shape

_PATH = click.Path(path_type=Path)


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
@click.option("--dynamic", default="", metavar="AXES", help="Axes to leave open, any of batch,size.")
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
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Compare on it.  [default: all installed]")
@click.option("--images", type=_PATH, help="Pictures to compare on.  [default: the built-in dataset's]")
@click.option("--limit", type=click.IntRange(8), default=20, help="Compare on so many of them, spread evenly.")
@click.option("--convert", default="", metavar="WHAT", help="Lossy conversions of them to allow: depth, grey, alpha.")
@click.option("--report", type=_PATH, help="Also write the comparison's table to this Markdown file.")
@click.option("--compare-images", type=_PATH, help="Also draw the picture that differs most to this PNG.")
@click.option("--golden", type=_PATH, help="Also write inputs and outputs to this .npz, for seg-check model.")
@click.option("--hand-over", "hand_over_to", type=_PATH, help="Also fill this folder with what an integrator needs.")
@click.option("--weights", type=_PATH, help="For MODULE:CALLABLE: its weights, .safetensors or .pt.")
@click.option("--class-names", metavar="A,B,…", help="For MODULE:CALLABLE: its classes, or a file with one a line.")
@click.option("--mean", metavar="R,G,B", help="For MODULE:CALLABLE: subtracted from pixels in 0…1.")
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
    _check_free(output, report, compare_images, golden, overwrite=overwrite)
    if (precision == "int8") != (calibrate is not None):
        raise click.UsageError("--precision int8 needs --calibrate DATA, and nothing else takes it")
    for module in ("torch", "safetensors", "onnx", "onnxsim"):
        require(module, extra="export", purpose="seg-export")
    from segship.export.exporter import Quantisation, export
    from segship.runtime.files import write_text
    from segship.runtime.images import CONVERSIONS
    from segship.runtime.render import write_rgb
    from segship.runtime.sources import find_images
    from segship.training.data import spread_evenly

    pictures = [] if images is None else [file.path for file in find_images([images])]
    quantisation = None
    if calibrate is not None:
        quantisation = Quantisation(calibrate, calibration_images, cast("Target", int8_for), budget)
    try:
        result = export(
            _source(source, weights, class_names=class_names, size=size, mean=mean, std=std, card_path=card_path),
            output,
            opset=opset,
            head=cast("Head | None", head),
            input_form=cast("InputForm | None", input_form),
            frame=frame,
            dynamic=chosen(dynamic, ("batch", "size"), "--dynamic"),
            size=size,
            precision=cast("Precision", precision),
            quantisation=quantisation,
            backends=backends,
            images=[pictures[index] for index in spread_evenly(len(pictures), limit)],
            convert=chosen(convert, CONVERSIONS, "--convert"),
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
    _write_beside(result, report, compare_images, golden, hand_over_to, overwrite=overwrite)
    if as_json:
        click.echo(_as_json(result))
    elif not quiet:
        click.echo(_as_text(result))


def _check_free(*paths: Path | None, overwrite: bool) -> None:
    for path in paths:
        if path is not None and path.exists() and not overwrite:
            raise OutputError(f"{path} is there already; add --overwrite, or choose another name")


def _source(
    source: str,
    weights: Path | None,
    *,
    class_names: str | None,
    size: tuple[int, int] | None,
    mean: str | None,
    std: str | None,
    card_path: Path | None,
) -> "Path | Reference":
    """Return a checkpoint's path, or the network that MODULE:CALLABLE makes."""
    from segship.runtime.model_file import CHECKPOINT_SUFFIX

    if source.endswith(CHECKPOINT_SUFFIX) or ":" not in source:
        if (weights, class_names, mean, std, card_path) != (None,) * 5:
            raise click.UsageError(
                "a checkpoint brings its weights and its card; leave out --weights, --class-names, "
                "--mean, --std and --card"
            )
        return Path(source)
    from segship.export.foreign import foreign_card, load_foreign
    from segship.export.parity import Reference

    card = foreign_card(class_names=class_names, size=size, mean=mean, std=std, card_path=card_path)
    return Reference(*load_foreign(source, weights, card))


def _write_beside(
    result: "ExportResult",
    report: Path | None,
    compare_images: Path | None,
    golden: Path | None,
    hand_over_to: Path | None,
    *,
    overwrite: bool,
) -> None:
    """Write what was asked for besides the model."""
    from segship.export.golden import write_golden_of
    from segship.export.hand_over import hand_over
    from segship.runtime.compare_image import comparison_image
    from segship.runtime.files import write_text
    from segship.runtime.render import write_rgb

    if report is not None:
        sheet = "" if result.sheet is None else f"\n{result.sheet.to_markdown()}"
        write_text(report, result.parity.to_markdown() + sheet)
    worst = result.parity.worst
    if compare_images is not None and worst is not None:
        write_rgb(compare_images, comparison_image(worst.expected, worst.result))
    if golden is not None:
        write_golden_of(result, golden)
    if hand_over_to is not None:
        with tempfile.TemporaryDirectory() as folder:
            own = golden
            if own is None:
                own = Path(folder) / "golden.npz"
                write_golden_of(result, own)
            hand_over(hand_over_to, result.path, own, overwrite=overwrite)


def _as_text(result: "ExportResult") -> str:
    card = result.card
    lines = [result.parity.to_markdown()]
    if result.sheet is not None:
        lines.append(result.sheet.summary)
    if result.speed_ratio is not None:
        lines.append(f"{card.precision} runs {result.speed_ratio:.2f} times as fast as fp32 in ONNX Runtime here.")
    lines += [
        f"{result.path}: opset {result.opset}, {result.nodes} nodes ({result.nodes_traced} traced), "
        f"{result.bytes / 1e6:.1f} MB, {card.precision}, takes {card.input_form} {_shape(card.input_shape)}, "
        f"returns {card.head} {_shape(card.output_shape)}",
        f"next: seg-infer {result.path} PICTURES",
    ]
    return "\n".join(lines)


def _shape(shape: "Shape") -> str:
    return f"({', '.join('?' if side is None else str(side) for side in shape)})"


def _as_json(result: "ExportResult") -> str:
    card = result.card
    return json.dumps(
        {
            "path": str(result.path),
            "opset": result.opset,
            "nodes": result.nodes,
            "nodes_traced": result.nodes_traced,
            "bytes": result.bytes,
            "head": card.head,
            "input": card.input_form,
            "frame": card.frame,
            "dynamic": card.dynamic,
            "precision": card.precision,
            "content_sha256": card.certificate.content_sha256 if card.certificate else None,
            "warnings": result.warnings,
            "speed_ratio": result.speed_ratio,
            "quantised": None if result.sheet is None else result.sheet.to_plain(),
            "parity": result.parity.to_plain(),
        },
        ensure_ascii=False,
    )


def main() -> NoReturn:
    """Run ``seg-export``."""
    run(seg_export)
