"""What the pages' examples need: the files that a page names, and the commands, quickly.

Pictures are drawn, with ids of CamVid's classes; networks are small, with seeded random weights, so nothing is trained.
The commands are the real ones. They are run by forks of one process that has imported PyTorch already, since that takes
longer than most examples do.
"""

import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from segship.runtime.card import ModelCard, Network, Provenance
from segship.runtime.palettes import CAMVID
from segship.runtime.preprocess import Preprocess
from segship.training.data import Sample
from segship.training.data.demo import open_demo

ROOT: Final = Path(__file__).parents[2]

CLASSES_OF_DRAWINGS: Final = np.array([3, 1, 0, 8, 7, 2], np.uint8)
"""Ids of CamVid for what the built-in dataset draws: ground, brick, fabric, ball, grid, wire."""

WARM: Final = """
import contextlib, importlib, os, socket, sys

import cv2, kornia, matplotlib.pyplot, onnx, pycocotools.mask, rich.table, torch  # none that starts a thread
import segship.runtime.segmenter, segship.training.trainer

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    if os.fork():  # this process goes on to listen, and never waits
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        continue
    listener.close()
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # nobody waits any more
            connection.sendall(bytes([code if code >= 0 else 128 - code]))
        os._exit(0)
    connection.close()
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    folder, environment, sys.argv, main = eval(message)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    module, _, function = main.partition(":")
    getattr(importlib.import_module(module), function)()
"""

ASK: Final = """#!{python} -SEs
import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
arguments = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
socket.send_fds(connection, [repr((os.getcwd(), dict(os.environ), arguments, {main!r})).encode()], [0, 1, 2])
sys.exit((connection.recv(1) or b"\\xff")[0])
"""


@pytest.fixture(scope="session")
def commands() -> Iterator[Path]:
    """A folder with the project's commands, which start at once."""
    with tempfile.TemporaryDirectory(prefix="seg") as name:  # short: the address of a socket has 107 characters at most
        folder, address = Path(name), f"{name}/socket"
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for command, main in project["scripts"].items():
            text = ASK.format(python=sys.executable, address=address, main=main)
            (folder / command).write_text(text, encoding="utf-8")
            (folder / command).chmod(0o755)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen([sys.executable, "-c", WARM, address], stdout=subprocess.PIPE, env=environment) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n", "the process that answers the commands does not start"
            yield folder
            server.kill()


@pytest.fixture(scope="session")
def live_stream() -> Iterator[str]:
    """A camera's address: a server on this machine that sends 100 frames a second."""
    file, stop = io.BytesIO(), Event()
    PillowImage.fromarray(_drawn("val", 0).image).save(file, "JPEG")
    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {file.tell()}\r\n\r\n"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with contextlib.suppress(OSError):  # the reader has gone
                while not stop.wait(0.01):
                    self.wfile.write(head.encode() + file.getvalue() + b"\r\n")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/live"
    stop.set()
    server.shutdown()
    server.server_close()


class Shelf:
    """Makes what pages need, each thing once: files and folders by the names that pages call them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lend(self, name: str, to: Path) -> None:
        """Copy a thing into a page's folder."""
        source, target = self.get(name), to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)

    def get(self, name: str) -> Path:
        """Return where a thing is, and make it if it is not there yet."""
        assert name in MAKERS, f"{name}: there is no such thing to lend; there are {', '.join(MAKERS)}"
        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            MAKERS[name](self, path)
        return path


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """What pages borrow."""
    return Shelf(tmp_path_factory.mktemp("shelf"))


def _drawn(part: str, index: int) -> Sample:
    split = open_demo("")
    sample = (split.train if part == "train" else split.val)[index]
    return dataclasses.replace(sample, labels=CLASSES_OF_DRAWINGS[sample.labels])


def _camvid(_: Shelf, path: Path) -> None:
    for part, count in (("train", 12), ("val", 8)):
        for sample in (_drawn(part, index) for index in range(count)):
            _write(path / part / f"{sample.name}.png", sample.image)
            _write(path / f"{part}annot" / f"{sample.name}.png", sample.labels)


