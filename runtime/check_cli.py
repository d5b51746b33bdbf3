"""The command ``seg-check``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import segship
from segship.runtime.console import SizeType, chosen, complete_backends, convert_option, device_option, run
from segship.runtime.errors import EXIT_ERROR, EXIT_OK, CardError, OutputError

if TYPE_CHECKING:
    from segship.runtime.card import ModelCard
    from segship.runtime.card_values import CardValues

_PATH = click.Path(path_type=Path)
_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


@click.group(context_settings=_SETTINGS)
@click.version_option(segship.__version__)
def seg_check() -> None:
    """Check an exported model on the machine that runs it, or show its card."""


@seg_check.command(context_settings=_SETTINGS, short_help="Repeat a model's proof on this machine.")
@click.argument("file", type=_PATH)
@click.argument("pictures", type=_PATH, nargs=-1)
@click.option("--golden", type=_PATH, help="Golden outputs, as seg-export --golden wrote them for this model.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_backends,
    help="Engine; repeatable.  [default: all here]",
)
@device_option
@convert_option
@click.option("--compare-images", "drawing", type=_PATH, help="Draw the picture that differs most to this PNG.")
@click.option("--report", type=_PATH, help="Also write the tables to this Markdown file.")
@click.option("--overwrite", is_flag=True, help="Write over files that are there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="Print only what is not as it must be.")
def model(
    *,
    file: Path,
    pictures: tuple[Path, ...],
    golden: Path | None,
    backends: tuple[str, ...],
    device: str,
    convert: str,
    drawing: Path | None,
    report: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Repeat the proof of the model FILE on this machine, from a picture's bytes to its mask.

    Every engine that is installed runs the golden pictures and is compared with PyTorch's outputs; on your PICTURES,
    files and folders, the engines are compared with each other. The exit status is 0 if all is the same, and 1 if
    something differs or the certificate is not this file's.
    """
    if drawing is not None and golden is None and not pictures:
        raise click.UsageError("--compare-images needs something to compare: give --golden FILE or pictures")
    _check_free(overwrite, drawing, report)
    from segship.runtime.check import check_model
    from segship.runtime.files import write_text
    from segship.runtime.images import CONVERSIONS
    from segship.runtime.source_files import find_images

    check = check_model(
        file,
        [found.path for found in find_images(pictures)] if pictures else [],
        golden=golden,
        backends=backends,
        device=device,
        convert=chosen(convert, CONVERSIONS, "--convert"),
        tell=lambda step: None if quiet else click.echo(f"{step} …", err=True),
    )
    if report is not None:
        write_text(report, check.to_markdown())
    if drawing is not None and check.worst is not None:
        from segship.runtime.compare_image import comparison_image
        from segship.runtime.render import write_rgb

        write_rgb(drawing, comparison_image(check.worst.expected, check.worst.result))
    if as_json:
        click.echo(json.dumps(check.to_plain(), ensure_ascii=False))
    elif not quiet:
        click.echo(check.to_markdown(), nl=False)
    elif check.faults:
        click.echo("\n".join(check.faults), err=True)
    return EXIT_ERROR if check.faults else EXIT_OK


