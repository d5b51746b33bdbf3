"""The command ``seg-train``."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

import segship
from segship.runtime.console import SizeType, complete_devices, completing, run
from segship.runtime.errors import EXIT_ERROR, OutputError, SegshipError, require

if TYPE_CHECKING:
    from segship.runtime.card import Network
    from segship.training.config import TrainConfig
    from segship.training.data import DataOptions
    from segship.training.progress import Progress
    from segship.training.run import TrainResult

ARCHITECTURES = (
    *("unet", "u2net", "u2netp", "u2net5p"),
    *("fcn32s", "fcn16s", "fcn8s", "fcns"),
    *("fastscnn", "bisenetv2"),
)
BACKBONES = ("vgg11", "vgg13", "vgg16", "vgg19")

_DATA: Final = {"data", "images", "val_fraction", "split_seed", "ignore", "config_file", "settings"}
_TAKEN: Final = {
    "resume": {"device", "workers"},
    "evaluated": {*_DATA, "device", "out"},
    "check_data": {*_DATA, "out"},
    "summary": {*_DATA, "arch", "base_channels", "backbone", "size", "crop", "num_classes"},
}
_REFUSED: Final = {
    "preview": {"out", "overwrite", "num_classes", *_TAKEN},
    "train": {"num_classes", *_TAKEN, "preview"},
}
"""What each way to use the command has a use for, or has none for."""

_KEYS: Final = {
    "images": "data_options.images",
    "val_fraction": "data_options.val_fraction",
    "split_seed": "data_options.split_seed",
    "ignore": "data_options.ignore",
    "arch": "network.arch",
    "base_channels": "network.options.base_channels",
    "backbone": "network.options.backbone",
    "lr": "optimizer.learning_rate",
    "loss": "loss.terms",
    "class_weights": "loss.class_weights",
    "augment": "augment.preset",
}
"""The keys of options that are not called like them."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--data", metavar="KIND[:DIR]", help="camvid, voc, nyuv2, bag or folder :DIR, coco:FILE.json, or demo.")
@click.option("--images", type=click.Path(path_type=Path), help="Pictures, where they are not beside the masks.")
@click.option("--val-fraction", type=float, help="Share held out, where the data has no split.  [default: 0.2]")
@click.option("--split-seed", type=click.IntRange(0), help="Of the choice of those.  [default: 0]")
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
@click.option(
    "--class-weights",
    shell_complete=completing(lambda: ("none", "auto")),
    help="none, auto (median frequency) or numbers: 1,2,0.5.  [default: none]",
)
@click.option("--augment", type=click.Choice(["none", "light", "strong"]), help="Preset.  [default: light]")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of training.  [default: fp32]")
@click.option("--device", shell_complete=complete_devices, help="auto, cpu or cuda[:N].  [default: auto]")
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
@click.option(
    "--check-data", is_flag=True, help="Read all of --data, say and draw what it is, say what is wrong, stop."
)
@click.option("--preview", type=click.Path(path_type=Path), help="Draw augmented pictures into this PNG, and stop.")
@click.option("--summary", is_flag=True, help="Print the layers of --arch, and stop.")
@click.option("--num-classes", type=click.IntRange(1, 65535), help="For --summary, where --data does not tell.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
@click.option(
    "-q", "--quiet", is_flag=True, help="Print only errors, and what --json and the options that stop ask for."
)
@click.version_option(segship.__version__)
def seg_train(*, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train a segmentation network and keep its best weights as a checkpoint that describes itself."""
    mode = _mode(options)
    if mode == "check_data":
        _check_data(options, as_json=as_json, quiet=quiet)
        return
    for module in ("torch", "safetensors", "matplotlib", "tomli_w"):
        require(module, extra="train", purpose="seg-train")
    with _one_voice():
        match mode:
            case "resume":
                _resume(options, as_json=as_json, quiet=quiet)
            case "evaluated":
                _evaluate(options, as_json=as_json, quiet=quiet)
            case "summary":
                _summarise(options, as_json=as_json)
            case "preview":
                _preview(options, quiet=quiet)
            case "train":
                _train(options, as_json=as_json, quiet=quiet)


def _mode(options: Mapping[str, Any]) -> str:
    """Return what is asked for; refuse options that it has no use for."""
    given = _given(options).keys()
    mode = next((name for name in (*_TAKEN, "preview") if name in given), "train")
    useless = given & _REFUSED[mode] if mode in _REFUSED else given - _TAKEN[mode]
    if useless - {mode}:
        flags = {param.name: param.opts[0] for param in click.get_current_context().command.params}
        raise click.UsageError(
            f"{flags.get(mode, 'training')} has no use for {flags[min(useless - {mode})]}; leave it out"
        )
    return mode


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and value is not False and value != ()}


def _train(options: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    from segship.training.trainer import earlier_run, train

    config, out = _configuration(options), options["out"]
    if out is None:
        raise click.UsageError("Missing option '--out': the folder to write the run to.")
    if earlier_run(out) and not options["overwrite"]:
        raise OutputError(
            f"{out} already holds a run; go on with it by --resume {out}, choose another --out, or add --overwrite"
        )
    with _progress(quiet=quiet) as progress:
        result = train(config, out, progress)
    _tell(result, out, as_json=as_json, quiet=quiet)


def _resume(options: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    from segship.training.trainer import resume

    with _progress(quiet=quiet) as progress:
        result = resume(options["resume"], progress, device=options["device"], workers=options["workers"])
    _tell(result, options["resume"], as_json=as_json, quiet=quiet)


def _evaluate(options: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    from segship.training.evaluate import evaluate

    data, data_options = _data(options)
    with _progress(quiet=quiet) as progress:
        report = evaluate(
            options["evaluated"], data, data_options, options["device"] or "auto", options["out"], progress
        )
    click.echo(report.to_json() if as_json else report.to_text())


def _check_data(options: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Check a dataset; without PyTorch."""
    from segship.training.data import open_dataset
    from segship.training.data.check import check_dataset
    from segship.training.data.sheet import draw_contact_sheet
    from segship.training.progress import ConsoleProgress

    split = open_dataset(*_data(options))
    with ConsoleProgress(quiet=quiet) as progress:
        progress.begin("reading", len(split.train) + len(split.val))
        report = check_dataset(split, progress.advance)
    click.echo(json.dumps(report.to_dict()) if as_json else report.to_text())
    sheet = (options["out"] or Path()) / "check-data.png"
    draw_contact_sheet(split, sheet)
    if not as_json:
        click.echo(f"\n{sheet}")
    if not report.ok:
        click.get_current_context().exit(EXIT_ERROR)


def _summarise(options: Mapping[str, Any], *, as_json: bool) -> None:
    import torch

    from segship.training.data import open_dataset
    from segship.training.networks import build_network
    from segship.training.summary import summarise

    channels, size, num_classes = 3, options["size"] or options["crop"] or (360, 480), options["num_classes"]
    if options["data"] or options["config_file"]:
        train = open_dataset(*_data(options)).train
        channels, num_classes = train.channels, num_classes or len(train.classes)
    elif num_classes is None:
        raise click.UsageError("Missing option '--num-classes' (or '--data', which tells): what --summary counts.")
    with torch.device("meta"):
        network = build_network(_network(options), num_classes=num_classes, in_channels=channels)
    report = summarise(network, channels, size)
    click.echo(json.dumps(report.to_dict()) if as_json else report.to_text())


def _preview(options: Mapping[str, Any], *, quiet: bool) -> None:
    from segship.training.augment_preview import draw_preview
    from segship.training.setup import set_up

    config = _configuration(options)
    with _progress(quiet=quiet) as progress:
        draw_preview(options["preview"], config, set_up(config, progress))
    click.echo(options["preview"])


def _network(options: Mapping[str, Any]) -> "Network":
    from segship.runtime.card import Network

    if options["arch"] is None:
        raise click.UsageError("Missing option '--arch': " + ", ".join(ARCHITECTURES) + ".")
    _refuse_options_of_others(options["arch"], options)
    return Network(
        options["arch"], {name: options[name] for name in ("base_channels", "backbone") if options[name] is not None}
    )


def _refuse_options_of_others(arch: str, options: Mapping[str, Any]) -> None:
    from segship.training.networks import network_options

    given = {name for name in ("base_channels", "backbone") if options[name] is not None}
    if unknown := sorted(given - set(network_options(arch))):
        raise click.UsageError(f"--{unknown[0].replace('_', '-')} has no use for {arch}; leave it out")


def _data(options: Mapping[str, Any]) -> tuple[str, "DataOptions"]:
    """Return what ``--data`` and the options about it say, or else the file of ``--config``; without PyTorch."""
    from segship.runtime.errors import TrainingError
    from segship.runtime.strict import parse
    from segship.training.data import DataOptions

    values = _values(options)
    if not isinstance(data := values.get("data"), str):
        raise click.UsageError("Missing option '--data' (or data in a --config file): what is read.")
    return data, parse(DataOptions, values.get("data_options", {}), "configuration.data_options", TrainingError)


def _configuration(options: Mapping[str, Any]) -> "TrainConfig":
    from segship.training.config import anchored, build_config

    values = _values(options)
    for key, flag in (("data", "--data"), ("network", "--arch")):
        if key not in values:
            raise click.UsageError(f"Missing option '{flag}' (or {key} in a --config file).")
    config = anchored(build_config(values))
    _refuse_options_of_others(config.network.arch, options)
    return config


def _values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Put together the file of ``--config``, ``--set`` over it, and the other options over both."""
    from segship.training.settings import merged, read_config, read_text, setting

    path = options["config_file"]
    values = {} if path is None else read_config(read_text(path), str(path))
    settings = dict(setting(text) for text in options["settings"])
    no_keys = {"config_file", "settings", "out", "overwrite", "preview", "evaluated"}
    flags = {_KEYS.get(name, name): value for name, value in _given(options).items() if name not in no_keys}
    return merged(merged(_without_overruled(values, settings | flags), settings), flags)


def _without_overruled(values: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a file says of another network, another preset or the other kind of size than is asked for."""
    network = values.get("network")
    arch = network.get("arch") if isinstance(network, dict) else None
    overruled = {
        "network": over.get("network.arch", arch) != arch,
        "augment": "augment.preset" in over,
        "size": "crop" in over,
        "crop": "size" in over,
    }
    return {key: value for key, value in values.items() if not overruled.get(key, False)}


def _is_first_process() -> bool:
    """Whether this process is the one that talks, of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """Of processes that fail alike before they know of each other, let only the first say so."""
    try:
        yield
    except (SegshipError, click.ClickException):
        from segship.training.distributed import has_joined

        if _is_first_process() or has_joined():
            raise
        raise SystemExit(EXIT_ERROR) from None


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator["Progress"]:
    from segship.training.progress import ConsoleProgress

    with ConsoleProgress(quiet=quiet or not _is_first_process()) as progress:
        yield progress


def _tell(result: "TrainResult", out: Path, *, as_json: bool, quiet: bool) -> None:
    if not _is_first_process():
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