def _voc(_: Shelf, path: Path) -> None:
    names = [f"2007_{index:06}" for index in range(10)]
    for index, name in enumerate(names):
        sample = _drawn("train", index)
        _write(path / "JPEGImages" / f"{name}.jpg", sample.image)
        mask = PillowImage.fromarray(sample.labels)
        mask.putpalette([value for color in CAMVID.palette for value in color])
        (path / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(path / "SegmentationClass" / f"{name}.png")
    lists = path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[:6]), encoding="utf-8")
    (lists / "val.txt").write_text("\n".join(names[6:]), encoding="utf-8")


def _photos(_: Shelf, path: Path) -> None:
    for index in range(8):
        _write(path / ("night" if index > 5 else "") / f"{index:03}.jpg", _drawn("val", index).image)


def _one_photo(_: Shelf, path: Path) -> None:
    _write(path, _drawn("val", 9).image)


def _clip(_: Shelf, path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (160, 128))
    for index in range(6):
        writer.write(_drawn("val", index).image[..., ::-1])
    writer.release()


def _large(_: Shelf, path: Path) -> None:
    import tifffile

    row = np.concatenate([_drawn("val", index).image for index in range(8)], axis=1)
    tifffile.imwrite(path, np.tile(row, (6, 1, 1)), tile=(128, 128), photometric="rgb")


def _checkpoint(seed: int) -> Callable[[Shelf, Path], None]:
    def make(_: Shelf, path: Path) -> None:
        import torch

        from segship.benchmarks.seeded import seeded_network
        from segship.training.checkpoint import save_checkpoint

        form = Preprocess((48, 64), mean=(0.4, 0.45, 0.5), std=(0.2, 0.21, 0.22))
        network = Network("unet", {"base_channels": 4})
        card = ModelCard(CAMVID.names, CAMVID.palette, form, network=network, provenance=Provenance(dataset="camvid"))
        weights = seeded_network(card)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in weights.parameters():  # the later of two trainings gives a little different weights
                parameter += 0.01 * seed * torch.randn_like(parameter)
            weights.get_submodule("head.4").bias[3] += 4  # mostly Road: what is undecided flips in 16 bits
        save_checkpoint(path, weights, card)

    return make


def _model(checkpoint: str, **options: Any) -> Callable[[Shelf, Path], None]:
    def make(shelf: Shelf, path: Path) -> None:
        from segship.export.exporter import export

        pictures = sorted((shelf.get("CamVid/") / "val").iterdir())
        export(shelf.get(checkpoint), path, images=pictures, **options)

    return make


def _golden(shelf: Shelf, path: Path) -> None:
    from segship.export.exporter import export
    from segship.export.golden import write_golden_of

    pictures = sorted((shelf.get("CamVid/") / "val").iterdir())
    write_golden_of(export(shelf.get("runs/street/best.safetensors"), path.with_suffix(".onnx"), images=pictures), path)


def _foreign(shelf: Shelf, path: Path) -> None:
    import onnx

    model = onnx.load(shelf.get("street.onnx"))
    del model.metadata_props[:]
    onnx.save(model, path)


def _write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(pixels).save(path)


MAKERS: Final[dict[str, Callable[[Shelf, Path], None]]] = {
    "CamVid/": _camvid,
    "VOC2012/": _voc,
    "photos/": _photos,
    "one.jpg": _one_photo,
    "clip.mp4": _clip,
    "large.tif": _large,
    "runs/street/best.safetensors": _checkpoint(0),
    "runs/new/best.safetensors": _checkpoint(1),
    "street.onnx": _model("runs/street/best.safetensors"),
    "new.onnx": _model("runs/new/best.safetensors"),
    "open.onnx": _model("runs/street/best.safetensors", dynamic=("batch", "size")),
    "golden.npz": _golden,
    "theirs.onnx": _foreign,
}
"""Folders end in a slash. ``theirs.onnx`` has no card; of ``open.onnx`` number and size of its pictures are open."""
