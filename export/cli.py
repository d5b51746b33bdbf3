"""The command ``seg-export``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import click

import segship
from segship.export import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET
from segship.runtime.console import chosen, run
from segship.runtime.errors import OutputError, ParityError, require

if TYPE_CHECKING:
    from segship.export.exporter import ExportResult
    from segship.runtime.card import Head

_PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("checkpoint", type=_PATH)
@click.option("-o", "--output", type=_PATH, default=Path("model.onnx"), help="The file to write.")
@click.option(
    "--opset",
    type=click.IntRange(MIN_OPSET, MAX_OPSET),
    default=DEFAULT_OPSET,
    help="Operator set of the written file.",
)
@click.option(
    "--head",
    type=click.Choice(["logits", "labels"]),
    default="logits",
    help="What the graph returns; labels: argmax inside, uint8.",
)
@click.option("--images", type=_PATH, help="Pictures to compare on.  [default: the built-in dataset's]")
@click.option("--limit", type=click.IntRange(1), default=20, help="Compare on so many of them, spread evenly.")
@click.option("--convert", default="", metavar="WHAT", help="Lossy conversions of them to allow: depth, grey, alpha.")
@click.option("--report", type=_PATH, help="Also write the comparison's table to this Markdown file.")
@click.option("--overwrite", is_flag=True, help="Write over a file that is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.version_option(segship.__version__)
def seg_export(
    *,
    checkpoint: Path,
    output: Path,
    opset: int,
    head: str,
    images: Path | None,
    limit: int,
    convert: str,
    report: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Export a CHECKPOINT of seg-train to one ONNX file that describes itself.

    The file is compared with PyTorch on real pictures, by OpenCV and, where it is installed, by ONNX Runtime; one that
    computes something else is not left.
    """
    for path in (output, report):
        if path is not None and path.exists() and not overwrite:
            raise OutputError(f"{path} is there already; add --overwrite, or choose another name")
    for module in ("torch", "safetensors", "onnx", "onnxsim"):
        require(module, extra="export", purpose="seg-export")
    from segship.export.exporter import export
    from segship.runtime.files import write_text
    from segship.runtime.images import CONVERSIONS
    from segship.runtime.sources import find_images
    from segship.training.data import spread_evenly

    pictures = [] if images is None else [file.path for file in find_images([images])]
    try:
        result = export(
            checkpoint,
            output,
            opset=opset,
            head=cast("Head", head),
            images=[pictures[index] for index in spread_evenly(len(pictures), limit)],
            convert=chosen(convert, CONVERSIONS, "--convert"),
            tell=lambda step: None if quiet else click.echo(f"{step} …", err=True),
        )
    except ParityError as error:
        if report is not None:
            write_text(report, error.table)
        raise
    if report is not None:
        write_text(report, result.parity.to_markdown())
    if result.simplifier_fault:
        click.echo(f"warning: {result.simplifier_fault}; the graph as traced is kept", err=True)
    if as_json:
        click.echo(_as_json(result))
    elif not quiet:
        click.echo(_as_text(result))


def _as_text(result: "ExportResult") -> str:
    return "\n".join(
        [
            result.parity.to_markdown(),
            f"{result.path}: opset {result.opset}, {result.nodes} nodes ({result.nodes_traced} traced), "
            f"{result.bytes / 1e6:.1f} MB, returns {result.card.head}",
            f"next: seg-infer {result.path} PICTURES",
        ]
    )


def _as_json(result: "ExportResult") -> str:
    return json.dumps(
        {
            "path": str(result.path),
            "opset": result.opset,
            "nodes": result.nodes,
            "nodes_traced": result.nodes_traced,
            "bytes": result.bytes,
            "head": result.card.head,
            "simplifier_fault": result.simplifier_fault,
            "parity": json.loads(result.parity.to_json()),
        }
    )


def main() -> NoReturn:
    """Run ``seg-export``."""
    run(seg_export)
