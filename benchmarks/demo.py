"""The steps of ``make demo`` that no command of segship does: held-out pictures, the picture sheet, the summary."""

import json
import sys
from pathlib import Path
from typing import Final

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.console import run
from segship.runtime.files import replacing, write_text
from segship.runtime.model_file import read_card
from segship.runtime.render import color_image, contact_sheet, write_rgb
from segship.runtime.segmenter import Segmenter
from segship.training.data.demo import open_demo
from segship.training.metrics import ConfusionMatrix

SHEET_ROWS: Final = 5
GOAL_MIOU: Final = 0.90
ENGINES: Final = {"torch": "PyTorch", "ort": "ONNX Runtime", "opencv": "OpenCV"}


@click.group()
def demo() -> None:
    """Steps of ``make demo``."""


@demo.command()
@click.argument("folder", type=click.Path(path_type=Path))
def pictures(folder: Path) -> None:
    """Write the demo dataset's held-out pictures and masks as PNG files to FOLDER."""
    held_out = open_demo("").val
    classes = held_out.classes
    for index in range(len(held_out)):
        sample = held_out[index]
        write_rgb(folder / "images" / f"{sample.name}.png", sample.image)
        mask = PillowImage.fromarray(sample.labels)
        mask.putpalette([value for color in classes.palette for value in color])
        with replacing(folder / "masks" / f"{sample.name}.png") as temporary:
            mask.save(temporary)
    click.echo(f"{len(held_out)} held-out pictures → {folder}/images, their truth → {folder}/masks")


@demo.command()
@click.argument("folder", type=click.Path(path_type=Path))
def sheet(folder: Path) -> None:
    """Put photo, truth and every engine's labels side by side, and measure each on all held-out pictures."""
    card = read_card(folder / "model.onnx")
    matrices = {engine: ConfusionMatrix(card.num_classes, card.ignore_index) for engine in ENGINES}
    rows: list[list[NDArray[np.uint8]]] = []
    with Segmenter(folder / "train/best.safetensors", backend="torch", device="cpu") as reference:
        for path in sorted((folder / "held_out/images").glob("*.png")):
            truth = _read_ids(folder / "held_out/masks" / path.name)
            result = reference(path)
            labels = {"torch": result.labels}
            labels |= {engine: _read_ids(folder / engine / "mask" / path.name) for engine in ("ort", "opencv")}
            for engine, matrix in matrices.items():
                matrix.add(truth, labels[engine])
            if len(rows) < SHEET_ROWS:
                colors = (color_image(ids, card) for ids in (truth, *labels.values()))
                rows.append([np.asarray(result.image, np.uint8), *colors])
    miou = {engine: matrix.scores().miou for engine, matrix in matrices.items()}
    write_text(folder / "miou.json", json.dumps(miou))
    write_rgb(folder / "sheet.png", contact_sheet(rows, ["photo", "truth", *ENGINES.values()]))


@demo.command()
@click.argument("folder", type=click.Path(path_type=Path))
def summary(folder: Path) -> None:
    """Name what ``make demo`` made, and fail if the network did not learn."""
    miou = json.loads((folder / "miou.json").read_text(encoding="utf-8"))
    figures = ", ".join(f"{name} {miou[engine]:.4f}" for engine, name in ENGINES.items())
    click.echo(
        f"\nmIoU on the held-out pictures: {figures}\n"
        f"  {folder}/train/curves.png   learning curves\n"
        f"  {folder}/model.onnx         the network, opset 17, with its card inside\n"
        f"  {folder}/sheet.png          photo | truth | PyTorch | ONNX Runtime | OpenCV\n"
        f"  {folder}/parity.md          the parity table\n"
        f"next: source .venv/bin/activate; seg-infer {folder}/model.onnx YOUR_PICTURES"
    )
    if min(miou.values()) < GOAL_MIOU:
        click.echo(
            f"error: a network that learns reaches {GOAL_MIOU} here; something is broken "
            f"(to train again: rm -r {folder}; make demo)",
            err=True,
        )
        sys.exit(1)


def _read_ids(path: Path) -> NDArray[np.uint8]:
    with PillowImage.open(path) as mask:
        return np.asarray(mask)


if __name__ == "__main__":
    run(demo)
