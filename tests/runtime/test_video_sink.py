import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.errors import OutputError
from segship.runtime.outputs import OutputOptions, overlay_picture
from segship.runtime.result import Result
from segship.runtime.source_item import SourceItem
from segship.runtime.sources import FileSource
from segship.runtime.video_sink import VideoSink

Photo = NDArray[np.uint8]
ITEM = SourceItem(Path("unused"), "v frame 1", Path("day.1/v.2/frame-000001"))


class Film(FileSource):
    """A video of a known frame rate."""

    fps = 12.5
    is_video = True


class Stream(Film):
    """A camera that does not tell its frame rate."""

    fps = None  # type: ignore[assignment]
    is_live = True


def sink(out: Path, source: FileSource | None = None, *, overwrite: bool = False) -> VideoSink:
    job: Any = SimpleNamespace(out=out, overwrite=overwrite)
    return VideoSink(job, source or Film([]), OutputOptions())


def written(path: Path) -> tuple[int, float]:
    """How many frames a video has, and how many a second."""
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.grab():
        count += 1
    return count, capture.get(cv2.CAP_PROP_FPS)


def film(video: VideoSink, *frames: Photo) -> None:
    with video:
        for frame in frames:
            video.write(ITEM.place, frame)


def record(video: VideoSink, frame: Photo, error: type[BaseException]) -> None:
    """Write a frame and fail."""
    with video:
        video.write(ITEM.place, frame)
        raise error


def test_frames_become_a_video_of_their_rate_below_the_place_of_their_folder(photo: Photo, tmp_path: Path) -> None:
    with sink(tmp_path) as video:
        for _ in range(3):
            video.write(ITEM.place, photo)
    assert written(tmp_path / "video/day.1/v.2.mp4") == (3, 12.5)


def test_a_source_that_does_not_tell_its_rate_gets_the_usual_one(photo: Photo, tmp_path: Path) -> None:
    with sink(tmp_path, Stream([])) as video:
        video.write(ITEM.place, photo)
    assert written(tmp_path / "video/day.1/v.2.mp4") == (1, 25)


def test_without_a_frame_there_is_no_video(tmp_path: Path) -> None:
    with sink(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_is_there_stays_unless_it_may_be_written_over(photo: Photo, tmp_path: Path) -> None:
    path = tmp_path / "video/day.1/v.2.mp4"
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(OutputError, match="is there already; add --overwrite"), sink(tmp_path) as video:
        video.write(ITEM.place, photo)
    assert path.read_text() == "precious"
    with sink(tmp_path, overwrite=True) as video:
        video.write(ITEM.place, photo)
    assert written(path)[0] == 1


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_after_an_error_there_is_no_half_video(photo: Photo, tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        record(sink(tmp_path), photo, error)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutputError, ZeroDivisionError])
def test_of_a_stream_is_kept_what_came_however_it_ends(
    photo: Photo, tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        record(sink(tmp_path, Stream([])), photo, error)
    assert written(tmp_path / "video/day.1/v.2.mp4")[0] == 1


def test_a_stream_that_comes_back_with_another_size_goes_on_in_another_video(photo: Photo, tmp_path: Path) -> None:
    (tmp_path / "video/day.1").mkdir(parents=True)
    (tmp_path / "video/day.1/v.2-2.mp4").write_text("precious")
    film(sink(tmp_path, Stream([])), photo, photo, photo[:40, :60], photo)
    names = ("v.2.mp4", "v.2-3.mp4", "v.2-4.mp4")
    assert [written(tmp_path / "video/day.1" / name)[0] for name in names] == [2, 1, 1]
    assert (tmp_path / "video/day.1/v.2-2.mp4").read_text() == "precious"


def test_frames_of_a_file_have_one_size_or_there_is_no_video(photo: Photo, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="all frames of a video have one size"):
        film(sink(tmp_path), photo, photo[:40])
    assert not list(tmp_path.rglob("*.mp4"))


def test_a_frame_is_the_overlay_as_it_is_written_of_a_picture(
    conv_card: ModelCard, photo: Photo, tmp_path: Path
) -> None:
    labels = (np.indices(photo.shape[:2]).sum(0) // 40 % 6).astype(np.uint8)
    result = Result("frame", photo, labels, None, conv_card)
    options = OutputOptions(alpha=0.8, legend=True, legend_ids=(0, 1))
    job: Any = SimpleNamespace(out=tmp_path, overwrite=False)
    frame = VideoSink(job, Film([]), options).frame(result)
    np.testing.assert_array_equal(frame, overlay_picture(result, options))
    plain = VideoSink(job, Film([]), dataclasses.replace(options, legend=False)).frame(result)
    np.testing.assert_array_equal(plain, result.overlay(0.8))
    assert frame.shape[0] > plain.shape[0]
