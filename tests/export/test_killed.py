"""An export that is killed, at whatever moment, leaves either no file or a whole one."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from segship.runtime.external_data import external_files
from segship.runtime.model_file import content_sha256, read_card
from segship.runtime.segmenter import Segmenter

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


@pytest.mark.parametrize("external_above", [1 << 30, 10_000], ids=["one file", "weights beside it"])
def test_an_export_that_is_killed_leaves_the_old_file_or_the_new_one_whole(
    tiny_checkpoint: Path, old: Path, tmp_path: Path, external_above: int
) -> None:
    arguments = [str(tiny_checkpoint), str(old), str(tmp_path / "out"), str(external_above)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    moments, status = map(int, done.stdout.split())
    assert status == 0, done.stderr
    print(moments)
