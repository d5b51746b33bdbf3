"""OpenCV's way to videos, cameras and streams, quiet and with time limits."""

import os
from typing import Any, Final

import cv2
from numpy.typing import NDArray

Frame = NDArray[Any]
"""(H, W, 3) uint8 in red, green, blue order, or (H, W) uint16 of 16-bit grey."""

TIMEOUT_MS: Final = 10_000
"""How long a connection, and each frame of it, may take."""

_GREY_16: Final = b"Y1\0\x10"


def quiet_ffmpeg() -> None:
    """Keep FFmpeg from writing lines of its own to stderr, unless the environment asks for them.

    What is set when OpenCV first starts FFmpeg in a process counts: to be called before a video is read or written.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class Capture:
    """An open video, camera or stream; to be used by one thread at a time.

    Args:
        source: a path or an address for FFmpeg, or the number of a camera.
        timeout_ms: how long opening, and each frame, may take.
    """

    def __init__(self, source: str | int, *, timeout_ms: int = TIMEOUT_MS) -> None:
        quiet_ffmpeg()
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # that it cannot be opened we say
        try:
            if isinstance(source, int):
                self._capture = cv2.VideoCapture(source)
            else:
                limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms]
                self._capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
        finally:
            cv2.utils.logging.setLogLevel(level)
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        self._pixels = _tag(self._capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT))
        if self._pixels == _GREY_16:  # otherwise it would be made 8-bit colour
            self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)

    @property
    def is_open(self) -> bool:
        """Whether there is something to read."""
        return bool(self._capture.isOpened())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame, before it is turned."""
        return int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))

    @property
    def fps(self) -> float | None:
        """Frames a second, if there is a likely number."""
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        return fps if 0 < fps <= 1000 else None  # clocks of 90 kHz pass for it

    @property
    def count(self) -> int | None:
        """Number of frames, as the container tells it or as its duration lets expect."""
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        return int(count) if 0 < count < 1e9 else None

    @property
    def loses_bits(self) -> bool:
        """Whether frames of more than 8 bits are brought to 8."""
        return self._pixels != _GREY_16 and (9 <= self._pixels[3] <= 16 or self._pixels[:2] in (b"P0", b"P2", b"P4"))

    @property
    def time_s(self) -> float:
        """Position of the frame that was read last, by its time stamp."""
        return float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000

    def read(self) -> Frame | None:
        """Return the next frame; None: there is none, it cannot be decoded, or it took too long."""
        try:
            _, frame = self._capture.read()
        except cv2.error:
            return None
        return frame if frame is None or frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        """Let go of the file or device."""
        self._capture.release()


def _tag(value: float) -> bytes:
    return (int(value) & 0xFFFFFFFF).to_bytes(4, "little") if value > 0 else bytes(4)
