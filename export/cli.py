"""The command ``seg-export``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

import segship
from segship.runtime.console import run
from segship.runtime.errors import OutputError, require

if TYPE_CHECKING:
    from segship.export.exporter import ExportResult

_PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("checkpoint", type=_PATH)
@click.option("-o", "--output", type=_PATH, default=Path("model.onnx"), help="The file to write.")
@click.option("--opset", type=click.IntRange(11, 23), default=17, help="Operator set of the written file.")
@click.option("--head", type=click.Choice(["logits", "labels"]), default="logits",
              help="What the graph returns; labels: argmax inside, uint8.")  # fmt: skip
@click.option("--images", type=_PATH, help="Pictures to compare on.  [default: the built-in dataset's]")
@click.option("--limit", type=click.IntRange(1), default=20, help="Compare on so many of them, spread evenly.")
@click.option("--report", type=_PATH, help="Also write the comparison's table to this Markdown file.")
@click.option("--overwrite", is_flag=True, help="Write over a file that is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.version_option(segship.__version__)
def seg_export(
    *, checkpoint: Path, output: Path, opset: int, head: str, images: Path | None, limit: int, report: Path | None,
    overwrite: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Export a CHECKPOINT of seg-train to one ONNX file that describes itself.

    The file is compared with PyTorch on real pictures, on every engine that is installed; one that computes something
    else is not left.
    """
    if output.exists() and not overwrite:
        raise OutputError(f"{output} is there already; add --overwrite, or choose another --output")
    for module in ("torch", "onnx", "onnxsim"):
        require(module, extra="export", purpose="seg-export")
    from segship.export.exporter import export
    from segship.runtime.files import write_text
    from segship.runtime.sources import find_images

    pictures = [] if images is None else [file.path for file in find_images([images])]
    spread = [pictures[i * len(pictures) // limit] for i in range(limit)] if len(pictures) > limit else pictures
    result = export(
        checkpoint, output, opset=opset, head="labels" if head == "labels" else "logits", images=spread,
        tell=(lambda _: None) if quiet else (lambda step: click.echo(f"{step} …", err=True)),
    )  # fmt: skip
    if report is not None:
        write_text(report, result.parity.to_markdown())
    if result.simplifier_fault:
        click.secho(f"warning: {result.simplifier_fault}; the graph as traced is kept", fg="yellow", err=True)
    if as_json:
        click.echo(_as_json(result))
    elif not quiet:
        click.echo(_as_text(result))


def _as_text(result: "ExportResult") -> str:
    return "\n".join([
        result.parity.to_markdown(),
        f"{result.path}: opset {result.opset}, {result.nodes} nodes ({result.nodes_traced} traced), "
        f"{result.bytes / 1e6:.1f} MB, returns {result.card.head}",
        f"next: seg-infer {result.path} PICTURES",
    ])  # fmt: skip


def _as_json(result: "ExportResult") -> str:
    return json.dumps({
        "path": str(result.path), "opset": result.opset, "nodes": result.nodes, "nodes_traced": result.nodes_traced,
        "bytes": result.bytes, "head": result.card.head, "simplifier_fault": result.simplifier_fault,
        "parity": json.loads(result.parity.to_json()),
    })  # fmt: skip


def main() -> NoReturn:
    """Run ``seg-export``."""
    run(seg_export)
