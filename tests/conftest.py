"""What several tests need: a small network with lively weights, its checkpoint and its exported file.

With ``--runtime-alone DIR`` the tests run where nothing but the runtime is installed, neither torch nor an engine but
OpenCV: models are not exported then but taken from DIR, and a test that needs what is not installed is skipped.
"""

import dataclasses
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.card import ModelCard, Network, Provenance
from segship.runtime.console import run
from segship.runtime.errors import MissingExtraError
from segship.runtime.palettes import DEMO, ClassTable
from segship.runtime.preprocess import Depth, Preprocess

TINY_SIZE = (48, 64)

NEEDS_MORE_THAN_THE_RUNTIME = {"test_backends.py", "test_graph_forms.py", "test_openvino.py", "test_fuzz.py"}
"""Files of tests of the runtime that import torch or an engine, or what stands on them, before any test runs."""

ENGINES_OF_EXTRAS = ("ort", "openvino", "tensorrt", "torch")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runtime-alone", metavar="DIR", type=Path, help="test the base install, on the models in DIR")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_alone = config.getoption("--runtime-alone") is not None
    return True if is_alone and collection_path.name in NEEDS_MORE_THAN_THE_RUNTIME else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--runtime-alone") is None:
        return
    for item in items:
        values = (
            item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        )
        if item.get_closest_marker("extras") or any(str(value) in ENGINES_OF_EXTRAS for value in values):
            item.add_marker(pytest.mark.skip(reason="needs what is not in the base install"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    return (yield from _skipping_what_is_not_installed(item.config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    return (yield from _skipping_what_is_not_installed(item.config))


def _skipping_what_is_not_installed(config: pytest.Config) -> Generator[None, None, None]:
    try:
        return (yield)
    except (MissingExtraError, ModuleNotFoundError) as error:
        if config.getoption("--runtime-alone") is None:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def _one_thread(pytestconfig: pytest.Config) -> Iterator[None]:
    """In networks this small a second thread only waits; and another number of threads gives other last digits."""
    if pytestconfig.getoption("--runtime-alone") is not None:
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
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export the checkpoint that a fixture makes; with ``--runtime-alone`` return what was exported beforehand."""

    def model(name: str, checkpoint: str, **options: Any) -> Path:
        handed = request.config.getoption("--runtime-alone")
        if handed is not None:
            return next((handed / name).glob("*.onnx"))
        from segship.export.exporter import export

        path: Path = request.getfixturevalue(checkpoint)
        return export(path, tmp_path_factory.mktemp(name) / f"{path.stem}.onnx", **options).path

    return model


@pytest.fixture(scope="session")
def tiny_model(exported: Callable[..., Path]) -> Path:
    """Its exported file, returning logits."""
    return exported("tiny_model", "tiny_checkpoint")


@pytest.fixture(scope="session")
def tiny_labels_model(exported: Callable[..., Path]) -> Path:
    """Its exported file, returning labels."""
    return exported("tiny_labels_model", "tiny_checkpoint", head="labels")


@pytest.fixture(scope="session")
def grey8_checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network for grey pictures of 8 bits."""
    return make_checkpoint(tmp_path_factory.mktemp("grey") / "uint8.safetensors", channels=1)


@pytest.fixture(scope="session")
def grey16_checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network for grey pictures of 16 bits."""
    return make_checkpoint(tmp_path_factory.mktemp("grey") / "uint16.safetensors", channels=1, depth="uint16")


@pytest.fixture(scope="session")
def grey_checkpoints(grey8_checkpoint: Path, grey16_checkpoint: Path) -> dict[str, Path]:
    """Checkpoints of networks for grey pictures, by depth."""
    return {"uint8": grey8_checkpoint, "uint16": grey16_checkpoint}


@pytest.fixture(scope="session")
def grey_models(exported: Callable[..., Path]) -> dict[str, Path]:
    """Their exported files, by depth."""
    return {
        "uint8": exported("grey8_model", "grey8_checkpoint"),
        "uint16": exported("grey16_model", "grey16_checkpoint"),
    }


@pytest.fixture(scope="session")
def binary_checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a binary network whose threshold is not 0.5."""
    return make_checkpoint(tmp_path_factory.mktemp("binary") / "binary.safetensors", threshold=0.45)


@pytest.fixture(scope="session")
def binary_model(exported: Callable[..., Path]) -> Path:
    """Its exported file, returning logits."""
    return exported("binary_model", "binary_checkpoint")


@pytest.fixture(scope="session")
def binary_labels_model(exported: Callable[..., Path]) -> Path:
    """Its exported file, returning labels."""
    return exported("binary_labels_model", "binary_checkpoint", head="labels")


@pytest.fixture(scope="session")
def tiled_checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network that sees tiles of 48×64 pixels, each overlapping the next by half."""
    return make_checkpoint(tmp_path_factory.mktemp("tiled") / "tiled.safetensors", tile_overlap=0.5)


@pytest.fixture(scope="session")
def tiled_model(
    exported: Callable[..., Path], photo: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Its exported file."""
    picture = tmp_path_factory.mktemp("picture") / "photo.png"
    PillowImage.fromarray(photo).save(picture)
    return exported("tiled_model", "tiled_checkpoint", images=[picture])


@pytest.fixture(scope="session")
def open_model(exported: Callable[..., Path]) -> Path:
    """The exported file of ``tiny_checkpoint`` that leaves number and size of its pictures open."""
    return exported("open_model", "tiny_checkpoint", dynamic=("batch", "size"))


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """A picture (90, 120, 3) that is smooth here and rough there."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
    smooth = cv2.resize(coarse, (120, 90), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
