"""The command ``seg-infer``."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import segship
from segship.runtime.console import (
    PixelsType,
    SizeType,
    chosen,
    complete_backends,
    completing,
    convert_option,
    device_option,
    run,
)
from segship.runtime.errors import EXIT_OK, EXIT_SKIPPED

if TYPE_CHECKING:
    from segship.runtime.infer import Job
    from segship.runtime.infer_report import Style

_PATH = click.Path(path_type=Path)


def _kinds() -> tuple[str, ...]:
    from segship.runtime.infer import VIDEO
    from segship.runtime.outputs import OUTPUT_KINDS

    return (*OUTPUT_KINDS, VIDEO)


def _palettes() -> tuple[str, ...]:
    from segship.runtime.palette_text import PALETTE_NAMES

    return PALETTE_NAMES


_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


@click.command(context_settings=_SETTINGS)
@click.argument("model", type=_PATH, required=False)
@click.argument("sources", metavar="SOURCE...", nargs=-1)
@click.option(
    "--backend",
    metavar="NAME",
    shell_complete=complete_backends,
    help="Engine: ort, tensorrt, opencv, openvino.  [default: ort, else opencv]",
)
@device_option
@click.option("--threads", type=click.IntRange(1), help="CPU threads of the engine.  [default: the CPUs it may use]")
@click.option("--streams", type=click.IntRange(1), help="Runs of the network at once.  [default: by the job]")
@click.option("--batch", type=click.IntRange(1), help="Pictures in a run of the network.  [default: 1, on a GPU 8]")
@click.option("--size", type=SizeType(), help="For a model of open size: what pictures are brought to.")
@click.option("--tile", type=SizeType(), help="Cut larger pictures into tiles of this size.  [default: the card's]")
@click.option("--overlap", type=click.FloatRange(0, 0.9), help="Of tiles, a share.  [default: the card's, or 0.25]")
@click.option(
    "--max-pixels", type=PixelsType(), default="178956970", help="Refuse larger pictures, in pixels or millions."
)
@convert_option
@click.option("--card", "card_path", type=_PATH, help="Card as a JSON file, for a model that carries none.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many pictures.")
@click.option("--skip-existing", is_flag=True, help="Leave out pictures whose outputs are there: go on with a job.")
@click.option("--latest/--every-frame", default=None, help="Of a live source: drop old frames, or fall behind.")
@click.option("--out", type=_PATH, default=Path("segmented"), help="Folder to write to.")
@click.option(
    "--save",
    default="mask,overlay",
    metavar="KINDS",
    shell_complete=completing(_kinds, several=True),
    help="Any of mask,color,overlay,side-by-side,cutout,probability,contours,video; empty: nothing.",
)
@click.option("--upscale", type=click.Choice(["logits", "labels"]), default="logits", help="What is brought to size.")
@click.option("--alpha", type=click.FloatRange(0, 1), help="Opacity of the colours in overlays.  [default: 0.5]")
@click.option("--legend", is_flag=True, help="Draw names and colours of the classes beside pictures.")
@click.option(
    "--palette",
    metavar="WHAT",
    shell_complete=completing(_palettes),
    help="voc, camvid, cityscapes, …; a file; or 1=0,0,255;car=#ff0000.",
)
@click.option("--only", metavar="CLASSES", help="Tell of these only, by name or id: car,person.")
@click.option("--min-area", type=click.IntRange(0), help="Objects of fewer pixels become what is around.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Rarer knobs; --set help lists them.")
@click.option("--isolate", is_flag=True, help="Run the engine in a process of its own, which may crash.")
@click.option("--prepare", is_flag=True, help="Only load the engine, and build what it caches.")
@click.option("--ray", metavar="ADDRESS", help="Spread files over a Ray cluster; local starts one here.")
@click.option("--overwrite", is_flag=True, help="Write over outputs that are there already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document in place of lines.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="Print a JSON document a picture, each in its line.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.version_option(segship.__version__)
def seg_infer(*, model: Path | None, sources: tuple[str, ...], **options: Any) -> int:
    """Segment pictures and video with MODEL.

    SOURCEs are pictures, folders, patterns, text files of paths, videos, cameras (camera:0), streams (rtsp://, http://)
    and - for encoded pictures on standard input. A picture that cannot be read is reported and skipped, and the exit
    status is then 3.
    """
    from segship.runtime.knobs import describe_knobs

    if "help" in options["settings"]:
        click.echo(describe_knobs())
        return EXIT_OK
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    if sources and options["prepare"]:
        raise click.UsageError("--prepare only loads the engine; leave out the sources, or --prepare")
    if not sources and not options["prepare"]:
        raise click.UsageError("Missing argument 'SOURCE...': what is to be segmented?")
    from segship.runtime.infer import infer, prepare_engine

    job = _job(model, sources, options)
    if options["prepare"]:
        click.echo(f"ready: {prepare_engine(job)}")
        return EXIT_OK
    return EXIT_SKIPPED if infer(job) else EXIT_OK


def _job(model: Path, sources: tuple[str, ...], options: dict[str, Any]) -> "Job":
    """Turn options as they were typed into what they mean.

    Raises:
        click.UsageError: if one cannot be understood.
    """
    from segship.runtime.images import CONVERSIONS
    from segship.runtime.infer import VIDEO, Job
    from segship.runtime.knobs import read_knobs
    from segship.runtime.outputs import OUTPUT_KINDS

    if sum(options[name] for name in ("as_json", "as_jsonl", "quiet")) > 1:
        raise click.UsageError("--json, --jsonl and --quiet say what is printed; give one of them")
    if options["only"] is not None and not options["only"].strip(", "):
        raise click.UsageError("--only names no class; name some, such as --only car,person, or leave it out")
    kinds = chosen(options["save"], (*OUTPUT_KINDS, VIDEO), "--save")
    if VIDEO in kinds and options["skip_existing"]:
        raise click.UsageError("--save video writes a video whole; leave out --skip-existing, or save overlays")
    style: Style = "json" if options["as_json"] else "jsonl" if options["as_jsonl"] else "lines"
    own = {field.name for field in dataclasses.fields(Job)} & options.keys()
    return Job(
        model=model,
        sources=sources,
        knobs=read_knobs(
            options["settings"],
            threads=options["threads"],
            min_area_px=options["min_area"],
            alpha=options["alpha"],
            legend=options["legend"] or None,
        ),
        kinds=tuple(kind for kind in OUTPUT_KINDS if kind in kinds),
        video=VIDEO in kinds,
        convert=chosen(options["convert"], CONVERSIONS, "--convert"),
        style="quiet" if options["quiet"] else style,
        **{name: options[name] for name in own - {"convert"}},
    )


def main() -> NoReturn:
    """Run ``seg-infer``."""
    run(seg_infer)


if __name__ == "__main__":
    main()
