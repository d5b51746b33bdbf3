"""Does a job of ``seg-infer`` need more memory the longer it is? Its peak after the first pictures, and at its end.

    python -m segship.benchmarks.memory model.onnx PICTURES --pictures 2000 --seconds 60

The command runs as a process of its own, once on many pictures and once on a video in Full HD; this one reads from
``/proc`` what it has used at most (``VmHWM``), picture by picture.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import cv2
import numpy as np

from segship.benchmarks.processes import SEG_INFER, own_process, peak_bytes
from segship.benchmarks.record import BenchError
from segship.runtime.console import run
from segship.runtime.errors import ImageError
from segship.runtime.images import read_image
from segship.runtime.source_files import find_images

FULL_HD: Final = (1080, 1920)
FPS: Final = 30
_LIMIT_S: Final = 12 * 3600.0


@dataclass(frozen=True)
class Peak:
    """What a job used at most.

    Attributes:
        first_mb: when the first pictures were done, in 10⁶ bytes.
        whole_mb: up to its last picture.
        pictures: that it did.
    """

    first_mb: float
    whole_mb: float
    pictures: int

    def __str__(self) -> str:
        ratio = self.whole_mb / self.first_mb
        return f"{self.first_mb:.0f} MB, whole job {self.whole_mb:.0f} MB ({self.pictures} pictures): ratio {ratio:.3f}"


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pictures", type=click.Path(path_type=Path))
@click.option("--pictures", "count", type=click.IntRange(0), default=2000, show_default=True, help="Of the first job.")
@click.option("--seconds", type=click.FloatRange(0), default=60, show_default=True, help="Of the video; 0: no video.")
@click.option("--first", type=click.IntRange(1), default=50, show_default=True, help="Pictures to compare with.")
@click.option("--backend", default="ort", show_default=True, help="Engine.")
@click.option("--save", default="mask,overlay", show_default=True, help="What is written of each picture.")
def memory(model: Path, pictures: Path, count: int, seconds: float, first: int, backend: str, save: str) -> None:
    """Measure the peak memory of seg-infer with MODEL on PICTURES, each taken as often as it needs."""
    if not Path("/proc/self/status").exists():
        raise click.UsageError("this reads /proc, which Linux alone has")
    paths = [file.path for file in find_images([pictures])]
    options = ["--backend", backend, "--device", "cpu", "--jsonl", "--overwrite"]
    with tempfile.TemporaryDirectory() as folder:
        out = ["--out", f"{folder}/out"]
        if count:
            many = link_often(paths, count, Path(folder) / "many")
            click.echo(f"{count} pictures: first {first} {peak([model, many, *options, *out, '--save', save], first)}")
        if seconds:
            video = write_video(paths, round(seconds * FPS), Path(folder) / "video.mp4")
            told = peak([model, video, *options, *out, "--save", "video"], first)
            click.echo(f"{seconds:g} s of {FULL_HD[1]}×{FULL_HD[0]} video: first {first} {told}")


def peak(arguments: Sequence[str | Path], first: int) -> Peak:
    """Run ``seg-infer`` with arguments of which one is ``--jsonl``, and watch its memory.

    Raises:
        BenchError: if it fails, takes half a day, does fewer pictures than are to be compared with, or is over before
            its memory is read.
    """
    done, first_mb, whole_mb = 0, 0.0, 0.0
    command = ["-c", SEG_INFER, *arguments]
    with own_process(command, _LIMIT_S, name="seg-infer", at=lambda: f" after {done} pictures") as process:
        for line in process.stdout or ():
            if "index" not in json.loads(line):
                continue
            done += 1
            whole_mb = max(whole_mb, peak_bytes(process.pid) / 1e6)
            if done == first:
                first_mb = whole_mb
    if done < first:
        raise BenchError(f"the job was over after {done} pictures; expected {first} or more, as --first says")
    if not first_mb:
        raise BenchError(f"the job of {done} pictures was over before its memory could be read; give it more of them")
    return Peak(first_mb, whole_mb, done)


def link_often(paths: Sequence[Path], count: int, folder: Path) -> Path:
    """Make a folder of ``count`` links to pictures, each as often as it needs."""
    folder.mkdir()
    for number in range(count):
        path = paths[number % len(paths)].resolve()
        (folder / f"{number:06d}{path.suffix}").symlink_to(path)
    return folder


def write_video(paths: Sequence[Path], frames: int, path: Path) -> Path:
    """Write a video in Full HD of pictures that are enlarged and pushed along, each for half a second.

    Raises:
        ImageError: if this OpenCV writes no MPEG-4.
    """
    height, width = FULL_HD
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), FPS, (width, height))
    if not writer.isOpened():
        raise ImageError("this OpenCV cannot write MPEG-4; install another build of it")
    enlarged = np.zeros((height, width, 3), np.uint8)
    for number in range(frames):
        step = number % (FPS // 2)
        if step == 0:
            picture = read_image(paths[number // (FPS // 2) % len(paths)], channels=3, depth="uint8")
            cv2.resize(picture[..., ::-1], (width, height), dst=enlarged, interpolation=cv2.INTER_CUBIC)
        writer.write(np.roll(enlarged, 8 * step, axis=1))
    writer.release()
    return path


if __name__ == "__main__":
    run(memory)
