"""An export that is killed, at whatever moment, leaves either no file or a whole one."""

import functools
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
from segship.export.write import drafting
from segship.runtime.external_data import external_files
from segship.runtime.model_file import content_sha256, read_card

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system kills in other ways")

PROGRAM = '''
"""Export again and again into a fresh folder each, and die at the first, the second, the third ... touch of a file."""
import functools, os, shutil, signal, sys
from pathlib import Path

import torch
torch.set_num_threads(1)
import onnx, onnxruntime, onnx.checker, onnx.shape_inference, safetensors.torch
from segship.export import exporter
from segship.export.cli import seg_export
from segship.export.simplify import Simplified
from segship.export.write import drafting
from segship.runtime import backends, segmenter

checkpoint, template, out, external_above = sys.argv[1], *map(Path, sys.argv[2:4]), int(sys.argv[4])
exporter.simplify = lambda model: Simplified(model, "", len(model.graph.node), len(model.graph.node))
exporter.drafting = functools.partial(drafting, external_above=external_above)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def die_at(folder, moment):
    left = moment

    def watch(event, arguments):
        nonlocal left
        writes = event in ("os.rename", "os.remove") or (event == "open" and (arguments[2] or 0) & WRITING)
        if writes and str(folder) in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


moment = 0
while True:
    moment += 1
    folder = out / str(moment)
    shutil.copytree(template, folder)
    child = os.fork()
    if child == 0:
        die_at(folder, moment)
        command = [checkpoint, "-o", str(folder / "model.onnx"), "--overwrite", "--backend", "ort", "-q"]
        seg_export.main(command, standalone_mode=False)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
print(moment, os.waitstatus_to_exitcode(status))
'''


LEFTOVERS = re.compile(r"\.model\.[0-9a-f.]*\.(onnx|data)|model\.[0-9a-f]{12}\.data")
"""Hidden temporaries; and weights, whole, of a model that was not put in its place any more."""


@pytest.fixture(scope="module")
def earlier(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an earlier model, its weights in a file beside it."""
    folder = tmp_path_factory.mktemp("earlier")
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("other") / "other.safetensors", threshold=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "drafting", functools.partial(drafting, external_above=10_000))
        export(checkpoint, folder / "model.onnx", backends=["ort"])
    assert len(list(folder.iterdir())) == 2
    return folder


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nothing")


@pytest.mark.parametrize(("before", "external_above"), [("nothing", 1 << 30), ("earlier", 10_000)])
def test_an_export_that_is_killed_leaves_the_earlier_file_or_the_new_one_whole(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path, before: str, external_above: int
) -> None:
    template = request.getfixturevalue(before)
    arguments = [tiny_checkpoint, template, tmp_path / "out", external_above]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    moments, status = map(int, done.stdout.split())
    assert status == 0, done.stderr
    found = [whole(tmp_path / "out" / str(moment)) for moment in range(1, moments + 1)]
    old, new = whole(template), found[-1]
    assert new != old
    first = found.index(new)
    assert 3 < first < moments  # killed before and after the new file took its place
    assert found == [old] * first + [new] * (moments - first)
    assert len(list((tmp_path / "out" / str(moments)).iterdir())) == (1 if before == "nothing" else 2)


def whole(folder: Path) -> str | None:
    """Return the content of the model in a folder, after a look at all that is there; None if there is no model."""
    model = folder / "model.onnx"
    names = {path.name for path in folder.iterdir()} - {model.name}
    if not model.exists():
        assert all(LEFTOVERS.fullmatch(name) for name in names), names
        return None
    names -= {path.name for path in external_files(model)}
    assert all(LEFTOVERS.fullmatch(name) for name in names), names
    onnx.load(model)
    certificate, content = read_card(model).certificate, content_sha256(model)
    assert certificate is not None
    assert certificate.content_sha256 == content
    return content
