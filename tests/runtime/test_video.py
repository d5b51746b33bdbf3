import itertools
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.errors import ImageError
from segship.runtime.images import read_image
from segship.runtime.source_item import SourceItem
from segship.runtime.video import VideoSource

RNG = np.random.default_rng(9)
FRAMES = RNG.integers(0, 256, (12, 36, 48, 3), np.uint8)
WriteVideo = Callable[..., Path]


@pytest.fixture(scope="session")
def write_video(tmp_path_factory: pytest.TempPathFactory) -> WriteVideo:
    """Write frames (N, H, W, 3) of RGB or (N, H, W) of 16 bits as a video; lossless unless another codec is named."""

    def write(name: str, frames: NDArray[np.generic] = FRAMES, *, codec: str = "FFV1", fps: float = 10.0) -> Path:
        path = tmp_path_factory.mktemp("video") / name
        height, width = frames.shape[1:3]
        options = [] if frames.ndim == 4 else [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U, cv2.VIDEOWRITER_PROP_IS_COLOR, 0]
        fourcc = cv2.VideoWriter.fourcc(*codec)
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, fps, (width, height), options)
        assert writer.isOpened()
        for frame in frames:
            writer.write(np.ascontiguousarray(frame[..., ::-1] if frame.ndim == 3 else frame))
        writer.release()
        return path

    return write


def pictures(items: list[SourceItem]) -> NDArray[np.uint8]:
    return np.stack([read_image(item.picture, channels=3, depth="uint8") for item in items])


@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_frames_come_in_order_with_every_pixel_and_their_times(write_video: WriteVideo, name: str) -> None:
    path = write_video(name)
    with VideoSource(path, Path("below/a")) as source:
        assert (source.count, source.fps, source.is_video, source.is_live) == (12, 10.0, True, False)
        items = list(source)
    np.testing.assert_array_equal(pictures(items), FRAMES)
    assert [item.name for item in items][::11] == [f"{path} frame 1", f"{path} frame 12"]
    assert [item.place for item in items][::11] == [Path("below/a/frame-000001"), Path("below/a/frame-000012")]
    np.testing.assert_allclose([item.time_s or 0 for item in items], np.arange(12) / 10, atol=1e-6)


def test_a_frame_is_not_written_over_by_the_next(write_video: WriteVideo) -> None:
    frames = [item.picture for item in VideoSource(write_video("a.mkv"))]
    assert not any(np.shares_memory(first, second) for first, second in itertools.pairwise(frames))


def test_16_bit_grey_keeps_every_bit(write_video: WriteVideo) -> None:
    frames = RNG.integers(0, 65536, (3, 36, 48)).astype(np.uint16)
    items = list(VideoSource(write_video("deep.mkv", frames)))
    for item, frame in zip(items, frames, strict=True):
        np.testing.assert_array_equal(read_image(item.picture, channels=1, depth="uint16")[..., 0], frame)


def test_a_video_of_rounded_rate_tells_it(write_video: WriteVideo) -> None:
    assert VideoSource(write_video("a.mkv", fps=30000 / 1001)).fps == pytest.approx(29.97, abs=0.001)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_video_is_turned_as_it_says(write_video: WriteVideo, turn: int) -> None:
    corner = np.zeros((3, 48, 64, 3), np.uint8)
    corner[:, :24, :32] = (250, 40, 40)
    path = write_video("phone.mp4", corner, codec="mp4v")
    content = bytearray(path.read_bytes())
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    at = content.index(b"tkhd") + 4 + 40  # the matrix in the track's header (ISO 14496-12, 8.3.2)
    content[at : at + 20] = struct.pack(">5i", a << 16, b << 16, 0, -b << 16, a << 16)
    path.write_bytes(content)
    expected = np.rot90(corner, -turn // 90, axes=(1, 2))
    shown = pictures(list(VideoSource(path)))
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 12


@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_a_video_that_is_cut_short_says_so_behind_its_frames(write_video: WriteVideo, name: str) -> None:
    path = write_video(name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    *items, last = VideoSource(path, Path("a"))
    assert 2 <= len(items) <= 7
    np.testing.assert_array_equal(pictures(items[:-1]), FRAMES[: len(items) - 1])
    with pytest.raises(ImageError, match=rf"{name}: the video is cut short or damaged: it ends after {len(items)} of"):
        read_image(last.picture, channels=3, depth="uint8")


@pytest.mark.parametrize("content", [b"", b"this is no video" * 100])
def test_a_file_without_video_is_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.mp4"
    path.write_bytes(content)
    source = VideoSource(path)
    assert source.count is None
    assert source.fps is None
    (item,) = source
    expected = f"{path}: no video that can be read" + ("" if content else " (it is empty)")
    assert str(item.picture) == expected


def test_a_video_that_vanished_is_an_error(tmp_path: Path) -> None:
    (item,) = VideoSource(tmp_path / "gone.mp4")
    assert "no video that can be read (No such file or directory)" in str(item.picture)


def test_a_video_of_no_frame_is_an_error(write_video: WriteVideo) -> None:
    path = write_video("a.avi")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"movi") + 4])
    (item,) = VideoSource(path)
    assert isinstance(item.picture, ImageError)


def test_damaged_videos_make_no_noise(write_video: WriteVideo, tmp_path: Path) -> None:
    path = write_video("a.avi", codec="MJPG")
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 300] = RNG.bytes(300)
    path.write_bytes(content)
    junk = tmp_path / "junk.mp4"
    junk.write_bytes(b"this is no video" * 100)
    script = (
        "import sys\nfrom segship.runtime.video import VideoSource\n"
        "print([len(list(VideoSource(path))) > 0 for path in sys.argv[1:]])"
    )  # in a process of its own, since FFmpeg asks once in a process what it may say
    done = subprocess.run([sys.executable, "-c", script, path, junk], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[True, True]\n", "")


def test_frames_above_the_limit_are_not_decoded(write_video: WriteVideo) -> None:
    (item,) = VideoSource(write_video("a.mkv"), max_pixels=1000)
    assert "frames of 48×36 = 1728 pixels, above --max-pixels 1000; raise it" in str(item.picture)


@pytest.mark.parametrize("name", ["with space.mkv", "Straße 道路.mkv", "a:b %03d.mkv"])
def test_any_name_that_is_text_is_read(write_video: WriteVideo, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video("a.mkv").rename(write_video("b.mkv").with_name(name))
    monkeypatch.chdir(path.parent)
    assert len(list(VideoSource(Path(name)))) == len(FRAMES)


def test_a_name_whose_bytes_are_no_text_is_an_error(write_video: WriteVideo) -> None:
    path = write_video("a.mkv")
    path = path.rename(path.with_name(os.fsdecode(b"\xff.mkv")))
    (item,) = VideoSource(path)
    assert str(item.picture).endswith("\\xff.mkv: the name of a video must be UTF-8; rename it")


def test_closing_from_another_thread_ends_the_frames(write_video: WriteVideo) -> None:
    source = VideoSource(write_video("a.mkv"))
    frames = iter(source)
    next(frames)
    closer = threading.Thread(target=source.close)
    closer.start()
    closer.join()
    assert list(frames) == []
