"""What may be imported where: these run in processes of their own, since this one has imported everything."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
"""

RUN = """
sys.argv = {argv!r}
from {module} import main
main()
"""

EVERY_READER = """
import importlib, pkgutil
import segship.training.data
import segship.training.metrics
names = [info.name for info in pkgutil.iter_modules(segship.training.data.__path__)]
for name in names:
    importlib.import_module("segship.training.data." + name)
assert {"camvid", "demo", "masks"} <= set(names), names
"""

READ_A_TREE = """
from segship.training.data import open_dataset
for spec in sys.argv[1:]:
    part = open_dataset(spec).val
    matrix = segship.training.metrics.ConfusionMatrix(len(part.classes), 255)
    sample = part[0]
    matrix.add(sample.labels, (sample.labels != 255).astype("uint8"))
    print(sample.image.shape, matrix.counts.sum(), round(matrix.scores().pixel_accuracy, 3))
"""

EVERY_MODULE_OF_THE_FLOORS_BELOW = """
import importlib, pkgutil
import segship.runtime
for info in pkgutil.walk_packages(segship.runtime.__path__, "segship.runtime."):
    importlib.import_module(info.name)
import segship.export, segship.export.cli, segship.export.parity, segship.export.torch_backend, segship.training.cli
"""


def _python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


def test_datasets_and_metrics_import_and_work_without_torch(tmp_path: Path) -> None:
    from PIL import Image as PillowImage

    for part in ("train", "val"):
        for folder in (part, f"{part}annot"):
            (tmp_path / folder).mkdir()
        PillowImage.new("RGB", (8, 6), (1, 2, 3)).save(tmp_path / part / "a.png")
        mask = PillowImage.new("L", (8, 6), 1)
        mask.paste(11, (0, 0, 8, 2))
        mask.paste(0, (0, 2, 8, 3))
        mask.save(tmp_path / f"{part}annot/a.png")
    done = _python(WITHOUT_TORCH + EVERY_READER + READ_A_TREE, f"camvid:{tmp_path}", "demo:grey16")
    assert done.returncode == 0, done.stderr
    camvid, demo = done.stdout.splitlines()
    assert camvid == "(6, 8, 3) 32 0.75"
    assert demo.startswith("(128, 160, 1) 20480 ")


def test_the_runtime_and_the_commands_import_without_torch() -> None:
    done = _python(WITHOUT_TORCH + EVERY_MODULE_OF_THE_FLOORS_BELOW)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "argv", "words"),
    [
        (
            "segship.training.cli",
            ["seg-train", "--data", "demo", "--arch", "unet", "--out", "{tmp}/run"],
            'seg-train needs torch, which does not import here (.*); install it with: pip install "segship[train]"',
        ),
        (
            "segship.export.cli",
            ["seg-export", "{checkpoint}", "-o", "{tmp}/model.onnx"],
            'seg-export needs torch, which does not import here (.*); install it with: pip install "segship[export]"',
        ),
        (
            "segship.runtime.cli",
            ["seg-infer", "{checkpoint}", "{photo}", "--backend", "torch", "--out", "{tmp}/out"],
            'the torch backend needs torch, .*; install it with: pip install "segship[export]"',
        ),
    ],
    ids=["seg-train", "seg-export", "seg-infer --backend torch"],
)
def test_a_command_without_torch_ends_in_one_line_with_the_command_that_installs_it(
    tiny_checkpoint: Path, tmp_path: Path, module: str, argv: list[str], words: str
) -> None:
    from PIL import Image as PillowImage

    photo = tmp_path / "photo.png"
    PillowImage.new("RGB", (8, 8)).save(photo)
    filled = [argument.format(tmp=tmp_path, checkpoint=tiny_checkpoint, photo=photo) for argument in argv]
    done = _python(WITHOUT_TORCH + RUN.format(argv=filled, module=module))
    assert (done.returncode, done.stdout) == (1, "")
    begin, _, end = words.partition(".*")
    assert done.stderr.startswith(f"error: {begin}")
    assert done.stderr.endswith(f"{end}\n")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("seg-train", "segship.training.cli"),
        ("seg-export", "segship.export.cli"),
        ("seg-infer", "segship.runtime.cli"),
        ("seg-check", "segship.runtime.check_cli"),
        ("seg-check model", "segship.runtime.check_cli"),
        ("seg-check card", "segship.runtime.check_cli"),
        ("seg-bench", "segship.benchmarks.cli"),
    ],
)
def test_help_imports_neither_numpy_nor_an_engine(command: str, module: str) -> None:
    code = """
import atexit, sys
heavy = {"numpy", "cv2", "PIL", "torch", "onnx", "onnxruntime", "onnxsim", "matplotlib", "rich"}
atexit.register(lambda: print("imported:", sorted(heavy & set(sys.modules))))
"""
    done = _python(code + RUN.format(argv=[*command.split(), "--help"], module=module))
    assert done.returncode == 0, done.stderr
    assert f"Usage: {command} " in done.stdout
    assert done.stdout.endswith("imported: []\n")
