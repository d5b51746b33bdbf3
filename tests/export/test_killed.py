"""An export that is killed, at whatever moment, leaves either no file or a whole one."""

import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from segship.export import exporter
from segship.export.exporter import export
from segship.export.simplify import Simplified
from segship.export.write import drafting
from segship.runtime.external_data import external_files
from segship.runtime.model_file import content_sha256, read_card

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system ends processes in other ways")

LEFTOVERS = re.compile(r"\..*|model\.[0-9a-f]{12}\.data")
"""Hidden temporaries, and weights of a model that did not come to its place any more."""

PROGRAM = '''
"""seg-export, again and again in a fresh folder, killed before it touches a file there for the 1st, 2nd ... time."""
import functools, os, shutil, signal, sys
from pathlib import Path

import torch
import onnxsim, segship.runtime.backends.ort, segship.training.data.demo  # once, not in each process
from segship.export import exporter, pictures
from segship.export.cli import seg_export
from segship.export.simplify import Simplified
from segship.export.write import drafting

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
torch.set_num_threads(1)
pictures.RANDOM_PICTURES = pictures.REAL_PICTURES = 1
exporter.simplify = lambda model: Simplified(model, "", 1, 1)


def die_at(folder, moment):
    left = moment

    def watch(event, arguments):
        nonlocal left
        writes = event in ("os.rename", "os.remove") or (event == "open" and (arguments[2] or 0) & WRITES)
        if writes and str(folder) in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def run(checkpoint, earlier, out, external_above):
    exporter.drafting = functools.partial(drafting, external_above=int(external_above))
    moment = 0
    killed = True
    while killed:
        moment += 1
        folder = Path(out) / str(moment)
        shutil.copytree(earlier, folder)
        child = os.fork()
        if child == 0:
            die_at(folder, moment)
            command = [checkpoint, "-o", str(folder / "model.onnx"), "--overwrite", "--backend", "ort", "-q"]
            seg_export.main(command, standalone_mode=False)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
    assert status == 0, status


run(*sys.argv[1:5])
run(*sys.argv[5:9])
'''


@pytest.fixture(scope="module")
def folders(
    tiny_checkpoint: Path, make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Folders that hold what was there before, and those that hold what each export has left, by its moment."""
    top = tmp_path_factory.mktemp("killed")
    (top / "nothing").mkdir()
    (top / "earlier").mkdir()
    other = make_checkpoint(top / "other.safetensors", threshold=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "drafting", functools.partial(drafting, external_above=10_000))
        patch.setattr(exporter, "simplify", lambda model: Simplified(model, "", 1, 1))
        export(other, top / "earlier/model.onnx", backends=["ort"])
    cases = [
        *(tiny_checkpoint, top / "nothing", top / "after nothing", 1 << 30),
        *(tiny_checkpoint, top / "earlier", top / "after earlier", 10_000),
    ]
    command = [sys.executable, "-c", PROGRAM, *map(str, cases)]
    environment = os.environ | {"TMPDIR": str(top)}  # what a killed process cannot remove
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {path.name: path for path in top.iterdir()}


@pytest.mark.parametrize(("before", "files"), [("nothing", 1), ("earlier", 2)])
def test_an_export_that_is_killed_leaves_what_was_there_before_or_the_new_file_whole(
    folders: dict[str, Path], before: str, files: int
) -> None:
    after = sorted(folders[f"after {before}"].iterdir(), key=lambda folder: int(folder.name))
    assert len(list(after[-1].iterdir())) == files  # of the one that nobody killed
    found = [model_in(folder) for folder in after]
    old, new = model_in(folders[before]), found[-1]
    first = found.index(new)
    assert 3 < first < len(found) - 1  # some were killed before it came to its place, some after
    assert found == [old] * first + [new] * (len(found) - first)


def model_in(folder: Path) -> str | None:
    """Return the content of the model in a folder, which must be whole; None if there is none."""
    model = folder / "model.onnx"
    is_there = model.exists()
    named = {model, *external_files(model)} if is_there else set()
    others = {path.name for path in folder.iterdir() if path not in named}
    assert all(LEFTOVERS.fullmatch(name) for name in others), others
    if not is_there:
        return None
    onnx.load(model)
    certificate, content = read_card(model).certificate, content_sha256(model)
    assert certificate is not None
    assert certificate.content_sha256 == content
    return content
