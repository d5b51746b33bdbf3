"""The command ``seg-train``."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import segship
from segship.runtime.console import SizeType, run
from segship.runtime.errors import OutputError, require

if TYPE_CHECKING:
    from segship.runtime.card import Network
    from segship.training.config import TrainConfig
    from segship.training.progress import Progress
    from segship.training.run import TrainResult

ARCHITECTURES = (
    *("unet", "u2net", "u2netp", "u2net5p"),
    *("fcn32s", "fcn16s", "fcn8s", "fcns"),
    *("fastscnn", "bisenetv2"),
)
BACKBONES = ("vgg11", "vgg13", "vgg16", "vgg19")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--data", metavar="KIND[:DIR]", help="camvid, voc, nyuv2, bag or folder :DIR, coco:FILE.json, or demo.")
@click.option("--images", type=click.Path(path_type=Path), help="Pictures, where they are not beside the masks.")
@click.option("--val-fraction", type=float, help="Share held out, where the data has no split.  [default: 0.2]")
@click.option("--ignore", type=int, multiple=True, help="Class id that is void; may be repeated.")
@click.option("--arch", type=click.Choice(ARCHITECTURES), help="The network.")
@click.option("--base-channels", type=click.IntRange(1, 512), help="Of unet, at full resolution.  [default: 64]")
@click.option("--backbone", type=click.Choice(BACKBONES), help="Of the fcn nets.  [default: vgg16]")
@click.option(
    "--init", type=click.Path(path_type=Path), help="Start from the weights of this file, as far as they fit."
)
@click.option(
    "--size", type=SizeType(), help="Height x width that pictures are brought to.  [default: the first one's]"
)
@click.option("--crop", type=SizeType(), help="Train on parts of this height x width, at native resolution, instead.")
@click.option("--epochs", type=int, help="Passes over the training part.  [default: 20]")
@click.option("--batch-size", type=int, help="Pictures a batch, over all devices.  [default: 8]")
@click.option("--lr", type=float, help="Highest learning rate.  [default: 1e-3]")
@click.option("--loss", help="ce, bce, dice, focal or a sum, such as ce+0.5*dice.  [default: ce]")
@click.option("--class-weights", help="none, auto (median frequency) or numbers: 1,2,0.5.  [default: none]")
@click.option("--augment", type=click.Choice(["none", "light", "strong"]), help="Preset.  [default: light]")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of training.  [default: fp32]")
@click.option("--device", help="auto, cpu or cuda[:N].  [default: auto]")
@click.option("--workers", type=click.IntRange(1), help="Threads that read pictures.  [default: by cores]")
@click.option("--seed", type=int, help="Of weights, order and augmentation.  [default: 0]")
@click.option("--keep", type=int, help="States kept to resume from.  [default: 2]")
@click.option("--tensorboard", is_flag=True, default=None, help="Write events for TensorBoard.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML file that options are taken from.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of it: --set optimizer.ema=0.999")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write to.")
@click.option("--overwrite", is_flag=True, help="Write over an earlier run in that folder.")
@click.option("--resume", type=click.Path(path_type=Path, file_okay=False), help="Go on with the run in this folder.")
@click.option("--eval", "evaluated", type=click.Path(path_type=Path), help="Measure a checkpoint on --data, and stop.")
@click.option("--check-data", is_flag=True, help="Read all of --data, report what it is and what is wrong, and stop.")
@click.option("--preview", type=click.Path(path_type=Path), help="Draw augmented pictures into this PNG, and stop.")
@click.option("--summary", is_flag=True, help="Print the layers of --arch, and stop.")
@click.option("--num-classes", type=click.IntRange(1, 65535), help="For --summary, where --data does not tell.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and the result.")
@click.version_option(segship.__version__)
def seg_train(
    *,
    out: Path | None,
    overwrite: bool,
    resume: Path | None,
    evaluated: Path | None,
    check_data: bool,
    preview: Path | None,
    summary: bool,
    num_classes: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a segmentation network and keep its best weights as a checkpoint that describes itself."""
    if check_data:
        return _check_data(options, out, as_json=as_json, quiet=quiet)
    for module in ("torch", "safetensors", "matplotlib", "tomli_w"):
        require(module, extra="train", purpose="seg-train")
    if resume is not None:
        return _resume(resume, options, as_json=as_json, quiet=quiet)
    if evaluated is not None:
        return _evaluate(evaluated, options, out, as_json=as_json, quiet=quiet)
    if summary:
        return _summarise(options, num_classes, as_json=as_json)
    config = _configuration(options)
    if preview is not None:
        return _preview(config, preview, quiet=quiet)
    if out is None:
        raise click.UsageError("Missing option '--out': the folder to write the run to.")
    return _train(config, out, overwrite=overwrite, as_json=as_json, quiet=quiet)


