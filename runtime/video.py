"""Videos: their frames, in order, each with its place in time."""

import os
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from segship.runtime.capture import Capture, Frame
from segship.runtime.errors import ImageError
from segship.runtime.images import MAX_PIXELS
from segship.runtime.printable import printable
from segship.runtime.source_item import Source, SourceItem, Tell, say_nothing
from segship.runtime.urls import ADDRESS, public_url, url_place


class VideoSource(Source):
    """The frames of one video, opened when it is first asked about.

    Frames are 8-bit colour, turned as the video says, or 16-bit grey where it is that. A video that ends well before
    the end it announces has an item at its end that says so.

    Args:
        video: a file, or an address that FFmpeg reads.
        folder: what the places of its frames lie in; None: its name.
        max_pixels: a video of larger frames is refused.
        tell: called with a line about what is done to frames.
    """

    is_video = True

    def __init__(
        self,
        video: str | Path,
        folder: Path | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
        tell: Tell = say_nothing,
    ) -> None:
        self._is_address = isinstance(video, str) and ADDRESS.match(video) is not None
        self._video = str(video)
        self._name = public_url(self._video) if self._is_address else printable(video)
        place = url_place(self._video) if self._is_address else Path(Path(video).name)
        self._folder = folder or place.with_suffix("")
        self._max_pixels, self._tell = max_pixels, tell
        self._facts: tuple[int | None, float | None] = (None, None)
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def count(self) -> int | None:
        """About how many frames there are, if the video tells."""
        return self._facts[0] if self._opened else None

    @property
    def fps(self) -> float | None:
        """Frames a second, if the video tells."""
        return self._facts[1] if self._opened else None

    def __iter__(self) -> Iterator[SourceItem]:
        try:
            if isinstance(self._opened, ImageError):
                yield self._error(self._opened)
            else:
                yield from self._frames(self._opened)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the file; a frame that is being decoded comes to its end first."""
        with self._lock:
            self._is_closed = True
            opened = self.__dict__.get("_opened")
            if isinstance(opened, Capture):
                opened.close()

    @cached_property
    def _opened(self) -> Capture | ImageError:
        # Absolute, since FFmpeg takes what stands before a colon for a protocol.
        address = self._video if self._is_address else os.path.abspath(self._video)  # noqa: PTH100
        try:
            address.encode()
        except UnicodeEncodeError:  # which OpenCV would crash on
            return ImageError(f"{self._name}: the name of a video must be UTF-8; rename it")
        capture = Capture(address)
        if not capture.is_open:
            return ImageError(f"{self._name}: no video that can be read{self._why()}")
        width, height = capture.size
        if width * height > self._max_pixels:
            capture.close()
            return ImageError(
                f"{self._name}: frames of {width}×{height} = {width * height} pixels, above --max-pixels "
                f"{self._max_pixels}; raise it if the video is wanted"
            )
        self._facts = capture.count, capture.fps
        if capture.loses_bits:
            self._tell(f"{self._name}: its frames have more than 8 bits, and are brought to 8")
        return capture

    def _why(self) -> str:
        if self._is_address:
            return ""
        try:
            with Path(self._video).open("rb") as file:
                return "" if file.read(1) else " (it is empty)"
        except OSError as error:
            return f" ({error.strerror})"

    def _frames(self, capture: Capture) -> Iterator[SourceItem]:
        number, time_s = 0, 0.0
        while (frame := self._read(capture)) is not None:
            number += 1
            picture, time_s = frame
            place = self._folder / f"frame-{number:06d}"
            yield SourceItem(picture, f"{self._name} frame {number}", place, time_s=time_s)
        if not self._is_closed and (lack := self._lack(number, time_s)):
            yield self._error(ImageError(f"{self._name}: {lack}"))

    def _read(self, capture: Capture) -> tuple[Frame, float] | None:
        with self._lock:
            frame = None if self._is_closed else capture.read()
            return None if frame is None else (frame, capture.time_s)

    def _lack(self, frames: int, time_s: float) -> str:
        """Tell what is missing, if that is certain.

        Of many containers the number of frames is but their duration times their rate, and sound may be longer than
        the pictures; so a tenth, and two frames, may be missing.
        """
        if frames == 0:
            return "no frame of it can be decoded"
        count, fps = self._facts
        if count is None or fps is None:
            return ""
        duration_s, reached_s = count / fps, max(time_s + 1 / fps, frames / fps)
        if reached_s >= 0.9 * duration_s - 2 / fps:
            return ""
        return (
            f"the video is cut short or damaged: it ends after {frames} of about {count} frames "
            f"({reached_s:.1f} of {duration_s:.1f} s)"
        )

    def _error(self, error: ImageError) -> SourceItem:
        return SourceItem(error, self._name, self._folder)