@seg_check.command(context_settings=_SETTINGS, short_help="Show a model's card, or give a model one.")
@click.argument("file", type=_PATH)
@click.option("--class-names", metavar="A,B,…|FILE.txt", help="Names of the classes 0…; a text file has one a line.")
@click.option("--size", type=SizeType(), help="That the network gets.  [default: what the graph says]")
@click.option("--mean", metavar="NUMBERS", help="Subtracted after scaling to 0…1, a number a channel of the network.")
@click.option("--std", metavar="NUMBERS", help="Divided by after that.")
@click.option("--color-order", type=click.Choice(["RGB", "BGR", "grey"]), help="Of the network's channels.")
@click.option(
    "--scale",
    type=click.Choice(["full_scale", "image_max"]),
    help="Divide by 255 (65535), or by the picture's largest value.",
)
@click.option("--depth", type=click.Choice(["uint8", "uint16"]), help="Of the pictures.  [default: uint8]")
@click.option(
    "--head",
    type=click.Choice(["logits", "probabilities", "labels"]),
    help="What the graph returns.  [default: what it shows]",
)
@click.option("--threshold", type=float, help="Of a binary network, between 0 and 1.")
@click.option(
    "--resize",
    type=click.Choice(["stretch", "letterbox", "pad"]),
    help="How pictures are brought to the size.  [default: stretch]",
)
@click.option("--fill", type=int, help="Value of what letterbox and pad add.  [default: 0]")
@click.option("--stride", type=int, help="That sides must be multiples of where the graph leaves them open.")
@click.option(
    "--output-stride", type=int, help="Pixels of the input to one of the output.  [default: by the graph, or 1]"
)
@click.option("--input-name", help="Of the graph.  [default: its only one]")
@click.option("--output-name", help="Of the graph.  [default: its only one]")
@click.option("--card", "card_path", type=_PATH, help="A whole card as a JSON file, in place of the values above.")
@click.option("-o", "--output", type=_PATH, help="Where to write the model with its new card; else in place.")
@click.option("--overwrite", is_flag=True, help="Write in place, or over a file that is there; replace a card.")
@click.option("--json", "as_json", is_flag=True, help="Print the card as one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
def card(
    *,
    file: Path,
    card_path: Path | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **said: Any,
) -> None:
    """Show the card of the model FILE; with values, or --card, give a model that has none its card.

    What the graph shows, and what Ultralytics writes into its files, need not be said.
    """
    from segship.runtime.card_values import CardValues
    from segship.runtime.foreign import foreign_card
    from segship.runtime.model_file import has_card, read_card

    values = CardValues(**said)
    if values and card_path is not None:
        raise click.UsageError("--card holds a whole card; give it alone, or give values")
    if values or card_path is not None or (output is not None and not has_card(file)):
        shown = _give_card(file, values, card_path, output or file, overwrite=overwrite)
    elif output is not None:
        raise click.UsageError(
            "-o writes a model with a new card; give --card FILE.json or values such as --class-names"
        )
    else:
        shown = read_card(file) if has_card(file) else foreign_card(file)
    if as_json:
        click.echo(shown.to_json())
    elif not quiet:
        _show(output or file, shown)


@seg_check.command(context_settings=_SETTINGS, short_help="Show which engines and devices work on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON document.")
def env(*, as_json: bool) -> int:
    """Show what is installed on this machine, and which engines work on which devices.

    Each runs a graph of two nodes, in a process of its own. What is missing is no error: the line that installs it is
    shown.
    """
    from rich.console import Console

    from segship.runtime.check import installable_backends
    from segship.runtime.environment import examine

    click.echo("trying the engines …", err=True)
    environment = examine(installable_backends())
    if as_json:
        click.echo(json.dumps(environment.to_plain(), ensure_ascii=False))
    else:
        from segship.runtime.environment_view import environment_view, install_lines

        Console(highlight=False).print(environment_view(environment))
        for line in install_lines(environment):
            click.echo(line)
    return EXIT_OK


def _give_card(
    file: Path, values: "CardValues", card_path: Path | None, output: Path, *, overwrite: bool
) -> "ModelCard":
    from segship.runtime.card_values import read_card_file
    from segship.runtime.foreign import card_for
    from segship.runtime.model_file import check_fits, has_card, write_card

    if has_card(file) and not overwrite:
        raise CardError(f"{file} carries its own card, which says how it was trained; to replace it, add --overwrite")
    if output == file and not overwrite:
        raise OutputError(f"{file} would be changed; add --overwrite, or write the model elsewhere: -o FILE")
    _check_free(overwrite, output)
    given = card_for(file, values) if card_path is None else read_card_file(card_path)
    check_fits(file, given)
    write_card(file, given, output=output)
    return given


def _show(path: Path, shown: "ModelCard") -> None:
    from rich.console import Console

    from segship.runtime.card_view import card_text
    from segship.runtime.model_file import CHECKPOINT_SUFFIX, content_sha256

    certificate = shown.certificate
    known = certificate is not None and path.suffix != CHECKPOINT_SUFFIX
    is_certified = certificate.content_sha256 == content_sha256(path) if certificate is not None and known else None
    Console(highlight=False).print(card_text(shown, is_certified=is_certified), soft_wrap=True, end="")


def _check_free(overwrite: bool, *paths: Path | None) -> None:
    for path in paths:
        if path is not None and path.exists() and not overwrite:
            raise OutputError(f"{path} is there already; add --overwrite, or choose another name")


def main() -> NoReturn:
    """Run ``seg-check``."""
    run(seg_check)


if __name__ == "__main__":
    main()
