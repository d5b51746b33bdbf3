"""What a user gets: the wheel, built from the sdist, in an environment that has nothing else."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parents[1]
FLOORS = ("runtime", "training", "export", "benchmarks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel; `build` makes it from the sdist, not from the checkout."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with the base install only: no torch, no engine beside OpenCV."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([commands / "python", *install, str(wheel)], check=True)
    return commands


@pytest.fixture(scope="module")
def bare_with_tools(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has all of ``bare`` and what the tests themselves use beside it."""
    folder = tmp_path_factory.mktemp("tools")
    venv.create(folder, with_pip=True)
    python = folder / bare.name / "python"
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    base, own = (Path(run(command, "-c", find).stdout.strip()) for command in (bare / "python", python))
    (own / "base.pth").write_text(f"{base}\n")
    tools = ["pytest", "hypothesis", "onnx"]
    install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([python, *install, *tools], check=True)
    return python


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the runtime's tests run, exported, since torch is not where they run."""
    folder = tmp_path_factory.mktemp("models")
    names = ("tiny_model", "tiny_labels_model", "binary_model", "binary_labels_model", "tiled_model", "open_model")
    paths = {name: request.getfixturevalue(name) for name in names}
    grey = request.getfixturevalue("grey_models")
    for name, path in (paths | {"grey8_model": grey["uint8"], "grey16_model": grey["uint16"]}).items():
        (folder / name).mkdir()
        shutil.copy(path, folder / name)
    return folder


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=cwd)


def test_the_wheel_holds_every_module_of_every_folder(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    modules = {f"segship/{path.relative_to(ROOT)}" for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    assert held == modules | {"segship/__init__.py"}
    assert "segship/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_the_base_install_has_neither_torch_nor_an_engine_beside_opencv(bare: Path) -> None:
    script = "import importlib.util as u; print([m for m in ('torch', 'onnx', 'onnxruntime') if u.find_spec(m)])"
    assert run(bare / "python", "-c", script).stdout.strip() == "[]"


def test_the_base_install_runs_a_model_with_opencv(
    bare: Path, tiny_model: Path, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    done = run(bare / "seg-infer", tiny_model, tmp_path / "photo.png", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "opencv (OpenCV" in done.stdout
    with Image.open(tmp_path / "out/mask/photo.png") as mask:
        assert mask.size == (120, 90)


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["seg-infer", "MODEL", "PHOTO", "--backend", "ort"], "cpu"),
        (["seg-train", "--data", "demo", "--arch", "unet", "--out", "run"], "train"),
        (["seg-export", "some.safetensors"], "export"),
    ],
)
def test_what_is_not_installed_is_one_line_with_the_command_that_installs_it(
    bare: Path, tiny_model: Path, photo: NDArray[np.uint8], tmp_path: Path, command: list[str], extra: str
) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    places = {"MODEL": str(tiny_model), "PHOTO": str(tmp_path / "photo.png")}
    done = run(bare / command[0], *[places.get(word, word) for word in command[1:]])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f'pip install "segship[{extra}]"' in done.stderr


def test_the_runtime_alone_passes_its_part_of_the_tests(bare_with_tools: Path, models: Path, tmp_path: Path) -> None:
    options = ["-q", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-p", "no:cacheprovider", "--tb=short"]
    options += ["-o", "faulthandler_timeout=180", "-o", "faulthandler_exit_on_timeout=true"]  # say where it hangs
    command = [bare_with_tools, "-m", "pytest", ROOT / "tests/runtime", *options, "--runtime-alone", models]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", done.stdout)}
    assert counts["passed"] > 1000  # of some 2000; what is skipped is of other engines and of PyTorch
    assert counts["skipped"] < counts["passed"] / 3
