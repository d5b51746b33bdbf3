"""Writing a video, whole or not at all."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import cv2
import numpy as np

from segship.runtime.capture import quiet_ffmpeg
from segship.runtime.errors import OutputError
from segship.runtime.files import replacing
from segship.runtime.printable import printable
from segship.runtime.render import RgbImage

VIDEO_CODECS: Final = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "FFV1"}
"""By suffix: MPEG-4 Part 2 and Motion JPEG, which players know, and FFV1, which loses nothing."""

_MAX_MPEG4_TICKS: Final = 65535  # of a second, as MPEG-4 counts time in 16 bits


class VideoWriter:
    """A video without sound, written frame by frame.

    A context manager: left without an error, it puts the video at its place; otherwise nothing is there, and what was
    there stays.

    Args:
        path: of the video; its suffix is one of :data:`VIDEO_CODECS` and chooses the codec.
        fps: frames a second. They are kept to a thousandth (30000/1001 as 29.97), and in ``.mp4``, where that takes
            more than 16 bits, to a hundredth or a tenth.
        size: (height, width) of the frames. The codecs need even sides: an odd one gets its last line twice.

    Raises:
        OutputError: if the suffix or the frame rate is of no use.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        if path.suffix.lower() not in VIDEO_CODECS:
            raise OutputError(f"{path}: videos are written as {', '.join(VIDEO_CODECS)}; give one of these suffixes")
        if any("\ud800" <= character <= "\udfff" for character in str(path)):
            raise OutputError(f"{printable(path)}: OpenCV writes no video of a name that is no UTF-8; choose another")
        if not 0 < fps < 100_000:
            raise OutputError(f"{path}: the frame rate is {fps}; a video needs one above 0 and below 100000 a second")
        self.path, self.size, self.frames = path, size, 0
        self._fps = _kept_rate(fps, path.suffix.lower())
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Open the file.

        Raises:
            OutputError: if it cannot be written, or this OpenCV lacks the codec.
        """
        quiet_ffmpeg()
        with contextlib.ExitStack() as stack:  # what is open is closed again if a later step fails
            self._temporary = stack.enter_context(replacing(self.path))
            self._temporary.touch()  # says what is wrong with the place, which OpenCV does not
            codec = VIDEO_CODECS[self.path.suffix.lower()]
            height, width = (side + side % 2 for side in self.size)
            self._writer = cv2.VideoWriter(
                str(self._temporary), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), self._fps, (width, height)
            )
            stack.callback(self._writer.release)
            if not self._writer.isOpened():
                raise OutputError(
                    f"{self.path}: this OpenCV cannot write {codec} videos of {height}×{width} pixels at {self._fps:g} "
                    "frames a second; take another suffix"
                )
            self._stack = stack.pop_all()
        return self

    def write(self, frame: RgbImage) -> None:
        """Add a frame (H, W, 3), uint8 RGB.

        Raises:
            OutputError: if its size is not that of the video.
        """
        height, width = self.size
        if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
            raise OutputError(
                f"{self.path}: frame {self.frames + 1} is {frame.shape} {frame.dtype}; the video's are "
                f"{(height, width, 3)} uint8, as all frames of a video have one size"
            )
        pixels = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        if height % 2 or width % 2:
            pixels = cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self._writer.write(pixels)
        self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file and put it at its place.

        Raises:
            OutputError: if no frame came, or the file does not hold all of them, as on a full disk.
        """
        if error is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            self._writer.release()
            self._check()

    def _check(self) -> None:
        """Look into the finished file: OpenCV's writer says nothing of what went wrong."""
        if not self.frames:
            raise OutputError(f"{self.path}: no frame came, so there is no video to write")
        reader = cv2.VideoCapture(str(self._temporary), cv2.CAP_FFMPEG)
        try:
            found = round(reader.get(cv2.CAP_PROP_FRAME_COUNT)) if reader.isOpened() else 0
        finally:
            reader.release()
        if found != self.frames:
            raise OutputError(
                f"cannot write {self.path}: the finished file does not hold its {self.frames} frames; is the disk full?"
            )


def _kept_rate(fps: float, suffix: str) -> float:
    """Return the rate with as many digits as the container keeps."""
    for digits in (3, 2, 1, 0):
        rate = round(fps, digits)
        ticks = next(round(rate * base) for base in (1, 10, 100, 1000) if abs(round(rate * base) / base - rate) < 1e-6)
        if rate > 0 and (suffix != ".mp4" or ticks <= _MAX_MPEG4_TICKS):
            break
    return rate
