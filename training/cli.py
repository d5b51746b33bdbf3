"""The command ``seg-train``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import click

import segship
from segship.runtime.console import SizeType, run
from segship.runtime.errors import OutputError, require

if TYPE_CHECKING:
    from segship.training.trainer import Precision, TrainResult


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--data", required=True, metavar="KIND[:DIR]", help="camvid:DIR, demo, demo:grey8 or demo:grey16.")
@click.option("--arch", type=click.Choice(["unet", "u2netp"]), required=True, help="The network.")
@click.option(
    "--base-channels", type=click.IntRange(1, 512), help="Channels of unet at full resolution.  [default: 64]"
)
@click.option("--size", type=SizeType(), help="Height x width of the network's input.  [default: the first picture's]")
@click.option("--epochs", type=click.IntRange(1), default=20, help="Passes over the training part.")
@click.option("--batch-size", type=click.IntRange(1), default=8, help="Pictures a step.")
@click.option(
    "--lr", "learning_rate", type=float, default=1e-3, help="Highest learning rate; warm-up, then a cosine to 0."
)
@click.option("--weight-decay", type=click.FloatRange(0), default=1e-4, help="Weight decay of AdamW.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    help="Of the training's forward pass; bf16 pays off where the CPU or GPU has it.",
)
@click.option("--flip/--no-flip", default=True, help="Mirror half of the pictures.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Of weights, order and augmentation.")
@click.option("--device", default="auto", help="auto, cpu or cuda[:N].")
@click.option("--workers", type=click.IntRange(0), help="Processes that read pictures.  [default: by device]")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write the run to."
)
@click.option("--overwrite", is_flag=True, help="Write over an earlier run in that folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.version_option(segship.__version__)
def seg_train(
    *,
    data: str,
    arch: str,
    base_channels: int | None,
    size: tuple[int, int] | None,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    precision: str,
    flip: bool,
    seed: int,
    device: str,
    workers: int | None,
    out: Path,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a segmentation network and keep its best weights as a checkpoint that describes itself."""
    if base_channels is not None and arch != "unet":
        raise click.UsageError(f"--base-channels scales unet; {arch} has fixed channels")
    for module in ("torch", "safetensors", "matplotlib"):
        require(module, extra="train", purpose="seg-train")
    from segship.runtime.card import Network
    from segship.training.progress import ConsoleProgress
    from segship.training.trainer import TrainConfig, earlier_run, train

    if earlier_run(out) and not overwrite:
        raise OutputError(f"{out} already holds a run; choose another --out, or add --overwrite")

    network = Network(arch, {} if base_channels is None else {"base_channels": base_channels})
    config = TrainConfig(
        data=data,
        out=out,
        network=network,
        size=size,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        precision=cast("Precision", precision),
        flip=flip,
        seed=seed,
        device=device,
        workers=workers,
    )
    with ConsoleProgress(quiet=quiet) as progress:
        result = train(config, progress)
    if as_json:
        click.echo(_as_json(result))
    elif not quiet:
        click.echo(_as_text(result, out))


def _as_json(result: "TrainResult") -> str:
    scores = {name: None if value != value else value for name, value in result.best.scores.summary().items()}
    return json.dumps({"checkpoint": str(result.checkpoint), "best_epoch": result.best.epoch, "validation": scores})


def _as_text(result: "TrainResult", out: Path) -> str:
    scores = result.best.scores
    return "\n".join(
        [
            f"best epoch {result.best.epoch}: mIoU {scores.miou:.4f}, pixel accuracy {scores.pixel_accuracy:.4f}",
            f"  {result.checkpoint}",
            f"  {out / 'curves.png'}, {out / 'metrics.csv'}, {out / 'samples'}/",
            f"next: seg-export {result.checkpoint} -o model.onnx",
        ]
    )


def main() -> NoReturn:
    """Run ``seg-train``."""
    run(seg_train)
