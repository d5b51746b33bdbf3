"""What several tests need: a small network with lively weights, its checkpoint and its exported file.

Nothing here imports torch before a fixture needs it, and such a fixture skips its tests where there is none: the runtime
is tested without it, too (``test_wheel.py``).
"""

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.card import ModelCard, Network, Provenance
from segship.runtime.console import run
from segship.runtime.palettes import DEMO, ClassTable
from segship.runtime.preprocess import Depth, Preprocess

TINY_SIZE = (48, 64)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """In networks this small a second thread only waits; and another number of threads gives other last digits."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


BINARY_CLASSES = ClassTable.of([("rest", (0, 0, 0)), ("object", (255, 64, 0))])


def tiny_card(
    channels: int = 3,
    depth: Depth = "uint8",
    *,
    arch: str = "unet",
    threshold: float | None = None,
    tile_overlap: float | None = None,
) -> ModelCard:
    """Return the card of a small network on the demo's classes; with a threshold, of a binary one."""
    form = Preprocess(
        TINY_SIZE,
        channels,
        depth,
        color_order="RGB" if channels == 3 else "grey",
        mean=(0.4, 0.45, 0.5)[:channels],
        std=(0.2, 0.21, 0.22)[:channels],
    )
    network = Network(arch, {"base_channels": 4} if arch == "unet" else {})
    classes = DEMO if threshold is None else BINARY_CLASSES
    return ModelCard(
        classes.names,
        classes.palette,
        form,
        task="multiclass" if threshold is None else "binary",
        threshold=0.5 if threshold is None else threshold,
        tile_overlap=tile_overlap,
        network=network,
        provenance=Provenance(dataset="demo"),
    )


def write_tiny_checkpoint(path: Path, card: ModelCard) -> Path:
    """Write a checkpoint with seeded random weights whose batch norms have seen something."""
    pytest.importorskip("torch")
    from segship.benchmarks.seeded import seeded_network
    from segship.training.checkpoint import save_checkpoint

    save_checkpoint(path, seeded_network(card), card)
    return path


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """Write a checkpoint like ``tiny_checkpoint``, of another size or :func:`tiny_card`, to a path."""

    def make(path: Path, *, size: tuple[int, int] = TINY_SIZE, **form: Any) -> Path:
        card = tiny_card(**form)
        preprocess = dataclasses.replace(card.preprocess, size=size)
        return write_tiny_checkpoint(path, dataclasses.replace(card, preprocess=preprocess))

    return make


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command with arguments, as its console script does; return exit status, stdout and stderr."""

    def call(click_command: click.Command, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", [str(click_command.name), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run(click_command)
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, re.sub(r"\x1b\[[0-9;]*m", "", err)

    return call


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small U-Net for 8-bit RGB pictures, network size 48×64."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", tiny_card())


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its exported file, returning logits."""
    from segship.export.exporter import export

    return export(tiny_checkpoint, tmp_path_factory.mktemp("tiny_model") / "tiny.onnx").path


@pytest.fixture(scope="session")
def tiny_labels_model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its exported file, returning labels."""
    from segship.export.exporter import export

    return export(tiny_checkpoint, tmp_path_factory.mktemp("tiny_labels") / "tiny.onnx", head="labels").path


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """A picture (90, 120, 3) that is smooth here and rough there."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
    smooth = cv2.resize(coarse, (120, 90), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