def _train(config: "TrainConfig", out: Path, *, overwrite: bool, as_json: bool, quiet: bool) -> None:
    from segship.training.trainer import earlier_run, train

    if earlier_run(out) and not overwrite:
        raise OutputError(
            f"{out} already holds a run; go on with it by --resume {out}, choose another --out, or add --overwrite"
        )
    with _progress(quiet=quiet) as progress, _hint_at_resuming(out):
        result = train(config, out, progress)
    _tell(result, out, as_json=as_json, quiet=quiet)


def _resume(out: Path, options: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    given = sorted(name for name, value in options.items() if value not in (None, ()))
    if others := [name for name in given if name not in ("device", "workers")]:
        raise click.UsageError(
            f"--resume goes on with the run as it was configured; leave out --{others[0].replace('_', '-')}"
        )
    from segship.training.trainer import resume

    with _progress(quiet=quiet) as progress, _hint_at_resuming(out):
        result = resume(out, progress, device=options["device"], workers=options["workers"])
    _tell(result, out, as_json=as_json, quiet=quiet)


def _evaluate(checkpoint: Path, options: dict[str, Any], out: Path | None, *, as_json: bool, quiet: bool) -> None:
    from segship.training.evaluate import evaluate

    if not options["data"]:
        raise click.UsageError("Missing option '--data': what --eval measures on.")
    with _progress(quiet=quiet) as progress:
        report = evaluate(
            checkpoint, options["data"], _data_options(options), options["device"] or "auto", out, progress
        )
    click.echo(report.to_json() if as_json else report.to_text())


def _check_data(options: dict[str, Any], out: Path | None, *, as_json: bool, quiet: bool) -> None:
    from segship.runtime.errors import EXIT_ERROR
    from segship.training.data import open_dataset
    from segship.training.data.check import check_dataset
    from segship.training.data.sheet import draw_contact_sheet

    if not options["data"]:
        raise click.UsageError("Missing option '--data': what --check-data reads.")
    split = open_dataset(options["data"], _data_options(options))
    with _progress(quiet=quiet) as progress:
        progress.begin("reading", len(split.train) + len(split.val))
        report = check_dataset(split, progress.advance)
    sheet = (out or Path()) / "check-data.png"
    draw_contact_sheet(split, sheet)
    click.echo(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else f"{report.to_text()}\n{sheet}")
    if not report.ok:
        click.get_current_context().exit(EXIT_ERROR)


def _summarise(options: dict[str, Any], num_classes: int | None, *, as_json: bool) -> None:
    import torch

    from segship.training.networks import build_network
    from segship.training.summary import summarise

    channels, size = 3, options["size"] or options["crop"] or (360, 480)
    if num_classes is None:
        if not options["data"]:
            raise click.UsageError("Missing option '--num-classes' (or '--data', which tells): what --summary counts.")
        from segship.training.data import open_dataset

        train = open_dataset(options["data"], _data_options(options)).train
        num_classes, channels = len(train.classes), train.channels
    with torch.device("meta"):
        network = build_network(_network(options), num_classes=num_classes, in_channels=channels)
    report = summarise(network, channels, size)
    click.echo(json.dumps(report.to_dict()) if as_json else report.to_text())


def _preview(config: "TrainConfig", path: Path, *, quiet: bool) -> None:
    from segship.training.augment_preview import draw_preview
    from segship.training.setup import set_up

    with _progress(quiet=quiet) as progress:
        draw_preview(path, config, set_up(config, progress))
    click.echo(path)


def _network(options: dict[str, Any]) -> "Network":
    from segship.runtime.card import Network

    arch = options["arch"]
    if arch is None:
        raise click.UsageError("Missing option '--arch': " + ", ".join(ARCHITECTURES) + ".")
    from segship.training.networks import network_options

    given = {name: options[name] for name in ("base_channels", "backbone") if options[name] is not None}
    if unknown := sorted(set(given) - set(network_options(arch))):
        raise click.UsageError(f"--{unknown[0].replace('_', '-')} has no use for {arch}; leave it out")
    return Network(arch, given)


def _data_options(options: dict[str, Any]) -> Any:
    from segship.training.data import DataOptions

    return DataOptions(
        images=options["images"],
        val_fraction=options["val_fraction"],
        split_seed=options["seed"] or 0,
        ignore=options["ignore"],
    )


def _configuration(options: dict[str, Any]) -> "TrainConfig":
    """Put together the file of ``--config``, ``--set`` over it, and the other options over both."""
    from segship.training.config import build_config, merged, read_config, read_text, setting

    path = options["config_file"]
    values = {} if path is None else read_config(read_text(path), str(path))
    values = merged(values, dict(setting(text) for text in options["settings"]))
    keys = {
        "images": "data_options.images",
        "val_fraction": "data_options.val_fraction",
        "ignore": "data_options.ignore",
        "arch": "network.arch",
        "base_channels": "network.options.base_channels",
        "backbone": "network.options.backbone",
        "lr": "optimizer.learning_rate",
        "loss": "loss.terms",
        "class_weights": "loss.class_weights",
        "augment": "augment.preset",
    }
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if "arch" in given:
        _network(options)
        values = merged(values, {"network": {"arch": given["arch"]}})
    if "crop" in given:
        values.pop("size", None)
    if "size" in given:
        values.pop("crop", None)
    flags = {keys.get(name, name): value for name, value in given.items() if name not in ("config_file", "settings")}
    values = merged(values, flags)
    for key, flag in (("data", "--data"), ("network", "--arch")):
        if key not in values:
            raise click.UsageError(f"Missing option '{flag}' (or {key} in a --config file).")
    return build_config(values)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator["Progress"]:
    from segship.training.distributed import is_first_process
    from segship.training.progress import ConsoleProgress

    with ConsoleProgress(quiet=quiet or not is_first_process()) as progress:
        yield progress


@contextlib.contextmanager
def _hint_at_resuming(out: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"interrupted; go on with: seg-train --resume {out}", err=True)
        raise


def _tell(result: "TrainResult", out: Path, *, as_json: bool, quiet: bool) -> None:
    from segship.training.distributed import is_first_process

    if not is_first_process():
        return
    if as_json:
        totals = {name: None if value != value else value for name, value in result.scores.summary().items()}
        document = {"checkpoint": str(result.checkpoint), "best_epoch": result.best.epoch, "validation": totals}
        click.echo(json.dumps(document))
    elif not quiet:
        scores = result.scores
        click.echo(
            f"best epoch {result.best.epoch}: mIoU {scores.miou:.4f}, pixel accuracy {scores.pixel_accuracy:.4f}\n"
            f"  {result.checkpoint}\n"
            f"  {out}: report.json, confusion.png, curves.png, metrics.csv, samples/\n"
            f"next: seg-export {result.checkpoint} -o model.onnx"
        )


def main() -> NoReturn:
    """Run ``seg-train``."""
    run(seg_train)
