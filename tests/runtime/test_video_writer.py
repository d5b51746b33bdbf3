import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.errors import ImageError, OutputError
from segship.runtime.video_writer import VIDEO_CODECS, VideoWriter

WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
import numpy as np
from segship.runtime.errors import OutputError
from segship.runtime.video_writer import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    with VideoWriter(Path(sys.argv[1]), 25, (90, 120)) as video:
        for seed in range(30):
            video.write(np.random.default_rng(seed).integers(0, 256, (90, 120, 3), np.uint8))
except OutputError as error:
    print(error)
"""
KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from segship.runtime.video_writer import VideoWriter
with VideoWriter(Path(sys.argv[1]), 25, (90, 120)) as video:
    for seed in range(30):
        video.write(np.random.default_rng(seed).integers(0, 256, (90, 120, 3), np.uint8))
    os._exit(9)
"""


def frames_of(photo: NDArray[np.uint8], count: int) -> list[NDArray[np.uint8]]:
    return [np.roll(photo, 3 * step, axis=1) for step in range(count)]


def write(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float = 25) -> None:
    with VideoWriter(path, fps, (90, 120)) as video:
        for frame in frames:
            video.write(frame)


def read(path: Path) -> tuple[float, list[NDArray[np.uint8]]]:
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    fps, frames = video.get(cv2.CAP_PROP_FPS), []
    while (got := video.read())[0]:
        frames.append(cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB))
    video.release()
    return fps, frames


@pytest.mark.parametrize("suffix", VIDEO_CODECS)
def test_frames_are_read_back_in_order(suffix: str, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "a folder" / f"Straße{suffix.upper()}"
    frames = frames_of(photo, 12)
    with VideoWriter(path, 25, photo.shape[:2]) as video:
        for frame in frames:
            video.write(frame)
        assert not path.exists()
    fps, found = read(path)
    assert fps == 25
    assert len(found) == len(frames)
    for frame, got in zip(frames, found, strict=True):
        distance = np.abs(frame.astype(int) - got).mean()
        assert distance == 0 if suffix == ".mkv" else distance < 16
    assert [child.name for child in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", VIDEO_CODECS)
@pytest.mark.parametrize("fps", [30000 / 1001, 24000 / 1001, 60000 / 1001, 30, 12.5, 1000 / 15, 0.5])
def test_the_frame_rate_is_kept(suffix: str, fps: float, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / f"video{suffix}"
    write(path, frames_of(photo, 3), fps)
    found, frames = read(path)
    assert found == pytest.approx(fps, abs=0.005 if fps == 1000 / 15 and suffix == ".mp4" else 0.001)
    assert len(frames) == 3


@pytest.mark.parametrize("suffix", VIDEO_CODECS)
def test_an_odd_side_gets_its_last_line_twice(suffix: str, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    odd = np.ascontiguousarray(photo[:33, :51])
    path = tmp_path / f"video{suffix}"
    with VideoWriter(path, 10, (33, 51)) as video:
        video.write(odd)
    frame = read(path)[1][0]
    assert frame.shape == (34, 52, 3)
    if suffix == ".mkv":
        np.testing.assert_array_equal(frame[:33, :51], odd)
        np.testing.assert_array_equal(frame[33, :51], odd[32])


def test_frames_of_another_size_are_refused_and_nothing_is_left(photo: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_text("what was there")
    with pytest.raises(OutputError, match=r"frame 2 is \(80, 120, 3\) uint8; the video's are \(90, 120, 3\) uint8"):
        write(path, [photo, photo[:80]])
    assert path.read_text() == "what was there"
    assert [child.name for child in tmp_path.iterdir()] == ["video.mp4"]


def test_an_error_of_the_source_is_handed_on(photo: NDArray[np.uint8], tmp_path: Path) -> None:
    def camera() -> Iterator[NDArray[np.uint8]]:
        yield photo
        raise ImageError("the camera is gone")

    with pytest.raises(ImageError, match="the camera is gone"):
        write(tmp_path / "video.mkv", camera())
    assert not list(tmp_path.iterdir())


def test_a_video_without_frames_is_none(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame came"):
        write(tmp_path / "video.avi", [])
    assert not list(tmp_path.iterdir())


def test_a_suffix_without_codec_names_those_that_have_one(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"written as \.mp4, \.avi, \.mkv"):
        VideoWriter(tmp_path / "video.gif", 25, (90, 120))


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e6])
def test_a_frame_rate_that_is_none_is_refused(fps: float, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="frame rate"):
        VideoWriter(tmp_path / "video.mp4", fps, (90, 120))


def test_a_size_that_no_codec_takes_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"this OpenCV cannot write mp4v videos of 90×100000 pixels"),
        VideoWriter(tmp_path / "video.mp4", 25, (90, 100_000)),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_video_cannot_be_written_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*video\.mp4: "):
        write(tmp_path / "file" / "video.mp4", [])


@pytest.mark.parametrize("suffix", VIDEO_CODECS)
def test_on_a_disk_without_room_nothing_is_left(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    path = tmp_path / f"video{suffix}"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ROOM, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == f"cannot write {path}: the finished file does not hold its 30 frames; is the disk full?\n"
    assert not list(tmp_path.iterdir())


def test_a_writer_that_is_killed_leaves_nothing_at_the_place(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, check=False, timeout=120)
    assert done.returncode == 9
    assert not path.exists()
    assert all(child.name.startswith(".") for child in tmp_path.iterdir())
