"""Small CamVid trees, written in the forms that CamVid is passed around in; and training in processes of its own."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

WriteCamVid = Callable[..., Path]

TWELVE_COLORS = [
    (128, 128, 128),  # Sky
    (128, 0, 0),  # Building
    (192, 192, 128),  # Pole
    (128, 64, 128),  # Road
    (60, 40, 222),  # Pavement
    (128, 128, 0),  # Tree
    (192, 128, 128),  # SignSymbol
    (64, 64, 128),  # Fence
    (64, 0, 128),  # Car
    (64, 64, 0),  # Pedestrian
    (0, 128, 192),  # Bicyclist
    (0, 0, 0),  # Unlabelled
]


@pytest.fixture(scope="session")
def write_camvid() -> WriteCamVid:
    """Write a tree of pictures and masks in patches of 8 pixels, some of them void: there is something to learn.

    ``masks`` is ``index`` (``trainannot/``, grey ids, 11 void) or ``color`` (``train_labels/``, ``_L`` after the name).
    The patches are the same in both forms.
    """

    def write(
        root: Path, *, masks: str = "index", train: int = 6, val: int = 3, size: tuple[int, int] = (32, 40)
    ) -> Path:
        rng = np.random.default_rng(11)
        colors = np.array(TWELVE_COLORS, np.uint8)
        for part, count in (("train", train), ("val", val)):
            folder = root / (f"{part}annot" if masks == "index" else f"{part}_labels")
            (root / part).mkdir(parents=True)
            folder.mkdir()
            for number in range(count):
                patches = rng.integers(0, len(colors), (size[0] // 8 + 1, size[1] // 8 + 1), np.uint8)
                ids = np.kron(patches, np.ones((8, 8), np.uint8))[: size[0], : size[1]]
                noise = rng.integers(-12, 13, (*size, 3))
                picture = np.clip(20 * ids[..., None].astype(int) + np.array([0, 10, 30]) + noise, 0, 255)
                PillowImage.fromarray(picture.astype(np.uint8)).save(root / part / f"seq_{number:03}.png")
                mask, suffix = (ids, "") if masks == "index" else (colors[ids], "_L")
                PillowImage.fromarray(mask).save(folder / f"seq_{number:03}{suffix}.png")
        return root

    return write


@pytest.fixture
def index_tree(write_camvid: WriteCamVid, tmp_path: Path) -> Path:
    """A CamVid of 6 and 3 pictures, 32×40, with index masks."""
    return write_camvid(tmp_path / "camvid")


@pytest.fixture
def color_tree(write_camvid: WriteCamVid, tmp_path: Path) -> Path:
    """The same with colour masks of the 12-colour table, and no class_dict.csv."""
    return write_camvid(tmp_path / "camvid", masks="color")


START = """
import os, signal, sys
for stream, path in ((1, {out!r}), (2, {err!r})):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
os.environ.update({environment!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
import torch
torch.set_num_threads(1)
from segship.training import run, scores_report
run.draw_curves = run.draw_samples = scores_report.draw_confusion = lambda *_: None
"""


class Child:
    """A process that runs some Python, forked from one that has imported what training needs.

    Unlike a new interpreter it costs next to nothing, and unlike this process it can be killed. It draws nothing: that
    takes most of a short run's time, and changes no weights.
    """

    def __init__(self, code: str, folder: Path, environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True)
        self.out, self.err = folder / "out", folder / "err"
        self.out.touch()
        self.err.touch()
        start = START.format(out=str(self.out), err=str(self.err), environment=dict(environment))
        self.process = FORKS.Process(target=exec, args=(start + code, {"__name__": "__child__"}))
        self.process.start()

    def kill(self) -> None:
        """End it at once, by SIGKILL."""
        self.process.kill()

    def wait(self) -> tuple[int, str, str]:
        """Return its exit status (that of a signal is below 0), stdout and stderr."""
        self.process.join(120)
        assert self.process.exitcode is not None, f"it hangs; so far: {self.err.read_text(encoding='utf-8')}"
        return self.process.exitcode, self.out.read_text(encoding="utf-8"), self.err.read_text(encoding="utf-8")


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("pytest", "segship.training.cli", "segship.training.trainer", "segship.training.evaluate", "torch._dynamo"),
        *("kornia.geometry.transform", "kornia.enhance", "kornia.filters", "matplotlib.backends.backend_agg"),
    ]
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Start Python code in a process of its own."""
    children: list[Child] = []

    def run(code: str, environment: Mapping[str, str] | None = None) -> Child:
        children.append(Child(code, tmp_path / f"child{len(children)}", environment or {}))
        return children[-1]

    yield run
    for child in children:
        child.kill()
        child.process.join()


@pytest.fixture
def seg_train(start: Callable[..., Child]) -> Callable[..., Child]:
    """Start ``seg-train`` in a process of its own, after some Python if ``before`` is given."""

    def run(*arguments: object, before: str = "", environment: Mapping[str, str] | None = None) -> Child:
        argv = ["seg-train", *map(str, arguments)]
        command = f"\nsys.argv = {argv!r}\nfrom segship.training.cli import main\nmain()\n"
        return start(before + command, environment)

    return run
